"""What the gateway says in HTTP: requests with bounded bodies, answers, problem details (RFC 9457), admission limits."""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

import orjson

BODY_LIMIT = 64 * 1024  # an honest report has a few hundred bytes
UPLOAD_AHEAD = 1 << 20  # bytes of an upload that may have come and not been taken
JSON = MappingProxyType({"Content-Type": "application/json"})  # of all whose answer has no other header
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class Problem(Exception):
    """An answer that is an error. ``headers`` may carry Retry-After."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass(slots=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def text(cls, text: str, status: int = 200) -> "Answer":
        return cls(status, text.encode(), {"Content-Type": "text/plain; charset=utf-8"})

    @classmethod
    def json(cls, content: object) -> "Answer":
        return cls(200, orjson.dumps(content), JSON)

    @classmethod
    def problem(cls, problem: Problem) -> "Answer":
        body = {"type": "about:blank", "title": _REASONS[problem.status], "status": problem.status}
        headers = {"Content-Type": "application/problem+json", **problem.headers}
        return cls(problem.status, orjson.dumps({**body, "detail": problem.detail}), headers)

    def encoded(self, *, head: bool = False, close: bool = False) -> bytes:
        """The bytes of the answer; without its body for ``head``."""
        if self.headers is JSON and self.status == 200 and not close and not head:  # which most are
            return b"%b%d\r\n\r\n%b" % (_json_start(int(time.time())), len(self.body), self.body)
        length = {} if self.status in (204, 304) else {"Content-Length": str(len(self.body))}
        start = start_of(self.status, {**self.headers, **length}, close=close)
        return start if head else start + self.body


def start_of(status: int, headers: Mapping[str, str], *, close: bool = False) -> bytes:
    """Status line and headers."""
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}\r\nDate: {_date(int(time.time()))}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if close:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


_DAYS, _MONTHS = (
    ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"],
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"],
)


@lru_cache(maxsize=1)
def _date(now: int) -> str:
    """HTTP's form of a time; the same for everybody who asks within a second."""
    at = time.gmtime(now)
    day = f"{_DAYS[at.tm_wday]}, {at.tm_mday:02} {_MONTHS[at.tm_mon - 1]} {at.tm_year}"
    return f"{day} {at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} GMT"


@lru_cache(maxsize=1)
def _json_start(now: int) -> bytes:
    """The beginning of an answer in JSON, up to its length."""
    return start_of(200, JSON).removesuffix(b"\r\n") + b"Content-Length: "


class Line(Protocol):
    """Where a request came from, and its answer goes to. What is said to one that broke is lost."""

    @property
    def broken(self) -> bool: ...
    def answer(self, answer: Answer) -> None: ...
    def start(self, status: int, headers: Mapping[str, str]) -> None: ...
    async def send(self, piece: bytes) -> None: ...
    def finish(self) -> None: ...
    def abort(self) -> None: ...


@dataclass(slots=True, eq=False)
class Request:
    """``path`` as it came, ``target`` with the query; names of ``headers`` in small letters. ``upload`` where the body is a stream."""

    method: str
    target: str
    headers: dict[str, str]
    line: Line
    body: bytearray = field(default_factory=bytearray)
    upload: "Upload | None" = None
    fault: Problem | None = None  # what is wrong with it, found before anybody looked at what it asks

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        try:
            return dict(parse_qsl(self.target.partition("?")[2], max_num_fields=20))
        except ValueError:
            raise Problem(400, "The query has more than 20 fields.") from None

    def form(self) -> dict[str, str]:
        try:
            return dict(parse_qsl(self.body.decode(), keep_blank_values=True, max_num_fields=30))
        except ValueError:
            raise Problem(400, "The body is not a form.") from None

    def json(self) -> dict[str, Any]:
        try:
            content = _loads(self.body)
        except (ValueError, RecursionError):
            raise Problem(400, "The body is not JSON.") from None
        if not isinstance(content, dict):
            raise Problem(400, "The body is not a JSON object.")
        return content


def _loads(body: bytearray) -> Any:
    """What orjson refuses Python may take: halves of surrogate pairs, in the names of files. That is no reason to lose what else is told."""
    try:
        return orjson.loads(body)
    except ValueError:
        return json.loads(body)


class Upload:
    """A body as it comes, for who takes it piece by piece. ``pause`` and ``resume`` stop and go on with the reading."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._pieces: list[bytes] = []
        self._ahead = 0
        self._came = asyncio.Event()
        self._ended = self._broke = False

    async def pieces(self, patience_s: float) -> bytes:
        """All that has come since the last call; b"" at the end. Problem 400 when it breaks off, TimeoutError when nothing comes."""
        async with asyncio.timeout(patience_s):
            await self._came.wait()
        taken, self._pieces, self._ahead = b"".join(self._pieces), [], 0
        if taken:
            if not self._ended and not self._broke:
                self._came.clear()
                self._transport.resume_reading()
            return taken
        if self._broke:
            raise Problem(400, "The upload broke off.")
        return b""

    def feed(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._ahead += len(piece)
        if self._ahead > UPLOAD_AHEAD:
            self._transport.pause_reading()
        self._came.set()

    def end(self, *, broke: bool = False) -> None:
        self._ended, self._broke = not broke, broke and not self._ended
        self._came.set()


class Later(NamedTuple):
    """An answer that is made of what somebody else finds out. It needs no task, of which thousands at once take their time."""

    found: "asyncio.Future[Any]"
    answer: Callable[[Any], Answer]

    def made(self) -> Answer:
        """Now that it is found. What it was found to be may be an exception."""
        return self.answer(self.found.result())


# What is made of a request: its answer, or how that comes about; None where somebody else answers on its line.
Handled = Answer | Later | Coroutine[Any, Any, Answer | None] | None


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
