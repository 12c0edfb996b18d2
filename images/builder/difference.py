"""What one tree has that another has not, as a directory that can lie over the other in an overlay."""

from __future__ import annotations

import filecmp
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from images.builder.run import Runner
from images.builder.tree import Entry, entry

_CAPABILITY = "security.capability"


@dataclass(frozen=True, slots=True)
class Difference:
    """Of a tree to the one before: entries that are new or not the same (times do not count), and paths that are gone.

    Both are sorted by path; of a directory that is gone, only itself is named.
    """

    changed: tuple[Entry, ...]
    removed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)


def compare(before: Path, after: Path, upper: Path | None, left_out: Callable[[Entry], bool]) -> Difference:
    """How the tree `after` differs from `before`. `upper` is the overlay's directory of all changes, if there is one.

    Without it every file is read. `left_out` tells what does not count.
    """
    changed: list[Entry] = []
    removed: list[str] = []
    for path, is_directory in _candidates(upper or after):
        if not os.path.lexists(f"{after}{path}"):
            continue  # overlayfs's note of what is gone; its directory tells
        new, old = entry(f"{after}{path}", path or "/"), _entry(before, path)
        if is_directory and old and old.kind == new.kind == "d":
            for name in _names(f"{before}{path}") - _names(f"{after}{path}"):
                gone = entry(f"{before}{path}/{name}", f"{path}/{name}")
                removed += [] if left_out(gone) else [gone.path]
        if not left_out(new) and not (old and _same(before, after, old, new)):
            changed.append(new)
    return Difference(tuple(sorted(changed, key=lambda one: one.path)), tuple(sorted(removed)))


def stage(difference: Difference, after: Path, target: Path, run: Runner) -> None:
    """Make the directory `target` from what differs and the directories above it; what is gone becomes a whiteout.

    A whiteout is a character device 0:0, as the kernel's overlayfs.rst has it. Owners, hard links and capabilities are kept.
    """
    names = {one.path.lstrip("/") or "." for one in difference.changed}
    for path in (*(one.path for one in difference.changed), *difference.removed):
        names |= {str(parent) for parent in Path(path.lstrip("/")).parents}
    wanted, archive = target.with_name(f"{target.name}.names"), target.with_name(f"{target.name}.tar")
    wanted.write_bytes(b"".join(os.fsencode(name) + b"\0" for name in sorted(names)))
    target.mkdir()
    kept = ("--format=posix", "--numeric-owner", "--xattrs", "--xattrs-include=*")
    read = ("--no-recursion", "--null", f"--files-from={wanted}")
    run(["tar", "--create", f"--file={archive}", f"--directory={after}", *kept, *read])
    run(
        [
            "tar",
            "--extract",
            f"--file={archive}",
            f"--directory={target}",
            *kept,
            "--same-owner",
            "--preserve-permissions",
        ]
    )
    archive.unlink()
    wanted.unlink()
    for path in difference.removed:
        os.mknod(f"{target}{path}", stat.S_IFCHR, 0)


def fingerprints(difference: Difference, after: Path) -> dict[str, str]:
    """Path → 16 hex digits that are the same for the same thing at that path; directories are left out."""
    found = dict.fromkeys(difference.removed, "")
    for one in difference.changed:
        if one.kind == "d":
            continue
        facts = f"{one.kind} {one.mode:o} {one.uid} {one.gid} {one.device} {one.target}\0"
        digest = hashlib.sha256(facts.encode("utf-8", "surrogateescape"))
        if one.kind == "f":
            with open(f"{after}{one.path}", "rb") as file:  # noqa: PTH123 - on text
                digest.update(hashlib.file_digest(file, "sha256").digest())
        found[one.path] = digest.hexdigest()[:16]
    return found


def _candidates(top: Path) -> Iterator[tuple[str, bool]]:
    """Every path below `top` ("" is itself), and whether it is a directory."""
    yield "", True
    length = len(os.fspath(top))
    for directory, subdirectories, files in os.walk(top):
        for name in subdirectories:
            path = f"{directory}/{name}"
            yield path[length:], not os.path.islink(path)  # noqa: PTH114 - on text
        for name in files:
            yield f"{directory}/{name}"[length:], False


def _names(directory: str) -> set[str]:
    return {found.name for found in os.scandir(directory)}


def _entry(tree: Path, path: str) -> Entry | None:
    """What the tree has there; what is behind a link or in a file is not there."""
    above = ""
    for part in path.split("/")[1:-1]:
        above += f"/{part}"
        if not stat.S_ISDIR(_mode(f"{tree}{above}")):
            return None
    return entry(f"{tree}{path}", path or "/") if _mode(f"{tree}{path}") else None


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return 0


def _same(before: Path, after: Path, old: Entry, new: Entry) -> bool:
    if replace(old, inode=0, size=0) != replace(new, inode=0, size=0) or old.size != new.size:
        return False
    if old.kind != "f":
        return True
    one, other = f"{before}{old.path}", f"{after}{new.path}"
    if old.capable and os.getxattr(one, _CAPABILITY) != os.getxattr(other, _CAPABILITY):
        return False
    return filecmp.cmp(one, other, shallow=False)
