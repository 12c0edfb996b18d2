"""Restart and power off: systemd's way, and the kernel's own where systemd does not get there."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time

SYSTEMD_S = 90.0  # what is still running then will not end by itself
MAGIC = {"restart": 0x01234567, "poweroff": 0x4321FEDC}  # reboot(2)


def go(verb: str) -> None:
    """Carry out `restart` or `poweroff`; returns only if even the kernel refuses."""
    asked = subprocess.run(["systemctl", "--no-block", "reboot" if verb == "restart" else verb], check=False)
    if asked.returncode == 0:
        time.sleep(SYSTEMD_S)  # its SIGTERM ends this process meanwhile
    force(verb)


def force(verb: str) -> None:
    os.sync()
    ctypes.CDLL(None).reboot(MAGIC[verb])


def going_down() -> bool:
    """Whether systemd is stopping all units, and not just this one."""
    asked = subprocess.run(["systemctl", "is-system-running"], capture_output=True, check=False)
    return asked.stdout.strip() == b"stopping"
