"""The process of the lean clients: ``python -m tests.bench.brokers.audience MODULE JSON``, started by ``gathering``.

Each client is one of MODULE's ``Listener``; it has the connections that a real one would have, notes when its message is in its hands
and does of the rest only what the server must see. What a real client does for itself on a processor of its own, like checking a
signature, is done for none of them: here all would share one processor, and with the server. Knows no Django, as another
system's Python may run it.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import uvloop

AT_ONCE = 50  # that join; the others wait their turn
PATIENCE_S = 300.0  # for the last message or answer of a round
GRACE_S = 0.2  # for what comes twice


class Audience:
    """What all of them heard in this round: seconds of the monotonic clock, which all processes of a host share."""

    def __init__(self, number: int, are_answered: bool) -> None:
        self.number, self._are_answered = number, are_answered
        self.over = asyncio.Event()
        self.begin()

    def begin(self) -> None:
        self._received: dict[int, float] = {}
        self._answered: dict[int, float] = {}
        self._again = 0
        self.over.clear()

    def received(self, who: int) -> None:
        """``who`` has the message."""
        self._note(self._received, who)

    def answered(self, who: int) -> None:
        """``who`` has told the server that it has the message, and knows that the server knows."""
        self._note(self._answered, who)

    def _note(self, notes: dict[int, float], who: int) -> None:
        self._again += who in notes
        notes.setdefault(who, time.monotonic())
        if len(notes) == self.number and len(self._answered if self._are_answered else self._received) == self.number:
            self.over.set()

    def told(self) -> dict[str, Any]:
        return {"received": [*self._received.values()], "answered": [*self._answered.values()], "again": self._again}


class Joining(Protocol):
    """A module's ``Listener``. ``ARE_ANSWERED``: whether a client gets to know that the server knows it has the message."""

    ARE_ANSWERED: bool

    def __init__(self, audience: Audience, who: int, place: dict[str, Any]) -> None: ...

    async def join(self) -> None:
        """Connect and subscribe; returns when a message would arrive."""


class Wire(asyncio.Protocol):
    """One connection. ``arrived`` is called with the bytes that nobody has used yet, and says how many of them it has used."""

    def __init__(self, arrived: Callable[[bytes], int]) -> None:
        self._arrived, self._rest = arrived, b""

    async def connect(self, place: dict[str, Any], port: str = "port") -> None:
        """To the host of ``place``, and its port of that name."""
        create = asyncio.get_running_loop().create_connection
        transport, _ = await create(lambda: self, place["host"], place[port])
        self.send = transport.write

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while self._rest and (used := self._arrived(self._rest)):
            self._rest = self._rest[used:]


async def play(module: str, place: dict[str, Any]) -> None:
    listener: type[Joining] = importlib.import_module(module).Listener
    audience = Audience(place["clients"], listener.ARE_ANSWERED)
    turn = asyncio.Semaphore(AT_ONCE)

    async def join(who: int) -> Joining:
        async with turn:
            one = listener(audience, who, place)
            await one.join()
            return one

    everybody = await asyncio.gather(*(join(who) for who in range(audience.number)))
    gc.collect()
    gc.freeze()  # they stay: nobody need look through them in the middle of a round
    print(f"{len(everybody)} joined", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        audience.begin()
        print("listening", flush=True)
        with suppress(TimeoutError):  # who asks sees that some are missing
            async with asyncio.timeout(PATIENCE_S):
                await audience.over.wait()
                await asyncio.sleep(GRACE_S)
        print(json.dumps(audience.told()), flush=True)


if __name__ == "__main__":
    uvloop.run(play(sys.argv[1], json.loads(sys.argv[2])))
