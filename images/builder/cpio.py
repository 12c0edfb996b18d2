"""The cpio archive the Linux kernel and busybox unpack: format newc, with nothing in it that changes itself.

Inode numbers count up from 1 and all times are the one given, so the same input gives the same bytes.
Source: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

_LARGEST = 0xFFFFFFFF  # sizes are eight hex digits
_CHUNK = 1 << 20


class Archive:
    """Writes entries to a binary stream; use as a context manager, the end writes the trailer.

    Names are relative. A directory must come before what is in it: the kernel makes no parents.
    """

    def __init__(self, stream: BinaryIO, mtime: int = 0) -> None:
        self._stream = stream
        self._mtime = mtime
        self._inode = 0

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._inode = -1
            self._header(b"TRAILER!!!", 0, 0, 0, 0, links=1)

    def directory(self, name: str | bytes, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        self._header(name, stat.S_IFDIR | mode, uid, gid, 0, links=2)

    def symlink(self, name: str | bytes, target: str | bytes, uid: int = 0, gid: int = 0) -> None:
        content = target.encode(errors="surrogateescape") if isinstance(target, str) else target
        self._header(name, stat.S_IFLNK | 0o777, uid, gid, len(content))
        self._stream.write(content)
        self._pad(len(content))

    def node(self, name: str | bytes, mode: int, device: tuple[int, int], uid: int = 0, gid: int = 0) -> None:
        """A device, FIFO or socket; `mode` carries its type."""
        self._header(name, mode, uid, gid, 0, device=device)

    def hard_links(self, names: Sequence[str], content: Path, mode: int = 0o644, uid: int = 0, gid: int = 0) -> None:
        """One regular file of several names: all share an inode number, the last brings the content."""
        for name in names[:-1]:
            self._header(name, stat.S_IFREG | mode, uid, gid, 0, links=len(names))
            self._inode -= 1
        self.file(names[-1], content, mode, uid, gid, links=len(names))

    def file(
        self,
        name: str | bytes,
        content: bytes | Path,
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        links: int = 1,
    ) -> None:
        """A regular file, from bytes or streamed from a path."""
        if isinstance(content, bytes):
            self._header(name, stat.S_IFREG | mode, uid, gid, len(content), links)
            self._stream.write(content)
            self._pad(len(content))
            return
        with content.open("rb") as source:
            size = content.stat().st_size
            self._header(name, stat.S_IFREG | mode, uid, gid, size, links)
            left = size
            while left:
                block = source.read(min(left, _CHUNK))
                if not block:
                    raise ValueError(f"{content} became shorter while it was packed: build again.")
                self._stream.write(block)
                left -= len(block)
            self._pad(size)

    def _header(
        self,
        name: str | bytes,
        mode: int,
        uid: int,
        gid: int,
        size: int,
        links: int = 1,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        raw = name.encode(errors="surrogateescape") if isinstance(name, str) else name
        if size > _LARGEST:
            raise ValueError(f"{name!r} has {size} bytes; a cpio archive takes files below 4 GiB only.")
        self._inode += 1
        fields = (self._inode, mode, uid, gid, links, self._mtime, size, 0, 0, *device, len(raw) + 1, 0)
        self._stream.write(b"070701" + b"".join(b"%08x" % field for field in fields) + raw + b"\0")
        self._pad(110 + len(raw) + 1)

    def _pad(self, written: int) -> None:
        """Header with name, and content, each end on a multiple of four bytes."""
        self._stream.write(b"\0" * (-written % 4))
