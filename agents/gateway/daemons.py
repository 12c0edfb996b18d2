"""What daemons ask of the gateway: /agent/v1 (docs/protocol.md, section 2)."""

import asyncio
import base64
import logging
import random
import re
import time
from collections.abc import Collection, Coroutine, Sequence
from typing import Any
from uuid import UUID

from django.conf import settings

from agents import attendance, delivering, evidence, metrics, writes
from agents.daemon import protocol
from agents.gateway import captures
from agents.gateway.database import AT_LEISURE, AT_ONCE, IN_TURN, Database
from agents.gateway.http import Answer, Handled, Problem, Request
from agents.gateway.parking import Attendant, Parking, Poll
from agents.models import BootSession, SessionStatus
from agents.signing import public_keys
from fleet.exceptions import FleetError
from fleet.models import token_hash
from fleet.signing import Signer

log = logging.getLogger(__name__)
NEXT, CAPTURE = "/agent/v1/next", "/agent/v1/capture"
MOST_REPORTS = 50
_NONCE = re.compile(r"[0-9A-Za-z_-]{8,64}").fullmatch
_BEARER = re.compile(r"[Bb]earer ([0-9a-f]{64})").fullmatch
_COMMAND = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
YOUNGER = "A younger session of this client exists."


class Daemons:
    """Their sessions, and the polls that wait. Only what is asked for the first time, or changes something, costs a task."""

    def __init__(self, database: Database, signer: Signer) -> None:
        self._database, self._signer = database, signer
        self.parking = Parking(self._ended)
        metrics.PARKED.set_function(self.parking.parked)
        self._tasks: set[asyncio.Task[None]] = set()

    # --- who asks ---------------------------------------------------------------------------------------------------

    def _known(self, bearer: str) -> Attendant | None:
        """Who has the bearer of this hash, if this gateway has heard of it. Problem 409 for a session that a younger one replaced."""
        attendant = self.parking.by_bearer.get(bearer)
        if attendant is not None:
            if attendant.superseded:
                raise Problem(409, YOUNGER)
            self.parking.saw(attendant)
        return attendant

    async def _attendant(self, bearer: str) -> Attendant:
        """Who has it, known or not. Problem 401 for strangers, 409 as ``_known``."""
        attendant = self._known(bearer)
        if attendant is None:
            session = await self._database.read_all(attendance.sessions_by, bearer)
            if session is None:
                raise Problem(401, "This bearer token belongs to no session.", WWW_Authenticate="Bearer")
            if session.status == SessionStatus.SUPERSEDED:
                raise Problem(409, YOUNGER)
            # Unless it asked twice, and the other one came first.
            attendant = self._known(bearer) or self.parking.enter(bearer, session.pk, session.client_id)
            self.parking.saw(attendant)
        return attendant

    async def _session_by(self, bearer: str) -> BootSession:
        await self._attendant(bearer)
        return await self._database.read(attendance.session_of, bearer)

    # --- sessions ---------------------------------------------------------------------------------------------------

    async def session(self, request: Request) -> Answer:
        came = _now_ms()
        attendant = await self._attendant(_bearer(request))
        body = request.json()
        nonce, boot_id = body.get("nonce"), body.get("boot_id")
        if type(body.get("protocol")) is not int or body["protocol"] not in protocol.VERBS:
            raise Problem(400, f"This server speaks the protocols {', '.join(map(str, protocol.VERBS))}.")
        if not isinstance(nonce, str) or not _NONCE(nonce) or not isinstance(boot_id, str):
            raise Problem(400, "The nonce or the boot_id is not one.")
        try:
            facts = attendance.clean_facts(body.get("facts"))
        except attendance.BadFacts as error:
            raise Problem(400, str(error)) from None
        opening = attendance.Opening(attendant.session, attendant.client, boot_id, facts)
        try:
            await self._database.write_all(attendance.open_sessions, opening)
        except FleetError as error:
            raise Problem(409, error.message) from None
        attendant.state = ""
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
                "keys": public_keys(settings.PUBLIC_KEYS, "command"),
            }
        )
        signature = base64.b64encode(self._signer.sign(answer.body)).decode()
        answer.headers["Fleet-Signature"] = f"{self._signer.key_id}:{signature}"
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

    def _next(self, request: Request, attendant: Attendant) -> Handled:
        query = request.query
        cursor, state = query.get("cursor", "0"), query.get("state", "")
        if not cursor.isdecimal() or len(cursor) > 16 or state not in protocol.STATES:
            raise Problem(400, f"The cursor is a sequence, the state one of {', '.join(protocol.STATES)}.")
        if state != attendant.state:
            attendant.state = state
            self._run(self._note(attendant, state))
        poll = Poll(attendant, request.line, int(cursor), time.monotonic() + self.parking.hold_s())
        if attendant.client in self.parking.waiting:
            self.parking.waiting.discard(attendant.client)
            return self._deliver([poll])
        self.parking.park(poll)
        return None

    async def _note(self, attendant: Attendant, state: str) -> None:
        """Write down what a daemon says of its client. Nobody waits for it: what was not written is mended by the next sweep."""
        try:
            said = attendance.Says(attendant.session, attendant.client, state)
            await self._database.write_all(attendance.say_states, said, AT_LEISURE)
        except FleetError as error:
            log.info("%s", error)
        except Exception:
            log.exception("The state of client %s could not be written down", attendant.client)

    def wake(self, clients: Collection[UUID]) -> None:
        """Commands wait for these clients."""
        if polls := self.parking.wake(clients):
            self._run(self._deliver(polls))

    async def _deliver(self, polls: Sequence[Poll]) -> None:
        """Answer polls with the commands that wait for them; those for whom there are none wait on."""
        try:
            asked = [(poll.attendant.session, poll.cursor) for poll in polls]
            found = await self._database.read(delivering.envelopes, asked)
        except Exception:
            log.exception("The commands of %d clients could not be read; they ask again", len(polls))
            for poll in polls:
                self._answer(poll, Answer.problem(Problem(503, "The database is away.", Retry_After="1")))
            return
        now_ms = _now_ms()
        for poll, envelopes in zip(polls, found, strict=True):
            if envelopes:
                metrics.polled("delivered")
                self._answer(poll, Answer.json({"commands": envelopes, "server_time_ms": now_ms}))
            elif poll.attendant.poll is None:
                self.parking.park(poll)
            else:
                self._ended(poll, "replaced")

    def _ended(self, poll: Poll, how: str) -> None:
        metrics.polled(how)
        if how == "superseded":
            self._answer(poll, Answer.problem(Problem(409, YOUNGER)))
        elif how == "closing":
            self._answer(poll, Answer.problem(come_again()))
        else:
            self._answer(poll, Answer(204, headers={"Fleet-Time": str(_now_ms())}))

    def _answer(self, poll: Poll, answer: Answer) -> None:
        metrics.answered(NEXT, answer.status)
        poll.line.answer(answer)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what became of commands, and more --------------------------------------------------------------------------

    async def reports(self, request: Request) -> Answer:
        attendant = await self._attendant(_bearer(request))
        reports = request.json().get("reports")
        if not isinstance(reports, list) or not 0 < len(reports) <= MOST_REPORTS or not all(map(_is_report, reports)):
            raise Problem(400, f"reports is a list of 1 to {MOST_REPORTS} reports (docs/protocol.md, section 3).")
        # Somebody waits for a client to begin; what it has done is done.
        urgency = AT_ONCE if all(report["state"] == protocol.ACCEPTED for report in reports) else IN_TURN
        told = evidence.Told(attendant.client, reports)
        answers = await self._database.write_all(evidence.take_reports, told, urgency)
        accepted = [report["command"] for report, why in zip(reports, answers, strict=True) if not why]
        rejected = [
            {"command": report["command"], "reason": why} for report, why in zip(reports, answers, strict=True) if why
        ]
        return Answer.json({"accepted": accepted, "rejected": rejected})

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


def come_again() -> Problem:
    spread = 1 + random.randint(0, settings.POLL_SPREAD)  # noqa: S311 - spreads load, guards nothing
    return Problem(503, "The gateway is restarting.", Retry_After=str(spread))


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
        and _COMMAND(report["command"]) is not None
        and report.get("state") in protocol.REPORTS
        and isinstance(report.get("reason"), str)
        and len(report["reason"]) <= 300
        and _storable(report["reason"])
        and isinstance(report.get("result"), dict)
    )


def _storable(text: str) -> bool:
    """Whether a database takes it: JSON may hold NUL and halves of surrogate pairs."""
    return not any(char == "\0" or "\ud800" <= char <= "\udfff" for char in text)
