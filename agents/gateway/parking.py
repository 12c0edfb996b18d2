"""Who is there: parked polls, presence, and what waits to be delivered. Memory only; the database is asked elsewhere."""

import asyncio
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from django.conf import settings

from agents.attendance import Said
from agents.gateway.http import Line

TICK_S = 0.25  # how late a hold may end
MOST_HOLD_S = 60.0  # however many wait, unless FLEET_POLL_HOLD is longer
PART = 1000  # sessions that are written down at once
IDLE_POLLS = 200  # a second, of all who have nothing to say: holds grow so that there are no more


@dataclass(slots=True, eq=False)
class Attendant:
    """A session this gateway has heard of, by the hash of its bearer.

    ``keys`` are the ids of the command keys its daemon was told; ``state`` is what that said last, ``seen_at`` when it asked last, in seconds since 1970.
    ``names`` are client and session as text, as the sender hands commands over.
    ``given`` is a command it was handed, and the state that its client is in as soon as that is accepted.
    """

    bearer: str
    session: uuid.UUID
    client: uuid.UUID
    keys: str = ""
    state: str = ""
    superseded: bool = False
    forgotten: bool = False
    poll: "Poll | None" = None
    given: tuple[str, str] | None = None
    seen_at: float = field(default_factory=time.time)
    names: tuple[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = str(self.client), str(self.session)


@dataclass(slots=True, eq=False)
class Poll:
    """Who waits for commands above ``cursor``, on which line, until when (by the monotonic clock)."""

    attendant: Attendant
    line: Line
    cursor: int
    until: float


class Parking:
    """Attendants by the digest of their bearer; ``waiting`` are clients with commands to deliver.

    ``ended`` is told of each parked poll how it ended: ``superseded``, ``replaced`` (by a newer poll of the session), ``gone`` (it said
    that it goes), ``forgotten``, ``closing``, ``held``. Those that are woken are handed to whoever wakes them.
    """

    MOST = 50_000

    def __init__(self, ended: Callable[[Poll, str], None]) -> None:
        self.by_bearer: dict[str, Attendant] = {}
        self.waiting: set[uuid.UUID] = set()
        self._ended = ended
        self._by_client: dict[str, Attendant] = {}
        self._by_line: dict[Line, Poll] = {}
        self.closed = False
        self._seen: dict[uuid.UUID, Attendant] = {}
        self._due: dict[int, list[Attendant]] = {}  # whose hold ends in a tick, if it has not ended before

    def enter(self, bearer: str, session: uuid.UUID, client: uuid.UUID, keys: str = "") -> Attendant:
        """Know a session; an older one of the same client is superseded."""
        if len(self.by_bearer) >= self.MOST:
            self._forget_silent()
        attendant = Attendant(bearer, session, client, sys.intern(keys))
        older = self._by_client.get(attendant.names[0])
        if older is not None and older.session != session:
            self.supersede(older)
        self.by_bearer[bearer] = self._by_client[attendant.names[0]] = attendant
        return attendant

    def supersede(self, attendant: Attendant) -> None:
        attendant.superseded = True
        self._end(attendant, "superseded")

    def superseded_by(self, client: uuid.UUID) -> None:
        """A younger session of ``client`` begins: the present one's poll ends."""
        if older := self._by_client.pop(str(client), None):
            self.supersede(older)

    def forget(self, sessions: Collection[uuid.UUID]) -> None:
        """Believe no more what is remembered of these sessions: whoever shows their bearer is looked up anew."""
        if not sessions:
            return
        for attendant in [attendant for attendant in self.by_bearer.values() if attendant.session in sessions]:
            del self.by_bearer[attendant.bearer]
            attendant.forgotten = True
            self._forget_client(attendant)
            self._seen.pop(attendant.session, None)
            self._end(attendant, "forgotten")

    # --- polls ------------------------------------------------------------------------------------------------------

    def hold_s(self) -> float:
        """How long a poll is held now."""
        return min(max(settings.POLL_HOLD, len(self._by_line) / IDLE_POLLS), self.longest_hold_s())

    @staticmethod
    def longest_hold_s() -> float:
        return max(settings.POLL_HOLD, MOST_HOLD_S)

    def park(self, poll: Poll) -> None:
        """Have it wait; the session's older poll, if there is one, waits no more."""
        attendant = poll.attendant
        if self.closed or attendant.superseded or attendant.forgotten:  # while something was asked for it
            how = "closing" if self.closed else "superseded" if attendant.superseded else "forgotten"
            self._ended(poll, how)
            return
        if poll.line.broken:
            return
        self._end(attendant, "replaced")
        attendant.poll = self._by_line[poll.line] = poll
        self._due.setdefault(int(poll.until / TICK_S) + 1, []).append(attendant)

    async def hold(self) -> None:
        """For ever: end the polls whose time is over."""
        tick = int(time.monotonic() / TICK_S)
        while True:
            await asyncio.sleep(TICK_S)
            while tick < int(time.monotonic() / TICK_S):
                tick += 1
                for attendant in self._due.pop(tick, ()):
                    if attendant.poll is not None and attendant.poll.until <= tick * TICK_S:
                        self._end(attendant, "held")

    def wake(self, clients: Iterable[uuid.UUID]) -> list[Poll]:
        """Commands wait for these: their parked polls, which are parked no more."""
        return [poll for poll in map(self.call, map(str, clients)) if poll is not None]

    def call(self, client: str) -> Poll | None:
        """The same of one, by its id as text."""
        attendant = self._by_client.get(client)
        poll = self._take(attendant) if attendant is not None else None
        if poll is None:
            self.waiting.add(uuid.UUID(client))
        return poll

    def lost(self, line: Line) -> None:
        """The line broke, so nobody waits there any more."""
        if poll := self._by_line.get(line):
            self._take(poll.attendant)

    def close(self) -> None:
        """End all polls, those that come late too."""
        self.closed = True
        for poll in list(self._by_line.values()):
            self._end(poll.attendant, "closing")

    def _take(self, attendant: Attendant) -> Poll | None:
        poll, attendant.poll = attendant.poll, None
        if poll is not None:
            del self._by_line[poll.line]
        return poll

    def _end(self, attendant: Attendant, how: str) -> None:
        if poll := self._take(attendant):
            self._ended(poll, how)

    # --- presence ---------------------------------------------------------------------------------------------------

    def saw(self, attendant: Attendant) -> None:
        attendant.seen_at = time.time()
        self._seen[attendant.session] = attendant

    def went(self, attendant: Attendant) -> None:
        """It said that it goes: what it said before counts no more."""
        self._seen.pop(attendant.session, None)
        self._end(attendant, "gone")

    def take_seen(self) -> list[dict[uuid.UUID, Said]]:
        """The sessions heard of since the last call, and those whose poll is parked now: a parked poll is presence. In parts of PART."""
        parked = {poll.attendant.session: poll.attendant for poll in self._by_line.values()}
        seen, self._seen = self._seen | parked, {}
        said = [
            (session, Said(one.state, datetime.fromtimestamp(one.seen_at, UTC)))
            for session, one in seen.items()
            if not one.superseded
        ]
        return [dict(said[start : start + PART]) for start in range(0, len(said), PART)]

    def parked(self) -> int:
        """How many polls wait at this moment."""
        return len(self._by_line)

    def _forget_silent(self) -> None:
        late = time.time() - 3600
        for bearer, attendant in list(self.by_bearer.items()):
            if attendant.poll is None and attendant.seen_at < late:
                del self.by_bearer[bearer]
                self._forget_client(attendant)

    def _forget_client(self, attendant: Attendant) -> None:
        if self._by_client.get(attendant.names[0]) is attendant:
            del self._by_client[attendant.names[0]]
