"""What is done to a client: its session, its home, its screen, its power. Nothing here talks to the server or knows a key.

Python's standard library only, 3.9 or newer. The daemon (`agents.daemon`) decides, and calls; nothing here calls back into it.
"""
