"""Reads the kernel's notes (images/checker/probes.py): which writing calls were refused, for which path, and who made them."""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

ERRORS = {-30: "erofs", -13: "eacces"}
_NOTE = re.compile(r" *.+-(\d+) +\[\d+\] \S+ +[\d.]+: (\w+): (.*)")
_PATH = re.compile(r'path="(.*?)"(?= \w+=|$)')
_NUMBER = re.compile(r"\b(fd|ret)=(-?\d+)")
_WHO = re.compile(r'who="(.*)"')
_FORK = re.compile(r" pid=(\d+) .* child_pid=(\d+)")
_HERE = -100  # AT_FDCWD
_UNKNOWN = "…"


@dataclass(frozen=True, slots=True)
class Refused:
    """One call. A path that is relative to a directory nobody knows begins with ``…/``."""

    error: str  # erofs or eacces
    call: str
    path: str
    who: str


def refused(text: str) -> Iterator[Refused]:
    """The refused calls of the root's own system, in their order; the initrd's are not the image's matter.

    A process's working directory is followed from its parent's, through each chdir, to name what was meant by a relative path.
    """
    begun: dict[str, Refused | None] = {}
    places: dict[str, str] = {}
    in_root = False
    for line in text.splitlines():
        if not (match := _NOTE.fullmatch(line)):
            continue
        process, event, said = match.groups()
        kind, _, call = event.partition("_")
        if event == "sched_process_exec":
            if "filename=/sbin/init " in said:
                in_root = True
                places.clear()
        elif event == "sched_process_fork":
            if family := _FORK.search(said):
                places[family[2]] = places.get(family[1], "/")
        elif event == "chdir":
            places[process] = _absolute(said, places.get(process, "/"))
        elif event == "fchdir":
            places[process] = _UNKNOWN
        elif kind == "c":
            place = places.get(process, "/")
            who = _WHO.search(said)
            begun[process] = Refused("", call, _absolute(said, place), who[1] if who else "?")
        elif kind == "o":
            begun[process] = None
        elif kind == "r":
            one, error = begun.pop(process, None), ERRORS.get(_numbers(said).get("ret", 0))
            if one and one.call == call and error and in_root:
                yield Refused(error, call, one.path, one.who)


def _absolute(said: str, place: str) -> str:
    path = _PATH.search(said)
    if path is None:
        return f"{_UNKNOWN}/"  # the kernel could not read it
    if not path[1].startswith("/") and _numbers(said).get("fd", _HERE) != _HERE:
        place = _UNKNOWN
    joined = posixpath.normpath(posixpath.join(place, path[1]))
    return "/" + joined.lstrip("/") if joined.startswith("/") else joined


def _numbers(said: str) -> dict[str, int]:
    return {key: int(value) for key, value in _NUMBER.findall(said)}
