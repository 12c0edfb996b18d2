"""The sender's own book: what was signed when, the last number it gave a command, and which heads of the audit log it saw.

A SQLite file that only the sender's user may open (FLEET_SENDER_BOOK). The web process can write whatever it likes into the database, and take
out of it what the sender signed; it cannot make the sender forget. Times are this host's, in seconds since 1970.
"""

import fcntl
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet.exceptions import SiteError

MINUTE_S = 60.0
KEPT_S = 24 * 3600.0

_TABLES = """
CREATE TABLE IF NOT EXISTS signed (at REAL NOT NULL, site INTEGER NOT NULL, verb TEXT NOT NULL, number INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS signed_when ON signed (at);
CREATE TABLE IF NOT EXISTS numbers (last INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS heads (chain TEXT PRIMARY KEY, sequence INTEGER NOT NULL, digest TEXT NOT NULL);
"""


class Book:
    """Open for a moment: within ``Book.at(path)`` no other sender signs."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    @contextmanager
    def at(cls, path: Path) -> Iterator["Book"]:
        """The book at ``path``, made when there is none. SiteError where it cannot be read or written: nothing is signed then."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with path.with_suffix(".lock").open("w") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)
                connection = sqlite3.connect(path, isolation_level=None)
                try:
                    path.chmod(0o600)
                    connection.executescript(_TABLES)
                    yield cls(connection)
                finally:
                    connection.close()
        except (OSError, sqlite3.DatabaseError) as error:
            raise SiteError(
                f"The sender's book {path} cannot be used: {error}.",
                hint="FLEET_SENDER_BOOK must be a file that the sender's user may write, and nobody else.",
            ) from error

    def signed(self, verb: str, site: int | None = None) -> int:
        """How many commands of ``verb`` were signed in the last sixty seconds: for ``site``, or for all."""
        where, values = ("AND site = ?", (site,)) if site is not None else ("", ())
        # Of entries from the future too: a clock that was set back must not open the gate.
        query = f"SELECT COALESCE(SUM(number), 0) FROM signed WHERE verb = ? AND at > ? {where}"  # noqa: S608 - constants
        return int(self._connection.execute(query, (verb, time.time() - MINUTE_S, *values)).fetchone()[0])

    def note(self, verb: str, site: int, number: int) -> int:
        """Write down that so many are signed now. Durable when it returns, and so before any signature exists.

        Returns the first of as many numbers for them, which nobody ever had: milliseconds since 1970, or what follows the last. So they
        rise also where this book, or the database, was lost or restored from a copy.
        """
        now = time.time()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            (last,) = self._connection.execute("SELECT COALESCE(MAX(last), 0) FROM numbers").fetchone()
            first = max(int(last) + 1, round(now * 1000))
            self._connection.execute("DELETE FROM numbers")
            self._connection.execute("INSERT INTO numbers VALUES (?)", (first + number - 1,))
            self._connection.execute("DELETE FROM signed WHERE at < ?", (now - KEPT_S,))
            self._connection.execute("INSERT INTO signed VALUES (?, ?, ?, ?)", (now, site, verb, number))
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
        return first

    def saw_head(self, chain: str, sequence: int, digest: str) -> None:
        """Remember how far a chain of the audit log had come. An older head never replaces a younger one."""
        self._connection.execute(
            "INSERT INTO heads VALUES (?, ?, ?) ON CONFLICT (chain) DO UPDATE SET sequence = excluded.sequence, "
            "digest = excluded.digest WHERE excluded.sequence > heads.sequence",
            (chain, sequence, digest),
        )

    def heads(self) -> dict[str, tuple[int, str]]:
        """The last head seen of each chain: its sequence and digest."""
        rows = self._connection.execute("SELECT chain, sequence, digest FROM heads")
        return {chain: (sequence, digest) for chain, sequence, digest in rows}
