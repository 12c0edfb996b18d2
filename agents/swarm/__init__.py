"""Clients that are not there: thousands in one process, which boot, connect, obey and misbehave as real ones do.

They speak the real protocol by the daemon's own code (``agents.daemon.protocol``), so that a site can be sized before an event, and the
server's promises be counted: no command lost, none carried out twice, no restore without its row.
"""
