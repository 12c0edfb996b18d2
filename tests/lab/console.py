"""The serial console of a virtual PC: everything it said, and a keyboard."""

from __future__ import annotations

import codecs
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab.process import LabError
from tests.lab.qmp import connect

# Colours and cursor movements, so that a pattern needs to know only the words.
_ESCAPES = re.compile(rb"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[()][A-Z0-9]|[=>78cM])|\r")


class Console:
    """Reads in a thread; `text` is what came so far, without escape sequences. The raw bytes go to `log`."""

    def __init__(self, path: Path, log: Path, alive: Callable[[], bool]) -> None:
        self._alive = alive
        self._raw = bytearray()
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._came = threading.Condition()
        self._read_to = 0  # of text; what wait_for has seen
        self._text = ""
        self._shell = False
        self._ended = False  # nothing more comes
        self._socket = socket.socket(socket.AF_UNIX)
        connect(self._socket, path, 10.0)
        self._thread = threading.Thread(target=self._read, args=(log,), name="lab-console", daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        with self._came:
            return self._text

    def send(self, text: str) -> None:
        """Keys, as a terminal would send them: a line ends with \\r or \\n."""
        self._socket.sendall(text.encode())

    def wait_for(self, pattern: str, timeout_s: float) -> re.Match[str]:
        """The next match after the last one that was waited for; `^` and `$` are those of a line.

        Raises LabError with the last lines when it does not come, or the PC goes off before.
        """
        expression = re.compile(pattern, re.MULTILINE)
        deadline = time.monotonic() + timeout_s
        with self._came:
            while True:
                if match := expression.search(self._text, self._read_to):
                    self._read_to = match.end()
                    return match
                left = deadline - time.monotonic()
                if left <= 0 or (self._ended and not self._alive()):  # what a PC said last is read after it went off
                    why = "is off" if left > 0 else f"did not say it within {timeout_s:g} s"
                    tail = "\n".join(self._text.splitlines()[-25:])
                    raise LabError(f"Waiting for /{pattern}/: the PC {why}. Its last lines:\n{tail}")
                self._came.wait(min(left, 1.0))

    def sh(self, command: str, timeout_s: float = 60.0) -> tuple[int, str]:
        """Run a command in the root shell that waits on this console; returns exit code and output.

        The image has to log root in on ttyS0 by itself (a recipe of the tests does).
        """
        if not self._shell:
            # No echo, no prompt and no message of the kernel, or they would be in the output.
            self.send(
                "dmesg -n 1; stty -echo -onlcr cols 1000; PS1= PS2= TERM=dumb; unset PROMPT_COMMAND; echo qui''et\n"
            )
            self.wait_for(r"^.*quiet$", timeout_s)
            self._shell = True
        mark = secrets.token_hex(6)
        self.send(f"echo {mark[:6]}''{mark[6:]}; {{ {command}\n}} 2>&1; echo {mark[:6]}''{mark[6:]} $?\n")
        self.wait_for(rf"{mark}\n", timeout_s)
        start = self._read_to
        match = self.wait_for(rf"{mark} (\d+)$", timeout_s)
        return int(match[1]), self.text[start : match.start()]

    def new_shell(self) -> None:
        """To be called when the PC restarted and its shell waits: it is one that was told nothing yet."""
        self._shell = False

    def close(self) -> None:
        self._socket.close()
        self._thread.join(5.0)

    def _read(self, log: Path) -> None:
        with log.open("ab", buffering=0) as file:
            while True:
                try:
                    block = self._socket.recv(65536)
                except OSError:
                    block = b""
                if not block:
                    break
                file.write(block)
                with self._came:
                    self._raw += block
                    self._take()
                    self._came.notify_all()
        with self._came:
            self._ended = True
            self._came.notify_all()

    def _take(self) -> None:
        """Move whole characters and sequences from the raw bytes to the text."""
        cut = self._raw.rfind(b"\x1b")
        whole = len(self._raw) if cut < 0 or len(self._raw) - cut > 16 else cut
        clean = _ESCAPES.sub(b"", bytes(self._raw[:whole]))
        if whole < len(self._raw) and _ESCAPES.match(self._raw, cut):
            clean += _ESCAPES.sub(b"", bytes(self._raw[cut:]))
            whole = len(self._raw)
        del self._raw[:whole]
        self._text += self._decode(clean)
