"""A bad network between clients and the gateway: whole requests and answers are late, lost or sent again, and connections break."""

import asyncio
import random
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.services import free_port


@dataclass
class Weather:
    """Each rate is a share of the requests; a time is the most, in seconds."""

    lost: float = 0.0  # requests that never arrive
    unanswered: float = 0.0  # whose answers never arrive
    twice: float = 0.0  # that arrive once more, later: a proxy that plays safe
    late_s: float = 0.0  # that every request may take longer
    cut_s: float = 0.0  # about how long a connection lasts; 0: as long as it likes


STORM = Weather(lost=0.05, unanswered=0.05, twice=0.1, late_s=0.5, cut_s=20.0)


class Proxy:
    """Listens on a port of the loopback, in a thread of its own. ``weather`` may change at any time."""

    def __init__(self, port: int, seed: int = 1) -> None:
        self.weather = Weather()
        self.url = f"http://127.0.0.1:{(own := free_port())}"
        self._own, self._target, self._dice = own, port, random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._strays: set[asyncio.Task[bytes]] = set()
        self._clients: set[asyncio.Task[Any] | None] = set()  # the loop alone would forget those who wait
        self._listens = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        assert self._listens.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._client, "127.0.0.1", self._own, limit=1 << 20))
        self._listens.set()
        self._loop.run_forever()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, whatever becomes of it."""
        self._clients.add(me := asyncio.current_task())
        try:
            async with asyncio.timeout(self._dice.expovariate(1 / self.weather.cut_s) if self.weather.cut_s else None):
                while True:
                    writer.write(await self._carry(await _message(reader)))
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            with suppress(OSError):
                writer.close()
        finally:
            self._clients.discard(me)

    async def _carry(self, request: bytes) -> bytes:
        """A request there, and its answer back; ConnectionError where one of them is lost."""
        weather, dice = self.weather, self._dice
        await asyncio.sleep(dice.uniform(0, weather.late_s))
        if dice.random() < weather.lost:
            raise ConnectionResetError
        if dice.random() < weather.twice:
            stray = asyncio.create_task(self._ask(request, dice.uniform(0, 10 * weather.late_s)))
            self._strays.add(stray)
            stray.add_done_callback(self._forget)
        answer = await self._ask(request)
        if dice.random() < weather.unanswered:
            raise ConnectionResetError
        return answer

    async def _ask(self, request: bytes, later_s: float = 0.0) -> bytes:
        await asyncio.sleep(later_s)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._target, limit=1 << 20)
        try:
            writer.write(request)
            return await _message(reader)
        finally:
            writer.close()

    def _forget(self, stray: "asyncio.Task[bytes]") -> None:
        self._strays.discard(stray)
        if not stray.cancelled():
            stray.exception()  # nobody waits for it


async def _message(reader: asyncio.StreamReader) -> bytes:
    """A whole request or answer. Both say how long they are."""
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head + (await reader.readexactly(int(lengths[0])) if lengths else b"")
