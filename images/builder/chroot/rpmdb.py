"""The database of installed rpm packages in a tree: where it is, and how a read-only root can have it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

PATH = "usr/lib/sysimage/rpm"  # the read-only half of a system, where Fedora has had it since 2022
MACROS = f"%_dbpath /{PATH}\n%_db_backend sqlite\n"
OPTIONS = ("--dbpath", f"/{PATH}")


def settle(tree: Path) -> None:
    """Leave one file without a journal, which a read-only root could not have, and without what deleted rows left.

    The times of installation in it are counted from SOURCE_DATE_EPOCH by rpm itself, so equal packages give equal bytes.
    """
    with contextlib.closing(sqlite3.connect(tree / PATH / "rpmdb.sqlite", isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=DELETE")
        database.execute("VACUUM")
    (tree / PATH / ".rpm.lock").unlink(missing_ok=True)
