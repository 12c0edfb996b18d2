"""The real gateway without its sockets: requests come by function call, its event loop runs when told, and its time is the test's.

What it is given in place of the real things: a database that works in the test's one transaction, and hints in place of Redis.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from django.db import OperationalError
from redis.exceptions import ConnectionError as RedisAway

from agents.gateway import app, daemons, database, parking, waker
from agents.gateway.http import Answer, Request
from tests.faults.clock import Clock


class Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        super().__init__()

    def time(self) -> float:
        return self._clock.now

    def pump(self) -> None:
        """Run until nothing is left to do at this moment."""
        while True:
            self.call_soon(self.stop)
            self.run_forever()
            if not self._ready:  # type: ignore[attr-defined]
                return


class Hints:
    """What Redis is to the server: somewhere to say things that may get lost. ``away``: it does not answer."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self.away, self.deaf = clock, False, False
        self._kept: dict[str, tuple[bytes, float]] = {}
        self.listener: Callable[[bytes], None] | None = None

    def publish(self, channel: str, data: bytes) -> None:
        self._answer()
        if self.listener is not None and not self.deaf:
            self.listener(data)

    def get(self, name: str) -> bytes | None:
        self._answer()
        value, until = self._kept.get(name, (None, 0.0))
        return value if until > self._clock.now else None

    def put(self, name: str, value: str, px: int) -> None:
        self._answer()
        self._kept[name] = (value.encode(), self._clock.now + px / 1000)

    def _answer(self) -> None:
        if self.away:
            raise RedisAway("It was killed.")


class Door:
    """``Hints`` as the gateway opens them."""

    def __init__(self, hints: Hints) -> None:
        self._hints = hints

    async def __aenter__(self) -> "Door":
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def set(self, name: str, value: str, px: int) -> None:
        self._hints.put(name, value, px)


class Rows:
    """The gateway's database: its groups, carried out between two turns of the loop, in the thread that has the test's transaction.

    The next ``away`` groups find no database; ``doubtful``: they lose it after the commit.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._jobs: dict[tuple[Any, Any], list[tuple[Any, asyncio.Future[Any] | None]]] = {}
        self.away, self.doubtful = 0, False

    async def read(self, function: Callable[..., Any], *args: object) -> Any:
        return await self._ask(database._read, database.each, (function, args))

    async def read_all(self, group: Callable[..., Any], item: object) -> Any:
        return await self._ask(database._read, group, item)

    async def write(self, function: Callable[..., Any], *args: object) -> Any:
        return await self._ask(database._commit, database.each, (function, args))

    write_at_leisure = write

    def write_all(self, group: Callable[..., Any], item: object, urgency: int = 0) -> Any:
        return self._ask(database._commit, group, item)

    def note(self, group: Callable[..., Any], item: object) -> None:
        self._jobs.setdefault((database._commit, group), []).append((item, None))

    def _ask(self, way: Callable[..., Any], group: Callable[..., Any], item: object) -> "asyncio.Future[Any]":
        future = self._loop.create_future()
        self._jobs.setdefault((way, group), []).append((item, future))
        return future

    def lanes(self) -> list[Any]:
        return []

    def work(self) -> bool:
        """Carry out what was asked for; whether anything was."""
        jobs, self._jobs = self._jobs, {}
        for (way, group), members in jobs.items():
            try:
                outcomes = self._carry_out(way, group, [item for item, _ in members])
            except OperationalError as error:
                outcomes = [error] * len(members)
            for (_, future), outcome in zip(members, outcomes, strict=True):
                if future is None or future.done():
                    continue
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)
        return bool(jobs)

    def _carry_out(self, way: Callable[..., Any], group: Callable[..., Any], items: list[Any]) -> Any:
        gone = self.away > 0
        if gone:
            self.away -= 1
            if not self.doubtful:
                raise OperationalError("It was killed.")
        outcomes = way(group, items)
        if gone:
            raise OperationalError("It was killed before it said that it had committed.")
        return outcomes


class Line:
    """Where a request came from: what is answered stays until the network carries it on."""

    def __init__(self) -> None:
        self.broken = False
        self.answered: Answer | None = None

    def answer(self, answer: Answer) -> None:
        if not self.broken:
            self.answered = answer


class Gate:
    """A gateway process: it can be killed, and started with an empty memory."""

    def __init__(self, clock: Clock, hints: Hints, patch: pytest.MonkeyPatch) -> None:
        self._hints = hints
        self.loop = Loop(clock)
        self.rows = Rows(self.loop)
        for module in (app, daemons, parking):
            patch.setattr(module, "time", clock)
        patch.setattr(parking, "MOST_HOLD_S", 10.0)
        patch.setattr(app, "Database", lambda: self.rows)
        patch.setattr(database, "close_old_connections", lambda: None)
        patch.setattr(app, "_redis", lambda: Door(hints))
        patch.setattr(app.Gateway, "_listen", _nothing)
        patch.setattr(waker.Waker, "run", _nothing)
        patch.setattr(daemons.Daemons, "look_at_keys", _nothing)
        self.up = False
        self.start()

    def start(self) -> None:
        self.gateway = app.Gateway()
        self._hints.listener = self._nudge
        self.loop.call_soon(self.gateway.open)
        self.up = True
        self.pump()

    def _nudge(self, data: bytes) -> None:
        self.loop.call_soon(self.gateway._nudged, data)

    def pump(self) -> None:
        """Work until there is nothing to do at this moment."""
        self.loop.pump()
        while self.rows.work():
            self.loop.pump()

    def kill(self) -> None:
        self.up, self._hints.listener = False, None
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.rows._jobs.clear()

    def close(self) -> None:
        self.kill()
        self.loop.close()

    def serve(self, method: str, target: str, body: bytes, headers: Mapping[str, str]) -> Line:
        """Begin with a request; its answer comes on the line, at one of the next ``pump()``."""
        line, names = Line(), {name.lower(): value for name, value in headers.items()}
        request = Request(method, target, names, line, bytearray(body))  # type: ignore[arg-type]
        self.loop.call_soon(self.gateway.handle, request)
        return line

    def hang_up(self, line: Line) -> None:
        line.broken = True
        if self.up:
            self.loop.call_soon(self.gateway.lost, line)  # type: ignore[arg-type]


async def _nothing(*_: object) -> None: ...
