"""Rows as files that leave the system: CSV for spreadsheets, JSON lines for scripts. Streamed, so that a log of any length fits."""

import csv
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, StreamingHttpResponse

_LINES_AT_ONCE = 200
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would calculate what begins with one of these (CWE-1236)


class _Line:
    """The file that csv writes to: it hands each line on."""

    def write(self, line: str) -> str:
        return line


def csv_lines(rows: Iterable[Mapping[str, Any]], fields: Sequence[str]) -> Iterator[str]:
    """RFC 4180 with a header; times as ISO 8601 in UTC, what is nested as JSON, text that looks like a formula quoted."""
    writer = csv.writer(_Line())
    yield writer.writerow(fields)
    for row in rows:
        yield writer.writerow([_cell(row.get(field)) for field in fields])


def json_lines(rows: Iterable[Mapping[str, Any]], fields: Sequence[str]) -> Iterator[str]:
    """One JSON object a line (jsonlines.org), keys in the order of ``fields``."""
    for row in rows:
        yield json.dumps({field: row.get(field) for field in fields}, default=_text, ensure_ascii=False) + "\n"


WRITERS = {"csv": (csv_lines, "text/csv; charset=utf-8"), "jsonl": (json_lines, "application/jsonl")}


def download(
    request: HttpRequest, name: str, kind: str, rows: Iterable[Mapping[str, Any]], fields: Sequence[str]
) -> StreamingHttpResponse:
    """``rows`` as the file ``name``.``kind``, a key of WRITERS. Rows are read as they are sent: memory holds a few hundred."""
    write, content_type = WRITERS[kind]
    pieces = _pieces(write(rows, fields))
    content = _in_a_thread(pieces) if isinstance(request, ASGIRequest) else pieces
    answer = StreamingHttpResponse(content, content_type=content_type)
    answer["Content-Disposition"] = f'attachment; filename="{name}.{kind}"'
    return answer


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    while piece := "".join(islice(lines, _LINES_AT_ONCE)):
        yield piece


async def _in_a_thread(pieces: Iterator[str]) -> AsyncIterator[str]:
    """For an ASGI server, for which Django would collect all of a plain iterator before it sends the first byte."""
    read = sync_to_async(lambda: next(pieces, ""))
    while piece := await read():
        yield piece


def _cell(value: Any) -> str | int:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | str | datetime):
        return (
            json.dumps(value, default=_text, ensure_ascii=False)
            if isinstance(value, bool | list | dict)
            else _cell(str(value))
        )
    if isinstance(value, int):
        return value
    text = _text(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _text(value: Any) -> str:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)
