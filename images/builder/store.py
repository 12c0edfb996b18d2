"""Content-addressed artefacts: a file is complete in the store under its SHA-256, or it is not there at all.

Layout: `objects/ab/<sha256>` (mode 0444) and `ingest/` for what is being written, on the same file system so
that a rename makes the one visible as the other. The time of a file is when it was last put: whoever collects what nobody needs
leaves the young alone, and looks at that time under the lock that a put holds.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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

    @classmethod
    def of(cls, path: Path) -> Artefact:
        """What a file would be in the store; reads all of it."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(digest, os.fstat(file.fileno()).st_size)


@dataclass(frozen=True, slots=True)
class Stored(Artefact):
    """An artefact as it lies there; `put_at`: when it was last put (s since the epoch)."""

    put_at: float


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
        artefact = Artefact.of(path)
        with path.open("rb") as file:
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
        target = self.path(artefact.sha256)
        target.parent.mkdir(exist_ok=True)
        with self.locked():
            if self.whole(artefact.sha256):  # it stays: a client may read this very file over the network
                os.utime(target)
                path.unlink()
            else:
                os.utime(path)
                path.replace(target)
        _sync_directory(target.parent)
        _sync_directory(self.objects)
        return artefact

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Between what is put and what is removed; held for moments, dropped by the kernel when its holder dies."""
        lock = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def artefacts(self) -> Iterator[Stored]:
        """Everything that is there now, in order of digest."""
        for path in sorted(self.objects.glob("*/*")):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # removed while we looked
            yield Stored(path.name, status.st_size, status.st_mtime)

    def whole(self, sha256: str) -> bool:
        """Whether the artefact is there and is what its name says; reads all of it."""
        try:
            return Artefact.of(self.path(sha256)).sha256 == sha256
        except FileNotFoundError:
            return False

    def touch(self, sha256: str) -> bool:
        """As if it were put again, for who counts on it from now on; False when it is not there."""
        with self.locked():
            try:
                os.utime(self.path(sha256))
            except FileNotFoundError:
                return False
        return True

    def remove(self, sha256: str, before: float) -> int:
        """Remove the artefact if it was put before that time (s); returns the bytes freed. Readers keep what they opened."""
        path = self.path(sha256)
        with self.locked():
            try:
                status = path.stat()
            except FileNotFoundError:
                return 0
            if status.st_mtime >= before:
                return 0
            path.unlink()
        return status.st_size

    def verify(self) -> Iterator[str]:
        """Read every artefact; yields the names of those whose content is not what their name says."""
        for artefact in self.artefacts():
            if not self.whole(artefact.sha256) and self.path(artefact.sha256).exists():
                yield artefact.sha256

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
