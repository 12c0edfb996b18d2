"""Simulated clients: a model of firmware and initrd, then the real daemon's loop, with hands that only write down what they did."""

import json
import os
import random
import select
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest

from agents.daemon import agent as daemon
from agents.daemon import link, memory, protocol, wishes
from agents.models import Command
from tests.agents.boots import CIRRUS, FACTS, KERNEL
from tests.faults.clock import Clock
from tests.faults.fibers import Fiber, Killed
from tests.faults.wire import Connection, Reply, Wire

CAP_S = 8.0  # of a daemon's pauses, in place of two minutes
MORE_S = 6  # that a user asks for, in place of five minutes
CYCLE_S = 1.5
TRIES, START_OVER_S = 3, 10.0  # of an initrd that gets no plan


@dataclass
class Effect:
    """A command that was carried out, in which boot."""

    command: str
    boot: str


@dataclass
class Mood:
    """How a client takes the next command: what is wrong with it then."""

    cycle: str = ""  # "", "fails", "other": another digest than the template's
    power: str = ""  # "", "stuck": neither systemd nor the kernel carries it out
    dies: str = ""  # the daemon, when it writes down something: "", "before", "after"
    spared: int = 0  # so many times


@dataclass
class PC:
    """One client. ``fibers`` are the threads that run on it: what boots it, then the daemon's."""

    mac: str
    place: Path  # what is in /run, lost with the power
    clock: Clock
    wire: Wire
    on: bool = False
    boot: str = ""
    ended: set[str] = field(default_factory=set)  # boots that are over
    plan: dict[str, str] = field(default_factory=dict)
    agent: Any = None
    fibers: list[Fiber] = field(default_factory=list)
    mood: Mood = field(default_factory=Mood)
    touched: int = 1  # when the user did something last
    effects: list[Effect] = field(default_factory=list)
    going: str = ""  # down, by which verb

    # --- from outside

    def switch_on(self) -> None:
        self.on = True
        self._new_boot()
        self.fibers = [Fiber(self._start)]

    def unplug(self) -> None:
        """The power goes, and with it all that was in memory."""
        self._kill()
        self.on = False
        self.ended.add(self.boot)

    def kill_daemon(self) -> None:
        """kill -9; systemd starts it again, with what was written down."""
        if self.agent is None:
            return
        self._kill()
        done, kept = self.effects[-1].command if self.effects else "", self._kept().get("open")
        if kept and kept["command"] == done and Command.objects.filter(pk=done, status__in=Command.OPEN).exists():
            self.effects.pop()  # neither written down nor told: the next daemon finishes the job
        self.fibers = [Fiber(self._daemon)]

    def wishes(self, what: str) -> None:
        """What the user asks of the daemon, who may not grant it."""
        if self.agent is not None:
            self.fibers.append(Fiber(partial(self.agent.grant, {"ask": what, "reason": "a match", "seconds": 60})))

    def run(self) -> bool:
        """Let run what can run; whether anything did."""
        ran = False
        for fiber in self.fibers:
            while fiber.ready:
                ran = True
                _Present.pc, daemon.FLEET = self, str(self.place)
                fiber.resume()
                if self.mood.dies == "dead":
                    self.mood.dies = ""
                    self.kill_daemon()
                    return True
                if self.going:
                    self._gone()
                    return True
        return ran

    def close(self) -> None:
        self._kill()

    def _kill(self) -> None:
        for fiber in self.fibers:
            fiber.kill()
        self.fibers = []
        if self.agent is not None:
            self.agent.link.connection.close()
            os.close(self.agent.wake)
            os.close(self.agent.waker)
        self.agent = None

    def _kept(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.place / "commands.json").read_text()))
        except FileNotFoundError:
            return {}

    # --- what boots it

    def _new_boot(self) -> None:
        if self.boot:
            self.ended.add(self.boot)
        self.boot, self.plan = str(uuid.uuid4()), {}
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()

    def _start(self) -> None:
        while not self.plan:
            if token := self._token():
                self._ask_plan(token)
            if not self.plan:
                self.clock.sleep(START_OVER_S)
                self._new_boot()
        self._daemon()

    def _token(self) -> str:
        """What iPXE makes of the script for its MAC."""
        answer = self._ask("GET", f"/boot/v1/client.ipxe?mac={self.mac}")
        words = dict(word.partition("=")[::2] for word in (answer.read() if answer else b"").decode().split())
        return words.get("fleet.token", "")

    def _ask_plan(self, token: str) -> None:
        form = {"token": token, "mac": self.mac, "boot_id": self.boot, "kernel": KERNEL}
        form |= {"pci": CIRRUS, "memory_kib": "1048576", "uptime_ms": "2100"}
        for _ in range(TRIES):
            answer = self._ask("POST", "/boot/v1/plan", urlencode(form))
            if answer is not None and answer.status == 200:
                plan = protocol.parse_plan(answer.read().decode().rpartition("signature=")[0])
                self.plan = plan if plan["action"] == "boot" else {}
                return
            if answer is not None and 400 <= answer.status < 500:
                return
            self.clock.sleep(1)

    def _ask(self, method: str, target: str, body: str = "") -> Reply | None:
        connection = Connection(self.wire, self.clock)
        try:
            connection.request(method, target, body)
            return connection.getresponse()
        except OSError:
            return None
        finally:
            connection.close()

    # --- what runs on it

    def _daemon(self) -> None:
        self.agent = daemon.Agent(self.plan, "http://fleet")
        self.agent.boot = self.boot
        self.agent.link.connection = Connection(self.wire, self.clock)
        self.agent.run()

    def did(self) -> None:
        """The open command was carried out."""
        self.effects.append(Effect(self.agent.memory.open.command, self.boot))

    def goes(self, verb: str) -> None:
        """``power.go``: returns only where nothing carries it out."""
        if self.mood.power == "stuck":
            self.mood.power = ""
            self.clock.sleep(5)
            return
        self.did()
        self.going = verb
        raise Killed

    def _gone(self) -> None:
        self.unplug()
        verb, self.going = self.going, ""
        if verb == protocol.RESTART:
            self.switch_on()


class _Present:
    """The client whose fiber runs now."""

    pc: PC


class _Cycle:
    def __init__(self, home: object, session: object, args: Mapping[str, Any], fetch: object) -> None:
        self._args, self.result = args, dict[str, Any]()

    def run(self) -> None:
        pc = _Present.pc
        mood, pc.mood.cycle = pc.mood.cycle, ""
        pc.clock.sleep(CYCLE_S)
        if mood == "fails":
            raise OSError("There is no room.")
        pc.did()
        after = self._args["home_digest"] if mood != "other" else "0" * 64
        self.result = {"template": self._args["home"], "expected": self._args["home_digest"], "after": after}

    def account(self) -> dict[str, Any]:
        return {"files": 3, "bytes": 4096}


class _Session:
    uid = 1000

    def touched(self) -> dict[str, int]:
        return {"1": _Present.pc.touched}

    def logins(self) -> dict[str, str]:
        return {"1": "tty1"}

    def hold(self, on: bool) -> None: ...

    def kill(self) -> None: ...


class _Screen:
    def __init__(self, uid: int) -> None: ...

    def count_down(self, *_: object) -> float:
        return 60.0

    def show(self, *_: object) -> str:
        _Present.pc.did()
        return "tty1"


class _Thread:
    """A thread of the daemon's."""

    def __init__(self, target: Callable[..., object], args: tuple[Any, ...] = (), daemon: bool = True) -> None:
        self._work = lambda: target(*args)

    def start(self) -> None:
        _Present.pc.fibers.append(Fiber(self._work))


def _select(
    readers: Sequence[Any], writers: object, others: object, timeout: float
) -> tuple[list[Any], list[Any], list[Any]]:
    """``select.select`` of a connection, if there is one, and the end of a pipe, for whom other fibers run meanwhile."""
    *connections, pipe = readers
    clock = _Present.pc.clock
    end = clock.now + timeout

    def readable() -> list[Any]:
        return [one for one in connections if one.readable] + select.select([pipe], [], [], 0)[0]

    Fiber.wait(lambda: bool(readable()) or clock.now >= end)
    return readable(), [], []


def furnish(patch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Give the daemon's code the simulation's time, threads and hands."""
    save = memory.Memory.save

    def saving(self: memory.Memory) -> None:
        mood = _Present.pc.mood
        dies, mood.spared = mood.dies if not mood.spared else "", max(0, mood.spared - 1)
        if dies == "before":
            mood.dies = "dead"
            raise Killed
        save(self)
        if dies == "after":
            mood.dies = "dead"
            raise Killed

    patch.setattr(memory.Memory, "save", saving)
    for module in (daemon, memory, link):
        patch.setattr(module, "time", clock)
    patch.setattr(link, "select", SimpleNamespace(select=_select))
    patch.setattr(link, "random", random.Random(1))
    patch.setattr(link, "CAP_S", CAP_S)
    patch.setattr(wishes, "MORE_S", MORE_S)
    patch.setattr(daemon, "threading", SimpleNamespace(Thread=_Thread))
    patch.setattr(daemon, "facts", lambda plan: FACTS)
    patch.setattr(daemon, "read", lambda path: "")
    patch.setattr(daemon, "alive", SimpleNamespace(sign=lambda: None))
    patch.setattr(daemon, "door", SimpleNamespace(serve=lambda *_: None))
    patch.setattr(daemon, "session", SimpleNamespace(of=lambda *_: _Session()))
    patch.setattr(daemon, "power", SimpleNamespace(go=lambda verb: _Present.pc.goes(verb)))
    patch.setattr(daemon, "Watch", lambda: SimpleNamespace(news=list))
    patch.setattr(daemon, "Home", lambda *_: None)
    patch.setattr(daemon, "Screen", _Screen)
    patch.setattr(daemon, "Cycle", _Cycle)
