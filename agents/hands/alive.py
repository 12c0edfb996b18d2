"""A sign of life for systemd: a daemon that gives none for as long as its unit's WatchdogSec is killed, and started anew."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def sign() -> None:
    """sd_notify(3), WATCHDOG=1; nothing where nobody watches."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as way:
            way.sendto(b"WATCHDOG=1", "\0" + path[1:] if path.startswith("@") else path)
