"""One keep-alive connection of one client: HTTP/1.1 as the daemon's http.client speaks it, in as little memory and time as ten thousand need."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, cast

import orjson

PATIENCE_S = 90.0  # longer than a parked poll is held
_MOST_BYTES = 1 << 20


class Away(Exception):
    """No answer, or none that was wanted. ``status`` is 0 when nothing came at all; ``retry_s`` is what the server asked for."""

    def __init__(self, why: str, status: int = 0, retry_s: float = 0.0) -> None:
        super().__init__(why)
        self.status, self.retry_s = status, retry_s


class Interrupted(Exception):
    """The wait was ended by who waited (``Wire.interrupt``)."""


class Wire:
    """``head`` are lines that each request has, with their line ends."""

    __slots__ = ("_host", "_pipe", "_port", "head")

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self.head = ""
        self._pipe: _Pipe | None = None

    def say(self, headers: Iterable[tuple[str, str]]) -> None:
        """What each request says from here on."""
        lines = (f"{name}: {value}\r\n" for name, value in (("Host", self._host), *headers))
        self.head = "".join(lines)

    async def ask(self, method: str, path: str, body: bytes | dict[str, Any] = b"") -> tuple[int, bytes]:
        """Status and body; Away for any status but 200 and 204, and for silence."""
        try:
            answer = await self._exchange(method, path, orjson.dumps(body) if isinstance(body, dict) else body)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            self.close()
            raise Away(f"{method} {path.partition('?')[0]}: {type(error).__name__}") from None
        except asyncio.CancelledError:
            self.close()  # an answer would come to the next question
            raise
        if answer.status not in (200, 204):
            raise Away(f"{method} {path.partition('?')[0]}: {answer.status}", answer.status, answer.retry_s)
        return answer.status, answer.content

    async def _exchange(self, method: str, path: str, content: bytes) -> "_Answer":
        loop = asyncio.get_running_loop()
        pipe = self._pipe
        if pipe is None or pipe.transport.is_closing():
            async with asyncio.timeout(PATIENCE_S):
                _, pipe = await loop.create_connection(_Pipe, self._host, self._port)
            self._pipe = pipe
        answer = pipe.expect(loop)
        pipe.transport.write(
            f"{method} {path} HTTP/1.1\r\n{self.head}Content-Length: {len(content)}\r\n\r\n".encode() + content
        )
        try:
            return await answer
        finally:
            pipe.answer = None

    def interrupt(self) -> None:
        """Whoever waits for an answer has Interrupted, and the connection is closed: the answer is for nobody."""
        if self._pipe is not None:
            self._pipe.fail(Interrupted())
        self.close()

    def close(self) -> None:
        if self._pipe is not None:
            self._pipe.transport.close()
        self._pipe = None


class _Answer:
    """Of all that was answered, what a client of a swarm reads."""

    __slots__ = ("content", "retry_s", "status")

    def __init__(self, head: bytes, content: bytes) -> None:
        self.status, self.content = int(head[9:12]), content
        self.retry_s = 0.0
        if self.status not in (200, 204):
            with suppress(ValueError):
                self.retry_s = float(_header(head.lower(), b"retry-after"))


class _Pipe(asyncio.Protocol):
    """One connection, on which one question at a time is asked."""

    __slots__ = ("_came", "_timer", "_until", "answer", "transport")

    def __init__(self) -> None:
        self._came = b""
        self._timer: asyncio.TimerHandle | None = None
        self._until = 0.0  # the answer is waited for, by the loop's clock
        self.answer: asyncio.Future[_Answer] | None = None

    def expect(self, loop: asyncio.AbstractEventLoop) -> "asyncio.Future[_Answer]":
        """The answer to what is asked next. A pipe has one timer, whatever it asks meanwhile: thousands need not set and cancel theirs."""
        self.answer, self._until = loop.create_future(), loop.time() + PATIENCE_S
        if self._timer is None:
            self._timer = loop.call_at(self._until, self._late, loop)
        return self.answer

    def _late(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self.answer is None:
            return
        if loop.time() < self._until:
            self._timer = loop.call_at(self._until, self._late, loop)
        else:
            self.fail(TimeoutError())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.fail(exc if isinstance(exc, OSError) else EOFError())

    def fail(self, error: Exception) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error)

    def data_received(self, data: bytes) -> None:
        self._came += data
        head, found, rest = self._came.partition(b"\r\n\r\n")
        said = head.lower()
        try:
            length = int(_header(said, b"content-length") or 0)
            if not found or (len(rest) < length <= _MOST_BYTES and len(head) <= _MOST_BYTES):
                return
            if not head.startswith(b"HTTP/1.1 ") or not 0 <= length == len(rest):
                raise ValueError("that is no answer")
            answer = _Answer(head, rest)
        except ValueError as error:
            self.fail(error)
            self.transport.close()
            return
        self._came = b""
        if b"connection: close" in said:
            self.transport.close()
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(answer)


def _header(head: bytes, name: bytes) -> bytes:
    """The value of a header of a head in small letters; b"" where there is none."""
    _, _, rest = head.partition(b"\r\n" + name + b":")
    return rest.partition(b"\r\n")[0].strip()
