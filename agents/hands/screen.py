"""What is shown to the user: on the terminals of the session, and on its desktop where there is one that shows notes.

Texts are printable when they come here (agents/daemon/protocol.py). They still are bytes to a terminal, and markup to a desktop.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import subprocess
import sys
import termios
from collections.abc import Iterable
from contextlib import suppress

from . import notify as program

CONSOLE = "tty1"  # where there is something to be read even if nobody is logged in
KDGETMODE, KD_TEXT = 0x4B3B, 0
IUTF8 = 0o40000  # of c_iflag; termios has no name for it
DESKTOP_S = 5.0
WHAT = {
    "restart": "This PC restarts",
    "poweroff": "This PC is switched off",
    "cycle": "This session ends, and all files in its home are removed,",
}
# Seconds left at which the user is told again.
MARKS = (3600, 2700, 1800, 1200, 900, 600, 300, 240, 180, 120, 60, 15)


def span(seconds: float) -> str:
    """A time for people, never less than there is: whole minutes, and seconds where it is less than one."""
    number, unit = (-(-seconds // 60), "minute") if seconds > 59 else (max(1, -(-seconds // 1)), "second")
    return f"{number:.0f} {unit}{'s' if number > 1 else ''}"


def announcement(verb: str, left_s: float, more: int) -> str:
    """A sentence on what is to come, and what the user can do about it."""
    hint = " For 5 more minutes type: fleet-hold --more" if more else ""
    return f"{WHAT[verb]} in {span(left_s)}.{hint}"


class Screen:
    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.note = "0"  # the desktop's number of the last one, whose place the next one takes
        self.acts = self.mark = 0.0

    def count_down(self, acts: float, left_s: float, sentence: str, terminals: Iterable[str]) -> float:
        """Tell the user where it is time to, again if `acts`, the moment, has changed; seconds until it is time once more."""
        if acts != self.acts or left_s <= self.mark:
            self.acts, self.mark = acts, max((mark for mark in MARKS if mark < left_s), default=0)
            self.show(sentence, left_s - self.mark, terminals)
        return left_s - self.mark

    def show(self, sentence: str, seconds: float, terminals: Iterable[str]) -> str:
        """Where it can be read now: `desktop`, names of terminals, or '' where there is nothing to show it on."""
        names = sorted({*filter(None, terminals), *self.pseudo_terminals()})
        shown = [name for name in names if write(name, sentence)]
        if self.notify(sentence, seconds):
            shown.insert(0, "desktop")
        if not shown and write(CONSOLE, sentence):
            shown.append(CONSOLE)
        return ", ".join(shown)

    def pseudo_terminals(self) -> list[str]:
        """Of windows and of remote logins: `pts/0`."""
        found = []
        numbers = os.listdir("/dev/pts") if os.path.isdir("/dev/pts") else []
        for number in filter(str.isdigit, numbers):
            with suppress(FileNotFoundError):
                if os.stat(f"/dev/pts/{number}").st_uid == self.uid:
                    found.append(f"pts/{number}")
        return found

    def notify(self, sentence: str, seconds: float) -> bool:
        """Whether the user's desktop took a note."""
        milliseconds = str(round(seconds * 1000))
        command = [sys.executable, "-E", "-s", "-S", program.__file__, sentence, milliseconds, self.note]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, timeout=DESKTOP_S, cwd="/", env=environment, check=False,
                user=self.uid, group=pwd.getpwuid(self.uid).pw_gid, extra_groups=[],
            )  # fmt: skip
        except (OSError, KeyError, subprocess.SubprocessError):
            return False
        number = done.stdout.strip()[:10]
        self.note = number.decode() if number.isdigit() else "0"
        return done.returncode == 0


def write(name: str, sentence: str) -> bool:
    """Whether a terminal took a line, and shows text at all: behind a picture nobody reads it. Never waits for it."""
    try:
        terminal = os.open(f"/dev/{name}", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        # Bytes of UTF-8 are orders to a terminal that does not expect it.
        encoding = "utf-8" if termios.tcgetattr(terminal)[0] & IUTF8 else "ascii"
        line = b"\r\n\a*** %s\r\n" % sentence.encode(encoding, "replace")
        return not shows_picture(terminal) and os.write(terminal, line) > 0
    except (OSError, termios.error):
        return False
    finally:
        os.close(terminal)


def shows_picture(terminal: int) -> bool:
    """Whether a virtual console belongs to a desktop; other terminals do not know the question."""
    try:
        answer = fcntl.ioctl(terminal, KDGETMODE, bytes(4))
    except OSError:
        return False
    return answer != bytes([KD_TEXT, 0, 0, 0])
