"""How every bench reports: progress on stderr, a table on stdout, one JSON object as the last line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence

_START = time.monotonic()


def progress(text: str) -> None:
    """A line for who waits, with the seconds since the bench started."""
    print(f"[{time.monotonic() - _START:6.1f} s] {text}", file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell; the first is left-aligned, the others (figures) right-aligned."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def finish(header: Sequence[str], rows: Sequence[Sequence[object]], result: Mapping[str, object]) -> None:
    """Print the table and, as the last line, `result` as JSON."""
    print(table(header, rows))
    print(json.dumps(result), flush=True)
