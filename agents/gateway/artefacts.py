"""Serves the store: immutable artefacts by digest, with Range (RFC 9110, one range) so that a broken fetch goes on."""

import asyncio
import re
from pathlib import Path

from agents.gateway.http import Answer, Problem, Request

CHUNK = 1 << 18
_DIGEST = re.compile(r"/store/([0-9a-f]{64})").fullmatch
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})").fullmatch


async def serve(request: Request, store: Path) -> Answer | None:
    """Write the artefact to the request's line, or a part of it; or an answer that has none."""
    match = _DIGEST(request.path)
    if match is None:
        raise Problem(404, "An artefact is named by its SHA-256 in small hex.")
    digest = match[1]
    path = store / "objects" / digest[:2] / digest
    try:
        size = path.stat().st_size
        file = path.open("rb")
    except OSError:
        raise Problem(404, f"The store has no artefact {digest}.") from None
    with file:
        start, end = 0, size - 1
        headers = {
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "ETag": f'"{digest}"',
            "Cache-Control": "public, max-age=31536000, immutable",
        }
        status = 200
        # A client that goes on with another artefact than it began with gets all of this one.
        same = request.headers.get("if-range", headers["ETag"]) == headers["ETag"]
        if (asked := request.headers.get("range")) and same:
            start, end = _range(asked, size)
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Answer(304, b"", headers)
        headers["Content-Length"] = str(end - start + 1)
        line = request.line
        line.start(status, headers)
        left = 0 if request.method == "HEAD" else end - start + 1
        file.seek(start)
        try:
            while left > 0:
                chunk = await asyncio.to_thread(file.read, min(CHUNK, left))
                if not chunk:
                    raise OSError("The file shrank.")
                left -= len(chunk)
                await line.send(chunk)
        except OSError:
            line.abort()  # the length it was told is not what it gets
        line.finish()
    return None


def _range(asked: str, size: int) -> tuple[int, int]:
    """First and last byte of a Range header; Problem 416 when it cannot be had."""
    match = _RANGE(asked.strip())
    if match is None or match.groups() == ("", ""):
        raise Problem(416, "One range of bytes can be asked for.", Content_Range=f"bytes */{size}")
    first, last = match.groups()
    start, end = (max(0, size - int(last)), size - 1) if not first else (int(first), min(int(last or size), size - 1))
    if start > end:
        raise Problem(416, f"The artefact has {size} bytes.", Content_Range=f"bytes */{size}")
    return start, end
