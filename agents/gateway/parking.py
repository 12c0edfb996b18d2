"""Who is there: parked polls, presence, and what waits to be delivered. Memory only; the database is asked elsewhere."""

import asyncio
import sys
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.utils import timezone

from agents.attendance import Said


@dataclass
class Attendant:
    """A session this gateway has heard of. ``state`` is what its daemon said last, ``seen_at`` when it asked last.

    ``keys`` are the ids of the command keys its daemon was told.
    """

    session: uuid.UUID
    client: uuid.UUID
    keys: str = ""
    state: str = ""
    superseded: bool = False
    forgotten: bool = False
    poll: "asyncio.Future[str] | None" = None
    seen_at: datetime = field(default_factory=timezone.now)


class Parking:
    """Attendants by the digest of their bearer; ``waiting`` are clients with commands to deliver."""

    MOST = 50_000

    def __init__(self) -> None:
        self.by_bearer: dict[str, Attendant] = {}
        self.waiting: set[uuid.UUID] = set()
        self._by_client: dict[uuid.UUID, Attendant] = {}
        self._closed = False
        self._seen: dict[uuid.UUID, Attendant] = {}

    def enter(self, bearer: str, session: uuid.UUID, client: uuid.UUID, keys: str = "") -> Attendant:
        """Know a session; an older one of the same client is superseded."""
        if len(self.by_bearer) >= self.MOST:
            self._forget_silent()
        attendant = Attendant(session, client, sys.intern(keys))
        older = self._by_client.get(client)
        if older is not None and older.session != session:
            self.supersede(older)
        self.by_bearer[bearer] = self._by_client[client] = attendant
        return attendant

    def supersede(self, attendant: Attendant) -> None:
        attendant.superseded = True
        self._end(attendant, "superseded")

    def superseded_by(self, client: uuid.UUID) -> None:
        """A younger session of ``client`` begins: the present one's poll ends."""
        if older := self._by_client.pop(client, None):
            self.supersede(older)

    def forget(self, sessions: Collection[uuid.UUID]) -> None:
        """Believe no more what is remembered of these sessions: whoever shows their bearer is looked up anew."""
        if not sessions:
            return
        for bearer, attendant in [pair for pair in self.by_bearer.items() if pair[1].session in sessions]:
            del self.by_bearer[bearer]
            attendant.forgotten = True
            if self._by_client.get(attendant.client) is attendant:
                del self._by_client[attendant.client]
            self._seen.pop(attendant.session, None)
            self._end(attendant, "forgotten")

    async def park(self, attendant: Attendant, hold_s: float) -> str:
        """Wait: ``wake``, ``superseded``, ``replaced`` (by a newer poll of the session), ``gone``, ``forgotten``, ``closing``, ``held``."""
        if self._closed or attendant.superseded or attendant.forgotten:  # while what it said was written down
            return "closing" if self._closed else "superseded" if attendant.superseded else "forgotten"
        self._end(attendant, "replaced")
        poll: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        attendant.poll = poll
        try:
            async with asyncio.timeout(hold_s):
                how = await poll
                return how if attendant.poll is poll else "replaced"  # in this very moment, which is then the other's
        except TimeoutError:
            return "held"
        finally:
            if attendant.poll is poll:
                attendant.poll = None

    def wake(self, client: uuid.UUID) -> None:
        self.waiting.add(client)
        if attendant := self._by_client.get(client):
            self._end(attendant, "wake")

    def close(self) -> int:
        """End all polls, those that come late too; how many there were."""
        self._closed = True
        parked = [attendant for attendant in self.by_bearer.values() if attendant.poll]
        for attendant in parked:
            self._end(attendant, "closing")
        return len(parked)

    def saw(self, attendant: Attendant) -> None:
        attendant.seen_at = timezone.now()
        self._seen[attendant.session] = attendant

    def went(self, attendant: Attendant) -> None:
        """It said that it goes: what it said before counts no more."""
        self._seen.pop(attendant.session, None)
        self._end(attendant, "gone")

    def take_seen(self) -> dict[uuid.UUID, Said]:
        """The sessions heard of since the last call, and those whose poll is parked now: a parked poll is presence."""
        parked = {attendant.session: attendant for attendant in self.by_bearer.values() if attendant.poll}
        seen, self._seen = self._seen | parked, {}
        return {session: Said(one.state, one.seen_at) for session, one in seen.items() if not one.superseded}

    def parked(self) -> int:
        """How many polls wait at this moment."""
        return sum(1 for attendant in self.by_bearer.values() if attendant.poll)

    def _end(self, attendant: Attendant, how: str) -> None:
        if attendant.poll is not None and not attendant.poll.done():
            attendant.poll.set_result(how)

    def _forget_silent(self) -> None:
        late = timezone.now() - timedelta(hours=1)
        for bearer, attendant in list(self.by_bearer.items()):
            if attendant.poll is None and attendant.seen_at < late:
                del self.by_bearer[bearer]
                if self._by_client.get(attendant.client) is attendant:
                    del self._by_client[attendant.client]
