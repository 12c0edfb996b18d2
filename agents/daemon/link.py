"""The way to the gateway: HTTP over one kept-alive connection, and how long to keep off it when it fails."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import select
import time
from collections.abc import Callable, Iterable
from typing import Any, Optional

ANSWER_BYTES = 1 << 20  # the gateway sends a few kilobytes; more is rubbish
PATIENCE_S, CAP_S = 20.0, 120.0
AT_WORK_S = 3.0  # without a poll: most work is done before that, and then there is something to say
CHUNKED = {"Transfer-Encoding": "chunked"}
Patience = Optional[Callable[[], float]]  # noqa: UP045 - for Python 3.9


class Away(Exception):
    """The gateway did not answer as agreed; `status` 0 where it did not answer at all."""

    def __init__(self, why: str, status: int = 0, retry_s: float = 0) -> None:
        super().__init__(why)
        self.status, self.retry_s = status, retry_s


class Superseded(Exception):
    """A younger session of this client exists: this one has nothing more to say."""


class Answer:
    def __init__(self, status: int, headers: http.client.HTTPMessage, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def json(self) -> dict[str, Any]:
        try:
            content = json.loads(self.body)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise Away("the gateway's answer is not a JSON object")
        return content


class Link:
    """One connection, used by one thread. `wake` is a descriptor that becomes readable to end a parked poll."""

    def __init__(self, server: str, bearer: str, wake: int) -> None:
        scheme, _, address = server.rstrip("/").partition("://")
        if scheme != "http" or "/" in address:
            raise ValueError(f"fleet.server is {server!r}; it must be http://host[:port].")
        self.address, self.bearer, self.wake = address, bearer, wake
        self.connection = http.client.HTTPConnection(address)
        self.failures = 0

    def call(
        self, method: str, path: str, body: object = None, timeout: float = PATIENCE_S, patience: Patience = None
    ) -> Answer | None:
        """The answer, 200 or 204; None when `wake` or `patience` ended a parked poll. Away or Superseded otherwise.

        `patience` says how long to wait until it is asked again (seconds), 0 where there is something better to do.
        """
        reused = self.connection.sock is not None
        headers = {"Authorization": f"Bearer {self.bearer}", "Content-Type": "application/json"}
        try:
            self.connection.timeout = timeout
            if reused:
                self.connection.sock.settimeout(timeout)
            self.connection.request(method, path, None if body is None else json.dumps(body), headers)
            if patience and self.woken(patience, timeout, self.connection.sock):
                self.connection.close()
                return None
            response = self.connection.getresponse()
            answer = Answer(response.status, response.headers, response.read(ANSWER_BYTES))
            if not response.isclosed():
                self.connection.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.connection.close()
            if reused and isinstance(error, ConnectionError):
                return self.call(method, path, body, timeout, patience)  # the server had let an idle one go
            raise Away(f"{type(error).__name__}: {error}") from None
        if answer.status == 409:
            raise Superseded
        if answer.status not in (200, 204):
            after = answer.headers.get("Retry-After", "")
            retry_s = float(after) if after.isdecimal() and len(after) < 5 else 0.0
            raise Away(f"{method} {path.partition('?')[0]}: status {answer.status}", answer.status, retry_s)
        return answer

    def woken(self, patience: Callable[[], float], timeout: float, *answer: Any) -> bool:
        """Whether the wait ended before its time, and before the answer came on the socket `answer`, where one is waited for."""
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            tick = patience()
            readable = select.select([*answer, self.wake], [], [], min(tick, left))[0]
            if any(socket in readable for socket in answer):  # given up now, it would come again only when looked for
                return False
            if readable:
                os.read(self.wake, 4096)
            if readable or tick <= 0:
                return True
        if answer:
            raise TimeoutError(f"no answer within {timeout:.0f} s")
        return False

    def pause_s(self, trouble: Away, spread_s: float) -> float:
        """Full jitter: anything up to a bound that doubles with each failure, and never before Retry-After ends."""
        bound = CAP_S if trouble.status == 401 else min(CAP_S, max(1.0, spread_s) * 2**self.failures)
        self.failures = min(self.failures + 1, 10)
        return trouble.retry_s + random.uniform(0, bound)  # noqa: S311 - spreads load, guards nothing

    def upload(self, path: str, blocks: Iterable[bytes]) -> dict[str, Any]:
        """PUT a stream whose length nobody knows yet; the JSON answered. OSError with the server's words for a refusal.

        Where `blocks` raises, the stream stays without its end, which the server sees. For any thread.
        """
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE_S)
        headers = {"Authorization": f"Bearer {self.bearer}", "Content-Type": "application/x-tar", **CHUNKED}
        broken: Exception | None = None
        try:
            try:
                connection.request("PUT", path, blocks, headers, encode_chunked=True)
            except ConnectionError as error:
                broken = error  # the server may have answered before the end, and that says more
            response = connection.getresponse()
            answer = Answer(response.status, response.headers, response.read(ANSWER_BYTES))
        except (OSError, http.client.HTTPException) as error:
            raise OSError(f"the upload broke off: {broken or error!r}") from None
        finally:
            connection.close()
        try:
            said = answer.json()
        except Away:
            said = {}
        if answer.status != 200:
            raise OSError(f"the server took nothing: {said.get('detail', answer.status)}")
        return said

    def fetch(self, digest: str, size: int, target: str) -> None:
        """Store the artefact `digest` as `target`; OSError where what came is not it. For any thread."""
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE_S)
        seen = hashlib.sha256()
        try:
            connection.request("GET", f"/store/{digest}")
            response = connection.getresponse()
            with open(target + ".part", "wb") as file:
                while file.tell() <= size and (block := response.read(1 << 18)):
                    seen.update(block)
                    file.write(block)
                got = file.tell()
        except http.client.HTTPException as error:
            raise OSError(f"fetching {digest}: {type(error).__name__}") from None
        finally:
            connection.close()
        if response.status != 200 or got != size or seen.hexdigest() != digest:
            os.unlink(target + ".part")
            raise OSError(f"/store/{digest} has status {response.status} and {got} bytes that do not match.")
        os.rename(target + ".part", target)
