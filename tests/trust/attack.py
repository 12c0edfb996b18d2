"""Run as the web process's user, with its environment: looks for whatever is of use, and says as JSON what it found and could do.

The standard library alone, for any Python: it knows nothing of this project but where things lie.
"""

import json
import os
import re
import sqlite3
import sys
from contextlib import suppress
from pathlib import Path

KEY = re.compile(rb"(?:command|session|image)-[0-9a-f]{8}:([A-Za-z0-9+/]{43}=)")
CONTENTS = "command-00000000:" + "A" * 43 + "=\n"


def main(places: list[str]) -> None:
    secrets: list[str] = []
    wrote: list[list[str]] = []
    found = {
        "secrets": secrets,
        "wrote": wrote,
        "environment": sorted(name for name in os.environ if "KEY" in name or "BOOK" in name),
    }
    for place in places:
        for directory, _, files in os.walk(place):
            for name in files:
                with suppress(OSError), Path(directory, name).open("rb") as file:
                    secrets += [match.decode() for match in KEY.findall(file.read(1 << 20))]
    for place in places:
        for directory, names, files in os.walk(place):
            for name in [*files, *names]:
                path = Path(directory, name)
                for what, act in ACTS.items():
                    with suppress(OSError, sqlite3.Error):
                        act(path)
                        wrote.append([what, str(path)])
            for name in ("command-evil.pub", "command.pub", "command.key", "book.sqlite3"):
                with suppress(OSError), Path(directory, name).open("x") as made:
                    made.write(CONTENTS)
                    wrote.append(["made", str(Path(directory, name))])
    print(json.dumps(found))


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.read(1)


def swap(path: Path) -> None:
    aside = path.with_name(path.name + ".old")
    path.rename(aside)
    aside.rename(path)


def forget(path: Path) -> None:
    with sqlite3.connect(f"file:{path}?mode=rw", uri=True) as book:
        book.execute("DELETE FROM signed")


ACTS = {"overwritten": overwrite, "moved away": swap, "emptied": forget}

if __name__ == "__main__":
    main(sys.argv[1:])
