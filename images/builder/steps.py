"""Who follows a build: the worker writes rows, the command line prints, a test keeps a list."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol


class Step(Protocol):
    """One step under way. All calls come from the thread that opened it."""

    def command(self, argv: Sequence[str]) -> None:
        """A command starts; `argv` is as a person would paste it, without the isolation around it."""

    def output(self, text: str) -> None:
        """Whole lines of that command's output, newlines included, as they come."""

    def exited(self, exit_code: int) -> None:
        """That command ended; negative: the signal that killed it."""

    def progress(self, done: int, total: int, bytes_done: int = 0, bytes_total: int = 0) -> None:
        """How far the step is: packages that are in place, and bytes that were fetched or packed. A total of 0: not counted."""


class Steps(Protocol):
    """Opens steps. Steps may overlap (an initrd is built while a squashfs is packed).

    A step has failed when its context is left by an exception.
    """

    def step(self, name: str, title: str) -> AbstractContextManager[Step]:
        """Open a step: `name` is a slug that stays the same between builds, `title` a line for people."""
