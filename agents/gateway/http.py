"""HTTP as the gateway needs it: requests with bounded bodies, answers, problem details (RFC 9457), admission limits."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BODY_LIMIT = 64 * 1024  # an honest report has a few hundred bytes
BODY_PATIENCE_S = 10.0


class Problem(Exception):
    """An answer that is an error. ``headers`` may carry Retry-After."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def text(cls, text: str, status: int = 200) -> "Answer":
        return cls(status, text.encode(), {"Content-Type": "text/plain; charset=utf-8"})

    @classmethod
    def json(cls, content: object, **headers: str) -> "Answer":
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(200, json.dumps(content).encode(), {"Content-Type": "application/json", **names})

    @classmethod
    def problem(cls, problem: Problem) -> "Answer":
        title = HTTPStatus(problem.status).phrase
        body = {"type": "about:blank", "title": title, "status": problem.status, "detail": problem.detail}
        headers = {"Content-Type": "application/problem+json", **problem.headers}
        return cls(problem.status, json.dumps(body).encode(), headers)


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    peer: str
    receive: Receive

    @classmethod
    def of(cls, scope: Scope, receive: Receive) -> "Request":
        try:
            query = dict(parse_qsl(scope["query_string"].decode("latin-1"), max_num_fields=20))
        except ValueError:
            raise Problem(400, "The query has more than 20 fields.") from None
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        return cls(scope["method"], scope["path"], query, headers, (scope.get("client") or ("", 0))[0], receive)

    async def body(self) -> bytes:
        """The whole body; Problem 413 above BODY_LIMIT, 408 when it comes too slowly."""
        parts = bytearray()
        try:
            async with asyncio.timeout(BODY_PATIENCE_S):
                while True:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(400, "The request broke off.")
                    parts += message.get("body", b"")
                    if len(parts) > BODY_LIMIT:
                        raise Problem(413, f"The body is larger than {BODY_LIMIT} bytes.")
                    if not message.get("more_body"):
                        return bytes(parts)
        except TimeoutError:
            raise Problem(408, "The body did not come in time.") from None

    async def form(self) -> dict[str, str]:
        try:
            return dict(parse_qsl((await self.body()).decode(), keep_blank_values=True, max_num_fields=30))
        except ValueError:
            raise Problem(400, "The body is not a form.") from None

    async def json(self) -> dict[str, Any]:
        try:
            content = json.loads(await self.body())
        except (ValueError, RecursionError):
            raise Problem(400, "The body is not JSON.") from None
        if not isinstance(content, dict):
            raise Problem(400, "The body is not a JSON object.")
        return content


async def reply(send: Send, answer: Answer, *, head: bool = False) -> None:
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers.items()]
    if answer.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else answer.body})


class Bucket:
    """Admission: ``rate`` requests a second, ``burst`` at once. Beyond that 429, with when to come again."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._level, self._at = burst, time.monotonic()

    def admit(self) -> None:
        now = time.monotonic()
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            raise Problem(429, "Too many requests at once.", Retry_After=str(1 + int(1 / self._rate)))
        self._level -= 1
