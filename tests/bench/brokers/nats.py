"""A lean client that speaks NATS' protocol (docs.nats.io, "Client Protocol")."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.bench.brokers.audience import Audience, Wire

SUBJECT = b"site.message"
HELLO = b'CONNECT {"verbose":false,"pedantic":false,"protocol":1,"lang":"lean","version":"1"}\r\n'
_WORDS = {b"INFO", b"+OK", b"PING", b"PONG"}


def split(data: bytes) -> tuple[list[bytes], int]:
    """The words of the first line, and the length of that with its payload; nothing while it is not whole. RuntimeError for -ERR."""
    line, found, _ = data.partition(b"\r\n")
    if not found:
        return [], 0
    words = line.split()
    if words[0] == b"MSG":
        used = len(line) + 2 + int(words[-1]) + 2
        return (words, used) if len(data) >= used else ([], 0)
    if words[0] not in _WORDS:
        raise RuntimeError(f"The NATS server says {line!r}.")
    return words, len(line) + 2


class Listener:
    ARE_ANSWERED = False  # a client's reply goes to whoever asked for it, who knows when it came

    def __init__(self, audience: Audience, who: int, place: dict[str, Any]) -> None:
        self._audience, self._who, self._place = audience, who, place
        self._wire = Wire(self._arrived)
        self._joined = asyncio.get_running_loop().create_future()

    async def join(self) -> None:
        await self._wire.connect(self._place)
        self._wire.send(HELLO + b"SUB " + SUBJECT + b" 1\r\nPING\r\n")
        await self._joined

    def _arrived(self, data: bytes) -> int:
        words, used = split(data)
        if words and words[0] == b"MSG":
            self._audience.received(self._who)
            if len(words) == 5:  # MSG subject sid inbox bytes
                self._wire.send(b"PUB " + words[3] + b" 2\r\nok\r\n")
        elif words == [b"PING"]:
            self._wire.send(b"PONG\r\n")
        elif words == [b"PONG"] and not self._joined.done():
            self._joined.set_result(None)
        return used
