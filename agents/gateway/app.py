"""The gateway's routes and its life: what arrives is checked here, decided in ``agents`` and answered after it is durable."""

import asyncio
import base64
import json
import logging
import random
import re
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Set
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NoReturn

import redis.asyncio as aioredis
from django.conf import settings
from django.utils import timezone
from prometheus_client import generate_latest
from redis.exceptions import RedisError

from agents import attendance, evidence, holds, metrics, netboot, telling, twins, writes
from agents.daemon import protocol
from agents.gateway import artefacts, captures
from agents.gateway.database import Database
from agents.gateway.http import Answer, Bucket, Problem, Receive, Request, Scope, Send, reply
from agents.gateway.parking import Attendant, Parking
from agents.gateway.waker import Waker
from agents.models import BootSession, Command, CommandStatus, SessionStatus, Verb
from agents.sending import CHANNEL
from agents.signing import ids, public_keys
from fleet import metrics as monitor
from fleet.alive import GATEWAY_UP
from fleet.exceptions import FleetError
from fleet.models import token_hash
from fleet.signify import signify
from fleet.signing import Signer

log = logging.getLogger(__name__)
SWEEP_S = 3.0  # how late a command is found whose nudge was lost, and how often presence is written down, at the most
CLOCKS_DIFFER = timedelta(minutes=1)  # between the hosts of a server, at the most
# A time so wrong that the daemon opens its session anew, to be told the keys of today (docs/protocol.md).
ASK_ANEW = {"Fleet-Time": "0"}
REDIS_PATIENCE_S = 2.0  # a Redis that hangs is one that is away
_NONCE = re.compile(r"[0-9A-Za-z_-]{8,64}").fullmatch
_BEARER = re.compile(r"[Bb]earer ([0-9a-f]{64})").fullmatch
_COMMAND = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
MOST_REPORTS = 50

Route = Callable[[Request], Awaitable[Answer]]


class Gateway:
    """The ASGI application. One per process; several processes serve one database side by side."""

    def __init__(self) -> None:
        self._parking = Parking()
        metrics.PARKED.set_function(self._parking.parked)
        self._database = Database()
        self._waker = Waker(self._database)
        self._signer()  # or it would start, and fail at the first boot
        self._keys = ids(public_keys(settings.PUBLIC_KEYS, "command"))
        self._tasks: list[asyncio.Task[None]] = []
        self._up_since = time.time()
        self._closing = False
        self._routes: dict[tuple[str, str], tuple[Route, Bucket]] = {
            ("GET", "/boot/v1/start.ipxe"): (self._start, Bucket(500, 2000)),
            ("GET", "/boot/v1/client.ipxe"): (self._script, Bucket(200, 1000)),
            ("POST", "/boot/v1/plan"): (self._plan, Bucket(200, 1000)),
            ("POST", "/boot/v1/trouble"): (self._trouble, Bucket(50, 200)),
            ("POST", "/agent/v1/session"): (self._session, Bucket(500, 2000)),
            ("GET", "/agent/v1/next"): (self._next, Bucket(2000, 20000)),
            ("POST", "/agent/v1/reports"): (self._reports, Bucket(2000, 20000)),
            ("PUT", "/agent/v1/capture"): (self._capture, Bucket(1, 20)),
            ("PUT", "/agent/v1/writes"): (self._writes, Bucket(50, 500)),
            ("PUT", "/agent/v1/hold"): (self._hold, Bucket(100, 2000)),
            ("POST", "/agent/v1/bye"): (self._bye, Bucket(500, 5000)),
            ("GET", "/metrics"): (self._metrics, Bucket(2, 10)),
        }
        self._store = Bucket(2000, 50000)  # one that starts fetches half a dozen artefacts
        self._methods: dict[str, str] = {path: method for method, path in self._routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)

    def _signer(self) -> Signer:
        return Signer.load(settings.SESSION_KEY, "session")

    # --- life -------------------------------------------------------------------------------------------------------

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                for work in (self._database.run, self._listen, self._sweep, self._waker.run):
                    self._tasks.append(asyncio.create_task(work()))
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._shut_down()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def close(self) -> None:
        """End all parked polls and admit no more; the daemons come again after a spread pause."""
        self._closing = True
        self._parking.close()

    async def _shut_down(self) -> None:
        self.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._database.close()

    async def _listen(self) -> None:
        """Hear nudges. While Redis is away the sweep delivers."""
        while True:
            with suppress(RedisError, OSError):
                async with _redis() as connection, connection.pubsub() as channel:
                    await channel.subscribe(CHANNEL)
                    asked = False  # whether anybody is at the other end still
                    while True:
                        message = await channel.get_message(ignore_subscribe_messages=True, timeout=REDIS_PATIENCE_S)
                        if message is not None:
                            asked = False
                            if message["type"] == "message":
                                self._nudged(message["data"])
                        elif asked:
                            break
                        else:
                            await channel.ping()
                            asked = True
            await asyncio.sleep(1)

    def _nudged(self, data: bytes) -> None:
        try:
            nudge = json.loads(data)
            clients = [uuid.UUID(client) for client in nudge.get("clients", ())]
            sessions = {uuid.UUID(session) for session in nudge.get("cut_off", ())}
            wake = nudge.get("wake")
            if not nudge.keys() & {"clients", "cut_off", "wake"}:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            log.error("A nudge that is none was published on %s: %r", CHANNEL, data[:100])
            return
        self._parking.forget(sessions)
        for client in clients:
            self._parking.wake(client)
        if wake:
            self._waker.hint.set()

    async def _sweep(self) -> None:
        """Every few seconds: find what was lost of nudges and hints, write down who is there, and that we listen."""
        pause = min(SWEEP_S, settings.LOST_AFTER / 4)
        looked = timezone.now()
        while True:
            telling.steps.flush()
            try:
                self._keys = await asyncio.to_thread(_command_keys)
                now = timezone.now()
                self._parking.forget(await self._database.read(_cut_off, looked - CLOCKS_DIFFER))
                looked = now
                for client in await self._database.read(_with_commands):
                    self._parking.wake(client)
                await self._database.write(attendance.seen, self._parking.take_seen())
            except Exception:
                log.exception("The sweep failed; it is tried again in %s s", pause)
            else:
                # Only now: who was not written down must not count as silent. And gone again before that could be.
                with suppress(RedisError, OSError):
                    async with _redis() as connection:
                        await connection.set(GATEWAY_UP, str(self._up_since), px=round(pause * 2000))
            await asyncio.sleep(pause)

    # --- requests ---------------------------------------------------------------------------------------------------

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        try:
            request = Request.of(scope, receive)
            if request.path.startswith("/store/") and request.method in ("GET", "HEAD"):
                self._admit(self._store, "/store/")
                await artefacts.serve(request, send, settings.STORE)
                return
            answer = await self._answer(request)
        except Problem as problem:
            answer = Answer.problem(problem)
        except netboot.Refusal as refusal:
            answer = Answer.text(refusal.text + "\n", refusal.status)
        except FleetError as error:
            log.error("%s %s: %s", method, path, error)
            answer = Answer.problem(Problem(503, error.message, Retry_After="10"))
        except Exception:
            log.exception("%s %s failed", method, path)
            answer = Answer.problem(Problem(500, "The server failed; its log says why."))
        metrics.REQUESTS.labels(path if path in self._methods else "other", answer.status).inc()
        await reply(send, answer, head=method == "HEAD")

    async def _answer(self, request: Request) -> Answer:
        method = "GET" if request.method == "HEAD" else request.method
        route = self._routes.get((method, request.path))
        if route is None:
            if allowed := self._methods.get(request.path):
                raise Problem(405, f"{request.path} takes {allowed}.", Allow=allowed)
            if request.path.startswith("/store/"):
                raise Problem(405, "Artefacts are only read.", Allow="GET, HEAD")
            raise Problem(404, f"There is nothing at {request.path[:100]}.")
        if self._closing:
            raise self._come_again()
        handler, bucket = route
        self._admit(bucket, request.path)
        return await handler(request)

    def _admit(self, bucket: Bucket, path: str) -> None:
        try:
            bucket.admit()
        except Problem:
            metrics.REJECTED.labels(path).inc()
            raise

    def _come_again(self) -> Problem:
        spread = 1 + random.randint(0, settings.POLL_SPREAD)  # noqa: S311 - spreads load, guards nothing
        return Problem(503, "The gateway is restarting.", Retry_After=str(spread))

    # Boot: firmware and initrd

    async def _start(self, request: Request) -> Answer:
        return Answer.text(netboot.start_script(request.query.get("site", "")))

    async def _script(self, request: Request) -> Answer:
        return Answer.text(await self._database.write(netboot.client_script, request.query))

    async def _plan(self, request: Request) -> Answer:
        form = await request.form()
        try:
            plan = await self._database.write(netboot.boot_plan, form)
        except netboot.Refusal as refusal:
            await self._database.write(netboot.note, refusal, form)
            raise
        fields = protocol.parse_plan(plan)
        if fields["action"] == "boot":
            self._parking.superseded_by(uuid.UUID(fields["client"]))
        return Answer.text(f"{plan}signature={signify(self._signer(), plan.encode())}\n")

    async def _trouble(self, request: Request) -> Answer:
        await self._database.write(netboot.trouble, await request.form())
        return Answer(204)

    # Sessions: the daemon

    async def _attendant(self, request: Request) -> tuple[Attendant, str]:
        """Who asks, by the bearer token; Problem 401 for strangers, 409 for a session that a younger one replaced."""
        match = _BEARER(request.headers.get("authorization", ""))
        if match is None:
            raise Problem(401, "A session's bearer token is needed.", WWW_Authenticate="Bearer")
        bearer = token_hash(match[1])
        attendant = self._parking.by_bearer.get(bearer)
        if attendant is None:
            session = await self._session_by(bearer)
            if session.status == SessionStatus.SUPERSEDED:
                await self._supersede(session.pk)
            attendant = self._parking.enter(bearer, session.pk, session.client_id, session.command_keys)
        if attendant.superseded:
            await self._supersede(attendant.session)
        self._parking.saw(attendant)
        return attendant, bearer

    async def _supersede(self, session: uuid.UUID) -> NoReturn:
        await self._database.write(twins.heard, session)
        raise Problem(409, "A younger session of this client exists.")

    async def _session_by(self, bearer: str) -> BootSession:
        session = await self._database.read(_session_of, bearer)
        if session is None:
            raise Problem(401, "This bearer token belongs to no session.", WWW_Authenticate="Bearer")
        if session.status == SessionStatus.REVOKED:
            raise Problem(401, "This session was revoked.", WWW_Authenticate="Bearer")
        return session

    async def _session(self, request: Request) -> Answer:
        came = _now_ms()
        attendant, bearer = await self._attendant(request)
        body = await request.json()
        nonce, boot_id = body.get("nonce"), body.get("boot_id")
        speaks = body.get("protocol")
        if type(speaks) is not int or speaks not in protocol.VERBS:
            raise Problem(400, f"This server speaks the protocols {', '.join(map(str, protocol.VERBS))}.")
        if not isinstance(nonce, str) or not _NONCE(nonce) or not isinstance(boot_id, str):
            raise Problem(400, "The nonce or the boot_id is not one.")
        try:
            facts = attendance.clean_facts(body.get("facts"))
        except attendance.BadFacts as error:
            raise Problem(400, str(error)) from None
        session = await self._session_by(bearer)
        if speaks < settings.PROTOCOL_FLOOR:
            raise Problem(400, await self._database.write(attendance.refuse_old, session, speaks))
        keys = public_keys(settings.PUBLIC_KEYS, "command")
        opens = partial(attendance.open_session, session, boot_id, facts, speaks=speaks, command_keys=ids(keys))
        try:
            await self._database.write(opens)
        except FleetError as error:
            raise Problem(409, error.message) from None
        self._keys = attendant.keys = sys.intern(ids(keys))
        attendant.state = ""
        if "clock_ms" in facts:
            metrics.SKEW.observe(abs(came - facts["clock_ms"]) / 1000)
        answer = Answer.json(
            {
                "session": str(attendant.session),
                "client": str(attendant.client),
                "nonce": nonce,
                "server_time_ms": _now_ms(),
                "hold_s": settings.POLL_HOLD,
                "spread_s": settings.POLL_SPREAD,
                "keys": keys,
                "protocol": speaks,
            }
        )
        signer = self._signer()
        signature = base64.b64encode(signer.sign(answer.body)).decode()
        answer.headers["Fleet-Signature"] = f"{signer.key_id}:{signature}"
        return answer

    async def _next(self, request: Request) -> Answer:
        attendant, _ = await self._attendant(request)
        cursor, state = request.query.get("cursor", "0"), request.query.get("state", "")
        if not cursor.isdecimal() or len(cursor) > 16 or state not in protocol.STATES:
            raise Problem(400, f"The cursor is a sequence, the state one of {', '.join(protocol.STATES)}.")
        if state != attendant.state:
            await self._database.write(attendance.says_state, attendant.session, state)
            attendant.state = state
        hold = time.monotonic() + settings.POLL_HOLD
        while True:
            if attendant.client in self._parking.waiting:
                self._parking.waiting.discard(attendant.client)
                if envelopes := await self._database.read(_envelopes, attendant.session, int(cursor)):
                    if await self._must_ask(attendant, {envelope["key"] for envelope in envelopes}):
                        self._parking.waiting.add(attendant.client)
                        return Answer(204, headers=ASK_ANEW)
                    metrics.POLLS.labels("delivered").inc()
                    return Answer.json({"commands": envelopes, "server_time_ms": _now_ms()})
            how = await self._parking.park(attendant, hold - time.monotonic())
            if how != "wake":
                metrics.POLLS.labels(how).inc()
            if how == "superseded":
                raise Problem(409, "A younger session of this client exists.")
            if how == "closing":
                raise self._come_again()
            if how == "forgotten":
                attendant, _ = await self._attendant(request)
                attendant.state = state
            elif how != "wake":
                must = await self._must_ask(attendant)
                return Answer(204, headers=ASK_ANEW if must else {"Fleet-Time": str(_now_ms())})

    async def _must_ask(self, attendant: Attendant, signed: Set[str] | None = None) -> bool:
        """Whether a daemon must open its session anew: it was not told what is ``signed`` with a key of today, or (without that) not
        just the keys of today. Of a key that is none it is not told either: it refuses that.
        """
        if signed is not None and not signed <= set(self._keys.split()):
            self._keys = await asyncio.to_thread(_command_keys)

        def suffices() -> bool:
            if signed is None:
                return attendant.keys == self._keys
            return signed & set(self._keys.split()) <= set(attendant.keys.split())

        if not suffices():  # another gateway may have told it
            attendant.keys = sys.intern(await self._database.read(_told_keys, attendant.session))
        return not suffices()

    async def _reports(self, request: Request) -> Answer:
        _, bearer = await self._attendant(request)
        reports = (await request.json()).get("reports")
        if not isinstance(reports, list) or not 0 < len(reports) <= MOST_REPORTS or not all(map(_is_report, reports)):
            raise Problem(400, f"reports is a list of 1 to {MOST_REPORTS} reports (docs/protocol.md, section 3).")
        session = await self._session_by(bearer)
        answers = await asyncio.gather(
            *(self._database.write(evidence.take_report, session, report) for report in reports)
        )
        accepted = [report["command"] for report, why in zip(reports, answers, strict=True) if not why]
        rejected = [
            {"command": report["command"], "reason": why} for report, why in zip(reports, answers, strict=True) if why
        ]
        return Answer.json({"accepted": accepted, "rejected": rejected})

    async def _capture(self, request: Request) -> Answer:
        _, bearer = await self._attendant(request)
        return await captures.take(request, await self._session_by(bearer), self._database)

    async def _writes(self, request: Request) -> Answer:
        _, bearer = await self._attendant(request)
        try:
            entries = writes.clean((await request.json()).get("writes"))
        except writes.BadWrites as error:
            raise Problem(400, str(error)) from None
        await self._database.write(writes.take, await self._session_by(bearer), entries)
        return Answer(204)

    async def _hold(self, request: Request) -> Answer:
        _, bearer = await self._attendant(request)
        try:
            reason, until = holds.clean(await request.json())
        except holds.BadHold as error:
            raise Problem(400, str(error)) from None
        await self._database.write(holds.take, await self._session_by(bearer), reason, until)
        return Answer(204)

    async def _metrics(self, request: Request) -> Answer:
        if status := monitor.refusal(request.headers.get("authorization", "")):
            raise Problem(
                status, monitor.WHY[status].strip(), **({"WWW_Authenticate": "Bearer"} if status == 401 else {})
            )
        return Answer(200, generate_latest(monitor.PROCESS), {"Content-Type": monitor.CONTENT_TYPE})

    async def _bye(self, request: Request) -> Answer:
        attendant, bearer = await self._attendant(request)
        await request.json()
        self._parking.went(attendant)
        session = await self._database.read(_session_of, bearer)
        if session is not None:
            await self._database.write(attendance.close_session, session)
        return Answer(204)


def _now_ms() -> int:
    return round(time.time() * 1000)


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


def _redis() -> aioredis.Redis:
    return aioredis.Redis.from_url(
        settings.REDIS_URL, socket_timeout=REDIS_PATIENCE_S, socket_connect_timeout=REDIS_PATIENCE_S
    )


def _session_of(bearer: str) -> BootSession | None:
    return BootSession.objects.select_related("client__site").filter(bearer_digest=bearer).first()


def _command_keys() -> str:
    """The ids of the command keys of today. Files, so that a host that is given new ones needs no restart."""
    return sys.intern(ids(public_keys(settings.PUBLIC_KEYS, "command")))


def _told_keys(session: uuid.UUID) -> str:
    return BootSession.objects.values_list("command_keys", flat=True).get(pk=session)


def _cut_off(since: datetime) -> set[uuid.UUID]:
    """Sessions whose bearers are good no more, since then: revoked, or superseded by way of another gateway."""
    over = (SessionStatus.SUPERSEDED, SessionStatus.REVOKED)
    return set(BootSession.objects.filter(status__in=over, ended_at__gte=since).values_list("pk", flat=True))


def _with_commands() -> list[uuid.UUID]:
    """Clients to which a command is on its way. One to be powered on asks for none."""
    sent = Command.objects.filter(status=CommandStatus.SENT).exclude(verb=Verb.WAKE)
    return list(sent.values_list("client_id", flat=True))


def _envelopes(session: uuid.UUID, cursor: int) -> list[dict[str, str]]:
    """The deliverable commands of a session, oldest first. One that was delivered and not accepted comes again."""
    commands = Command.objects.filter(session=session, status=CommandStatus.SENT, sequence__gt=cursor).order_by(
        "sequence"
    )
    telling.delivered(telling.Step(c.order_id, c.pk, c.client_id) for c in commands)
    return [protocol.envelope(bytes(c.envelope), bytes(c.signature), c.key_id) for c in commands]
