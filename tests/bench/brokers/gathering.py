"""A system, its audience, and rounds of one message to all of them."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.bench.usage import cpu_s
from tests.services import PROJECT

TEXT = "Doors open in five minutes. Please take your seats."


@dataclass
class Said:
    """``at``: just before the message was handed over. ``answered``: when whoever said it got to know that a client has it."""

    at: float
    answered: list[float] = field(default_factory=list)


@dataclass
class System:
    """A running system. ``listener`` is the module of its lean clients, which find it at ``place``; ``python`` runs them.

    ``say`` says TEXT once to all; ``settle`` returns when the server has done what that makes it do.
    """

    name: str
    listener: str
    place: dict[str, Any]
    pids: Callable[[], Iterable[int]]
    say: Callable[[], Said]
    settle: Callable[[], None] = lambda: time.sleep(0.3)
    python: str = sys.executable


@dataclass
class Round:
    """Seconds since the message was said until each client had it, and until it was known that it has; sorted."""

    received: list[float]
    answered: list[float]
    server_cpu_s: float
    clients_cpu_s: float


class Gathering:
    def __init__(self, system: System, clients: int, process: subprocess.Popen[str]) -> None:
        self._system, self._clients, self._process = system, clients, process

    def expect(self, words: str) -> None:
        if (line := self._read()) != words:
            raise RuntimeError(f"The clients of {self._system.name} said {line!r} instead of {words!r}.")

    def round(self) -> Round:
        """Say it to all. RuntimeError when somebody did not get it, or got it twice."""
        print("listen", file=self._process.stdin, flush=True)
        self.expect("listening")
        server, clients = self._server_cpu_s(), cpu_s(self._process.pid)
        said = self._system.say()
        heard = json.loads(self._read())
        self._system.settle()
        found = Round(
            sorted(at - said.at for at in heard["received"]),
            sorted(at - said.at for at in said.answered or heard["answered"]),
            self._server_cpu_s() - server,
            cpu_s(self._process.pid) - clients,
        )
        if len(found.received) != self._clients or heard["again"]:
            what = f"{len(found.received)} of {self._clients} clients, {heard['again']} times again"
            raise RuntimeError(f"The message of {self._system.name} came to {what}.")
        if found.answered and len(found.answered) != self._clients:
            raise RuntimeError(f"{len(found.answered)} of {self._clients} answers of {self._system.name} are known.")
        return found

    def _server_cpu_s(self) -> float:
        return sum(map(cpu_s, self._system.pids()))

    def _read(self) -> str:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return line.rstrip("\n")
        raise RuntimeError(f"The clients of {self._system.name} ended.")


@contextmanager
def gathered(system: System, clients: int) -> Iterator[Gathering]:
    """Have that many clients of ``system`` in a process of their own; they have joined."""
    room_for_files()
    place = {"host": "127.0.0.1", "clients": clients, **system.place}
    argv = [system.python, "-m", "tests.bench.brokers.audience", system.listener, json.dumps(place)]
    argv = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
    with subprocess.Popen(argv, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            gathering = Gathering(system, clients, process)
            gathering.expect(f"{clients} joined")
            system.settle()
            yield gathering
        finally:
            process.terminate()


def room_for_files() -> None:
    """Let this process and those that it starts have as many open files as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def at(times: list[float], share: float) -> float:
    """The time within which that share of them came."""
    return times[min(len(times) - 1, int(len(times) * share))]
