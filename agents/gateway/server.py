"""HTTP/1.1 for ten thousand who wait: a small object for each connection, and no task for who is answered at once.

Our own, because an ASGI server's scope, messages and task for each request cost 10 kB for each parked poll and 65 µs; this costs 2 kB and
20 µs, on the same C parser (llhttp by httptools) and event loop (uvloop). The gateway speaks to clients in its own network, without TLS.
"""

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import cast

import httptools

from agents.gateway.http import BODY_LIMIT, Answer, Problem, Request, Upload, start_of

HEAD_LIMIT = 64 * 1024
PATIENCE_S = 10.0  # for the rest of a request that has begun
IDLE_S = 75.0  # a connection on which nobody asks anything
LINGER_S = 2.0  # for who was told that it says too much, to read that
STALLED_S = 60.0  # a client that reads nothing more of what it asked for
BACKLOG = 4096
# A client that was unplugged says nothing: its kernel is asked after 20 s, and given up 15 s later. A parked poll is presence.
KEEPALIVE = ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))

_NONE: dict[str, str] = {}  # where nothing is written: for all between two requests
Handle = Callable[[Request], None]


class Server:
    """``handle`` is called for each request, one after the other on a connection, and has its ``line`` answered then or later.

    ``streams`` says by method and path whose body it wants as it comes, ``lost`` is told when one broke that waited for an answer.
    """

    def __init__(
        self, handle: Handle, streams: Callable[[str, str], bool], lost: Callable[["Connection"], None]
    ) -> None:
        self.handle, self.streams, self.lost = handle, streams, lost
        self.connections: set[Connection] = set()
        self._servers: list[asyncio.Server] = []

    async def listen(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # accepted ones inherit it
        for option, value in KEEPALIVE:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)
        listener.bind((host, port))
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_server(lambda: Connection(self), sock=listener, backlog=BACKLOG))

    async def tidy(self) -> None:
        """For ever: part with those that are idle, or do not get to the end of what they say."""
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.tidy(now)

    async def close(self, patience_s: float) -> None:
        """Admit nobody more, and give those who are being answered some time."""
        for server in self._servers:
            server.close()
        end = time.monotonic() + patience_s
        for connection in list(self.connections):
            connection.leave()
        while self.connections and time.monotonic() < end:  # noqa: ASYNC110 - they are gone within a moment, all of them
            await asyncio.sleep(0.05)
        for connection in list(self.connections):
            connection.abort()


class Connection(asyncio.Protocol):
    """The ``Line`` of its requests."""

    __slots__ = (
        *("_server", "_transport", "_parser", "_url", "_headers", "_request", "_queue", "_came", "_since", "_writable"),
        *("_busy", "_stepping", "_deaf", "_last", "_head"),
    )

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._url, self._headers = b"", _NONE
        self._request: Request | None = None  # whose body is coming
        self._queue: deque[Request] | None = None  # come while another is answered
        self._came = 0  # bytes of a head that is not complete
        self._since = time.monotonic()  # what is waited for: the next request, or the rest of one
        self._writable: asyncio.Future[None] | None = None  # there is no room for more of an answer
        self._busy = self._stepping = False  # a request is being answered; the queue is being emptied
        self._deaf = False  # what comes now is not listened to
        self._last = self._head = False  # of the request being answered: nothing follows it; it wants no body

    # --- from the event loop ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._transport, self._queue, self._deaf = None, None, True
        self.resume_writing()
        if self._request is not None and self._request.upload is not None:
            self._request.upload.end(broke=True)
        self._request = None
        if self._busy:
            self._server.lost(self)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._request is None:
            if not self._came:
                self._since = time.monotonic()
            self._came += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # what asked for it is answered in HTTP, and is the last
            self._deaf = self._last = True
            if not self._busy and self._transport is not None:
                self._transport.close()
        except httptools.HttpParserError:
            self._refuse(400, "That is no HTTP request.")
        if self._came > HEAD_LIMIT:
            self._refuse(431, f"The head of the request is larger than {HEAD_LIMIT} bytes.")

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # --- from the parser --------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url, self._headers = b"", {}

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._request is None:  # else it comes after the body, and says nothing to us
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._deaf or self._transport is None:
            return
        headers, self._headers, self._came = self._headers, _NONE, 0
        request = Request(self._parser.get_method().decode(), self._url.decode("latin-1"), headers, self)
        self._request = request
        if not self._parser.should_keep_alive():
            headers["connection"] = "close"
        if "expect" in headers and not self._busy:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._server.streams(request.method, request.path):
            request.upload = Upload(self._transport)
            self._next(request)

    def on_body(self, body: bytes) -> None:
        request = self._request
        if request is None:
            return
        if request.upload is not None:
            request.upload.feed(body)
        elif len(request.body) + len(body) > BODY_LIMIT:
            self._refuse(413, f"The body is larger than {BODY_LIMIT} bytes.")
        else:
            request.body += body

    def on_message_complete(self) -> None:
        request, self._request = self._request, None
        if request is None:
            return
        if request.upload is not None:
            request.upload.end()
        else:
            self._next(request)

    def _refuse(self, status: int, why: str) -> None:
        """Answer what is no request, after those before it; then nothing more."""
        if self._deaf:
            return
        request = self._request or Request("GET", "", {}, self)
        self._deaf, self._request, self._came = True, None, 0
        if request.upload is not None:
            request.upload.end(broke=True)  # who takes it answers
            return
        request.fault = Problem(status, why)
        self._next(request)

    # --- one request after the other --------------------------------------------------------------------------------

    def _next(self, request: Request) -> None:
        if not self._busy and not self._queue:
            self._begin(request)
            return
        if self._queue is None:
            self._queue = deque()
            if self._transport is not None:
                self._transport.pause_reading()
        self._queue.append(request)

    def _begin(self, request: Request) -> None:
        self._busy, self._head = True, request.method == "HEAD"
        self._last = request.fault is not None or request.headers.get("connection", "").lower() == "close"
        self._server.handle(request)

    def _done(self) -> None:
        """The request is answered: its connection ends, or goes on with what came meanwhile."""
        self._busy, self._since = False, time.monotonic()
        if self._transport is None or self._transport.is_closing():
            return
        if self._last:
            self._queue = None
            if (
                self._deaf or self._request is not None
            ):  # there is more to come: it may be closed only when that was read
                self._deaf = True
                self._transport.resume_reading()
                self._transport.write_eof()
            else:
                self._deaf = True
                self._transport.close()
        elif not self._stepping:
            self._step()

    def _step(self) -> None:
        """The requests that came while another was answered: thousands may have been read at once."""
        self._stepping = True
        while self._queue and not self._busy:
            self._begin(self._queue.popleft())
        self._stepping = False
        if self._queue is not None and not self._queue and self._transport is not None:
            self._queue = None
            self._transport.resume_reading()

    @property
    def broken(self) -> bool:
        return self._transport is None

    def answer(self, answer: Answer) -> None:
        if self._request is not None and self._request.upload is not None:
            self._last = True  # it is still coming, and nobody takes it
        if self._transport is not None:
            self._transport.write(answer.encoded(head=self._head, close=self._last))
        self._done()

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """The beginning of an answer whose body follows by ``send``, until ``finish``."""
        if self._transport is not None:
            self._transport.write(start_of(status, headers, close=self._last))

    async def send(self, piece: bytes) -> None:
        """Some of the body, as soon as there is room for it. OSError when nobody reads it any more."""
        async with asyncio.timeout(STALLED_S):
            while self._writable is not None:
                await self._writable
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("The client went away.")
        self._transport.write(piece)

    def finish(self) -> None:
        self._done()

    def abort(self) -> None:
        """Break the connection, so that who reads from it notices."""
        if self._transport is not None:
            self._transport.abort()

    # --- from the server --------------------------------------------------------------------------------------------

    def tidy(self, now: float) -> None:
        if self._busy:
            return
        waited = now - self._since
        if self._deaf:
            if waited > LINGER_S:
                self.abort()
        elif self._request is not None or self._came:
            if waited > PATIENCE_S:
                self._refuse(408, "The request did not come in time.")
        elif waited > IDLE_S:
            self.leave()

    def leave(self) -> None:
        """Close, once the request that is being answered is."""
        self._last = True
        if not self._busy and self._transport is not None:
            self._transport.close()
