"""Files that packages ship and the site has changed: what the package had there is kept beside what the site has.

So that an upgrade which changes the same file can be told, and merged: the package's file before (*original*), the package's file
now, and the site's. A package manager that finds both changed leaves the new one beside (`.dpkg-dist`, `.rpmnew`) or overwrites the
site's; here the site's stays in the image in any case, and the manifest says what the package would have.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images.builder.chroot import inside
from images.builder.store import Artefact, Store

MOST_BYTES = 1 << 20  # of a file; larger ones are no settings
# Kept by programs: a package that comes with users changes them, and so does the making of the image's own user.
ACCOUNTS = frozenset(f"/etc/{name}" for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid"))
_NEW = (".dpkg-dist", ".dpkg-new", ".rpmnew")  # what package managers call the package's file beside the site's


@dataclass(frozen=True, slots=True)
class SiteFile:
    """One path of a version: the package's content and the site's. `upgraded`: this very build changed the package's."""

    original: Artefact
    site: Artefact
    mode: int
    upgraded: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SiteFile:
        """Read what `dataclasses.asdict` gave."""
        parts = {name: Artefact(**data[name]) for name in ("original", "site")}
        return cls(**{**data, **parts})


class Watch:
    """What packages have in a tree, at first and after each step of theirs; `changed` is what the site makes of it then.

    `known` are the site's files of the version that the tree was opened from.
    """

    def __init__(self, tree: Path, store: Store, known: Mapping[str, SiteFile] | None = None) -> None:
        self._tree, self._store = tree, store
        self._known = dict(known or {})
        self._originals: dict[str, bytes] = {}
        self._upgraded: set[str] = set()
        self._expected: set[str] = set()
        self._site = {path: content for path in self._known if (content := read(tree, path)) is not None}

    def packages_are_done(self, paths: Iterable[str]) -> None:
        """The package manager has run: note what it has at these paths, and keep the site's files as the site has them."""
        self._originals.update(
            {path: self._store.require(file.original).read_bytes() for path, file in self._known.items()}
        )
        for path in sorted({*paths, *self._known} - ACCOUNTS):
            theirs = self._take_new(path)
            now = read(self._tree, path)
            ours = self._site.get(path)
            if theirs is None and ours is not None and now is not None and now != ours:
                theirs = now  # the package manager took the site's away
                put(self._tree, path, ours)
            if theirs is not None:
                if theirs != self._originals.get(path):
                    self._upgraded.add(path)
                self._originals[path] = theirs
            elif now is not None and path not in self._known and path not in self._expected:
                self._originals[path] = now

    def expect(self, path: str, original: bytes | None) -> None:
        """What the package has at a path that somebody changed before this watch began."""
        if original is not None and path not in self._known:
            self._originals[path] = original
            self._expected.add(path)

    def changed(self, ready: Path) -> dict[str, SiteFile]:
        """The site's files, by path; their contents are left in the new directory `ready`, each under its SHA-256."""
        ready.mkdir()
        found = {}
        for path, original in sorted(self._originals.items()):
            site = read(self._tree, path)
            if site is None or site == original:
                continue
            mode = stat.S_IMODE(inside.locate(self._tree, path).stat().st_mode)
            kept = (_leave(ready, original), _leave(ready, site))
            found[path] = SiteFile(*kept, mode, path in self._upgraded)
        return found

    def _take_new(self, path: str) -> bytes | None:
        """The package's file that its manager left beside the site's; it is no part of an image."""
        for ending in _NEW:
            content = read(self._tree, path + ending)
            if content is not None:
                inside.locate(self._tree, path + ending).unlink()
                return content
        return None


def _leave(ready: Path, content: bytes) -> Artefact:
    artefact = Artefact(hashlib.sha256(content).hexdigest(), len(content))
    (ready / artefact.sha256).write_bytes(content)
    return artefact


def read(tree: Path, path: str) -> bytes | None:
    """The content of a regular file of the tree; None for what is none, or too large for settings."""
    target = inside.locate(tree, path)
    try:
        status = os.lstat(target)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            return None
        return target.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def put(tree: Path, path: str, content: bytes) -> None:
    """Write a file of the tree anew; its owner and mode stay."""
    inside.locate(tree, path).write_bytes(content)
