"""Rows as files that leave the system: CSV for spreadsheets, JSON lines for scripts. Streamed, so that a log of any length fits."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

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
