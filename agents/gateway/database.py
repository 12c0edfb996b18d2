"""The database from an event loop: those who ask the same at once are answered together.

There is one thread for reads and one for writes. While it is at work, what is asked meanwhile comes together; then all that ask the same
function are its next group. So a lonely question waits for nobody, and of ten thousand five hundred share a handful of queries. Where a
function was asked just now the next group waits a moment (``PACE_S``) for others to come along: its statements cost the same for one and for
many. A group of writes is a transaction, and each of it is answered when that is durable.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from django.db import Error, close_old_connections, connection, transaction

from fleet.exceptions import FleetError

Item = TypeVar("Item")
T = TypeVar("T")
Group = Callable[[Sequence[Item]], Sequence[T | Exception]]
log = logging.getLogger(__name__)
MANY, MOST = 20, 1000  # in one group: the first of ten thousand need not wait for the last
AT_ONCE, IN_TURN, AT_LEISURE = range(3)  # who goes first
PACE_S = (0.02, 0.05, 0.25)  # by urgency: from the beginning of a group to that of the next of the same function
CROWD, CROWDED_S = (
    50,
    0.2,
)  # after so many of them: where hundreds come, the few that come at once cost as much as all of the next moment
# Where somebody waits for hundreds of clients to begin, what has been done comes after that: so long after the last that began, at the most.
AFTER_S, PATIENCE_S = 0.3, 8.0


class Lane:
    """One thread. ``carry_out(group, items)`` runs in it and returns an outcome for each item."""

    def __init__(self, name: str, carry_out: Callable[[Group[Any, Any], list[Any]], Sequence[Any]]) -> None:
        self._carry_out = carry_out
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        # By urgency; of each the groups in the order in which their first item came, each item with who waits for what becomes of it.
        self._waiting: list[dict[Any, list[tuple[Any, asyncio.Future[Any] | None]]]] = [{}, {}, {}]
        self._asked = asyncio.Event()
        self._again: dict[Any, float] = {}  # when a function may be asked again, by the loop's clock
        self._rush = (0.0, 0.0)  # since when many are to be answered at once, and the last time that it was so
        self._rushes = False  # they are being answered

    def ask(self, group: Group[Item, T], item: Item, urgency: int = IN_TURN) -> "asyncio.Future[T]":
        """What ``group`` will have for ``item``, or its exception."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put(group, item, future, urgency)
        return future

    def tell(self, group: Group[Item, Any], item: Item) -> None:
        """Have ``group`` carry out ``item`` at leisure. Nobody waits for it; what fails is logged."""
        self._put(group, item, None, AT_LEISURE)

    def _put(self, group: Group[Item, T], item: Item, future: "asyncio.Future[T] | None", urgency: int) -> None:
        waiting = self._waiting[urgency].setdefault(group, [])
        waiting.append((item, future))
        if len(waiting) in (1, MOST):
            self._asked.set()

    async def run(self) -> None:
        """Carry out groups for as long as the gateway runs."""
        loop = asyncio.get_running_loop()
        while True:
            self._asked.clear()
            found, pause_s = self._next(loop.time())
            if found is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._asked.wait()
                continue
            group, members = found
            try:
                outcomes = await loop.run_in_executor(
                    self._thread, self._carry_out, group, [item for item, _ in members]
                )
            except Exception as error:  # the database is away: nothing was done for any of them
                outcomes = [error] * len(members)
            if self._rushes:  # those who began meanwhile are about to say so
                self._rush = (self._rush[0], loop.time())
            for (_, future), outcome in zip(members, outcomes, strict=True):
                if future is None or future.done():
                    continue
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)
            _log_failures(
                group, [outcome for (_, future), outcome in zip(members, outcomes, strict=True) if future is None]
            )

    def _next(
        self, now: float
    ) -> tuple[tuple[Any, list[tuple[Any, "asyncio.Future[Any] | None"]]] | None, float | None]:
        """The next group with its members; else how long until there may be one, None where nobody waits."""
        soonest: float | None = None
        began, last = self._rush
        others = min(last + AFTER_S, began + PATIENCE_S)
        for urgency, (groups, pace_s) in enumerate(zip(self._waiting, PACE_S, strict=True)):
            for group, members in groups.items():
                ready = self._again.get(group, 0.0) if len(members) < MOST else 0.0
                if urgency == AT_LEISURE or (urgency == IN_TURN and group is not each):
                    ready = max(ready, others)
                if ready > now:
                    soonest = min(ready, soonest or ready)
                    continue
                del groups[group]
                if len(members) > MOST:
                    groups[group] = members[MOST:]  # behind the others
                if group is not each:
                    self._again[group] = now + max(pace_s, CROWDED_S * (len(members) >= CROWD))
                self._rushes = urgency == AT_ONCE and len(members) >= MANY
                if self._rushes:
                    self._rush = (began if now < last + AFTER_S else now, now)
                return (group, members[:MOST]), None
        return None, None if soonest is None else soonest - now

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


def _log_failures(group: Group[Any, Any], outcomes: Sequence[Any]) -> None:
    """Of notes, for which nobody waits: what the server said no to, and once what broke."""
    broken = None
    for outcome in outcomes:
        if isinstance(outcome, FleetError):
            log.info("%s", outcome)
        elif isinstance(outcome, Exception):
            broken = outcome
    if broken is not None:
        log.error("Of %d notes for %s some were not written down", len(outcomes), group.__name__, exc_info=broken)


class Database:
    def __init__(self) -> None:
        self._reads, self._writes = Lane("read", _read), Lane("write", _commit)

    async def read(self, function: Callable[..., T], *args: object) -> T:
        result: T = await self._reads.ask(each, (function, args))
        return result

    async def read_all(self, group: Group[Item, T], item: Item) -> T:
        """What ``group`` reads for ``item``, together with the others that wait for the same."""
        return await self._reads.ask(group, item)

    async def write(self, function: Callable[..., T], *args: object) -> T:
        """The result of ``function``, or its exception, once that is durable."""
        result: T = await self._writes.ask(each, (function, args))
        return result

    async def write_at_leisure(self, function: Callable[..., T], *args: object) -> T:
        """The same, for what may come after all that somebody waits for."""
        result: T = await self._writes.ask(each, (function, args), AT_LEISURE)
        return result

    def write_all(self, group: Group[Item, T], item: Item, urgency: int = IN_TURN) -> "asyncio.Future[T]":
        """What ``group`` will answer to ``item``, or its exception, once that is durable."""
        return self._writes.ask(group, item, urgency)

    def note(self, group: Group[Item, Any], item: Item) -> None:
        """Have ``group`` write ``item`` down at leisure. Nobody waits for it; what fails is logged."""
        self._writes.tell(group, item)

    def lanes(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        return [self._reads.run, self._writes.run]

    def close(self) -> None:
        self._reads.close()
        self._writes.close()


def each(asked: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """The group of those that have none: one function after the other."""
    return [_outcome(function, *args) for function, args in asked]


def _outcome(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except Exception as error:  # handed to whoever asked for this one
        return error


def _read(group: Group[Any, Any], items: list[Any]) -> Sequence[Any]:
    close_old_connections()
    return group(items)


def _commit(group: Group[Any, Any], items: list[Any]) -> Sequence[Any]:
    """All in one transaction. Where a group fails its members are tried alone: one that fails takes back itself and no other."""
    close_old_connections()
    if len(items) > 1 and group is not each:
        try:
            with transaction.atomic():
                return group(items)
        except Exception as error:
            if (
                isinstance(error, Error) and not connection.is_usable()
            ):  # it may have been carried out: that is for who asked
                raise
            log.exception("%d in one group failed, so each is tried alone", len(items))
    with transaction.atomic():
        return [_outcome(_alone, group, item) for item in items]


@transaction.atomic
def _alone(group: Group[Any, Any], item: Any) -> Any:
    (outcome,) = group([item])
    if isinstance(outcome, Exception):
        raise outcome  # and take back what it did
    return outcome
