"""Steps that no person watches: what they say is in the log, for who looks for a fault."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

log = logging.getLogger(__name__)


class Unwatched:
    """Steps, and each step of them."""

    def __init__(self, what: str) -> None:
        self._what = what

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[Self]:
        log.debug("%s: %s (%s)", self._what, title, name)
        yield self

    def command(self, argv: Sequence[str]) -> None:
        log.debug("%s: %s", self._what, argv)

    def output(self, text: str) -> None:
        log.debug("%s: %s", self._what, text.rstrip())

    def exited(self, exit_code: int) -> None:
        log.debug("%s: ended with %s", self._what, exit_code)

    def progress(self, done: int, total: int, bytes_done: int = 0, bytes_total: int = 0) -> None: ...
