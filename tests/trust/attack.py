"""Run as the web process's user, with its environment: looks for whatever is of use, and says as JSON what it found and could do.

The standard library alone, for any Python: it knows nothing of this project but where things lie.
"""

import json
import os
import re
import sqlite3
import sys
from contextlib import suppress

KEY = re.compile(rb"(?:command|session|image)-[0-9a-f]{8}:([A-Za-z0-9+/]{43}=)")
CONTENTS = "command-00000000:" + "A" * 43 + "=\n"


def main(places):
    found = {
        "secrets": [],
        "wrote": [],
        "environment": sorted(name for name in os.environ if "KEY" in name or "BOOK" in name),
    }
    for place in places:
        for directory, names, files in os.walk(place):
            for name in files:
                path = os.path.join(directory, name)
                with suppress(OSError), open(path, "rb") as file:
                    found["secrets"] += [match.decode() for match in KEY.findall(file.read(1 << 20))]
    for place in places:
        for directory, names, files in os.walk(place):
            for name in [*files, *names]:
                path = os.path.join(directory, name)
                for what, act in ACTS.items():
                    with suppress(OSError, sqlite3.Error):
                        act(path)
                        found["wrote"].append([what, path])
            for name in ("command-evil.pub", "command.pub", "command.key", "book.sqlite3"):
                with suppress(OSError), open(os.path.join(directory, name), "x") as file:
                    file.write(CONTENTS)
                    found["wrote"].append(["made", os.path.join(directory, name)])
    print(json.dumps(found))


def overwrite(path):
    with open(path, "r+b") as file:
        file.read(1)


def swap(path):
    os.rename(path, path + ".old")
    os.rename(path + ".old", path)


def forget(path):
    with sqlite3.connect(f"file:{path}?mode=rw", uri=True) as book:
        book.execute("DELETE FROM signed")


ACTS = {"overwritten": overwrite, "moved away": swap, "emptied": forget}

if __name__ == "__main__":
    main(sys.argv[1:])
