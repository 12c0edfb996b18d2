"""The daemon's loop against a gateway that answers badly, or sends what must not be obeyed. Real HTTP, real signatures."""

import dataclasses
import itertools
import json
import time
import uuid
from typing import Any

import pytest

from agents.daemon import protocol
from agents.daemon.link import ANSWER_BYTES, CAP_S, Away, Link
from tests.daemon.gateway import Gateway, Key
from tests.daemon.running import AGENT, Daemon, wait_until

pytestmark = pytest.mark.root


def wrong(gateway: Gateway, fault: str) -> tuple[protocol.Command, dict[str, str]]:
    """A restart with one thing wrong about it, and its envelope."""
    now = gateway.now_ms()
    changes: dict[str, dict[str, Any]] = {
        "wrong-client": {"client": str(uuid.uuid4())},
        "wrong-boot": {"boot": str(uuid.uuid4())},
        "old-sequence": {"sequence": 0},
        "expired": {"not_before_ms": now - 2000, "expires_ms": now - 1000},
        "not-yet": {"not_before_ms": now + 30_000},
        "bad-arguments": {"args": {"home": "f" * 64}},
        "unknown-verb": {"verb": "format"},
    }
    command = dataclasses.replace(gateway.command(protocol.RESTART), **changes.get(fault, {}))
    if fault == "unknown-key":
        return command, gateway.wrap(command, Key("stranger"))
    if fault == "bad-signature":
        return command, gateway.wrap(command, Key(gateway.command_key.name))
    return command, gateway.wrap(command)


LATER = ("busy", "cancelled", "held", "old-protocol")  # reasons that need more than one wrong envelope


@pytest.mark.parametrize("reason", [reason for reason in protocol.REASONS if reason not in LATER])
def test_what_must_not_be_obeyed_is_refused_with_its_reason_and_not_done(
    gateway: Gateway, daemon: Daemon, reason: str
) -> None:
    command, envelope = wrong(gateway, reason)
    gateway.send(envelope)
    report = gateway.wait(lambda: gateway.told(command.command, protocol.REFUSED))
    assert report["reason"] == reason
    assert [told["state"] for told in gateway.reports] == ["refused"]
    assert daemon.asked == ""


def test_a_good_command_is_done_after_its_acceptance_was_taken(gateway: Gateway, daemon: Daemon) -> None:
    command = gateway.command(protocol.RESTART)
    gateway.send(gateway.wrap(command))
    gateway.wait(lambda: gateway.told(command.command, protocol.ACCEPTED))
    gateway.wait(lambda: gateway.byes == ["restart"])
    wait_until(lambda: daemon.asked)
    assert daemon.asked == "--no-block reboot\n"


@pytest.mark.parametrize("version", [1, 2])
def test_a_server_of_old_is_obeyed_where_the_boot_plan_promises_no_newer_one(gateway: Gateway, version: int) -> None:
    gateway.protocol = version
    with Daemon() as daemon:
        daemon.begin(gateway)
        gateway.wait(lambda: gateway.polls)
        command = gateway.command(protocol.RESTART, version=version)
        gateway.send(gateway.wrap(command))
        gateway.wait(lambda: gateway.byes == ["restart"])


def test_no_older_envelope_is_obeyed_than_the_signed_boot_plan_promises(gateway: Gateway) -> None:
    with Daemon() as daemon:
        daemon.begin(gateway, daemon="2")
        gateway.wait(lambda: gateway.polls)
        command = gateway.command(protocol.RESTART, version=1)
        gateway.send(gateway.wrap(command))
        report = gateway.wait(lambda: gateway.told(command.command, protocol.REFUSED))
        assert report["reason"] == "old-protocol"
        assert daemon.asked == ""


def test_no_older_session_is_opened_than_the_signed_boot_plan_promises(gateway: Gateway) -> None:
    gateway.protocol = 1
    with Daemon() as daemon:
        daemon.begin(gateway, daemon="7")  # and a server that is newer than this daemon speaks as it does
        wait_until(lambda: f"older than protocol {protocol.VERSION}" in daemon.log)
        assert gateway.polls == []
        gateway.protocol = protocol.VERSION
        gateway.wait(lambda: gateway.polls)


def test_a_command_whose_acceptance_the_server_rejects_is_not_done(gateway: Gateway, daemon: Daemon) -> None:
    command = gateway.command(protocol.RESTART)
    gateway.rejected.add(command.command)
    gateway.send(gateway.wrap(command))
    report = gateway.wait(lambda: gateway.told(command.command, protocol.REFUSED))
    assert report["reason"] == "cancelled"
    assert daemon.asked == ""


def test_a_command_that_failed_and_comes_again_is_answered_from_memory(gateway: Gateway, daemon: Daemon) -> None:
    gateway.fault = lambda method, path: b"HTTP/1.1 404 Not Found\r\n\r\n" if path.startswith("/store/") else None
    command = gateway.command(protocol.CYCLE, {"home": "f" * 64, "home_bytes": 1, "home_digest": "e" * 64})
    gateway.send(gateway.wrap(command))
    first = gateway.wait(lambda: gateway.told(command.command, protocol.FAILED))
    assert "404" in first["reason"]
    wait_until(lambda: time.monotonic() - gateway.polls[-1][0] > 0.5)  # parked
    told = len(gateway.reports)
    gateway.send(gateway.wrap(command))
    gateway.wait(lambda: len(gateway.reports) > told)
    assert gateway.reports[told:] == [first]


WRITER = """
from agent.daemon import agent
from agent.hands import writes
WROTE = [{"path": "/srv", "files": 1, "bytes": 4096, "examples": ["/srv/x"]}]
writes.LOOK_FIRST_S, writes.LOOK_EVERY_S, writes.written = 0, 0.1, lambda: WROTE
agent.main()
"""


@pytest.mark.parametrize("wanted", [True, False])
def test_what_was_written_is_told_once_and_a_server_that_does_not_want_to_know_is_left_in_peace(
    gateway: Gateway, wanted: bool
) -> None:
    told: list[Any] = []

    def take(body: bytes) -> bytes:
        told.append(json.loads(body))
        return b"{}"

    asked: list[str] = []

    def fault(method: str, path: str) -> bytes | None:
        asked.append(path)
        return None if wanted or path != "/agent/v1/writes" else b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"

    gateway.pages["/agent/v1/writes"], gateway.fault, gateway.hold_s = take, fault, 0.3
    with Daemon() as daemon:
        daemon.begin(gateway, (*AGENT[:-2], "-c", WRITER))
        gateway.wait(lambda: len(gateway.polls) > 3)
        assert asked.count("/agent/v1/writes") == 1
        assert len(told) == wanted
        command = gateway.command(protocol.RESTART)
        gateway.send(gateway.wrap(command))
        gateway.wait(lambda: gateway.told(command.command, protocol.ACCEPTED))
    if wanted:
        assert told[0]["writes"][0]["examples"] == ["/srv/x"]


LINGERER = """
from agent.daemon import agent
agent.LINGER_S = 0.2
agent.main()
"""


def test_who_was_superseded_obeys_nothing_and_is_heard_now_and_then(gateway: Gateway) -> None:
    """So the server learns that two PCs have one MAC address, whichever of them was first."""
    asked: list[str] = []

    def superseded(method: str, path: str) -> bytes | None:
        asked.append(path)
        return b"HTTP/1.1 409 Conflict\r\nContent-Length: 0\r\n\r\n" if gateway.polls else None

    gateway.fault = superseded
    with Daemon() as daemon:
        daemon.begin(gateway, (*AGENT[:-2], "-c", LINGERER))
        command = gateway.command(protocol.RESTART)
        gateway.send(gateway.wrap(command))
        wait_until(lambda: asked.count("/agent/v1/next") > 4)
        gateway.fault = lambda method, path: None  # whatever it is told then
        gateway.send(gateway.wrap(gateway.command(protocol.RESTART)))
        known = len(gateway.polls)
        gateway.wait(lambda: len(gateway.polls) > known + 1)
        assert daemon.asked == ""


ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (ANSWER_BYTES * 4)
FAULTS = {
    "an error": (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "status 500"),
    "too many": (b"HTTP/1.1 429 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n", "status 429"),
    "rubbish": (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{[}]", "not a JSON object"),
    "a list": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "not a JSON object"),
    "no HTTP": (b"220 mail.example ESMTP\r\n", "BadStatusLine"),
    "nothing": (b"", "RemoteDisconnected"),
    "half an answer": (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "not a JSON object"),
    "an endless body": (ENDLESS, "not a JSON object"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_it_keeps_off_a_gateway_that_answers_badly_and_comes_back_by_itself(
    gateway: Gateway, daemon: Daemon, fault: str
) -> None:
    answer, said = FAULTS[fault]
    asked: list[float] = []

    def bad(method: str, path: str) -> bytes:
        asked.append(time.monotonic())
        return answer

    gateway.fault = bad
    memory = daemon.memory_kib()
    gateway.send({})  # ends the parked poll, with an answer it does not like either
    wait_until(lambda: len(asked) >= 3, 30)
    assert said in daemon.log
    assert daemon.memory_kib() < memory + 4 * ANSWER_BYTES / 1024
    if fault == "too many":
        assert min(after - before for before, after in itertools.pairwise(asked)) >= 1
    gateway.fault = lambda method, path: None
    command = gateway.command(protocol.RESTART)
    gateway.send(gateway.wrap(command))
    gateway.wait(lambda: gateway.told(command.command, protocol.ACCEPTED), 40)


@pytest.mark.slow
def test_it_finds_a_gateway_again_that_was_gone(gateway: Gateway, daemon: Daemon) -> None:
    port = gateway.server.server_address[1]
    gateway.fault = lambda method, path: b""  # for the connection that there is
    gateway.close()
    gateway.send({})
    wait_until(lambda: "ConnectionRefused" in daemon.log, 30)
    again = Gateway(port=port)
    again.client, again.session, again.bearer = gateway.client, gateway.session, gateway.bearer
    again.command_key, again.session_key, again.boot_id = gateway.command_key, gateway.session_key, gateway.boot_id
    try:
        again.wait(lambda: again.polls, 40)
        command = again.command(protocol.RESTART)
        again.send(again.wrap(command))
        again.wait(lambda: again.told(command.command, protocol.ACCEPTED))
    finally:
        again.close()


def test_pauses_are_spread_over_all_of_a_bound_that_doubles_up_to_two_minutes() -> None:
    link = Link("http://127.0.0.1:1", "", 0)
    for failures, bound in ((0, 1.0), (1, 2.0), (6, 64.0), (9, CAP_S), (10, CAP_S)):
        pauses = []
        for _ in range(400):
            link.failures = failures
            pauses.append(link.pause_s(Away("gone"), 0))
        assert max(pauses) <= bound
        assert min(pauses) < bound * 0.1
        assert max(pauses) > bound * 0.9
    assert link.pause_s(Away("busy", 429, 300), 0) >= 300


def test_what_it_remembers_survives_it(gateway: Gateway, daemon: Daemon) -> None:
    command, envelope = wrong(gateway, "bad-arguments")
    gateway.send(envelope)
    gateway.wait(lambda: gateway.told(command.command, protocol.REFUSED))
    kept = json.loads(daemon.path("/run/fleet/commands.json").read_text())
    assert kept["sequence"] == command.sequence
    assert kept["reports"][command.command]["reason"] == "bad-arguments"
    daemon.end(daemon.process)
    polls, told = len(gateway.polls), len(gateway.reports)
    daemon.process = daemon.start(*AGENT)
    gateway.wait(lambda: len(gateway.polls) > polls)
    gateway.send(envelope)
    gateway.wait(lambda: len(gateway.reports) > told)
    assert gateway.reports[told]["reason"] == "bad-arguments"
