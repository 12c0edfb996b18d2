"""What the daemon must not forget when it dies. It stands in one file in /run, which is root's, and empty after a reboot."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from . import protocol
from .protocol import Command

KEPT = 32  # results of commands seen; the sequence refuses whatever is older


def clock() -> float:
    """Seconds since the boot, by the clock that neither stops in sleep nor jumps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass
class Memory:
    """All of it is changed and saved under `lock`, which the threads share. Moments are of clock(), in seconds."""

    path: str
    sequence: int = 0
    offset_ms: float = 0.0  # the server's time less the boot clock
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)  # the last report on each command seen
    unsent: dict[str, dict[str, Any]] = field(default_factory=dict)
    open: Command | None = None  # accepted, not yet done
    acts: float = 0.0  # when that is carried out; 0 as long as the server does not have its acceptance
    more: int = 0  # how often the user may ask for more time until then
    held: str = ""  # why the user does not want to be disturbed
    held_until: float = 0.0
    hold_told: bool = True  # to the server, as it is now
    logins: dict[str, int] = field(default_factory=dict)  # sessions, and their terminal's atime when first seen

    def __post_init__(self) -> None:
        self.lock = threading.RLock()

    @classmethod
    def load(cls, path: str) -> Memory:
        """As it was saved; empty where nothing was."""
        try:
            with open(path, encoding="utf-8") as file:
                kept = json.load(file)
        except FileNotFoundError:
            return cls(path)
        kept["open"] = Command(**kept["open"]) if kept["open"] else None
        return cls(path, **kept)

    def save(self) -> None:
        """Write everything down, at once or not at all."""
        self.reports = dict(list(self.reports.items())[-KEPT:])
        self.unsent = dict(list(self.unsent.items())[-KEPT:])
        kept = {key: value for key, value in vars(self).items() if key not in ("path", "lock")}
        kept["open"] = asdict(self.open) if self.open else None
        with open(self.path + ".new", "w", encoding="utf-8") as file:
            json.dump(kept, file)
        os.replace(self.path + ".new", self.path)

    def server_ms(self, moment: float) -> int:
        """A moment by the server's clock."""
        return round(moment * 1000 + self.offset_ms)

    def now_ms(self) -> int:
        return self.server_ms(clock())

    def report(self, command: Command, state: str, reason: str = "", result: Mapping[str, Any] = {}) -> dict[str, Any]:
        """Remember how a command stands, and have it told; what is told."""
        key = command.command
        report = protocol.report(key, state, self.now_ms(), reason, result)
        with self.lock:
            self.reports[key] = self.unsent[key] = report
            mine = self.open is not None and self.open.command == key
            if state == protocol.ACCEPTED and not mine:
                self.open, self.acts, self.more = command, 0.0, command.args.get("more", 0)
            elif state != protocol.ACCEPTED and mine:
                self.open, self.acts = None, 0.0
            self.sequence = max(self.sequence, command.sequence)
            self.save()
        return report

    def announce(self, acts: float) -> None:
        """The open command is carried out then; the server has to know, for it waits for the proof."""
        assert self.open is not None
        with self.lock:
            self.acts = acts
            self.report(self.open, protocol.ACCEPTED, result={"acts_at_ms": self.server_ms(acts)})

    def pending(self) -> Command | None:
        """The command of which the user is being warned."""
        return self.open if self.acts > clock() else None

    def hold(self, reason: str, seconds: float) -> None:
        """Refuse soft commands for so long; a reason of '' ends that."""
        with self.lock:
            self.held, self.held_until, self.hold_told = reason, clock() + seconds, False
            self.save()

    def is_held(self) -> bool:
        return self.held != "" and clock() < self.held_until
