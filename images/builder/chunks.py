"""Artefacts as chunks cut by their content (casync): what two artefacts have in common is kept once, and shipped never.

Layout in the store: `chunks/abcd/<sha256>.cacnk` and, for each artefact that is archived, `indices/<sha256>.caibx` (its
chunks in order). A chunk is 32 KiB in the middle: half of it would make the index as long as what it saves.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from images.builder.errors import BuildError, DiskFull
from images.builder.store import Artefact, Store

SIZES = (8192, 32768, 131072)  # least, middle and most bytes of a chunk; the same everywhere, or nothing matches
_HEADER = struct.Struct("<QQQQQQQQ")  # 48, format, features, least, middle, most; then a table: max, its format
_ENTRY = struct.Struct("<Q32s")  # where the chunk ends in the artefact (bytes); its SHA-256
_HEADER_SIZE, _BLOB_INDEX, _NO_SIZE = 48, 0x96824D9C7B129FF9, (1 << 64) - 1


def _casync(*arguments: str) -> None:
    try:
        done = subprocess.run(["casync", *arguments], capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError as error:
        raise BuildError("casync is not installed: apt-get install casync") from error
    if done.returncode == 0:
        return
    if os.strerror(errno.ENOSPC) in done.stderr:
        raise DiskFull(f"no space left for chunks: {done.stderr.strip()}; make room and try again")
    raise BuildError(f"casync {arguments[0]} failed: {done.stderr.strip() or done.returncode}")


def cut(path: Path, chunks: Path, index: Path) -> None:
    """Cut a file into the directory `chunks` (made when missing) and write its index, which must end in `.caibx`."""
    sizes = ":".join(map(str, SIZES))
    _casync(
        "make",
        f"--store={chunks}",
        "--digest=sha256",
        "--compression=zstd",
        f"--chunk-size={sizes}",
        str(index),
        str(path),
    )


def join(index: Path, output: Path, *chunks: Path) -> None:
    """Put a file together; each chunk is compared with its digest. Raises BuildError when one is missing or damaged."""
    first, *others = chunks
    extra = (f"--extra-store={place}" for place in others)
    _casync("extract", f"--store={first}", *extra, "--seed-output=no", str(index), str(output))


def chunks_of(index: Path) -> list[tuple[int, str]]:
    """The chunks of an index in order: where each ends (bytes), its digest. Raises BuildError for what is none of ours."""
    data = index.read_bytes()
    rows = data[_HEADER.size : -_ENTRY.size]
    if len(data) < _HEADER.size + _ENTRY.size or len(rows) % _ENTRY.size:
        raise BuildError(f"{index.name} is cut short")
    size, kind, _, *sizes, table, _ = _HEADER.unpack_from(data)
    if (size, kind, tuple(sizes), table) != (_HEADER_SIZE, _BLOB_INDEX, SIZES, _NO_SIZE):
        raise BuildError(f"{index.name} is no index of chunks of {SIZES[1]} bytes")
    return [(end, digest.hex()) for end, digest in _ENTRY.iter_unpack(rows)]


def chunk_path(chunks: Path, digest: str) -> Path:
    """Where casync keeps a chunk."""
    return chunks / digest[:4] / f"{digest}.cacnk"


class Archive:
    """The chunks of a store: artefacts that nobody boots, at the price of what makes them differ."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.chunks = store.root / "chunks"
        self.indices = store.root / "indices"

    def index(self, sha256: str) -> Path:
        """Where the index of an artefact is or would be. Raises ValueError for what is no SHA-256."""
        return self.indices / f"{self._store.path(sha256).name}.caibx"

    def has(self, sha256: str) -> bool:
        return self.index(sha256).is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One at a time adds chunks or collects them."""
        self.chunks.mkdir(exist_ok=True)
        self.indices.mkdir(exist_ok=True)
        lock = os.open(self.indices, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def add(self, sha256: str) -> int:
        """Archive an artefact of the store, which stays a file, too; returns the bytes this added.

        It is put together again and compared before it counts. Raises BuildError when the file is not what its name says.
        """
        if self.has(sha256):
            return 0
        with self.locked(), self._store.scratch() as work:
            before = self.bytes()
            index = work / "new.caibx"
            cut(self._store.path(sha256), self.chunks, index)
            join(index, work / "artefact", self.chunks)
            _compare(work / "artefact", sha256)
            index.replace(self.index(sha256))
            return self.bytes() - before

    def restore(self, sha256: str) -> Artefact:
        """Make an archived artefact a file of the store again. Raises BuildError when its chunks do not give it."""
        if not self.has(sha256):
            raise BuildError(f"{sha256} is neither a file of the store nor archived; import its version again")
        with self._store.scratch() as work:
            join(self.index(sha256), work / "artefact", self.chunks)
            _compare(work / "artefact", sha256)
            return self._store.put(work / "artefact")

    def bytes(self) -> int:
        """What all chunks and indices take."""
        files = (*self.chunks.glob("*/*"), *self.indices.glob("*.caibx"))
        return sum(path.stat().st_size for path in files)

    def sound(self, sha256: str) -> bool:
        """Whether the archived artefact can be put together again; reads all its chunks."""
        with self._store.scratch() as work:
            try:
                join(self.index(sha256), work / "artefact", self.chunks)
                _compare(work / "artefact", sha256)
            except DiskFull:
                raise
            except BuildError:
                return False
        return True

    def collect(self, keep: Set[str]) -> int:
        """Drop the indices of other artefacts than these, and the chunks that no index is left for; returns bytes freed."""
        if not self.indices.is_dir():
            return 0
        with self.locked():
            before = self.bytes()
            for index in sorted(self.indices.glob("*.caibx")):
                if index.stem not in keep:
                    index.unlink()
            left = {digest for index in self.indices.glob("*.caibx") for _, digest in chunks_of(index)}
            for chunk in self.chunks.glob("*/*"):
                if chunk.stem not in left:
                    chunk.unlink()
            return before - self.bytes()


def _compare(path: Path, sha256: str) -> None:
    found = Artefact.of(path).sha256
    if found != sha256:
        raise BuildError(f"the chunks of {sha256} give {found}: damaged, import or build its version again")
