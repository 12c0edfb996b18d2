"""The root of a client, computed from an image and its volatile rules: what is real, what is a link.

A client's root is a tmpfs. `plan` finds the smallest set of entries that must be in it so that

- every path of the image is seen with the image's content,
- every path a `copy` or `empty` rule names is real there, so it can be changed,
- nothing else is copied: it is reached through symbolic links into the share at `/.ro`.

A directory is real only if something in it has to be; what is shared below a real directory costs one link
per child. The image's own symbolic links are kept as they are where their directory is real.
"""

from __future__ import annotations

import fnmatch
import re
import stat
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from images.builder.cpio import Archive
from images.builder.errors import RecipeError
from images.builder.tree import Entry
from images.builder.volatile import MOUNT_POINTS, SHARE, Rule, Verb

MIB = 1 << 20
LIMIT_BYTES = 64 * MIB  # of one rule: it is fetched at every boot, and lives in the client's memory
_MOST_LINKS = 40  # MAXSYMLINKS of the kernel
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
) -> RootPlan:
    """The root plan of the image with these `entries`.

    `mount_points` are further paths that become real and empty, beside those of every system (/proc, /sys,
    /dev, /run, /.ro). Raises RecipeError, naming the rule, when a rule leads nowhere or would copy more than
    `limit_bytes`, or when the image uses /.ro itself.
    """
    image = _Image(entries)
    if SHARE in image:
        raise RecipeError("volatile", f"the image has a path {SHARE}, which is where clients mount the share")
    decided = _decide(image, rules)
    for point in (*MOUNT_POINTS, *mount_points):
        path = image.resolve(Rule(Verb.EMPTY, point))
        image.make(path)
        decided[path] = _MOUNT
    return _Planner(image, decided, limit_bytes).run()


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


_MOUNT = Rule(Verb.EMPTY, "")


class _Image:
    """The entries by path, with the questions the planner asks."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = {entry.path: entry for entry in entries}
        self._entries.setdefault("/", Entry("/", "d"))
        self._children: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self._entries):
            if path != "/":
                self._children[_parent(path)].append(path)

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def __getitem__(self, path: str) -> Entry:
        return self._entries[path]

    def children(self, path: str) -> list[str]:
        return self._children.get(path, [])

    def below(self, path: str) -> Iterator[str]:
        """`path` and all that is in it."""
        yield path
        for child in self.children(path):
            yield from self.below(child)

    def make(self, path: str) -> None:
        """Have a directory at `path` (mode 0755, root), and above it; what is there already stays."""
        if path in self._entries:
            return
        parent = _parent(path)
        self.make(parent)
        self._entries[path] = Entry(path, "d")
        siblings = self._children[parent]
        siblings.insert(bisect_left(siblings, path), path)

    def resolve(self, rule: Rule) -> str:
        """The rule's path with the links on the way to it followed, not the one at its end."""
        pending = rule.path.split("/")[:0:-1]
        at, followed = "", 0
        while pending:
            part = pending.pop()
            if part in ("", "."):
                continue
            if part == "..":
                at = at.rpartition("/")[0]
                continue
            at = f"{at}/{part}"
            entry = self._entries.get(at)
            if entry is None or entry.kind == "d" or not any(pending):
                continue
            followed += 1
            if entry.kind != "l" or followed > _MOST_LINKS:
                raise RecipeError("volatile", f"{str(rule)!r}: {at} is not a directory in the image")
            pending += entry.target.split("/")[::-1]
            at = "" if entry.target.startswith("/") else _parent(at).rstrip("/")
        return at or "/"

    def match(self, rule: Rule) -> list[str]:
        """The paths of the image a rule with globs means, none of them through a link."""
        found = ["/"]
        for part in rule.path.strip("/").split("/"):
            pattern = re.compile(fnmatch.translate(part))
            found = [
                child for path in found for child in self.children(path) if pattern.fullmatch(child.rpartition("/")[2])
            ]
        return found


def _decide(image: _Image, rules: Sequence[Rule]) -> dict[str, Rule]:
    """Path → the rule that names it; its parents are made in the image where they are missing."""
    decided: dict[str, Rule] = {}
    for rule in rules:
        if rule.is_glob:
            decided.update((path, rule) for path in image.match(rule) if not _is_mounted(path))
            continue
        path = image.resolve(rule)
        if _is_mounted(path):
            raise RecipeError("volatile", f"{str(rule)!r} means {path}, which is mounted over at boot")
        decided[path] = rule
    for path, rule in decided.items():
        if rule.verb is Verb.EMPTY:
            image.make(path)
        elif rule.verb is Verb.COPY:
            # What is not in the image yet can be written once its parent is real.
            image.make(_parent(path))
    return decided


def _is_mounted(path: str) -> bool:
    return any(path == point or path.startswith(f"{point}/") for point in MOUNT_POINTS)


@dataclass
class _Planner:
    image: _Image
    decided: dict[str, Rule]
    limit_bytes: int
    directories: list[Entry] = field(default_factory=list)
    copies: list[Entry] = field(default_factory=list)
    links: list[Entry] = field(default_factory=list)
    real: set[str] = field(default_factory=set)

    def run(self) -> RootPlan:
        # Every directory above a decided path is real, as far as the decision needs it to be.
        for path, rule in self.decided.items():
            if rule.verb is not Verb.SHARE or (path in self.image and self._ruling(_parent(path))):
                self.real.update(_above(path))
        self._refuse_too_much()
        self._visit("/", None)
        return RootPlan(tuple(self.directories), tuple(self.copies), tuple(self.links))

    def _ruling(self, path: str) -> Rule | None:
        """The rule that holds for `path` by the longest path, None where it is shared."""
        for above in (path, *reversed(_above(path))):
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
        copied: dict[Rule, int] = defaultdict(int)
        for path in self.image.below("/"):
            rule = self._ruling(path)
            if rule is not None and rule.verb is Verb.COPY:
                copied[rule] += self.image[path].size
                if self.image[path].capable:
                    raise RecipeError(
                        "volatile",
                        f"{str(rule)!r} would copy {path} without its file capabilities; share {path}",
                    )
        for rule, size in copied.items():
            if size > self.limit_bytes:
                raise RecipeError(
                    "volatile",
                    f"{str(rule)!r} would copy {size / MIB:.0f} MiB into the memory of every client "
                    f"(at most {self.limit_bytes / MIB:.0f}); name less, or share the large parts of it",
                )


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _above(path: str) -> list[str]:
    """The directories above `path`, the root first."""
    parts = path.strip("/").split("/")[:-1] if path != "/" else []
    return ["/"][: path != "/"] + ["/" + "/".join(parts[: end + 1]) for end in range(len(parts))]
