"""Whoever sits at a PC is told before it goes down, may ask for more time where that is allowed, and for nothing else."""

import time
from typing import Any

import pytest

from agents.daemon import protocol
from agents.hands.screen import MARKS, Screen, announcement, span
from tests.daemon.gateway import Gateway
from tests.daemon.running import AGENT, Daemon, Terminal, wait_until

root, slow = pytest.mark.root, pytest.mark.slow
EARLY_MS = 1000  # a client may think so much wrongly of the server's time
# Five minutes are four seconds here.
HASTY = (*AGENT[:-2], "-c", "from agent.daemon import agent, wishes\nwishes.MORE_S = 4\nagent.main()")


@pytest.fixture
def hasty(gateway: Gateway, daemon: Daemon) -> Daemon:
    polls = len(gateway.polls)
    daemon.begin_again(HASTY)
    gateway.wait(lambda: len(gateway.polls) > polls)
    return daemon


def send(gateway: Gateway, verb: str = protocol.RESTART, **args: Any) -> protocol.Command:
    command = gateway.command(verb, args)
    gateway.send(gateway.wrap(command))
    return command


def moments(gateway: Gateway, command: protocol.Command) -> list[int]:
    """When it is carried out, as the server was told, each time that it was told."""
    return [
        report["result"]["acts_at_ms"]
        for report in gateway.reports
        if report["command"] == command.command and report["result"]
    ]


def warned(gateway: Gateway, command: protocol.Command, times: int = 1) -> int:
    """The moment that the server was told last."""
    return int(gateway.wait(lambda: moments(gateway, command)[times - 1 :])[0])


@slow
@root
def test_the_user_is_told_and_the_server_is_and_then_it_is_done(
    gateway: Gateway, daemon: Daemon, terminal: Terminal
) -> None:
    command = send(gateway, warn_s=4, text="The hall closes – good night!")  # noqa: RUF001 - people write such
    due = warned(gateway, command)
    assert daemon.asked == ""
    [first, second] = [report for report in gateway.reports if report["command"] == command.command]
    assert (first["state"], second["state"]) == (protocol.ACCEPTED, protocol.ACCEPTED)
    assert first["result"] == {}
    assert 3000 <= due - second["at_ms"] <= 4000
    wait_until(lambda: "The hall closes – good night! This PC restarts in" in terminal.text)  # noqa: RUF001
    assert "fleet-hold" not in terminal.text
    wait_until(lambda: daemon.asked)
    assert gateway.now_ms() >= due - EARLY_MS
    assert daemon.asked == "--no-block reboot\n"
    assert set(moments(gateway, command)) == {due}


@slow
@root
def test_more_time_is_had_as_often_as_it_is_allowed(gateway: Gateway, hasty: Daemon, terminal: Terminal) -> None:
    assert hasty.ask("--more") == (1, "Nothing was announced, so there is nothing to put off.")
    command = send(gateway, protocol.POWEROFF, warn_s=6, more=1)
    due = warned(gateway, command)
    wait_until(lambda: "fleet-hold --more" in terminal.text)
    code, said = hasty.ask("--more")
    assert (code, said.startswith("This PC is switched off in")) == (0, True)
    assert warned(gateway, command, times=2) == due + 4000
    code, said = hasty.ask("--more")
    assert (code, said.startswith("There is no more time to be had.")) == (1, True)
    wait_until(lambda: terminal.text.count("This PC is switched off") >= 2)
    wait_until(lambda: hasty.asked)
    assert gateway.now_ms() >= due + 4000 - EARLY_MS
    assert hasty.asked == "--no-block poweroff\n"


@slow
@root
def test_no_hold_comes_between(gateway: Gateway, daemon: Daemon) -> None:
    command = send(gateway, warn_s=5)
    warned(gateway, command)
    code, said = daemon.ask("match running", "1h")
    assert (code, said.startswith("It is too late for a hold. This PC restarts in")) == (1, True)
    wait_until(lambda: daemon.asked)


@slow
@root
def test_a_warning_survives_the_daemon(gateway: Gateway, daemon: Daemon, terminal: Terminal) -> None:
    command = send(gateway, warn_s=8, text="Update.")
    due = warned(gateway, command)
    wait_until(lambda: "Update." in terminal.text)
    before = terminal.text.count("Update.")
    daemon.begin_again()
    wait_until(lambda: terminal.text.count("Update.") > before)
    assert daemon.asked == ""
    wait_until(lambda: daemon.asked)
    assert gateway.now_ms() >= due - EARLY_MS
    assert set(moments(gateway, command)) == {due}


@slow
@root
def test_it_is_done_though_the_server_went_away(gateway: Gateway, daemon: Daemon) -> None:
    command = send(gateway, warn_s=4)
    due = warned(gateway, command)
    gateway.fault = lambda method, path: b""
    gateway.close()
    gateway.send({})
    wait_until(lambda: daemon.asked)
    assert gateway.now_ms() >= due - EARLY_MS


@root
def test_who_cancels_before_the_warning_spares_the_user_the_warning(
    gateway: Gateway, daemon: Daemon, terminal: Terminal
) -> None:
    command = gateway.command(protocol.RESTART, {"warn_s": 1})
    gateway.rejected.add(command.command)
    gateway.send(gateway.wrap(command))
    report = gateway.wait(lambda: gateway.told(command.command, protocol.REFUSED))
    assert report["reason"] == "cancelled"
    assert (daemon.asked, terminal.text) == ("", "")
    assert daemon.ask() == (0, "Nothing is held, and nothing was announced.")


@slow
@root
def test_nothing_takes_a_warning_back(gateway: Gateway, daemon: Daemon) -> None:
    command = gateway.command(protocol.RESTART, {"warn_s": 4})

    def reject(method: str, path: str) -> None:
        if gateway.told(command.command, protocol.ACCEPTED):
            gateway.rejected.add(command.command)  # all but the first acceptance

    gateway.fault = reject
    gateway.send(gateway.wrap(command))
    warned(gateway, command)
    wait_until(lambda: daemon.asked)
    assert gateway.told(command.command, protocol.REFUSED) is None


@root
def test_what_comes_meanwhile_is_refused_and_what_is_forced_takes_its_place(gateway: Gateway, daemon: Daemon) -> None:
    first = send(gateway, warn_s=3600)
    warned(gateway, first)
    second = send(gateway, protocol.POWEROFF)
    report = gateway.wait(lambda: gateway.told(second.command, protocol.REFUSED))
    assert report["reason"] == "busy"
    message = send(gateway, protocol.MESSAGE, text="Hello.", seconds=1)
    assert gateway.wait(lambda: gateway.told(message.command, protocol.REFUSED))["reason"] == "busy"
    third = send(gateway, protocol.POWEROFF, force=True)
    gateway.wait(lambda: gateway.told(third.command, protocol.ACCEPTED))
    assert gateway.told(first.command, protocol.FAILED)
    wait_until(lambda: daemon.asked)
    assert daemon.asked == "--no-block poweroff\n"


@slow
@root
def test_an_acceptance_that_reaches_the_server_too_late_warns_nobody(
    gateway: Gateway, daemon: Daemon, terminal: Terminal
) -> None:
    command = gateway.command(protocol.RESTART, {"warn_s": 1}, expires_ms=gateway.now_ms() + 2500)

    def slow(method: str, path: str) -> None:
        if path.endswith("reports") and not gateway.reports:
            time.sleep(3)

    gateway.fault = slow
    gateway.send(gateway.wrap(command))
    report = gateway.wait(lambda: gateway.told(command.command, protocol.REFUSED))
    assert report["reason"] == "expired"
    assert (daemon.asked, terminal.text) == ("", "")


def test_a_countdown_tells_the_last_minutes_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, float]] = []
    screen = Screen(0)
    monkeypatch.setattr(screen, "show", lambda sentence, seconds, terminals: told.append((left, seconds)))
    left: float = 1500
    while left > 0:
        wait = screen.count_down(9000.0, left, "", [])
        assert wait <= left
        left -= min(5.0, wait) or 0.01
    at = [round(moment) for moment, _ in told]
    assert at == [1500, *(mark for mark in MARKS if mark < 1500)]
    assert all(
        abs(seconds - (here - after)) < 1 for (_, seconds), here, after in zip(told, at, [*at[1:], 0], strict=True)
    )
    left = 100.0
    screen.count_down(9300.0, left, "", [])
    assert told[-1][0] == 100, "it was put off, and nobody was told"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3600, "60 minutes"),
        (61, "2 minutes"),
        (60, "1 minute"),
        (59.2, "1 minute"),
        (15, "15 seconds"),
        (0.2, "1 second"),
    ],
)
def test_times_are_told_as_people_say_them(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_a_cycle_is_announced_as_what_it_is() -> None:
    said = announcement(protocol.CYCLE, 300, 2)
    assert said == (
        "This session ends, and all files in its home are removed, in 5 minutes. For 5 more minutes type: fleet-hold --more"
    )
