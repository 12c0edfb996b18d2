"""A socket by which the PC's user, and nobody else but root, asks the daemon for something; `ask.py` comes to it.

One question and one answer a visit, each a JSON object in a packet. Nothing of the user's is opened or waited for.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

PATH = "/run/fleet/door"
LONGEST = 2048  # bytes of a question
PATIENCE_S = 1.0


def serve(uid: int, answer: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
    """For ever, in a thread of its own."""
    with suppress(FileNotFoundError):
        os.unlink(PATH)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(PATH)
        os.chown(PATH, uid, -1)  # as nobody else's it is open to nobody else
        os.chmod(PATH, 0o600)
        door.listen(8)
        while True:
            try:
                visitor, _ = door.accept()
                with visitor:
                    visit(visitor, answer)
            except (OSError, ValueError, RecursionError) as error:
                print(f"A visitor was sent away: {error}", file=sys.stderr, flush=True)
                time.sleep(0.1)


def visit(visitor: socket.socket, answer: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
    visitor.settimeout(PATIENCE_S)
    asked = json.loads(visitor.recv(LONGEST))
    if not isinstance(asked, dict):
        raise ValueError("this is no question")
    visitor.send(json.dumps(answer(asked)).encode())
