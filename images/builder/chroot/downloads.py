"""How many bytes a package manager has fetched, of how many, read from what it prints."""

from __future__ import annotations

import re

# 0 upgraded, 69 newly installed, … / Need to get 29.7 MB/31.2 MB of archives.
_NEED = re.compile(r"Need to get (?P<size>[\d.]+) (?P<unit>[kMGT]?)B(?:/[\d.]+ [kMGT]?B)? of archives")
# Get:3 http://deb.debian.org/debian bookworm/main amd64 libc6 amd64 2.36-9+deb12u14 [2759 kB]
_GET = re.compile(r"Get:\d+ (?P<uri>\S+) .*\[(?P<size>[\d.]+) (?P<unit>[kMGT]?)B\]\s*$")
_FETCHED = re.compile(r"Fetched [\d.]+ [kMGT]?B in ")

# Total download size: 15 M
_SIZE = re.compile(r"Total download size: (?P<size>[\d.]+) ?(?P<unit>[kMGT]?)\s*$")
# (2/5): bash-1.0-1.x86_64.rpm         52 MB/s | 1.0 MB     00:00
_LOADED = re.compile(
    r"(?:\(\d+/(?P<packages>\d+)\): )?\S+\.d?rpm +[\d.]+ [kMGT]?B/s \| +(?P<size>[\d.]+) (?P<unit>[kMGT]?)B "
)
_ALL_LOADED = re.compile(r"Total +[\d.]+ [kMGT]?B/s \| ")


class Apt:
    """`done` of `total` bytes, by the lines of apt; what it fetches beside packages does not count.

    apt tells of a file when it begins with it, one after the other from each archive: so one that began is done when the next begins.
    """

    def __init__(self) -> None:
        self.done = 0
        self.total = 0
        self._under_way: dict[str, int] = {}  # by archive
        self._needed = False

    def __call__(self, line: str) -> bool:
        """Read a line; True when it tells of bytes."""
        if match := _NEED.match(line):
            self.total += (needed := _bytes(match, 1000))
            self._needed = needed > 0
        elif self._needed and (match := _GET.match(line)):
            self.done = min(self.total, self.done + self._under_way.get(match["uri"], 0))
            self._under_way[match["uri"]] = _bytes(match, 1000)
        elif self._needed and _FETCHED.match(line):
            self.done, self._needed = self.total, False
            self._under_way.clear()
        else:
            return False
        return True


class Dnf:
    """`done` of `total` bytes, by the lines of dnf, which tells of a package when it is there; and how many `packages` they are."""

    def __init__(self) -> None:
        self.done = 0
        self.total = 0
        self.packages = 0

    def __call__(self, line: str) -> bool:
        """Read a line; True when it tells of bytes."""
        if match := _SIZE.match(line):
            self.total = _bytes(match, 1024)
        elif match := _LOADED.match(line):
            self.packages = int(match["packages"] or 1)
            self.done = min(self.total, self.done + _bytes(match, 1024))
        elif _ALL_LOADED.match(line):
            self.done = self.total
        else:
            return False
        return True


def _bytes(match: re.Match[str], kilo: int) -> int:
    unit = {"": 1, "k": kilo, "M": kilo**2, "G": kilo**3, "T": kilo**4}[match["unit"]]
    return round(float(match["size"]) * unit)
