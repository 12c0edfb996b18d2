"""One keep-alive connection of one client: HTTP/1.1 as the daemon's http.client speaks it, in as little memory as ten thousand need."""

import asyncio
import json
from typing import Any

PATIENCE_S = 90.0  # longer than a parked poll is held
_MOST_BYTES = 1 << 20


class Away(Exception):
    """No answer, or none that was wanted. ``status`` is 0 when nothing came at all; ``retry_s`` is what the server asked for."""

    def __init__(self, why: str, status: int = 0, retry_s: float = 0.0) -> None:
        super().__init__(why)
        self.status, self.retry_s = status, retry_s


class Wire:
    def __init__(self, host: str, port: int, headers: dict[str, str] | None = None) -> None:
        self._host, self._port = host, port
        self.headers = headers or {}
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(
        self, method: str, path: str, body: bytes | dict[str, Any] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in small letters), body; Away for any status but 200 and 204, and for silence."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                status, headers, content = await self._exchange(method, path, body)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            self.close()
            raise Away(f"{method} {path.partition('?')[0]}: {type(error).__name__}") from None
        except asyncio.CancelledError:
            self.close()  # an answer would come to the next question
            raise
        if status not in (200, 204):
            after = headers.get("retry-after", "")
            raise Away(
                f"{method} {path.partition('?')[0]}: {status}", status, float(after) if after.isdecimal() else 0.0
            )
        return status, headers, content

    async def _exchange(
        self, method: str, path: str, body: bytes | dict[str, Any] | None
    ) -> tuple[int, dict[str, str], bytes]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=1 << 14)
        content = json.dumps(body).encode() if isinstance(body, dict) else body or b""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}", f"Content-Length: {len(content)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        self._writer.write("\r\n".join([*lines, "\r\n"]).encode() + content)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ", 2)[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        length = min(int(headers.get("content-length", 0)), _MOST_BYTES)
        answer = await self._reader.readexactly(length) if length else b""
        if headers.get("connection") == "close":
            self.close()
        return status, headers, answer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None
