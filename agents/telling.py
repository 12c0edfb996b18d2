"""What the log says of commands, so that one search for an order's id finds its whole story (docs/deploy.md, "Watching it").

An order to ten thousand must not become forty thousand lines. So deliveries and acceptances are counted: the first of an order is told at once,
those that follow once a second, as a number. How a command ended is a line of its own, with all that is to be said of it. With
FLEET_LOG_LEVEL=debug each step of each command is.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextvars import copy_context
from functools import partial
from typing import NamedTuple
from uuid import UUID

from django.db import transaction

from agents.models import CommandStatus, HomeRestore
from agents.stories import Story
from fleet import logs

log = logging.getLogger(__name__)
EVERY_S = 1.0
_WELL = (CommandStatus.SUCCEEDED, CommandStatus.CANCELLED)


class Steps:
    """Counts of what happened to commands, by order. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Counter[tuple[str, str]] = Counter()
        self._again: dict[tuple[str, str], float] = {}  # when the next line may come

    def took(self, what: str, numbers: Mapping[str, int]) -> None:
        """So many commands of each order came to that."""
        with self._lock:
            for order, number in numbers.items():
                self._waiting[order, what] += number
            self._tell()

    def flush(self) -> None:
        """Tell what waits for its second to be over, also where no more steps are taken. To be called every few seconds."""
        with self._lock:
            self._tell()
            forgotten = time.monotonic() - 60
            self._again = {key: at for key, at in self._again.items() if at > forgotten}

    def _tell(self) -> None:
        now = time.monotonic()
        for key in [key for key in self._waiting if now >= self._again.get(key, 0.0)]:
            order, what = key
            self._again[key] = now + EVERY_S
            log.info("%d %s", self._waiting.pop(key), what, extra=logs.told(order=order))


steps = Steps()


class Step(NamedTuple):
    """Whose step it is."""

    order: UUID | str
    command: UUID | str
    client: UUID | str
    session: UUID | str | None


def delivered(commands: Collection[Step]) -> None:
    """The gateway gives these out in a moment."""
    _steps("delivered", commands)


def accepted(commands: Collection[Step]) -> None:
    _steps("accepted", commands)


def _steps(what: str, commands: Collection[Step]) -> None:
    steps.took(what, Counter(str(step.order) for step in commands))
    if log.isEnabledFor(logging.DEBUG):
        for step in commands:
            log.debug("%s", what, extra=logs.told(**step._asdict()))


def signed(verb: str, orders: Iterable[str]) -> None:
    """A group was signed; ``orders`` are those of its commands, one by one."""
    for order, number in Counter(orders).items():
        log.info("%d signed: %s", number, verb, extra=logs.told(order=order))


def hopeless(status: CommandStatus, why: str, orders: Iterable[str]) -> None:
    """Commands of ``orders`` ended before they could be sent."""
    for order, number in Counter(orders).items():
        logs.once_committed(log.warning, "%d %s: %s", number, status.value, why, order=order)


def ended(stories: Iterable[tuple[Story, HomeRestore | None]]) -> None:
    """How commands ended, once that is committed: when each was signed, accepted and over, in ms since it was ordered.

    Of a cycle that reached its client, the digests: of the template, of the home thrown away, of the home restored.
    """
    lines = [_line(story, restore) for story, restore in stories]
    transaction.on_commit(partial(copy_context().run, _say, lines))


def _line(story: Story, restore: HomeRestore | None) -> tuple[int, tuple[str, str, str], dict[str, object]]:
    which = {"order": story.order, "command": story.pk, "client": story.client, "boot": story.boot_id or ""}
    times = {"signed": story.sent_at, "accepted": story.accepted_at, "over": story.finished_at}
    since = {
        f"{name}_ms": round((at - story.queued_at).total_seconds() * 1000)
        for name, at in times.items()
        if at is not None
    }
    digests = {name: getattr(restore, name) for name in ("template", "before", "after")} if restore else {}
    what = restore.get_result_display().lower() if restore else story.status
    level = logging.INFO if story.status in _WELL else logging.WARNING
    return level, (story.whom, what, story.reason), {**which, **since, **digests}


def _say(lines: Iterable[tuple[int, tuple[str, str, str], dict[str, object]]]) -> None:
    for level, words, fields in lines:
        log.log(level, "%s: %s: %s", *words, extra=logs.told(**fields))
