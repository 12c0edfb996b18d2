"""The daemon on every client: it talks to the server, is trusted with its keys, and decides what is obeyed.

What a command does to the PC is in `agents.hands`; both need nothing but Python's standard library, 3.9 or newer.

The initrd copies both to /run/fleet/agent, where this runs as `python3 -m agent.daemon` with /run/fleet as its working
directory; the server imports the very same files as `agents.daemon`. Relative imports serve both.
"""
