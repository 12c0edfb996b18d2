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
from contextvars import copy_context
from datetime import timedelta
from functools import partial
from typing import NamedTuple
from uuid import UUID

from django.db import transaction

from agents.models import Command, CommandStatus
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


class Step(NamedTuple):
    """A command that goes a step on."""

    order: UUID
    command: UUID
    client: UUID


def delivered(commands: Iterable[Step]) -> None:
    """The gateway gives these out in a moment."""
    _step("delivered", commands)


def accepted(commands: Iterable[Step]) -> None:
    _step("accepted", commands)


def _step(what: str, commands: Iterable[Step]) -> None:
    each = log.isEnabledFor(logging.DEBUG)
    for command in commands:
        steps.took(command.order, what)
        if each:
            log.debug("%s", what, extra=logs.told(**command._asdict()))


def signed(verb: str, orders: Iterable[UUID]) -> None:
    """A group was signed; ``orders`` are those of its commands, one by one."""
    for order, number in Counter(orders).items():
        log.info("%d signed: %s", number, verb, extra=logs.told(order=order))


def hopeless(status: CommandStatus, why: str, orders: Iterable[UUID]) -> None:
    """Commands of ``orders`` ended before they could be sent."""
    for order, number in Counter(orders).items():
        logs.once_committed(log.warning, "%d %s: %s", number, status.value, why, order=order)


def ended(commands: Iterable[UUID]) -> None:
    """How these commands ended, once that is committed: a line each, with its times in ms since it was ordered.

    Of a cycle that reached its client, the digests: of the template, of the home thrown away, of the home restored. One query for all.
    """
    # A fault in what is only told must not look like one in what was done.
    transaction.on_commit(partial(copy_context().run, _tell_ends, list(commands)), robust=True)


_DIGESTS = ("template", "before", "after")


def _tell_ends(keys: list[UUID]) -> None:
    rows = Command.objects.filter(pk__in=keys).select_related("client", "session", "restore").order_by("finished_at")
    unread = ("envelope", "signature", "result", "args")
    for command in rows.defer(*unread, "session__facts", "client__adapters", "restore__phases_ms"):
        boot = command.session.boot_id if command.session else ""
        which = {"order": command.order_id, "command": command.pk, "client": command.client_id, "boot": boot}
        times = {"signed": command.sent_at, "accepted": command.accepted_at, "over": command.finished_at}
        since = {f"{name}_ms": _ms(at - command.queued_at) for name, at in times.items() if at is not None}
        restore = getattr(command, "restore", None)
        digests = {name: getattr(restore, name) for name in _DIGESTS} if restore else {}
        what = restore.get_result_display().lower() if restore else command.status
        say = log.info if command.status in _WELL else log.warning
        say("%s: %s: %s", command, what, command.reason, extra=logs.told(**which, **since, **digests))


def _ms(time: timedelta) -> int:
    return round(time.total_seconds() * 1000)
