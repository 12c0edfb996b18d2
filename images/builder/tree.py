"""What is in a tree: the listing the root plan is computed from."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

KINDS = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
    stat.S_IFBLK: "b",
    stat.S_IFCHR: "c",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of an image, absolute as a client sees it; `/` is the root itself."""

    path: str
    kind: str  # f d l p s b c
    mode: int = 0o755  # permission bits, with set-id and sticky
    uid: int = 0
    gid: int = 0
    size: int = 0  # bytes, of files only
    target: str = ""  # of symbolic links only
    device: tuple[int, int] = (0, 0)  # major and minor, of devices only
    inode: int = 0  # the same in entries that are hard links of one file; 0: it has one name
    capable: bool = False  # has file capabilities, which no cpio archive carries


def listing(tree: Path) -> list[Entry]:
    """All entries of the directory `tree`, sorted by path; symbolic links are not followed."""
    top = os.fspath(tree)
    entries = [entry(top, "/")]
    for directory, subdirectories, files in os.walk(top):
        for name in subdirectories + files:
            path = f"{directory}/{name}"
            entries.append(entry(path, path[len(top) :]))
    return sorted(entries, key=lambda one: one.path)


def entry(source: str, path: str) -> Entry:
    """The entry of one existing path `source`, which is to be called `path`."""
    status = os.lstat(source)
    kind = KINDS[stat.S_IFMT(status.st_mode)]
    is_device = kind in "bc"
    return Entry(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if kind == "f" else 0,
        target=os.readlink(source) if kind == "l" else "",  # noqa: PTH115 - one call per file, on text
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else (0, 0),
        inode=status.st_ino if kind == "f" and status.st_nlink > 1 else 0,
        capable=kind == "f" and "security.capability" in os.listxattr(source),
    )
