"""One thing carried out while the next is prepared: of two that take turns to compute and to wait for the database, both get on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Generic, ParamSpec, TypeVar

from django.db import connection

Given = ParamSpec("Given")
T = TypeVar("T")


class Overlap(Generic[T]):
    """A thread with its own connection to the database, for as long as a ``with`` lasts; it does one thing at a time.

    There is none where it would be of no use: SQLite has one writer at a time, and what a transaction has written that is not committed
    another connection does not see. Then all is done at once, by who asks for it.
    """

    def __init__(self) -> None:
        self._alone = connection.vendor == "sqlite" or connection.in_atomic_block
        self._thread: ThreadPoolExecutor | None = None
        self._going: Future[T] | None = None
        self.outcomes: list[T] = []  # of what is done, in its order

    def __enter__(self) -> "Overlap[T]":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.wait()
        finally:
            if self._thread is not None:
                self._thread.submit(lambda: connection.close())  # that of the thread, not of who asks
                self._thread.shutdown()

    @property
    def busy(self) -> bool:
        return self._going is not None and not self._going.done()

    def do(self, work: Callable[Given, T], *args: Given.args, **kwargs: Given.kwargs) -> None:
        """Carry out ``work`` here, after what was asked for before."""
        self.wait()
        self.outcomes.append(work(*args, **kwargs))

    def do_meanwhile(self, work: Callable[Given, T], *args: Given.args, **kwargs: Given.kwargs) -> None:
        """Have it carried out, while the caller goes on."""
        self.wait()
        if self._alone:
            self.do(work, *args, **kwargs)
        else:
            self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="overlap")
            self._going = self._thread.submit(copy_context().run, partial(work, *args, **kwargs))

    def wait(self) -> None:
        """Until what was asked for is done. Raises what it raised."""
        going, self._going = self._going, None
        if going is not None:
            self.outcomes.append(going.result())
