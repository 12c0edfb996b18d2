"""The time of a simulation: it passes when the test says so, for the server, its event loop and its clients alike."""

import time
from datetime import timedelta

import time_machine
from django.utils import timezone

from tests.faults.fibers import Fiber


class Clock:
    """``now`` is monotonic, in seconds. The server's idea of what time it is may be set to another (``step``)."""

    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME

    def __init__(self) -> None:
        self.now = 1000.0
        self._travel = time_machine.travel(timezone.now(), tick=False)
        self._server = self._travel.start()

    def stop(self) -> None:
        self._travel.stop()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self._server.shift(timedelta(seconds=seconds))

    def step(self, seconds: float) -> None:
        """Somebody sets the server's clock."""
        self._server.shift(timedelta(seconds=seconds))

    # As the module ``time`` of the code under test

    def monotonic(self) -> float:
        return self.now

    def clock_gettime(self, clock: int) -> float:
        assert clock == self.CLOCK_BOOTTIME
        return self.now

    def time(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        Fiber.wait(lambda: self.now >= end)
