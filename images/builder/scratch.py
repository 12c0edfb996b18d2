"""Directories that exist as long as their owner: removed at the end, and swept up after an owner killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "scratch-"


@contextmanager
def scratch(parent: Path, *, keep: bool = False) -> Iterator[Path]:
    """A new empty directory below `parent`, removed when the context is left in whatever way.

    With `keep` it stays until the next `sweep`, for a person who wants to look.

    Its owner holds a lock on it, which the kernel drops even at kill -9: that tells `sweep` what is left.
    """
    parent.mkdir(parents=True, exist_ok=True)
    guard = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Between making and locking, a sweep must not see the new directory: both hold the parent's lock.
        fcntl.flock(guard, fcntl.LOCK_EX)
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    finally:
        os.close(guard)
    try:
        yield path
    finally:
        if not keep:
            shutil.rmtree(path)
        os.close(lock)


def sweep(parent: Path) -> list[Path]:
    """Remove the scratch directories below `parent` whose owner is gone; returns them."""
    swept: list[Path] = []
    if not parent.is_dir():
        return swept
    guard = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
        for path in sorted(parent.glob(f"{PREFIX}*")):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                shutil.rmtree(path)
                swept.append(path)
            finally:
                os.close(lock)
    finally:
        os.close(guard)
    return swept
