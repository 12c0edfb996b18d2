"""Content-addressed artefacts: a file is complete in the store under its SHA-256, or it is not there at all.

Layout: `objects/ab/<sha256>` (mode 0444) and `ingest/` for what is being written, on the same file system so
that a rename makes the one visible as the other.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from images.builder import scratch
from images.builder.errors import BuildError, DiskFull

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Artefact:
    """A file of the store: its SHA-256 in lower-case hex, its size in bytes."""

    sha256: str
    bytes: int


class Store:
    """The artefacts below `root`, which is made when it does not exist."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = root / "objects"
        self.ingest = root / "ingest"
        self.objects.mkdir(parents=True, exist_ok=True)
        self.ingest.mkdir(exist_ok=True)

    def scratch(self) -> AbstractContextManager[Path]:
        """A directory on the store's file system to write an artefact in, so that `put` need not copy."""
        return scratch.scratch(self.ingest)

    def path(self, sha256: str) -> Path:
        """Where the artefact is or would be. Raises ValueError for what is no SHA-256 in lower-case hex."""
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"{sha256!r} is no SHA-256 in lower-case hex")
        return self.objects / sha256[:2] / sha256

    def put(self, path: Path) -> Artefact:
        """Take the file over: it is gone from `path` and durable in the store. A second put is harmless.

        Raises DiskFull (the store is as before) when there is no room for it.
        """
        try:
            if path.stat().st_dev == self.ingest.stat().st_dev:
                return self._adopt(path)
            with self.scratch() as near:
                shutil.copyfile(path, near / "artefact")
                artefact = self._adopt(near / "artefact")
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DiskFull(f"{self.root}: no space left for {path.name}; make room and build again") from error
        path.unlink()
        return artefact

    def _adopt(self, path: Path) -> Artefact:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
        target = self.path(digest)
        target.parent.mkdir(exist_ok=True)
        path.replace(target)
        _sync_directory(target.parent)
        _sync_directory(self.objects)
        return Artefact(digest, size)

    def verify(self) -> Iterator[str]:
        """Read every artefact; yields the names of those whose content is not what their name says."""
        for path in sorted(self.objects.glob("*/*")):
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != path.name:
                    yield path.name

    def require(self, artefact: Artefact) -> Path:
        """The path of an artefact that must be there. Raises BuildError when it is missing or cut short."""
        path = self.path(artefact.sha256)
        if not path.is_file() or path.stat().st_size != artefact.bytes:
            raise BuildError(f"{path} is missing or cut short; build the version again")
        return path


def _sync_directory(path: Path) -> None:
    """A rename is durable only once its directory is."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
