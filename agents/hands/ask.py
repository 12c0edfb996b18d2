#!/usr/bin/python3 -EsS
"""`fleet-hold`, for the user of a client: a PC that must not be disturbed, or five minutes more before it is.

This module needs none of its siblings: /run/fleet/bin/fleet-hold is a link to it.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import time
from typing import Any

DOOR = "/run/fleet/door"
USAGE = """fleet-hold                        says what is held, and what was announced
fleet-hold "match running" 90m    no restart, power-down or cycle for so long (4h at most)
fleet-hold --release              ends that
fleet-hold --more                 5 more minutes before what was announced, where that is allowed"""
UNITS = {"s": 1, "m": 60, "h": 3600}
PATIENCE_S = 10.0


def seconds(text: str) -> int:
    """Of `90m`, `2h` or `1h30m`; 0 where it is no time."""
    if not re.fullmatch(r"([0-9]{1,5}[hms])+", text):
        return 0
    return sum(int(number) * UNITS[unit] for number, unit in re.findall(r"([0-9]+)([hms])", text))


def question(arguments: list[str]) -> dict[str, Any] | None:
    """What to ask; None where nobody could tell."""
    if len(arguments) == 2 and not arguments[0].startswith("-") and seconds(arguments[1]):
        return {"ask": "hold", "reason": arguments[0], "seconds": seconds(arguments[1])}
    wish = {(): "status", ("--release",): "release", ("--more",): "more"}.get(tuple(arguments))
    return {"ask": wish} if wish else None


def ask(asked: dict[str, Any]) -> dict[str, Any]:
    """The daemon's answer; OSError where there is none. Asked once only: more time is not to be taken twice."""
    end = time.monotonic() + PATIENCE_S
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            door.settimeout(PATIENCE_S)
            try:
                door.connect(DOOR)
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):  # it just starts, or has many visitors
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
                continue
            door.send(json.dumps(asked).encode())
            return dict(json.loads(door.recv(4096) or "{}"))


def main(arguments: list[str]) -> int:
    asked = question(arguments)
    if asked is None:
        print(USAGE, file=sys.stderr)
        return 2
    try:
        answer = ask(asked)
        granted, said = bool(answer["granted"]), str(answer["said"])
    except (OSError, ValueError, KeyError) as error:
        granted, said = False, f"The daemon of this PC does not answer: {error!r}"
    print(said, file=sys.stdout if granted else sys.stderr)
    return 0 if granted else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
