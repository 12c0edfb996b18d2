"""Writes a build's steps as BuildStep rows while it runs, and breaks it off when its version is cancelled.

The build itself never touches the database: it notes in memory, and a thread writes twice a second. So a build that
prints much costs two writes a second, one that is silent is cancelled as fast, and breaking it off hits no query.
"""

import logging
import shlex
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Self

from django.db import Error, connection
from django.utils import timezone

from images.layer_models import LayerBuild, LayerStep, Step
from images.models import BuildStep, ImageVersion

log = logging.getLogger(__name__)

EVERY_S = 0.5
HEAD = 64 * 1024  # characters of a step's output that are kept of its beginning, and of its end
TAIL = 192 * 1024
_SIGNAL = signal.SIGUSR2  # Celery's pool uses SIGUSR1


class Cancelled(Exception):
    """Somebody cancelled the version that is being built."""


class OutOfTime(Exception):
    """The build took longer than it may."""


class Output:
    """Text of any length of which the head and the tail are kept."""

    def __init__(self, head: int = HEAD, tail: int = TAIL) -> None:
        self._head, self._tail = head, tail
        self._start: list[str] = []
        self._start_size = 0
        self._end: deque[str] = deque()
        self._end_size = 0
        self._left_out = 0

    def add(self, text: str) -> None:
        text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")  # PostgreSQL stores no NUL
        if not self._end and self._start_size + len(text) <= self._head:
            self._start.append(text)
            self._start_size += len(text)
            return
        self._end.append(text)
        self._end_size += len(text)
        while self._end_size > self._tail and len(self._end) > 1:
            gone = len(self._end.popleft())
            self._end_size -= gone
            self._left_out += gone

    def __str__(self) -> str:
        gap = [f"\n… {self._left_out} characters left out …\n\n"] if self._left_out else []
        return "".join([*self._start, *gap, *self._end])


class FollowedStep:
    """One step, as noted by the build and not yet written."""

    def __init__(self, lock: threading.Lock, row: Step) -> None:
        self._lock = lock
        self._output = Output()
        self.row = row
        self.changed = True

    def command(self, argv: Sequence[str]) -> None:
        line = shlex.join(argv).replace("\0", "")
        with self._lock:
            self.row.command, self.row.exit_code, self.changed = line, None, True
            self._output.add(f"$ {line}\n")

    def output(self, text: str) -> None:
        with self._lock:
            self._output.add(text)
            self.changed = True

    def exited(self, exit_code: int) -> None:
        with self._lock:
            self.row.exit_code, self.changed = exit_code, True

    def progress(self, done: int, total: int, bytes_done: int = 0, bytes_total: int = 0) -> None:
        with self._lock:
            self.row.done, self.row.total = done, total
            self.row.bytes_done, self.row.bytes_total, self.changed = bytes_done, bytes_total, True

    def end(self, at: datetime, *, failed: bool) -> None:
        with self._lock:
            self.row.finished_at, self.row.failed, self.changed = at, failed, True

    def write(self) -> None:
        with self._lock:
            if not self.changed:
                return
            self.row.output, self.changed = str(self._output), False
            model = type(self.row)
            written = model(**{field.attname: getattr(self.row, field.attname) for field in model._meta.fields})
        try:
            written.save()
        except Error:
            self.changed = True
            raise
        self.row.pk = written.pk


class Follower:
    """The steps of the build of one version or layer; use as a context, in the main thread of its process (it takes a signal)."""

    def __init__(self, version: ImageVersion | LayerBuild, tell: Callable[[str], object], limit_s: float) -> None:
        """``tell`` gets a line when a step begins and one when it ends; after ``limit_s`` OutOfTime is raised."""
        self._version = version
        self._limit_s = limit_s
        self._end: type[Exception] = Cancelled
        self._tell = tell
        self._lock = threading.Lock()
        self._steps: list[FollowedStep] = []
        self._ended = threading.Event()
        self._armed = False
        self._builder = threading.get_ident()
        self._thread = threading.Thread(target=self._follow, name=f"follow {version}")

    def __enter__(self) -> Self:
        self._deadline = time.monotonic() + self._limit_s
        self._before = signal.signal(_SIGNAL, self._break_off)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        signal.signal(_SIGNAL, self._before)
        self._write()

    @contextmanager
    def cancellable(self) -> Iterator[None]:
        """Within it, Cancelled is raised wherever the build is once the version is no longer building, or OutOfTime."""
        self._armed = True
        try:
            yield
        finally:
            self._armed = False

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[FollowedStep]:
        row: Step = (
            BuildStep(version=self._version)
            if isinstance(self._version, ImageVersion)
            else LayerStep(build=self._version)
        )
        row.number, row.name, row.title = len(self._steps) + 1, name[:30], title[:200]
        step = FollowedStep(self._lock, row)
        with self._lock:
            self._steps.append(step)
        self._tell(f"▸ {title} ({name})")
        failed = True
        try:
            yield step
            failed = False
        finally:
            step.end(timezone.now(), failed=failed)
            seconds = (timezone.now() - row.started_at).total_seconds()
            self._tell(f"  {name} {'failed after' if failed else 'took'} {seconds:.1f} s")

    @property
    def failed_step(self) -> Step | None:
        """The innermost step that an exception left."""
        return next((step.row for step in reversed(self._steps) if step.row.failed), None)

    def _break_off(self, _: int, __: FrameType | None) -> None:
        if self._armed:
            self._armed = False
            raise self._end

    def _write(self) -> None:
        with self._lock:
            steps = list(self._steps)
        for step in steps:
            step.write()

    def _follow(self) -> None:
        try:
            while not self._ended.wait(EVERY_S):
                try:
                    self._write()
                    building = type(self._version).objects.filter(pk=self._version.pk, status="building").exists()
                except Error as error:
                    log.warning("The steps of %s could not be written, trying again: %s", self._version, error)
                    connection.close()
                    continue
                if building and time.monotonic() < self._deadline:
                    continue
                self._end = OutOfTime if building else Cancelled
                signal.pthread_kill(self._builder, _SIGNAL)
                return
        finally:
            connection.close()
