"""mount(2) and umount2(2) by way of libc: a fork of mount(8) costs more than the whole restore of a home."""

from __future__ import annotations

import ctypes
import os
import re

NOSUID, NODEV = 0x2, 0x4
DETACH = 0x2  # umount2(2) MNT_DETACH: out of sight at once, gone when the last user lets go

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """Mount; an OSError names the target."""
    arguments = (os.fsencode(source), os.fsencode(target), os.fsencode(kind))
    if _libc.mount(*arguments, ctypes.c_ulong(flags), os.fsencode(options)):
        raise OSError(ctypes.get_errno(), f"mount {kind}: {os.strerror(ctypes.get_errno())}", target)


def detach(target: str) -> None:
    """Take every mount off `target`, with all below it; none there is as good."""
    while os.path.ismount(target):
        if _libc.umount2(os.fsencode(target), DETACH):
            raise OSError(ctypes.get_errno(), f"umount: {os.strerror(ctypes.get_errno())}", target)


def table() -> list[tuple[str, str, str]]:
    """(mount point, type, options of the file system) of all mounts, oldest first; see proc(5), mountinfo."""
    rows = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, _, right = line.rstrip("\n").partition(" - ")
            point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), left.split(" ")[4])
            kind, _, options = right.split(" ", 2)
            rows.append((point, kind, options))
    return rows
