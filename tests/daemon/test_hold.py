"""A user who must not be disturbed says so on the PC, and the PC refuses what is not forced. It cannot be said for ever."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from agents.daemon import protocol, wishes
from agents.daemon.memory import Memory
from agents.daemon.wishes import Denied, answer
from tests.daemon.gateway import Gateway
from tests.daemon.namespace import UID
from tests.daemon.running import Daemon, wait_until

CYCLE = {"home": "f" * 64, "home_bytes": 1, "home_digest": "e" * 64}
ARGUMENTS: dict[str, dict[str, Any]] = {protocol.CYCLE: CYCLE, protocol.CAPTURE: {"most_bytes": 1}}
SOFT = (protocol.RESTART, protocol.POWEROFF, protocol.CYCLE, protocol.CAPTURE)


@pytest.fixture
def told(gateway: Gateway) -> list[dict[str, Any]]:
    """What the server heard of holds."""
    said: list[dict[str, Any]] = []

    def take(body: bytes) -> bytes:
        said.append(json.loads(body))
        with gateway.changed:
            gateway.changed.notify_all()
        return b"{}"

    gateway.pages["/agent/v1/hold"] = take
    return said


def send(gateway: Gateway, verb: str, **more: Any) -> protocol.Command:
    command = gateway.command(verb, {**ARGUMENTS.get(verb, {}), **more})
    gateway.send(gateway.wrap(command))
    return command


@pytest.mark.root
def test_the_server_hears_of_a_hold_and_of_its_end(
    gateway: Gateway, told: list[dict[str, Any]], daemon: Daemon
) -> None:
    before = gateway.now_ms()
    assert daemon.ask("match running", "90m") == (0, "Held for 90 minutes: match running")
    [hold] = gateway.wait(lambda: told)
    assert hold["reason"] == "match running"
    assert -1000 < hold["until_ms"] - before - 90 * 60_000 < 30_000
    assert daemon.ask("--release") == (0, "Nothing is held, and nothing was announced.")
    gateway.wait(lambda: len(told) == 2)
    assert told[1]["reason"] == ""
    assert daemon.ask("--release") == (1, "There is no hold to release.")


@pytest.mark.root
@pytest.mark.parametrize("verb", SOFT)
def test_a_held_pc_refuses_what_disturbs_its_user(gateway: Gateway, daemon: Daemon, verb: str) -> None:
    daemon.ask("match running", "1h")
    command = send(gateway, verb)
    report = gateway.wait(lambda: gateway.told(command.command, protocol.REFUSED))
    assert report["reason"] == "held"
    assert daemon.asked == ""


@pytest.mark.root
@pytest.mark.parametrize("verb", SOFT)
def test_what_is_forced_is_done_all_the_same(gateway: Gateway, daemon: Daemon, verb: str) -> None:
    daemon.ask("match running", "1h")
    command = send(gateway, verb, force=True)
    gateway.wait(lambda: gateway.told(command.command, protocol.ACCEPTED))


@pytest.mark.root
def test_what_disturbs_nobody_is_done_too(gateway: Gateway, daemon: Daemon) -> None:
    daemon.ask("match running", "1h")
    command = send(gateway, protocol.MESSAGE, text="Pizza!", seconds=5)
    gateway.wait(lambda: gateway.told(command.command, protocol.ACCEPTED))


@pytest.mark.slow
@pytest.mark.root
def test_a_hold_survives_the_daemon_and_ends_by_itself(
    gateway: Gateway, told: list[dict[str, Any]], daemon: Daemon
) -> None:
    polls = len(gateway.polls)
    daemon.ask("match running", "6s")
    end = time.monotonic() + 6
    gateway.wait(lambda: told and len(gateway.polls) > polls)  # it polls again when it has noted that it told
    daemon.begin_again()
    code, said = daemon.ask()
    assert (code, said.startswith("Held for ")) == (0, True)
    command = send(gateway, protocol.RESTART)
    report = gateway.wait(lambda: gateway.told(command.command, protocol.REFUSED, protocol.ACCEPTED))
    assert report["reason"] == "held" or time.monotonic() > end
    time.sleep(max(0, end - time.monotonic()))
    assert daemon.ask() == (0, "Nothing is held, and nothing was announced.")
    command = send(gateway, protocol.RESTART)
    gateway.wait(lambda: gateway.told(command.command, protocol.ACCEPTED))
    assert len(told) == 1, "it was told when it ends"


@pytest.mark.root
def test_a_server_that_knows_no_holds_is_not_told_again(gateway: Gateway, daemon: Daemon) -> None:
    asked: list[str] = []
    gateway.fault = lambda method, path: asked.append(path)
    daemon.ask("match running", "1h")
    wait_until(lambda: "/agent/v1/hold" in asked)
    polls = len(gateway.polls)
    daemon.ask("still running", "1h")
    gateway.wait(lambda: len(gateway.polls) > polls)
    assert asked.count("/agent/v1/hold") == 1
    command = send(gateway, protocol.RESTART)
    report = gateway.wait(lambda: gateway.told(command.command, protocol.REFUSED))
    assert report["reason"] == "held"


@pytest.mark.root
def test_it_is_the_users_and_nobody_elses(daemon: Daemon) -> None:
    code, said = daemon.ask("mine now", "1h", uid=UID + 1)
    assert (code, "does not answer" in said) == (1, True)
    assert daemon.ask("root may", "1h", uid=0)[0] == 0


VISITORS = """
import socket
def come():
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    while True:
        try:
            door.connect("/run/fleet/door")
            return door
        except BlockingIOError:
            time.sleep(0.05)
silent = [come() for _ in range(5)]
for said in (b"x" * 200_000, b"[" * 2000, b"{", b'"text"', b"", b'{"ask": ["hold"]}', b'{"ask": "hold", "reason": 1, "seconds": 1e9}'):
    visitor = come()
    visitor.send(said)
    visitor.close()
result = True
"""


@pytest.mark.slow
@pytest.mark.root
def test_visitors_who_talk_rubbish_or_say_nothing_do_not_hold_the_door(daemon: Daemon) -> None:
    memory = daemon.memory_kib()
    assert daemon.python(VISITORS) is True
    assert daemon.ask("match running", "1h")[0] == 0
    assert daemon.memory_kib() < memory + 2048


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(str(tmp_path / "commands.json"))


def ask(memory: Memory, wish: str, **more: Any) -> str:
    return answer(memory, {"ask": wish, **more})


@pytest.mark.parametrize("seconds", [0, -1, wishes.HOLD_S + 1, True, 1.5, "90m", None, 10**30])
def test_nobody_holds_a_pc_for_longer_than_four_hours(memory: Memory, seconds: object) -> None:
    with pytest.raises(Denied, match="at most 240 minutes"):
        ask(memory, "hold", reason="match", seconds=seconds)
    assert not memory.is_held()


def test_a_second_hold_is_no_way_to_a_longer_one(memory: Memory) -> None:
    for _ in range(2):
        assert ask(memory, "hold", reason="match", seconds=wishes.HOLD_S) == "Held for 240 minutes: match"


@pytest.mark.parametrize("reason", ["", "  ", "x" * 101, "two\nlines", "\x1b[2J", 7, None])
def test_a_hold_needs_a_reason_that_can_be_shown(memory: Memory, reason: object) -> None:
    with pytest.raises(Denied, match="a reason"):
        ask(memory, "hold", reason=reason, seconds=60)
    assert not memory.is_held()


@pytest.mark.parametrize("wish", ["", "reboot", None, ["hold"]])
def test_another_wish_is_not_granted(memory: Memory, wish: object) -> None:
    with pytest.raises(Denied, match="does not know"):
        answer(memory, {"ask": wish})


def test_a_clock_that_is_set_does_not_end_a_hold(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(memory, "hold", reason="match", seconds=60)
    monkeypatch.setattr(time, "time", lambda: 9e9)
    monkeypatch.setattr(time, "monotonic", lambda: 9e9)
    assert memory.is_held()
    assert Memory.load(memory.path).is_held()
