"""What was written to the root since the handover, so that the server can propose volatile rules.

Young files of the root's own file system (the tmpfs, or the upper layer of an overlay), summed up by the deepest path that
the image has: that is what a rule could name.
"""

from __future__ import annotations

import os
import stat
import threading
import time

LOOK_FIRST_S, LOOK_EVERY_S = 120.0, 3600.0
MOST = 50  # entries told, the largest first
EXAMPLES = 5  # of each
LONGEST = 200  # characters of a path; who has longer ones does without
UPPER = "/run/fleet/root/upper"
SHARE = "/.ro"
HANDOVER = "/run/fleet/boot"  # written last by the initrd
# Not the image's, or thrown away by every cycle.
ELSEWHERE = frozenset({"/.ro", "/dev", "/home", "/proc", "/run", "/sys", "/tmp"})  # noqa: S108 - names, nothing is put there


class Watch:
    """Looks now and then, in a thread of its own: nothing waits for a slow root."""

    def __init__(self) -> None:
        self.look_at = time.monotonic() + LOOK_FIRST_S
        self.seen: list[dict[str, object]] = []
        self.told: list[dict[str, object]] = []  # what somebody knows already, who sets it

    def news(self) -> list[dict[str, object]]:
        """What was written, where it is not what was told; []: nothing new."""
        if time.monotonic() >= self.look_at:
            self.look_at = time.monotonic() + LOOK_EVERY_S
            threading.Thread(target=self.look, daemon=True).start()
        return self.seen if self.seen != self.told else []

    def look(self) -> None:
        self.seen = written()


def written(
    root: str = "/", upper: str = UPPER, share: str = SHARE, handover: str = HANDOVER
) -> list[dict[str, object]]:
    """`{path, files, bytes, examples}` of each place; bytes are those in memory. [] where nobody knows when the handover was.

    By the time of a file's last change, not of its content's: who unpacks an archive sets that back.
    """
    try:
        since = os.stat(handover).st_mtime
    except OSError:
        return []
    top = upper if os.path.isdir(upper) else root
    device = os.lstat(top).st_dev
    files, sizes, examples = dict[str, int](), dict[str, int](), dict[str, dict[str, str]]()
    for folder, folders, names in os.walk(top):
        inside = os.path.normpath("/" + os.path.relpath(folder, top))
        folders[:] = [name for name in folders if _ours(os.path.join(folder, name), os.path.join(inside, name), device)]
        for name in names:
            try:
                status = os.lstat(os.path.join(folder, name))
            except OSError:
                continue  # gone meanwhile
            if not stat.S_ISREG(status.st_mode) or status.st_ctime < since:
                continue
            path = os.path.join(inside, name)
            place = deepest(path, share)
            if not (_tellable(path) and _tellable(place)):
                continue
            files[place] = files.get(place, 0) + 1
            sizes[place] = sizes.get(place, 0) + status.st_blocks * 512
            # One of each thing that is new at the place: a rule may name one and not the other.
            examples.setdefault(place, {}).setdefault(path[len(place) :].lstrip("/").partition("/")[0], path)
    largest = sorted(files, key=lambda place: -sizes[place])[:MOST]
    return [
        {"path": p, "files": files[p], "bytes": sizes[p], "examples": list(examples[p].values())[:EXAMPLES]}
        for p in largest
    ]


def _ours(path: str, inside: str, device: int) -> bool:
    """Whether to look into a directory: part of the root's file system, and of the image."""
    try:
        return inside not in ELSEWHERE and os.lstat(path).st_dev == device
    except OSError:
        return False


def deepest(path: str, share: str) -> str:
    """`path`, or the nearest above it that the share has."""
    while path != "/" and not os.path.lexists(share + path):
        path = os.path.dirname(path)
    return path


def _tellable(path: str) -> bool:
    return path.isprintable() and len(path) <= LONGEST
