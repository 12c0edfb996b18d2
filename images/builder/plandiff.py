"""Two root plans compared: which volatile files came, went or changed, and what that costs a client's memory.

It reads the plan artefacts themselves (cpio newc), so any two versions in the store can be compared, however they
were made.
"""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_HEADER = 110  # bytes: a magic of 6, then 13 fields of 8 hex digits
_MAGIC = b"070701"
_END = b"TRAILER!!!"
_MOST_LISTED = 200  # paths of each kind; their count is told in full


@dataclass(frozen=True, slots=True)
class VolatileFile:
    """A real file, device or FIFO of a plan. Of hard links the last one has the size and the content."""

    size: int  # bytes
    digest: str  # SHA-256 of mode, owner and content


def volatile_files(plan: Path) -> dict[str, VolatileFile]:
    """Absolute path → what is copied there. Raises ValueError for what is no whole cpio archive, and OSError."""
    found: dict[str, VolatileFile] = {}
    with plan.open("rb") as stream:
        while True:
            header = _exactly(stream, _HEADER, plan)
            if not header.startswith(_MAGIC):
                raise ValueError(f"{plan.name} is not a cpio archive of format newc")
            fields = [int(header[at : at + 8], 16) for at in range(len(_MAGIC), _HEADER, 8)]
            mode, uid, gid, size, name_size = fields[1], fields[2], fields[3], fields[6], fields[11]
            padded = name_size + -(_HEADER + name_size) % 4
            name = _exactly(stream, padded, plan)[: name_size - 1]
            if name == _END:
                return found
            content = _exactly(stream, size + -size % 4, plan)[:size]
            if not (stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                digest = hashlib.sha256(f"{mode:o} {uid} {gid}\0".encode() + content).hexdigest()
                # Names need not be UTF-8; what is told of them has to be.
                found["/" + name.decode(errors="backslashreplace")] = VolatileFile(size, digest)


def difference(old: Path, new: Path) -> dict[str, Any]:
    """What `new` has and `old` had not, as JSON: `added`, `removed`, `changed` (lists of {path, bytes}), their
    `counts`, and `bytes`, by which a client needs more memory (less, when negative). Raises as `volatile_files`.
    """
    before, after = volatile_files(old), volatile_files(new)
    kinds = {
        "added": {path: after[path].size for path in after.keys() - before.keys()},
        "removed": {path: -before[path].size for path in before.keys() - after.keys()},
        "changed": {
            path: after[path].size - before[path].size
            for path in after.keys() & before.keys()
            if after[path].digest != before[path].digest
        },
    }
    return {
        **{kind: [{"path": path, "bytes": kinds[kind][path]} for path in sorted(kinds[kind])[:_MOST_LISTED]]
           for kind in kinds},
        "counts": {kind: len(paths) for kind, paths in kinds.items()},
        "bytes": sum(sum(paths.values()) for paths in kinds.values()),
    }  # fmt: skip


def _exactly(stream: BinaryIO, size: int, plan: Path) -> bytes:
    content = stream.read(size)
    if len(content) != size:
        raise ValueError(f"{plan.name} ends in mid-file")
    return content
