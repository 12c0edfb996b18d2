"""Files that leave the system: what stands in them, and that no more than a piece is in memory."""

import asyncio
import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from django.core.handlers.asgi import ASGIRequest
from django.test import RequestFactory

from fleet.exports import csv_lines, download, json_lines

FIELDS = ["name", "value"]


def cells(*values: object) -> list[str]:
    """What a spreadsheet finds in the column ``value``."""
    rows = [{"name": "x", "value": value} for value in values]
    return [line["value"] for line in csv.DictReader(io.StringIO("".join(csv_lines(rows, FIELDS))))]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_text_that_a_spreadsheet_would_calculate_stays_text(text: str) -> None:
    assert cells(text) == [f"'{text}"]


def test_a_cell_reads_back_as_it_was_written() -> None:
    assert cells('a "b", c\nd', "Zürich", -5, None, True) == ['a "b", c\nd', "Zürich", "-5", "", "true"]
    assert json.loads(cells({"was": "=x", "now": ["ü"]})[0]) == {"was": "=x", "now": ["ü"]}


def test_times_are_of_utc_in_both() -> None:
    noon = datetime(2026, 7, 1, 14, tzinfo=timezone(timedelta(hours=2)))
    assert cells(noon) == [noon.astimezone(UTC).isoformat()] == ["2026-07-01T12:00:00+00:00"]
    [line] = json_lines([{"name": "ü", "value": noon, "secret": "x"}], FIELDS)
    assert json.loads(line) == {"name": "ü", "value": "2026-07-01T12:00:00+00:00"}


class Counted:
    """Rows that say how many of them were read."""

    def __init__(self, number: int) -> None:
        self.read, self._number = 0, number

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(self._number):
            self.read += 1
            yield {"name": "x", "value": number}


def test_a_file_is_read_as_it_is_sent() -> None:
    rows = Counted(10_000)
    pieces = iter(download(RequestFactory().get("/"), "log", "jsonl", rows, FIELDS).streaming_content)  # type: ignore[arg-type]
    next(pieces)
    assert rows.read < 1000
    assert b"".join(pieces).endswith(b'"value": 9999}\n')


def test_an_asgi_server_too_reads_as_it_sends() -> None:
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}

    async def receive_some() -> tuple[int, bytes]:
        content = download(ASGIRequest(scope, io.BytesIO()), "log", "csv", rows, FIELDS).__aiter__()
        await anext(content)
        early = rows.read
        return early, b"".join([piece async for piece in content])

    rows = Counted(10_000)
    early, rest = asyncio.run(receive_some())
    assert early < 1000
    assert rest.endswith(b"x,9999\r\n")


def test_a_download_is_named_for_what_it_is() -> None:
    answer = download(RequestFactory().get("/"), "auditentry", "csv", [], FIELDS)
    assert answer["Content-Disposition"] == 'attachment; filename="auditentry.csv"'
    assert answer["Content-Type"] == "text/csv; charset=utf-8"
    assert answer.getvalue() == b"name,value\r\n"
