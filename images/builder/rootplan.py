"""The root of a client, computed from an image and its volatile rules: what is real, what is a link.

A client's root is a tmpfs. `plan` finds the smallest set of entries that must be in it so that

- every path of the image is seen with the image's content,
- every path a `copy` or `empty` rule names is real there, so it can be changed,
- nothing else is copied: it is reached through symbolic links into the share at `/.ro`.

A directory is real only if something in it has to be; what is shared below a real directory costs one link
per child. The image's own symbolic links are kept as they are where their directory is real.
"""

from __future__ import annotations

import stat
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from images.builder.cpio import Archive
from images.builder.errors import RecipeError
from images.builder.ruling import (
    LIMIT_BYTES,
    TOTAL_BYTES,
    Image,
    Weight,
    above_of,
    copied,
    decide,
    parent_of,
    refuse_heavy,
)
from images.builder.tree import Entry
from images.builder.volatile import SHARE, Rule, Verb

_FILE_TYPES = {"p": stat.S_IFIFO, "s": stat.S_IFSOCK, "b": stat.S_IFBLK, "c": stat.S_IFCHR}


@dataclass(frozen=True, slots=True)
class RootPlan:
    """What the tmpfs holds, each sorted by path (so a directory stands before what is in it)."""

    directories: tuple[Entry, ...]
    copies: tuple[Entry, ...]  # files, devices, FIFOs; a size of 0 for a file emptied by its rule
    links: tuple[Entry, ...]  # into the share, or the image's own

    @property
    def copied_bytes(self) -> int:
        """Bytes of file content in the plan; hard links count once."""
        sizes = {(copy.inode or copy.path): copy.size for copy in self.copies}
        return sum(sizes.values())

    def summary(self) -> dict[str, int]:
        return {
            "directories": len(self.directories),
            "copies": len(self.copies),
            "symlinks": len(self.links),
            "bytes": self.copied_bytes,
        }


def plan(
    entries: Iterable[Entry],
    rules: Sequence[Rule],
    mount_points: Sequence[str] = (),
    limit_bytes: int = LIMIT_BYTES,
    total_bytes: int = TOTAL_BYTES,
) -> RootPlan:
    """The root plan of the image with these `entries`.

    `mount_points` are further paths that become real and empty, beside those of every system (/proc, /sys,
    /dev, /run, /.ro). Raises RecipeError, naming the rule, when a rule leads nowhere or would copy more than
    `limit_bytes`, when all would copy more than `total_bytes`, or when the image uses /.ro itself.
    """
    image = Image(entries)
    if SHARE in image:
        raise RecipeError("volatile", f"the image has a path {SHARE}, which is where clients mount the share")
    decided = decide(image, rules, mount_points)
    for path, rule in decided.items():
        if rule.verb is Verb.EMPTY:
            image.make(path)
        elif rule.verb is Verb.COPY:
            # What is not in the image yet can be written once its parent is real.
            image.make(parent_of(path))
    return _Planner(image, decided, limit_bytes, total_bytes).run()


def archive(root: RootPlan, tree: Path, output: Path, epoch: int = 0, gone: Sequence[str] | None = None) -> None:
    """Write the plan as a cpio archive (newc), contents from `tree`; the same bytes for the same plan.

    Names are relative, so that `cpio -idm` unpacks below where it stands. All times are `epoch` (s). The plan of a layer
    has a member `.gone` before all others: paths, one per line, that are to be removed first (images/initrd/unpack).
    """
    names: dict[int, list[str]] = defaultdict(list)
    for copy in root.copies:
        if copy.inode and copy.size:
            names[copy.inode].append(_name(copy))
    with output.open("wb") as stream, Archive(stream, mtime=epoch) as packed:
        if gone is not None:
            packed.file(".gone", "".join(f"{path[1:]}\n" for path in gone).encode("utf-8", "surrogateescape"), 0o600)
        for entry in root.directories:
            packed.directory(_name(entry), entry.mode, entry.uid, entry.gid)
        for entry in root.copies:
            if entry.kind != "f":
                mode = _FILE_TYPES[entry.kind] | entry.mode
                packed.node(_name(entry), mode, entry.device, entry.uid, entry.gid)
            elif not entry.size:
                packed.file(_name(entry), b"", entry.mode, entry.uid, entry.gid)
            elif not entry.inode:
                packed.file(_name(entry), tree / _name(entry), entry.mode, entry.uid, entry.gid)
            elif linked := names.pop(entry.inode, None):
                packed.hard_links(linked, tree / _name(entry), entry.mode, entry.uid, entry.gid)
        for entry in root.links:
            packed.symlink(_name(entry), entry.target, entry.uid, entry.gid)


def _name(entry: Entry) -> str:
    return entry.path[1:] or "."


@dataclass
class _Planner:
    image: Image
    decided: dict[str, Rule]
    limit_bytes: int
    total_bytes: int
    directories: list[Entry] = field(default_factory=list)
    copies: list[Entry] = field(default_factory=list)
    links: list[Entry] = field(default_factory=list)
    real: set[str] = field(default_factory=set)

    def run(self) -> RootPlan:
        # Every directory above a decided path is real, as far as the decision needs it to be.
        for path, rule in self.decided.items():
            if rule.verb is not Verb.SHARE or (path in self.image and self._ruling(parent_of(path))):
                self.real.update(above_of(path))
        self._refuse_too_much()
        self._visit("/", None)
        return RootPlan(tuple(self.directories), tuple(self.copies), tuple(self.links))

    def _ruling(self, path: str) -> Rule | None:
        """The rule that holds for `path` by the longest path, None where it is shared."""
        for above in (path, *reversed(above_of(path))):
            if above in self.decided:
                rule = self.decided[above]
                return None if rule.verb is Verb.SHARE else rule
        return None

    def _visit(self, path: str, inherited: Rule | None) -> None:
        """Put `path` and what is in it into the plan; `inherited` rules it if no rule of its own does."""
        entry = self.image[path]
        own = self.decided.get(path)
        rule = inherited if own is None else None if own.verb is Verb.SHARE else own
        is_real = path in self.real or path == "/" or rule is not None
        if rule is not None and rule.verb is Verb.EMPTY and own is None and path not in self.real:
            return
        if entry.kind == "l":
            self.links.append(entry)
        elif not is_real:
            self.links.append(Entry(path, "l", 0o777, 0, 0, target=SHARE + path))
        elif entry.kind == "d":
            self.directories.append(entry)
            for child in self.image.children(path):
                self._visit(child, rule)
        elif rule is not None and rule.verb is Verb.EMPTY:
            self.copies.append(Entry(path, "f", entry.mode, entry.uid, entry.gid))
        else:
            self.copies.append(entry)

    def _refuse_too_much(self) -> None:
        sizes: dict[Rule, int] = defaultdict(int)
        for rule, one in copied(self.image, self.decided):
            sizes[rule] += one.size
            if one.capable:
                raise RecipeError(
                    "volatile",
                    f"{str(rule)!r} would copy {one.path} without its file capabilities; share {one.path}",
                )
        weights = (Weight(rule, bytes=size) for rule, size in sizes.items())
        refuse_heavy(weights, self.limit_bytes, self.total_bytes)
