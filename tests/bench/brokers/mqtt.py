"""A lean client that speaks MQTT 3.1.1 (the OASIS standard) and subscribes with QoS 1."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

from tests.bench.brokers.audience import Audience, Wire

TOPIC = b"site/message"
CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 0x10, 0x20, 0x30, 0x40, 0x82, 0x90
QOS_1 = 0x02  # of a PUBLISH


def packet(first: int, body: bytes) -> bytes:
    length = [len(body)] if len(body) < 128 else [len(body) & 127 | 128, len(body) >> 7]  # two bytes reach to 16383
    return bytes([first, *length]) + body


def text(value: bytes) -> bytes:
    return struct.pack(">H", len(value)) + value


def split(data: bytes) -> tuple[int, bytes, int]:
    """Kind and body of the first packet, and how long it is; zeros while it is not whole."""
    begins = 3 if len(data) > 1 and data[1] & 128 else 2
    if len(data) < begins:
        return 0, b"", 0
    ends = begins + (data[1] & 127 | data[2] << 7 if begins == 3 else data[1])
    return (data[0] & 0xF0, data[begins:ends], ends) if len(data) >= ends else (0, b"", 0)


def hello(name: str) -> bytes:
    """A session that ends with the connection, without a keep-alive."""
    return packet(CONNECT, text(b"MQTT") + bytes([4, 2, 0, 0]) + text(name.encode()))


def publish(content: bytes) -> bytes:
    return packet(PUBLISH | QOS_1, text(TOPIC) + struct.pack(">H", 1) + content)


class Listener:
    ARE_ANSWERED = False  # MQTT tells nobody that those who listen have it

    def __init__(self, audience: Audience, who: int, place: dict[str, Any]) -> None:
        self._audience, self._who, self._place = audience, who, place
        self._wire = Wire(self._arrived)
        self._joined = asyncio.get_running_loop().create_future()

    async def join(self) -> None:
        await self._wire.connect(self._place)
        subscribe = packet(SUBSCRIBE, struct.pack(">H", 1) + text(TOPIC) + b"\x01")
        self._wire.send(hello(f"client-{self._who}") + subscribe)
        await self._joined

    def _arrived(self, data: bytes) -> int:
        kind, body, used = split(data)
        if kind == PUBLISH:
            self._audience.received(self._who)
            after = 2 + len(TOPIC)
            self._wire.send(packet(PUBACK, body[after : after + 2]))
        elif kind == SUBACK:
            assert body[2] == 1, "another QoS than 1 is granted"
            self._joined.set_result(None)
        return used
