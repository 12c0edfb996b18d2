"""A home as a tar stream: `pack.py <home>` writes it to its output, and what is in it as JSON to its error output.

It runs as the user: so there is nothing in the stream that the user could not read, whatever links are put in its way, and
the user's next cycle ends it. This module needs none of its siblings.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import tarfile
from collections.abc import Iterator
from typing import IO

BLOCK = 1 << 18


class Packer:
    """One run. `files` counts what is in the stream; `skipped` what is not: of another kind, unreadable, or gone meanwhile."""

    def __init__(self, home: str, target: IO[bytes]) -> None:
        self.home, self.files, self.skipped = home, 0, 0
        self.device = os.stat(home).st_dev
        self.tar = tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - close() ends it

    def run(self) -> None:
        """The home itself, then each directory before what is in it, by name."""
        self.add("", os.lstat(self.home))
        for path in self.entries(""):
            try:
                self.add(path, os.lstat(os.path.join(self.home, path)))
            except OSError:
                self.skipped += 1
        self.tar.close()

    def entries(self, below: str) -> Iterator[str]:
        """Relative paths below a directory. What is mounted there, and the sockets of programs, are left out."""
        try:
            with os.scandir(os.path.join(self.home, below)) as directory:
                names = sorted(entry.name for entry in directory)
        except OSError:
            self.skipped += 1
            return
        for name in names:
            path = os.path.join(below, name)
            try:
                entry = os.lstat(os.path.join(self.home, path))
            except OSError:
                self.skipped += 1
                continue
            inside = stat.S_ISDIR(entry.st_mode)
            # An overlay gives files the device of their layer: only that of a directory tells a mount.
            if inside and entry.st_dev != self.device:
                self.skipped += 1
                continue
            yield path
            if inside:
                yield from self.entries(path)

    def add(self, path: str, entry: os.stat_result) -> None:
        """One entry; OSError, before anything of it is written, where it cannot be read."""
        info = tarfile.TarInfo(path or ".")
        info.mode, info.mtime = stat.S_IMODE(entry.st_mode), int(entry.st_mtime)
        full = os.path.join(self.home, path)
        if stat.S_ISDIR(entry.st_mode):
            info.type = tarfile.DIRTYPE
            self.tar.addfile(info)
        elif stat.S_ISLNK(entry.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(full)
            self.tar.addfile(info)
        elif stat.S_ISREG(entry.st_mode):
            with open(os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb", buffering=0) as file:
                opened = os.fstat(file.fileno())
                if not stat.S_ISREG(opened.st_mode):
                    raise OSError(f"{path} is another kind of file meanwhile")
                info.size = opened.st_size
                self.tar.addfile(info, Steady(file))
        else:
            self.skipped += 1
            return
        self.files += 1


class Steady:
    """A file that is as long as it was, though somebody writes to it: what is missing is zeros."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def read(self, size: int = 0, /) -> bytes:
        got = b""
        while len(got) < size and (block := self.file.read(min(BLOCK, size - len(got)))):
            got += block
        return got.ljust(size, b"\0")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: pack.py <home>", file=sys.stderr)
        return 2
    os.nice(19)  # somebody may be playing
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("0")  # not the daemon's, which spares it
    with os.fdopen(1, "wb", buffering=BLOCK) as target:
        packer = Packer(arguments[0], target)
        packer.run()
    print(json.dumps({"files": packer.files, "skipped": packer.skipped}), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
