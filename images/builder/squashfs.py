"""Packs a tree into a squashfs, and lists one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from images.builder.errors import BuildError
from images.builder.run import Runner
from images.builder.steps import Step
from images.builder.tree import Entry

# 650 MB take two cores 3 to 5 s; a build may cost at most 1.15 times plain mmdebstrap and mksquashfs.
LEVEL = 3
# unsquashfs: "-rw-r--r-- 0/0     12 2026-05-01 12:00 squashfs-root/etc/motd", a link's with " -> target", a device's size with a comma.
_ENTRY = re.compile(r"(\S{10}) (\d+/\d+) +(\d+(?:, *\d+)?) (\S{10} \S{5}) squashfs-root(/.*)?")

_BAR = re.compile(r"\[[=|/\\ -]*\] +(\d+)/(\d+) +\d+%")  # [=====/     ] 1618/3236  50%


def command(tree: Path, output: Path, epoch: int) -> list[str]:
    """The command that packs `tree` into `output`: the same bytes for the same tree.

    File times after `epoch` (s) are set back to it. Extended attributes are kept: file capabilities are some.
    """
    return [
        *("env", f"SOURCE_DATE_EPOCH={epoch}", "mksquashfs", str(tree), str(output)),
        *("-noappend", "-comp", "zstd", "-Xcompression-level", str(LEVEL), "-xattrs", "-no-exports"),
        *("-progress", "-quiet"),
    ]


def pack(tree: Path, output: Path, run: Runner, epoch: int, size: int = 0) -> None:
    """Pack `tree`, with files of `size` bytes, into the new file `output`, the reader of which is root on a client."""
    run(command(tree, output, epoch), watch=Bar(run.step, size))


class Bar:
    """Reads mksquashfs's bar, which counts blocks, and tells the step how much of `size` bytes is packed."""

    def __init__(self, step: Step, size: int) -> None:
        self._step = step
        self._size = size

    def __call__(self, line: str) -> bool:
        """Read a line; True for one of the bar."""
        if not line.strip():
            return True  # the bar begins each of its lines with a return
        if not (match := _BAR.fullmatch(line.strip())):
            return False
        if self._size and (blocks := int(match[2])):
            self._step.progress(0, 0, self._size * int(match[1]) // blocks, self._size)
        return True


def content(root: Path, path: str) -> bytes | None:
    """What is in a regular file of the packed tree; None where it has none of that name."""
    done = subprocess.run(["unsquashfs", "-cat", str(root), path.lstrip("/")], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def files(root: Path, epoch: int) -> dict[str, str]:
    """Path to what can be told of it without reading it: type and mode, owner, size, time (to the minute), a link's target.

    The time is left out where it says nothing: of a directory, and where it was set back to `epoch` (s). Raises BuildError.
    """
    end = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d %H:%M")
    found = {}
    for mode, owner, size, time, path, target in _listed(root):
        shown = "" if mode[0] == "d" or time == end else f" {time}"
        found[path] = f"{mode} {owner} {'' if mode[0] == 'd' else size}{shown}{' → ' + target if target else ''}"
    return found


def entries(root: Path) -> Iterator[Entry]:
    """What is in `root` but its top directory: paths, kinds, sizes and the targets of links, all else is left as it may be.

    Raises BuildError.
    """
    for mode, _, size, _, path, target in _listed(root):
        kind = "f" if mode[0] == "-" else mode[0]
        yield Entry(path, kind, size=int(size) if kind == "f" else 0, target=target)


def _listed(root: Path) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Of each path but the top directory: mode, owner, size, time, path, a link's target."""
    argv = ["unsquashfs", "-lln", str(root)]
    done = subprocess.run(
        argv, capture_output=True, text=True, errors="surrogateescape", env={"TZ": "UTC"}, check=False
    )
    if done.returncode:
        raise BuildError(f"{root} cannot be listed: {done.stderr.strip()}")
    for line in done.stdout.splitlines():
        if not (match := _ENTRY.fullmatch(line)) or not match[5]:
            continue
        mode, owner, size, time, path = match.groups()
        path, _, target = path.partition(" -> ") if mode[0] == "l" else (path, "", "")
        yield mode, owner, size, time, path, target
