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
from functools import partial
from typing import NamedTuple
from uuid import UUID

from django.db import transaction

from agents.models import Command, CommandStatus, Verb
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


def _tell_ends(keys: list[UUID]) -> None:
    """Columns and no rows: thousands may end at once."""
    ended = Command.objects.filter(pk__in=keys).order_by("finished_at")
    if not log.isEnabledFor(logging.INFO):
        ended = ended.exclude(status__in=_WELL)
    rows = ended.values_list(*_WHO, *_HOW, *_TIMES, *_RESTORE)
    for order, command, client, boot, verb, seat, name, status, reason, *more in rows:
        (queued_at, *times), (result, *digests) = more[: len(_TIMES)], more[len(_TIMES) :]
        fields = {"order": order, "command": command, "client": client, "boot": boot or ""}
        for what, at in zip(("signed_ms", "accepted_ms", "over_ms"), times, strict=True):
            if at is not None:
                fields[what] = round((at - queued_at).total_seconds() * 1000)
        if result is not None:
            fields |= zip(("template", "before", "after"), digests, strict=True)
        whom = f"{Verb(verb).label.lower()} of {f'{seat} ({name})' if seat else name}"
        say = log.info if status in _WELL else log.warning
        say("%s: %s: %s", whom, result or status, reason, extra=logs.told(**fields))


_WHO = ("order", "pk", "client", "session__boot_id", "verb", "client__seat", "client__name")
_HOW = ("status", "reason")
_TIMES = ("queued_at", "sent_at", "accepted_at", "finished_at")
_RESTORE = ("restore__result", "restore__template", "restore__before", "restore__after")
