"""QEMU's machine protocol: one JSON object per line over a Unix socket (docs/interop/qmp-spec of QEMU)."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

from tests.lab.process import LabError

# What QEMU calls the keys that are not called by their letter; with shift where the value has a blank.
_KEYS = {
    " ": "spc", "\n": "ret", "\t": "tab", "-": "minus", "=": "equal", "/": "slash", "\\": "backslash",
    ".": "dot", ",": "comma", ";": "semicolon", "'": "apostrophe", "`": "grave_accent", "[": "bracket_left",
    "]": "bracket_right", "_": "shift minus", "+": "shift equal", "?": "shift slash", "|": "shift backslash",
    ">": "shift dot", "<": "shift comma", ":": "shift semicolon", '"': "shift apostrophe",
    "~": "shift grave_accent", "{": "shift bracket_left", "}": "shift bracket_right", "!": "shift 1",
    "@": "shift 2", "#": "shift 3", "$": "shift 4", "%": "shift 5", "^": "shift 6", "&": "shift 7",
    "*": "shift 8", "(": "shift 9", ")": "shift 0",
}  # fmt: skip


class Qmp:
    """A connection to one running QEMU; `execute` may be called from any thread."""

    def __init__(self, path: Path, timeout_s: float = 10.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        self._lock = threading.Lock()
        connect(self._socket, path, timeout_s)
        self._stream = self._socket.makefile("rwb")
        self._stream.readline()  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> object:
        """Returns what QEMU returned; raises LabError with its error."""
        request = {"execute": command, "arguments": arguments}
        with self._lock:
            self._stream.write(json.dumps(request).encode() + b"\n")
            self._stream.flush()
            while line := self._stream.readline():
                answer = json.loads(line)
                if "error" in answer:
                    raise LabError(f"QEMU refuses {command}: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]
        raise LabError(f"QEMU ended during {command}.")

    def press(self, *keys: str) -> None:
        """Press keys together, by QEMU's names (`ctrl`, `alt`, `f2`, `ret`)."""
        self.execute("send-key", keys=[{"type": "qcode", "data": key} for key in keys])
        time.sleep(0.02)  # the emulated keyboard's buffer holds sixteen codes

    def type(self, text: str) -> None:
        """Type on the US keyboard."""
        for letter in text:
            key = _KEYS.get(letter, letter.lower())
            self.press(*(["shift", key] if letter.isupper() else key.split()))

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


def connect(client: socket.socket, path: Path, timeout_s: float) -> None:
    """Connect to a Unix socket that a process just started is about to make."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise LabError(f"Nothing listens on {path} after {timeout_s:g} s.") from None
            time.sleep(0.05)
        else:
            return
