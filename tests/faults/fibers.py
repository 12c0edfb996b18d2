"""Threads that run one at a time and only when told: what happens is in one order, which is the test's, and can be had again."""

import threading
from collections.abc import Callable


class Killed(BaseException):
    """kill -9: nothing of what ran gets another word in."""


class Fiber:
    """One thread of a simulated machine. It runs within ``resume()``, until it waits for something or ends."""

    present: "Fiber | None" = None

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._death: BaseException | None = None
        self._failure: BaseException | None = None
        self._waits_for: Callable[[], bool] = lambda: True
        self.over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if self._death is None:
                self._work()
        except Killed:
            pass
        except BaseException as failure:
            self._failure = failure
        self.over = True
        self._back.release()

    @property
    def ready(self) -> bool:
        """Whether what it waits for has come about."""
        return not self.over and self._waits_for()

    def resume(self) -> None:
        """Let it run on; what it fails with is raised here."""
        before, Fiber.present = Fiber.present, self
        self._go.release()
        self._back.acquire()
        Fiber.present = before
        if self.over:
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def kill(self) -> None:
        if not self.over:
            self._death = Killed()
            self.resume()

    @staticmethod
    def wait(condition: Callable[[], bool]) -> None:
        """Called within a fiber: let the others run until ``condition`` holds."""
        me = Fiber.present
        assert me is not None
        me._waits_for = condition
        me._back.release()
        me._go.acquire()
        if me._death is not None:
            raise me._death
