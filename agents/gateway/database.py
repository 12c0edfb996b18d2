"""The database from an event loop: reads in threads, writes in groups.

All writes of the gateway pass through one thread: many small ones that come at once share one transaction, and each is
answered only after that transaction is durable. A write that fails takes back its own savepoint, not the group.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from django.db import close_old_connections, transaction

T = TypeVar("T")
GROUP = 200  # writes in one transaction at the most


class Database:
    def __init__(self) -> None:
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._queue: asyncio.Queue[tuple[Callable[[], Any], asyncio.Future[Any]]] = asyncio.Queue()

    async def read(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, _fresh, function, *args)

    async def write(self, function: Callable[..., T], *args: object) -> T:
        """Run ``function`` in the next group; its result, or its exception, once the group is committed."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        await self._queue.put((lambda: function(*args), future))
        return await future

    async def run(self) -> None:
        """Commit groups for as long as the gateway runs."""
        loop = asyncio.get_running_loop()
        while True:
            group = [await self._queue.get()]
            while len(group) < GROUP and not self._queue.empty():
                group.append(self._queue.get_nowait())
            try:
                outcomes = await loop.run_in_executor(self._writer, _fresh, _commit, [job for job, _ in group])
            except Exception as error:  # the database is away: nothing of the group was committed
                outcomes = [error] * len(group)
            for (_, future), outcome in zip(group, outcomes, strict=True):
                if future.done():
                    continue
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

    def close(self) -> None:
        self._readers.shutdown(cancel_futures=True)
        self._writer.shutdown(cancel_futures=True)


def _fresh(function: Callable[..., T], *args: object) -> T:
    close_old_connections()
    return function(*args)


def _commit(jobs: list[Callable[[], Any]]) -> list[Any]:
    outcomes: list[Any] = []
    with transaction.atomic():
        for job in jobs:
            try:
                with transaction.atomic():
                    outcomes.append(job())
            except Exception as error:  # handed to whoever asked for this one
                outcomes.append(error)
    return outcomes
