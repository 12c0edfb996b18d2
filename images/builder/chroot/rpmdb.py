"""The database of installed rpm packages in a tree: where it is, and how it becomes the same bytes for the same packages."""

from __future__ import annotations

import contextlib
import sqlite3
import struct
import sys
from pathlib import Path

PATH = "usr/lib/sysimage/rpm"  # the read-only half of a system, where Fedora has had it since 2022
MACROS = f"%_dbpath /{PATH}\n%_db_backend sqlite\n"
OPTIONS = ("--dbpath", f"/{PATH}")

# Tags of rpm's header, rpmtag.h: when the package was installed, and in which transaction (a time, too).
_TIMES = (1008, 1128)


def settle(tree: Path, epoch: int) -> None:
    """Have no time of installation after `epoch` (s) in it, and no journal that a read-only root could not have."""
    path = tree / PATH / "rpmdb.sqlite"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=DELETE")
        database.execute("BEGIN")
        for number, header in database.execute("SELECT hnum, blob FROM Packages").fetchall():
            database.execute("UPDATE Packages SET blob = ? WHERE hnum = ?", (_stamped(header, epoch), number))
        database.execute("UPDATE Installtid SET key = ?", (epoch.to_bytes(4, sys.byteorder),))
        database.execute("COMMIT")
        database.execute("VACUUM")
    (tree / PATH / ".rpm.lock").unlink(missing_ok=True)


def _stamped(header: bytes, epoch: int) -> bytes:
    """A header with the times of its installation set to `epoch`.

    A header is two numbers, of index entries and of data bytes, then the entries (tag, type, offset, count), then the data;
    all big endian.
    """
    changed = bytearray(header)
    entries, _ = struct.unpack_from(">2I", header)
    data = 8 + 16 * entries
    for number in range(entries):
        tag, _, offset, _ = struct.unpack_from(">4I", header, 8 + 16 * number)
        if tag in _TIMES:
            struct.pack_into(">I", changed, data + offset, epoch)
    return bytes(changed)
