"""What the log says of commands, so that one search for an order's id finds its whole story (docs/deploy.md, "Watching it").

An order to ten thousand must not become forty thousand lines. So deliveries and acceptances are counted: the first of an order is told at once,
those that follow once a second, as a number. How a command ended is a line of its own, with all that is to be said of it. With
FLEET_LOG_LEVEL=debug each step of each command is.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable
from uuid import UUID

from agents.models import Command, CommandStatus, HomeRestore
from fleet import logs

log = logging.getLogger(__name__)
EVERY_S = 1.0
_WELL = (CommandStatus.SUCCEEDED, CommandStatus.CANCELLED)


class Steps:
    """Counts of what happened to commands, by order. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Counter[tuple[object, str]] = Counter()
        self._again: dict[tuple[object, str], float] = {}  # when the next line may come

    def took(self, order: object, what: str) -> None:
        key, now = (order, what), time.monotonic()
        with self._lock:
            self._waiting[key] += 1
            if now >= self._again.get(key, 0.0):
                self._tell(key, now)

    def flush(self) -> None:
        """Tell what waits for its second to be over. Whoever takes steps calls it every few seconds."""
        now = time.monotonic()
        with self._lock:
            for key in [key for key in self._waiting if now >= self._again[key]]:
                self._tell(key, now)
            self._again = {key: at for key, at in self._again.items() if now < at + 60}

    def _tell(self, key: tuple[object, str], now: float) -> None:
        order, what = key
        self._again[key] = now + EVERY_S
        log.info("%d %s", self._waiting.pop(key), what, extra=logs.told(order=order))


steps = Steps()


def delivered(commands: Iterable[Command]) -> None:
    """The gateway gives these out in a moment."""
    for command in commands:
        _step("delivered", command)


def accepted(command: Command) -> None:
    _step("accepted", command)


def _step(what: str, command: Command) -> None:
    steps.took(command.order_id, what)
    if log.isEnabledFor(logging.DEBUG):
        of = {
            "order": command.order_id,
            "command": command.pk,
            "client": command.client_id,
            "session": command.session_id,
        }
        log.debug("%s", what, extra=logs.told(**of))


def signed(verb: str, orders: Iterable[UUID]) -> None:
    """A group was signed; ``orders`` are those of its commands, one by one."""
    for order, number in Counter(orders).items():
        log.info("%d signed: %s", number, verb, extra=logs.told(order=order))


def hopeless(status: CommandStatus, why: str, orders: Iterable[UUID]) -> None:
    """Commands of ``orders`` ended before they could be sent."""
    for order, number in Counter(orders).items():
        logs.once_committed(log.warning, "%d %s: %s", number, status.value, why, order=order)


def who(command: Command) -> dict[str, object]:
    """Fields of a command, and ``whom`` in words; before it moves, which makes it forget its related rows."""
    boot = command.session.boot_id if command.session else ""
    which = {"order": command.order_id, "command": command.pk, "client": command.client_id, "boot": boot}
    return {"whom": str(command), **which}


def ended(story: dict[str, object], command: Command, restore: HomeRestore | None) -> None:
    """How a command ended, once that is committed: when it was signed, accepted and over, in ms since it was ordered.

    Of a cycle that reached its client, the digests: of the template, of the home thrown away, of the home restored.
    """
    whom = story.pop("whom")
    times = {"signed": command.sent_at, "accepted": command.accepted_at, "over": command.finished_at}
    since = {
        f"{name}_ms": round((at - command.queued_at).total_seconds() * 1000)
        for name, at in times.items()
        if at is not None
    }
    digests = {name: getattr(restore, name) for name in ("template", "before", "after")} if restore else {}
    say = log.info if command.status in _WELL else log.warning
    what = restore.get_result_display().lower() if restore else command.status
    logs.once_committed(say, "%s: %s: %s", whom, what, command.reason, **story, **since, **digests)
