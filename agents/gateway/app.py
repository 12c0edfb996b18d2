"""The gateway's routes and its life: what arrives is checked here, decided in ``agents`` and answered after it is durable."""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import orjson
import redis.asyncio as aioredis
from django.conf import settings
from django.utils import timezone
from prometheus_client import generate_latest
from redis.exceptions import RedisError

from agents import attendance, delivering, metrics, netboot, telling
from agents.gateway import artefacts
from agents.gateway.daemons import CAPTURE, NEXT, Daemons, Handed, come_again, session_signer
from agents.gateway.database import Database
from agents.gateway.firmware import Firmware
from agents.gateway.http import Answer, Bucket, Handled, Later, Line, Problem, Request
from agents.gateway.waker import Waker
from agents.sending import CHANNEL
from fleet import metrics as monitor
from fleet.alive import GATEWAY_UP
from fleet.exceptions import FleetError

log = logging.getLogger(__name__)
SWEEP_S = 3.0  # how late a command is found whose nudge was lost, at the most
PRESENCE = 4  # times it is written down within FLEET_LOST_AFTER
CLOCKS_DIFFER = timedelta(minutes=1)  # between the hosts of a server, at the most
REDIS_PATIENCE_S = 2.0  # a Redis that hangs is one that is away

Route = Callable[[Request], Handled]


class Gateway:
    """What is asked over HTTP, and who waits. One per process; several processes serve one database side by side."""

    def __init__(self) -> None:
        self._database = Database()
        session_signer()  # or it would start, and fail at the first boot
        self.daemons = Daemons(self._database)
        self.parking = self.daemons.parking
        self._waker = Waker(self._database)
        firmware, daemons = Firmware(self._database, self.parking), self.daemons
        self._tasks: set[asyncio.Task[None]] = set()
        self._up_since = time.time()
        # Cold starts and reconnects come all at once, and a firmware that is refused gives up: they wait in line, and
        # only what no site can be is turned away.
        self._routes: dict[tuple[str, str], tuple[Route, Bucket]] = {
            ("GET", "/boot/v1/start.ipxe"): (firmware.start, Bucket(2000, 20000)),
            ("GET", "/boot/v1/client.ipxe"): (firmware.script, Bucket(1000, 20000)),
            ("POST", "/boot/v1/plan"): (firmware.plan, Bucket(1000, 20000)),
            ("POST", "/boot/v1/trouble"): (firmware.trouble, Bucket(50, 200)),
            ("POST", "/agent/v1/session"): (daemons.session, Bucket(1000, 20000)),
            ("GET", NEXT): (daemons.next, Bucket(2000, 40000)),
            ("POST", "/agent/v1/reports"): (daemons.reports, Bucket(2000, 40000)),
            ("PUT", CAPTURE): (daemons.capture, Bucket(1, 20)),
            ("PUT", "/agent/v1/writes"): (daemons.writes, Bucket(50, 500)),
            ("PUT", "/agent/v1/hold"): (daemons.hold, Bucket(100, 2000)),
            ("POST", "/agent/v1/bye"): (daemons.bye, Bucket(1000, 20000)),
            ("GET", "/metrics"): (_metrics, Bucket(2, 10)),
        }
        self._store = Bucket(2000, 50000)  # one that starts fetches half a dozen artefacts
        self._methods: dict[str, str] = {path: method for method, path in self._routes}

    # --- life -------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        for work in (*self._database.lanes(), self.parking.hold, self._listen, self._sweep, self._waker.run):
            self._run(work())

    def close(self) -> None:
        """End all parked polls and admit no more; the daemons come again after a spread pause."""
        self.parking.close()

    async def end(self) -> None:
        """Stop all work; whoever waits for an answer was given the time before."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._database.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
            nudge = orjson.loads(data)
            handed = [Handed.of(told) for told in nudge.get("commands", ())]
            sessions = {uuid.UUID(session) for session in nudge.get("cut_off", ())}
            wake = nudge.get("wake")
            if not nudge.keys() & {"commands", "cut_off", "wake"}:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            log.error("A nudge that is none was published on %s: %r", CHANNEL, data[:100])
            return
        self.parking.forget(sessions)
        self.daemons.hand_out(handed)
        if wake:
            self._waker.hint.set()

    async def _sweep(self) -> None:
        """Every few seconds: find what was lost of nudges and hints, write down who is there, and that we listen."""
        pause = min(SWEEP_S, settings.LOST_AFTER / 4)
        looked, written, heard = timezone.now(), 0.0, time.monotonic()
        while True:
            telling.steps.flush()
            try:
                await self.daemons.look_at_keys()
                now = timezone.now()
                self.parking.forget(await self._database.read(delivering.cut_off, looked - CLOCKS_DIFFER))
                looked = now
                self.daemons.wake(await self._database.read(delivering.awaited))
                if time.monotonic() > written + settings.LOST_AFTER / PRESENCE:
                    written = time.monotonic()
                    for part in self.parking.take_seen():
                        await self._database.write_at_leisure(attendance.seen, part)
            except Exception:
                log.exception("The sweep failed; it is tried again in %s s", pause)
                written = 0.0
            else:
                if time.monotonic() - heard > settings.LOST_AFTER / 2:  # we stood still, or had no database
                    self._up_since = time.time()  # whoever was silent may have tried
                heard = time.monotonic()
                # Only now: who was not written down must not count as silent. And gone again before that could be.
                with suppress(RedisError, OSError):
                    async with _redis() as connection:
                        await connection.set(GATEWAY_UP, str(self._up_since), px=round(pause * 2000))
            await asyncio.sleep(pause)

    # --- requests ---------------------------------------------------------------------------------------------------

    def streams(self, method: str, path: str) -> bool:
        """Whose body is taken as it comes."""
        return (method, path) == ("PUT", CAPTURE)

    def lost(self, line: Line) -> None:
        """A line broke whose request was not answered yet."""
        self.parking.lost(line)

    def handle(self, request: Request) -> None:
        """Answer a request on its line, now or later."""
        path = request.path
        try:
            handled = self._handled(request, path)
        except Exception as error:
            handled = self._in_words(request, path, error)
        if isinstance(handled, Answer):
            self._say(request.line, path, handled)
        elif isinstance(handled, Later):
            handled.found.add_done_callback(partial(self._found, request, path, handled))
        elif handled is not None:
            self._run(self._answer_later(request, path, handled))

    def _found(self, request: Request, path: str, later: Later, _: "asyncio.Future[Any]") -> None:
        try:
            answer = later.made()
        except Exception as error:
            answer = self._in_words(request, path, error)
        self._say(request.line, path, answer)

    def _handled(self, request: Request, path: str) -> Handled:
        if request.fault is not None:
            raise request.fault
        method = "GET" if request.method == "HEAD" else request.method
        route = self._routes.get((method, path))
        if route is None:
            if path.startswith("/store/"):
                if method == "GET":
                    self._admit(self._store, "/store/")
                    return self._artefact(request)
                raise Problem(405, "Artefacts are only read.", Allow="GET, HEAD")
            if allowed := self._methods.get(path):
                raise Problem(405, f"{path} takes {allowed}.", Allow=allowed)
            raise Problem(404, f"There is nothing at {path[:100]}.")
        if self.parking.closed:
            raise come_again()
        handler, bucket = route
        self._admit(bucket, path)
        return handler(request)

    def _admit(self, bucket: Bucket, path: str) -> None:
        try:
            bucket.admit()
        except Problem:
            metrics.REJECTED.labels(path).inc()
            raise

    async def _answer_later(self, request: Request, path: str, coming: Coroutine[Any, Any, Answer | None]) -> None:
        try:
            answer = await coming
        except Exception as error:
            answer = self._in_words(request, path, error)
        if answer is not None:
            self._say(request.line, path, answer)

    def _in_words(self, request: Request, path: str, error: Exception) -> Answer:
        if isinstance(error, Problem):
            return Answer.problem(error)
        if isinstance(error, netboot.Refusal):
            return Answer.text(error.text + "\n", error.status)
        if isinstance(error, FleetError):
            log.error("%s %s: %s", request.method, path, error)
            return Answer.problem(Problem(503, error.message, Retry_After="10"))
        log.error("%s %s failed", request.method, path, exc_info=error)
        return Answer.problem(Problem(500, "The server failed; its log says why."))

    def _say(self, line: Line, path: str, answer: Answer) -> None:
        metrics.answered(path if path in self._methods else "other", answer.status)
        line.answer(answer)

    async def _artefact(self, request: Request) -> Answer | None:
        answer = await artefacts.serve(request, settings.STORE)
        if answer is None:
            metrics.answered("other", 200)
        return answer


def _metrics(request: Request) -> Answer:
    if status := monitor.refusal(request.headers.get("authorization", "")):
        raise Problem(status, monitor.WHY[status].strip(), **({"WWW_Authenticate": "Bearer"} if status == 401 else {}))
    page = generate_latest(monitor.GATEWAY) + generate_latest(monitor.PROCESS)
    return Answer(200, page, {"Content-Type": monitor.CONTENT_TYPE})


def _redis() -> aioredis.Redis:
    return aioredis.Redis.from_url(
        settings.REDIS_URL, socket_timeout=REDIS_PATIENCE_S, socket_connect_timeout=REDIS_PATIENCE_S, protocol=2
    )
