"""Restart and power off: by the init that there is, and the kernel's own way where that does not get there."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time

INIT_S = 90.0  # what is still running then will not end by itself
ASK = {
    "restart": (["systemctl", "--no-block", "reboot"], ["reboot"]),
    "poweroff": (["systemctl", "--no-block", "poweroff"], ["poweroff"]),
}
MAGIC = {"restart": 0x01234567, "poweroff": 0x4321FEDC}  # reboot(2)


def go(verb: str) -> None:
    """Carry out `restart` or `poweroff`; returns only if even the kernel refuses."""
    for command in ASK[verb]:
        try:
            asked = subprocess.run(command, check=False)
        except FileNotFoundError:
            continue  # an init of another kind
        if asked.returncode == 0:
            time.sleep(INIT_S)  # its SIGTERM ends this process meanwhile
        break
    force(verb)


def force(verb: str) -> None:
    os.sync()
    ctypes.CDLL(None).reboot(MAGIC[verb])


def going_down() -> bool:
    """Whether systemd is stopping all units, and not just this one."""
    try:
        asked = subprocess.run(["systemctl", "is-system-running"], capture_output=True, check=False)
    except FileNotFoundError:
        return False  # nobody knows: then the silence tells it
    return asked.stdout.strip() == b"stopping"
