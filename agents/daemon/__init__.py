"""The program on every client: Python's standard library only, 3.9 or newer.

The initrd copies this package to /run/fleet/agent, where it runs as `python3 -m agent` with /run/fleet as its
working directory; the server imports the very same files as `agents.daemon`. Relative imports serve both.
"""
