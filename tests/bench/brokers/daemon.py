"""A lean client of ours: boots as an initrd does, then polls and reports as the daemon does (docs/protocol.md), in one HTTP connection."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from typing import Any
from urllib.parse import urlencode

from agents.daemon import protocol
from tests.bench.brokers.audience import Audience, Wire

ADAPTER = "0000:00:02.0,1013:00b8,1af4:1100,030000"
BUSY = (429, 503)


def mac_of(who: int) -> str:
    return "02:5e:" + ":".join(f"{who >> shift & 255:02x}" for shift in (24, 16, 8, 0))


class Listener:
    ARE_ANSWERED = True  # a report is answered when what it says is committed

    def __init__(self, audience: Audience, who: int, place: dict[str, Any]) -> None:
        self._audience, self._who, self._place = audience, who, place
        self._wire = Wire(self._arrived)
        self._mac, self._boot, self._cursor = mac_of(who), str(uuid.uuid4()), 0
        self._head = f"Host: {place['host']}\r\n"
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    async def join(self) -> None:
        await self._wire.connect(self._place)
        query = urlencode({"mac": self._mac, "site": self._place["site"], "product": "", "serial": ""})
        script = await self._ask("GET", f"/boot/v1/client.ipxe?{query}")
        words = dict(word.partition("=")[::2] for word in script.decode().split())
        form = {"token": words["fleet.token"], "mac": self._mac, "boot_id": self._boot, "pci": ADAPTER}
        form |= {"kernel": self._place["kernel"], "memory_kib": "4000000", "uptime_ms": "2500"}
        answer = await self._ask("POST", "/boot/v1/plan", urlencode(form).encode())
        plan = protocol.parse_plan(answer.decode().rpartition("signature=")[0])
        self._head += f"Authorization: Bearer {plan['bearer']}\r\n"
        facts = {"memory_kib": 4_000_000, "cpus": 4, "kernel": self._place["kernel"]}
        body = {"protocol": protocol.VERSION, "nonce": uuid.uuid4().hex, "boot_id": self._boot, "facts": facts}
        await self._ask("POST", "/agent/v1/session", json.dumps(body).encode())
        self._poll()

    async def _ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        while True:
            self._answer = asyncio.get_running_loop().create_future()
            self._send(method, path, body)
            status, content = await self._answer
            self._answer = None
            if status in (200, 204):
                return content
            if status not in BUSY:
                raise RuntimeError(f"{method} {path} is answered {status}: {content[:300]!r}")
            await asyncio.sleep(1 + self._who % 5)

    def _send(self, method: str, path: str, body: bytes = b"") -> None:
        self._wire.send(f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def _poll(self) -> None:
        self._then = self._polled
        self._send("GET", f"/agent/v1/next?cursor={self._cursor}&state={protocol.READY}")

    def _polled(self, status: int, content: bytes) -> None:
        if status == 200:
            self._audience.received(self._who)
            (wrapped,) = json.loads(content)["commands"]
            envelope = json.loads(base64.b64decode(wrapped["envelope"]))
            self._command, self._cursor = envelope["command"], envelope["sequence"]
            self._then = self._accepted
            self._report(protocol.ACCEPTED)
        elif status in (204, *BUSY):
            self._poll()
        else:
            raise RuntimeError(f"A poll is answered {status}: {content[:300]!r}")

    def _accepted(self, status: int, content: bytes) -> None:
        if status != 200 or json.loads(content)["rejected"]:
            raise RuntimeError(f"An acceptance is answered {status}: {content[:300]!r}")
        self._audience.answered(self._who)
        self._then = self._reported
        self._report(protocol.SUCCEEDED, {"shown": "tty1"})

    def _reported(self, status: int, content: bytes) -> None:
        if status != 200 or json.loads(content)["rejected"]:
            raise RuntimeError(f"A report is answered {status}: {content[:300]!r}")
        self._poll()

    def _report(self, state: str, result: dict[str, object] | None = None) -> None:
        report = protocol.report(self._command, state, round(time.time() * 1000), "", result or {})
        self._send("POST", "/agent/v1/reports", json.dumps({"reports": [report]}).encode())

    def _arrived(self, data: bytes) -> int:
        head, found, rest = data.partition(b"\r\n\r\n")
        if not found:
            return 0
        _, named, value = head.lower().partition(b"\r\ncontent-length:")
        length = int(value.partition(b"\r\n")[0]) if named else 0
        if len(rest) < length:
            return 0
        status, content = int(head[9:12]), rest[:length]
        if self._answer is not None:
            self._answer.set_result((status, content))
        else:
            self._then(status, content)
        return len(head) + 4 + length
