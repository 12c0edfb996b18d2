"""The home of the user: its digest, its restore, and the account of what a restore threw away.

Run as a program, `home.py digest <tree>` prints the tree digest of docs/protocol.md; `home.py account <home>
<upper>` prints what was in a home that is being thrown away. This module needs none of its siblings for that.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping

TYPES = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
    stat.S_IFBLK: "b",
    stat.S_IFCHR: "c",
}
NOT_OURS = ("trusted.overlay.", "security.selinux")  # what the kernel adds to files, not the template


def entries(tree: bytes, below: bytes = b"") -> Iterator[bytes]:
    """Relative paths of all in `tree` and `.` itself, sorted by their bytes, in memory one branch at a time.

    What is in a directory sorts after its siblings `name-…` and `name.…`, because "/" does: so a directory
    stands twice in the list, as itself and as the place of its content.
    """
    with os.scandir(os.path.join(tree, below) or tree) as directory:
        names = [below + entry.name for entry in directory]
    places = [(name, False) for name in names]
    places += [(name + b"/", True) for name in names if is_directory(os.path.join(tree, name))]
    if not below:
        places.append((b".", False))
    for name, inside in sorted(places):
        if inside:
            yield from entries(tree, name)
        else:
            yield name


def is_directory(path: bytes) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)


def file_digest(path: bytes | str) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def record(tree: bytes, path: bytes, content: str | None = None, owner: tuple[int, int] | None = None) -> bytes:
    """One entry's record; `content` is the SHA-256 of a file where it is known already, `owner` who it is to belong to."""
    full = os.path.join(tree, path)
    entry = os.lstat(full)
    kind = TYPES[stat.S_IFMT(entry.st_mode)]
    if kind == "f":
        content = content or file_digest(full)
    elif kind == "l":
        content = text(os.readlink(full))
    elif kind in "bc":
        content = f"{os.major(entry.st_rdev)}:{os.minor(entry.st_rdev)}"
    else:
        content = ""
    xattrs = [
        [name, os.getxattr(full, name, follow_symlinks=False).hex()]
        for name in sorted(attributes(full))
        if not name.startswith(NOT_OURS)
    ]
    mode = format(stat.S_IMODE(entry.st_mode), "o")
    size = entry.st_size if kind == "f" else 0
    uid, gid = owner or (entry.st_uid, entry.st_gid)
    fields = [text(path), kind, mode, uid, gid, size, content, xattrs]
    line = json.dumps(fields, ensure_ascii=False, separators=(",", ":")) + "\n"
    return line.encode("utf-8", "surrogateescape")


def attributes(path: bytes | str) -> list[str]:
    """Names of a file's extended attributes; a squashfs in which no file has one knows of none (EOPNOTSUPP)."""
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return []


def text(name: bytes) -> str:
    """A file name as text whatever the locale: os.fsdecode would follow it."""
    return name.decode("utf-8", "surrogateescape")


def tree_digest(tree: str, contents: Mapping[bytes, str] | None = None, owner: tuple[int, int] | None = None) -> str:
    """Hex SHA-256 over the records of all entries of `tree` (docs/protocol.md, Tree digest).

    `contents` maps relative paths to the SHA-256 of their content, where that is proved otherwise; everything
    else is read. `owner` (uid, gid) is who all of it is to belong to, whoever has it now. Raises OSError for a tree that cannot be read or changes meanwhile.
    """
    root = os.fsencode(tree)
    known = contents or {}
    digest = hashlib.sha256()
    for path in entries(root):
        digest.update(record(root, path, known.get(path), owner))
    return digest.hexdigest()


def account(home: str, upper: str) -> dict[str, object]:
    """What is thrown away with a home: digest of all of it, and of its upper layer the files and their bytes.

    Directories and whiteouts (character device 0:0, how overlayfs notes a deletion) do not count; a file with
    several names counts under each, its bytes once.
    """
    files, sizes = 0, {}
    layer = os.fsencode(upper)
    for path in entries(layer):
        entry = os.lstat(os.path.join(layer, path))
        whiteout = stat.S_ISCHR(entry.st_mode) and entry.st_rdev == 0
        if not stat.S_ISDIR(entry.st_mode) and not whiteout:
            files += 1
            sizes[entry.st_ino] = entry.st_size if stat.S_ISREG(entry.st_mode) else 0
    return {"before": tree_digest(home), "files": files, "bytes": sum(sizes.values())}


def main(arguments: list[str]) -> int:
    if len(arguments) == 2 and arguments[0] == "digest":
        print(tree_digest(arguments[1]))
    elif len(arguments) == 3 and arguments[0] == "account":
        os.nice(19)  # the next user is at work already
        print(json.dumps(account(arguments[1], arguments[2])))
    else:
        print("usage: home.py digest <tree> | account <home> <upper>", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
