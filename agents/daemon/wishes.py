"""What the user of this PC may ask of the daemon, by `fleet-hold`: not to be disturbed for a while, or for five minutes more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..hands.screen import announcement, span
from .memory import Memory, clock
from .protocol import MORE_S

HOLD_S = 4 * 3600  # the longest
REASON = 100  # characters


class Denied(Exception):
    """Not this, or not now; the text tells the user why."""


def answer(memory: Memory, asked: Mapping[str, Any]) -> str:
    """Grant one wish, `{"ask": …}` and its arguments; what to tell the user of how things stand then. Else Denied."""
    grant = {"hold": hold, "release": release, "more": postpone, "status": look}.get(str(asked.get("ask")))
    if grant is None:
        raise Denied("This daemon does not know that wish.")
    with memory.lock:
        grant(memory, asked)
        return status(memory)


def status(memory: Memory) -> str:
    pending = memory.pending()
    if pending:
        return announcement(pending.verb, memory.acts - clock(), memory.more)
    if memory.is_held():
        return f"Held for {span(memory.held_until - clock())}: {memory.held}"
    return "Nothing is held, and nothing was announced."


def look(memory: Memory, asked: Mapping[str, Any]) -> None:
    """Change nothing."""


def hold(memory: Memory, asked: Mapping[str, Any]) -> None:
    reason, seconds = asked.get("reason"), asked.get("seconds")
    if not isinstance(reason, str) or not reason.isprintable() or not 0 < len(reason.strip()) <= REASON:
        raise Denied(f"A hold needs a reason: one line of at most {REASON} characters.")
    if type(seconds) is not int or not 0 < seconds <= HOLD_S:
        raise Denied(f"A hold is for at most {span(HOLD_S)}.")
    if memory.pending():
        raise Denied(f"It is too late for a hold. {status(memory)}")
    memory.hold(reason.strip(), seconds)


def release(memory: Memory, asked: Mapping[str, Any]) -> None:
    if not memory.is_held():
        raise Denied("There is no hold to release.")
    memory.hold("", 0)


def postpone(memory: Memory, asked: Mapping[str, Any]) -> None:
    if not memory.pending():
        raise Denied("Nothing was announced, so there is nothing to put off.")
    if memory.more < 1:
        raise Denied(f"There is no more time to be had. {status(memory)}")
    memory.more -= 1
    memory.announce(memory.acts + MORE_S)
