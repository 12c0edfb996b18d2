"""What daemons ask of the gateway: /agent/v1 (docs/protocol.md, section 2)."""

import asyncio
import base64
import logging
import random
import re
import sys
import time
from collections.abc import Collection, Coroutine, Mapping, Sequence, Set
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings

from agents import attendance, delivering, evidence, holds, metrics, telling, twins, writes
from agents.daemon import protocol
from agents.gateway import captures
from agents.gateway.database import AT_ONCE, IN_TURN, Database
from agents.gateway.http import JSON, Answer, Handled, Later, Problem, Request
from agents.gateway.parking import Attendant, Parking, Poll
from agents.models import BootSession, SessionStatus
from agents.signing import ids, public_keys
from fleet.exceptions import FleetError
from fleet.models import token_hash
from fleet.signing import Signer

log = logging.getLogger(__name__)
NEXT, CAPTURE = "/agent/v1/next", "/agent/v1/capture"
MOST_REPORTS = 50
_NONCE = re.compile(r"[0-9A-Za-z_-]{8,64}").fullmatch
_BEARER = re.compile(r"[Bb]earer ([0-9a-f]{64})").fullmatch
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
YOUNGER = "A younger session of this client exists."
AWAY = Problem(503, "The database is away.", Retry_After="1")
_HANDED = ("", *protocol.STATES)


class Handed(NamedTuple):
    """A command as the sender hands it over: for whom, signed by which key, and the envelope as it travels: as JSON.

    ``state`` is what its client is in from the acceptance on, "" where that makes no difference.
    """

    client: str
    session: str
    order: str
    command: str
    sequence: int
    key: str
    state: str
    envelope: str

    @classmethod
    def of(cls, told: Any) -> "Handed":
        """From a nudge. ValueError, TypeError or AttributeError for what is none."""
        one = cls(*told)
        if not (type(one.sequence) is int and one.state in _HANDED and _ID(one.client) and _ID(one.session)):
            raise ValueError
        if not type(one.order) is type(one.command) is type(one.key) is type(one.envelope) is str:
            raise ValueError
        return one


class Daemons:
    """Their sessions, and the polls that wait. Only what is asked for the first time, or changes something, costs a task."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._keys = _Keys.of_today()
        self.parking = Parking(self._ended)
        metrics.PARKED.set_function(self.parking.parked)
        self._tasks: set[asyncio.Task[None]] = set()

    # --- who asks ---------------------------------------------------------------------------------------------------

    def _known(self, bearer: str) -> Attendant | None:
        """Who has the bearer of this hash, if this gateway has heard of it, and no younger session replaced it."""
        attendant = self.parking.by_bearer.get(bearer)
        if attendant is None or attendant.superseded:
            return None
        self.parking.saw(attendant)
        return attendant

    async def _attendant(self, bearer: str) -> Attendant:
        """Who has it, known or not. Problem 401 for strangers, 409 for a session that a younger one replaced."""
        attendant = self._known(bearer)
        if attendant is None:
            session = await self._database.read_all(attendance.sessions_by, bearer)
            if session is None:
                raise Problem(401, "This bearer token belongs to no session.", WWW_Authenticate="Bearer")
            if session.status == SessionStatus.REVOKED:
                raise Problem(401, "This session was revoked.", WWW_Authenticate="Bearer")
            known = self.parking.by_bearer.get(bearer)
            if session.status == SessionStatus.SUPERSEDED or (known is not None and known.superseded):
                await self._database.write(twins.heard, session.pk)
                raise Problem(409, YOUNGER)
            # Unless it asked twice, and the other one came first.
            attendant = known or self.parking.enter(bearer, session.pk, session.client_id, session.command_keys)
            self.parking.saw(attendant)
        return attendant

    async def _session_by(self, bearer: str) -> BootSession:
        await self._attendant(bearer)
        return await self._database.read(attendance.session_of, bearer)

    async def look_at_keys(self) -> None:
        """The command keys of today: files, so that a host that is given new ones needs no restart."""
        self._keys = await asyncio.to_thread(_Keys.of_today)

    # --- sessions ---------------------------------------------------------------------------------------------------

    async def session(self, request: Request) -> Answer:
        came = _now_ms()
        bearer = _bearer(request)
        attendant = await self._attendant(bearer)
        body = request.json()
        nonce, boot_id, speaks = body.get("nonce"), body.get("boot_id"), body.get("protocol")
        if type(speaks) is not int or speaks not in protocol.VERBS:
            raise Problem(400, f"This server speaks the protocols {', '.join(map(str, protocol.VERBS))}.")
        if not isinstance(nonce, str) or not _NONCE(nonce) or not isinstance(boot_id, str):
            raise Problem(400, "The nonce or the boot_id is not one.")
        try:
            facts = attendance.clean_facts(body.get("facts"))
        except attendance.BadFacts as error:
            raise Problem(400, str(error)) from None
        if speaks < settings.PROTOCOL_FLOOR:
            session = await self._session_by(bearer)
            raise Problem(400, await self._database.write(attendance.refuse_old, session, speaks))
        keys = self._keys
        opening = attendance.Opening(attendant.session, attendant.client, boot_id, facts, speaks, keys.ids)
        try:
            await self._database.write_all(attendance.open_sessions, opening)
        except FleetError as error:
            raise Problem(409, error.message) from None
        attendant.keys, attendant.state = keys.ids, ""
        if "clock_ms" in facts:
            metrics.SKEW.observe(abs(came - facts["clock_ms"]) / 1000)
        answer = Answer.json(
            {
                "session": str(attendant.session),
                "client": str(attendant.client),
                "nonce": nonce,
                "server_time_ms": _now_ms(),
                "hold_s": self.parking.longest_hold_s(),
                "spread_s": settings.POLL_SPREAD,
                "keys": keys.told,
                "protocol": speaks,
            }
        )
        signer = session_signer()
        signature = base64.b64encode(signer.sign(answer.body)).decode()
        answer.headers = {**answer.headers, "Fleet-Signature": f"{signer.key_id}:{signature}"}
        return answer

    async def bye(self, request: Request) -> Answer:
        attendant = await self._attendant(_bearer(request))
        request.json()
        self.parking.went(attendant)
        await self._database.write_all(attendance.close_sessions, attendance.Bye(attendant.session, attendant.client))
        return Answer(204)

    # --- polls ------------------------------------------------------------------------------------------------------

    def next(self, request: Request) -> Handled:
        bearer = _bearer(request)
        attendant = self._known(bearer)
        if attendant is None:
            return self._next_of_stranger(request, bearer)
        return self._next(request, attendant)

    async def _next_of_stranger(self, request: Request, bearer: str) -> Answer | None:
        handled = self._next(request, await self._attendant(bearer))
        return handled if handled is None or isinstance(handled, Answer) else await handled

    def _next(self, request: Request, attendant: Attendant) -> Answer | Coroutine[Any, Any, Answer | None] | None:
        query = request.query
        cursor, state = query.get("cursor", "0"), query.get("state", "")
        if not cursor.isdecimal() or len(cursor) > 16 or state not in protocol.STATES:
            raise Problem(400, f"The cursor is a sequence, the state one of {', '.join(protocol.STATES)}.")
        self._in_state(attendant, state)
        poll = Poll(attendant, request.line, int(cursor), time.monotonic() + self.parking.hold_s())
        if attendant.client in self.parking.waiting:
            self.parking.waiting.discard(attendant.client)
            return self._deliver([poll])
        self.parking.park(poll)
        return None

    def hand_out(self, commands: Sequence[Handed]) -> None:
        """Answer parked polls with the commands that were signed just now, without asking the database for what it was told before.

        Whoever is not there, or whose session, cursor or keys are others, is looked up when it asks.
        """
        now_ms, unsure, steps = _now_ms(), list[Poll](), list[telling.Step]()
        for one in commands:
            poll = self.parking.call(one.client)
            if poll is None:
                continue
            attendant = poll.attendant
            known = one.key in attendant.keys.split()
            if attendant.names[1] != one.session or one.sequence <= poll.cursor or not known:
                unsure.append(poll)
                continue
            attendant.given = (one.command, one.state) if one.state else None
            body = f'{{"commands": [{one.envelope}], "server_time_ms": {now_ms}}}'
            poll.line.answer(Answer(200, body.encode(), JSON))
            steps.append(telling.Step(one.order, one.command, one.client, one.session))
        metrics.polled("delivered", len(steps))
        metrics.answered(NEXT, 200, len(steps))
        telling.delivered(steps)
        if unsure:
            self._run(self._deliver(unsure))

    def wake(self, clients: Collection[UUID]) -> None:
        """Commands wait for these clients."""
        if polls := self.parking.wake(clients):
            self._run(self._deliver(polls))

    async def _deliver(self, polls: Sequence[Poll], *, asked_keys: bool = False) -> None:
        """Answer polls with the commands that wait for them; those for whom there are none wait on.

        With ``asked_keys`` their daemons know all the keys there are: what another one signed is for them to refuse.
        """
        try:
            asked = [(poll.attendant.session, poll.cursor) for poll in polls]
            if len(asked) == 1:  # who came while others were given theirs: with all who did
                found = [await self._database.read_all(delivering.envelopes, asked[0])]
            else:
                found = await self._database.read(delivering.envelopes, asked)
        except Exception:
            log.exception("The commands of %d clients could not be read; they ask again", len(polls))
            for poll in polls:
                self._answer(poll, Answer.problem(AWAY))
            return
        now_ms = _now_ms()
        for poll, envelopes in zip(polls, found, strict=True):
            signed = {envelope["key"] for envelope in envelopes}
            if not asked_keys and not signed <= set(poll.attendant.keys.split()):
                self._run(self._ask_anew(poll, signed))
            elif envelopes:
                metrics.polled("delivered")
                self._answer(poll, Answer.json({"commands": envelopes, "server_time_ms": now_ms}))
            elif poll.attendant.poll is None:
                self.parking.park(poll)
            else:
                self._ended(poll, "replaced")

    def _ended(self, poll: Poll, how: str) -> None:
        if how == "forgotten":
            self._run(self._look_up(poll))
            return
        metrics.polled(how)
        if how == "superseded":
            self._answer(poll, Answer.problem(Problem(409, YOUNGER)))
        elif how == "closing":
            self._answer(poll, Answer.problem(come_again()))
        elif poll.attendant.keys == self._keys.ids:
            self._answer(poll, _nothing())
        else:
            self._run(self._ask_anew(poll))

    async def _look_up(self, poll: Poll) -> None:
        """What this gateway knew of a session is believed no more: its poll waits on if it is still good."""
        try:
            attendant = await self._attendant(poll.attendant.bearer)
        except Problem as problem:
            self._answer(poll, Answer.problem(problem))
        except Exception:
            log.exception("The session of client %s could not be looked up; it asks again", poll.attendant.client)
            self._answer(poll, Answer.problem(AWAY))
        else:
            attendant.state, poll.attendant = poll.attendant.state, attendant
            self.parking.park(poll)

    async def _ask_anew(self, poll: Poll, signed: Set[str] | None = None) -> None:
        """A daemon was not told these keys, or (without any) not just those of today: unless another gateway told it, it must ask."""
        attendant = poll.attendant
        try:
            await self.look_at_keys()
            attendant.keys = sys.intern(await self._database.read(attendance.told_keys, attendant.session))
        except Exception:
            log.exception("The keys that client %s knows could not be looked up; it asks again", attendant.client)
            self._answer(poll, Answer.problem(AWAY))
            return
        today = set(self._keys.ids.split())
        if attendant.keys == self._keys.ids if signed is None else signed & today <= set(attendant.keys.split()):
            if signed is not None:
                await self._deliver([poll], asked_keys=True)
            else:
                self._answer(poll, _nothing())
            return
        if signed is not None:
            self.parking.waiting.add(attendant.client)
        # A time so wrong that the daemon opens its session anew, to be told the keys of today (docs/protocol.md).
        self._answer(poll, Answer(204, headers={"Fleet-Time": "0"}))

    def _answer(self, poll: Poll, answer: Answer) -> None:
        metrics.answered(NEXT, answer.status)
        poll.line.answer(answer)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what became of commands, and more --------------------------------------------------------------------------

    def reports(self, request: Request) -> Handled:
        bearer = _bearer(request)
        attendant = self._known(bearer)
        return self._reports(request, attendant) if attendant else self._reports_of_stranger(request, bearer)

    async def _reports_of_stranger(self, request: Request, bearer: str) -> Answer:
        later = self._reports(request, await self._attendant(bearer))
        await asyncio.wait([later.found])
        return later.made()

    def _reports(self, request: Request, attendant: Attendant) -> Later:
        reports = request.json().get("reports")
        if not isinstance(reports, list) or not 0 < len(reports) <= MOST_REPORTS or not all(map(_is_report, reports)):
            raise Problem(400, f"reports is a list of 1 to {MOST_REPORTS} reports (docs/protocol.md, section 3).")
        # Somebody waits for a client to begin; what it has done is done.
        urgency = AT_ONCE if all(report["state"] == protocol.ACCEPTED for report in reports) else IN_TURN
        told = evidence.Told(attendant.session, attendant.client, reports)
        return Later(
            self._database.write_all(evidence.take_reports, told, urgency), partial(self._taken, attendant, reports)
        )

    def _taken(self, attendant: Attendant, reports: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> Answer:
        accepted, rejected = list[str](), list[dict[str, str]]()
        for report, why in zip(reports, answers, strict=True):
            command = report["command"]
            if why:
                rejected.append({"command": command, "reason": why})
                continue
            accepted.append(command)
            if attendant.given is not None and attendant.given[0] == command:
                self._in_state(attendant, attendant.given[1])  # it begins, and asks for nothing more for a while
                attendant.given = None
        return Answer.json({"accepted": accepted, "rejected": rejected})

    def _in_state(self, attendant: Attendant, state: str) -> None:
        """Have it written down, where it is news. What gets lost of that is mended by the next sweep."""
        if state != attendant.state:
            attendant.state = state
            self._database.note(attendance.say_states, attendance.Says(attendant.session, attendant.client, state))

    async def capture(self, request: Request) -> Answer:
        return await captures.take(request, await self._session_by(_bearer(request)), self._database)

    async def writes(self, request: Request) -> Answer:
        session = await self._session_by(_bearer(request))
        try:
            entries = writes.clean(request.json().get("writes"))
        except writes.BadWrites as error:
            raise Problem(400, str(error)) from None
        await self._database.write(writes.take, session, entries)
        return Answer(204)

    async def hold(self, request: Request) -> Answer:
        session = await self._session_by(_bearer(request))
        try:
            reason, until = holds.clean(request.json())
        except holds.BadHold as error:
            raise Problem(400, str(error)) from None
        await self._database.write(holds.take, session, reason, until)
        return Answer(204)


def come_again() -> Problem:
    spread = 1 + random.randint(0, settings.POLL_SPREAD)  # noqa: S311 - spreads load, guards nothing
    return Problem(503, "The gateway is restarting.", Retry_After=str(spread))


def session_signer() -> Signer:
    """By the key that lies there now."""
    return Signer.load(settings.SESSION_KEY, "session")


class _Keys(NamedTuple):
    """The public keys of commands: as daemons are told them, and their ids."""

    told: str
    ids: str

    @classmethod
    def of_today(cls) -> "_Keys":
        told = public_keys(settings.PUBLIC_KEYS, "command")
        return cls(told, sys.intern(ids(told)))


def _nothing() -> Answer:
    return Answer(204, headers={"Fleet-Time": str(_now_ms())})


def _now_ms() -> int:
    return round(time.time() * 1000)


def _bearer(request: Request) -> str:
    """The hash of the bearer token. Problem 401 where there is none."""
    match = _BEARER(request.headers.get("authorization", ""))
    if match is None:
        raise Problem(401, "A session's bearer token is needed.", WWW_Authenticate="Bearer")
    return token_hash(match[1])


def _is_report(report: Any) -> bool:
    return (
        isinstance(report, dict)
        and isinstance(report.get("command"), str)
        and _ID(report["command"]) is not None
        and report.get("state") in protocol.REPORTS
        and isinstance(report.get("reason"), str)
        and len(report["reason"]) <= 300
        and _storable(report["reason"])
        and isinstance(report.get("result"), dict)
    )


def _storable(text: str) -> bool:
    """Whether a database takes it: JSON may hold NUL and halves of surrogate pairs."""
    return not any(char == "\0" or "\ud800" <= char <= "\udfff" for char in text)
