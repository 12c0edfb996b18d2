"""The network between simulated clients and the gateway: it carries what it is told to carry, in any order, twice, late or never.

HTTP's own promises hold: an answer belongs to its request, and goes to whoever still waits for it. A request that its sender has given up may
yet arrive.
"""

from dataclasses import dataclass

from agents.gateway.http import Answer
from tests.faults.clock import Clock
from tests.faults.fibers import Fiber
from tests.faults.gate import Gate, Line


@dataclass(eq=False)
class Call:
    """A request on its way (no ``line``), at the gateway, or its answer on its way."""

    method: str
    target: str
    body: bytes
    headers: dict[str, str]
    awaited: bool = True  # by its sender
    line: Line | None = None
    arrived: Answer | None = None
    broken: bool = False

    @property
    def moves(self) -> bool:
        return self.line is None or self.line.answered is not None

    def copy(self) -> "Call":
        return Call(self.method, self.target, self.body, self.headers, awaited=False)


class Wire:
    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.calls: list[Call] = []

    def send(self, call: Call) -> None:
        if not self._gate.up:
            raise ConnectionRefusedError("The gateway is down.")
        self.calls.append(call)

    @property
    def moving(self) -> list[Call]:
        """What is on its way: requests, and answers."""
        return [call for call in self.calls if call.moves]

    def carry(self, call: Call) -> None:
        """One hop further."""
        if call.line is not None:
            call.arrived = call.line.answered
            self.calls.remove(call)
        elif self._gate.up:
            call.line = self._gate.serve(call.method, call.target, call.body, call.headers)
            self.pump()
        elif call.awaited:
            self.cut(call)

    def pump(self) -> None:
        """Let the gateway work. What it answers to those who wait no more is gone."""
        self._gate.pump()
        self.calls = [call for call in self.calls if call.awaited or call.line is None or call.line.answered is None]

    def lose(self, call: Call) -> None:
        """It never arrives; who waits for the answer has to find that out."""
        self.calls.remove(call)

    def cut(self, call: Call) -> None:
        """The connection breaks. A request that is on its way may still arrive."""
        call.broken = True
        self.give_up(call)

    def give_up(self, call: Call) -> None:
        call.awaited = False
        if call.line is not None:
            self._gate.hang_up(call.line)
            if call in self.calls:
                self.calls.remove(call)

    def gateway_died(self) -> None:
        for call in self.calls[:]:
            if call.line is not None:
                call.broken = True
                self.calls.remove(call)


class Reply:
    """An answer as ``http.client`` gives it."""

    def __init__(self, answer: Answer) -> None:
        self.status, self.headers, self._body = answer.status, answer.headers, answer.body

    def read(self, _: int = -1) -> bytes:
        return self._body

    def isclosed(self) -> bool:
        return True


class Connection:
    """``http.client.HTTPConnection`` as far as the daemon uses it, within a fiber."""

    def __init__(self, wire: Wire, clock: Clock) -> None:
        self._wire, self._clock = wire, clock
        self._call: Call | None = None
        self.timeout = 20.0
        self.sock: Connection | None = None

    def settimeout(self, timeout: float) -> None:
        self.timeout = timeout

    def request(self, method: str, target: str, body: str | None = None, headers: dict[str, str] | None = None) -> None:
        call = Call(method, target, (body or "").encode(), headers or {})
        self._wire.send(call)
        self._call, self.sock = call, self

    @property
    def readable(self) -> bool:
        return self._call is not None and (self._call.arrived is not None or self._call.broken)

    def getresponse(self) -> Reply:
        end = self._clock.now + self.timeout
        Fiber.wait(lambda: self.readable or self._clock.now >= end)
        assert self._call is not None
        if self._call.arrived is None:
            raise ConnectionResetError("It broke.") if self._call.broken else TimeoutError("No answer.")
        return Reply(self._call.arrived)

    def close(self) -> None:
        if self._call is not None:
            self._wire.give_up(self._call)
        self._call = self.sock = None
