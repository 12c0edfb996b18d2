"""The gateway as the process it is: sessions, polls, nudges, reports, and what its own end and that of Redis cost."""

import base64
import json
import select
import signal
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from datetime import timedelta

import pytest
import redis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.db import transaction
from django.utils import timezone
from pytest_django.fixtures import Settings

from agents import sending, speaking, tasks
from agents.daemon import protocol
from agents.models import BootSession, Command, CommandStatus, SessionStatus, Verb
from fleet.models import AuditEntry, Client, ClientState
from tests.agents.boots import CIRRUS, form, token_of
from tests.agents.gateways import Gateway, Visitor, gateway, is_signed
from tests.agents.rooms import Room, make_room
from tests.services import Service, redis_server, wait_for

pytestmark = pytest.mark.slow

HOLD_S = 18


@pytest.fixture(scope="module")
def served(django_db_setup: None) -> Iterator[tuple[Gateway, Service]]:
    with redis_server() as queue, gateway(queue.url, poll_hold=1) as gate:
        yield gate, queue


@pytest.fixture(scope="module")
def patient(django_db_setup: None) -> Iterator[tuple[Gateway, Service]]:
    """One whose polls are held so long that no answer of theirs comes of time."""
    with redis_server() as queue, gateway(queue.url, poll_hold=HOLD_S) as gate:
        yield gate, queue


@pytest.fixture
def patient_room(transactional_db: None, patient: tuple[Gateway, Service], settings: Settings) -> Iterator[Room]:
    with make_room(patient[0], patient[1].url, settings) as room:
        yield room


@pytest.fixture
def room(transactional_db: None, served: tuple[Gateway, Service], settings: Settings) -> Iterator[Room]:
    with make_room(served[0], served[1].url, settings) as room:
        yield room


def status(command: Command) -> str:
    command.refresh_from_db()
    return command.status


def state(session: BootSession) -> tuple[str, str]:
    session.refresh_from_db()
    return session.status, Client.objects.get(pk=session.client_id).state


def is_parked(visitor: Visitor, seconds: float = 0.3) -> bool:
    """Whether no answer comes within ``seconds``."""
    return not select.select([visitor.connection.sock], [], [], seconds)[0]


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_is_opened_and_its_answer_signed_over_the_nonce(room: Room) -> None:
    session, visitor = room.boot(room.client())
    reply = visitor.open(str(session.boot_id), nonce="a-nonce-of-its-own")
    assert reply.status == 200
    assert is_signed(reply, room.gate.keys)
    said = reply.json
    assert (said["nonce"], said["session"], said["client"]) == (
        "a-nonce-of-its-own",
        str(session.pk),
        str(session.client_id),
    )
    assert (said["hold_s"], said["spread_s"]) == (60, 0), "the most that a poll may be held, however many wait"
    assert said["keys"] == (room.gate.keys / "command.pub").read_text().strip()
    assert abs(said["server_time_ms"] - time.time() * 1000) < 5000
    assert state(session) == (SessionStatus.OPEN, ClientState.BOOTING)


def test_another_boot_id_opens_nothing(room: Room) -> None:
    session, visitor = room.boot(room.client())
    assert visitor.open(str(uuid.uuid4())).status == 409
    assert state(session)[0] == SessionStatus.BOOTING


def test_without_a_bearer_of_a_session_nobody_is_served(room: Room) -> None:
    for bearer in ("", "0" * 64, "x", "0" * 63):
        with room.gate.visitor(bearer) as stranger:
            for method, path in (
                ("GET", "next?state=ready"),
                ("POST", "session"),
                ("POST", "reports"),
                ("POST", "bye"),
            ):
                reply = stranger.ask(method, f"/agent/v1/{path}", b"{}")
                assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
                assert reply.headers["Content-Type"] == "application/problem+json"


def test_a_client_boots_over_http_and_a_second_boot_ends_the_first_ones_poll(room: Room) -> None:
    first, visitor = room.running()
    visitor.park()
    with room.gate.visitor() as firmware:
        script = firmware.get(f"/boot/v1/client.ipxe?mac={first.client.mac}")
        assert script.body.startswith(b"#!ipxe\nkernel ")
        asked = urllib.parse.urlencode(form(token_of(first.client.mac), first.client.mac, CIRRUS)).encode()
        reply = firmware.ask("POST", "/boot/v1/plan", asked)
        assert b"action=boot\n" in reply.body
        plan, _, signature = reply.body.rpartition(b"signature=")
        key = base64.b64decode(script.body.partition(b"fleet.keys=")[2].split()[0])
        proof = base64.b64decode(signature)
        Ed25519PublicKey.from_public_bytes(key[10:]).verify(proof[10:], plan)
        assert proof[:10] == key[:10]
        assert b"boot=" + urllib.parse.parse_qs(asked)[b"boot_id"][0] + b"\n" in plan
        assert visitor.reply().status == 409
        assert visitor.poll().status == 409
        assert visitor.open(str(first.boot_id)).status == 409
        again = firmware.ask("POST", "/boot/v1/plan", asked)
        assert (again.status, again.body) == (403, b"The boot token was used already.\n")
    assert AuditEntry.objects.get(action="boot.refused").detail["why"] == "The boot token was used already."
    assert state(first) == (SessionStatus.SUPERSEDED, ClientState.BOOTING)


def test_a_session_whose_plan_came_by_another_gateway_supersedes_too(room: Room) -> None:
    first, visitor = room.running()
    visitor.park()
    second, younger = room.boot(first.client)
    assert younger.open(str(second.boot_id)).status == 200
    assert visitor.reply().status == 409
    assert younger.poll().status == 204


def test_a_newer_poll_of_the_same_session_takes_the_place_of_the_older(patient_room: Room) -> None:
    _, visitor = patient_room.running()
    with patient_room.gate.visitor(visitor.bearer) as other:
        visitor.park()
        time.sleep(0.1)
        other.park()
        start = time.monotonic()
        assert visitor.reply().status == 204
        assert time.monotonic() - start < HOLD_S - 3
        assert is_parked(other, 0)


def test_bye_ends_the_poll_and_shows_the_client_off_for_good(room: Room) -> None:
    session, visitor = room.running()
    visitor.park()
    with room.gate.visitor(visitor.bearer) as other:
        assert other.post("/agent/v1/bye", {"reason": "poweroff"}).status == 204
    assert visitor.reply().status == 204
    assert state(session) == (SessionStatus.CLOSED, ClientState.OFF)
    time.sleep(3.2)  # a sweep
    assert state(session) == (SessionStatus.CLOSED, ClientState.OFF)


# --- commands ---------------------------------------------------------------------------------------------------------


def nudge(command: Command) -> None:
    """As the sender does when it has signed it."""
    command.refresh_from_db()
    signed = command.envelope
    travels = json.dumps(speaking.envelope(bytes(signed.body), bytes(signed.signature), signed.key_id))
    assert signed.sequence
    client, session, order, key = map(str, (command.client_id, signed.session_id, command.order_id, command.pk))
    sending.nudge([sending.Signed(client, session, order, key, signed.sequence, signed.key_id, "", travels)])


def test_a_nudge_wakes_the_parked_poll_and_only_that(patient_room: Room) -> None:
    session, visitor = patient_room.running()
    _, other = patient_room.running(2)
    visitor.park()
    other.park()
    command = patient_room.send(session)
    assert patient_room.opened(visitor.reply(), session) == [str(command.pk)]
    assert is_parked(other)


@pytest.mark.parametrize(("verb", "shown"), [(Verb.CYCLE, ClientState.CYCLING), (Verb.RESTART, ClientState.READY)])
def test_who_accepts_a_cycle_is_shown_cycling_before_it_polls_again(
    patient_room: Room, verb: Verb, shown: ClientState
) -> None:
    session, visitor = patient_room.running()
    visitor.park()
    command = patient_room.send(session, verb)
    assert patient_room.opened(visitor.reply(), session) == [str(command.pk)]
    taken = visitor.post("/agent/v1/reports", {"reports": [protocol.report(str(command.pk), "accepted", 0, "", {})]})
    assert taken.json == {"accepted": [str(command.pk)], "rejected": []}
    wait_for(lambda: Client.objects.get(pk=session.client_id).state == shown, "that is shown", 5)


def test_what_was_delivered_comes_again_until_it_is_accepted_and_never_below_the_cursor(room: Room) -> None:
    session, visitor = room.running()
    command = room.send(session, Verb.CYCLE)
    for _ in range(2):
        assert room.opened(visitor.poll(), session) == [str(command.pk)]
        tasks.send_order(str(command.order_id))
        nudge(command)
        time.sleep(0.1)
    assert visitor.poll(cursor=command.envelope.sequence or 0).status == 204
    assert visitor.report(command.pk, "accepted").json == {"accepted": [str(command.pk)], "rejected": []}
    assert visitor.poll().status == 204


def test_a_command_of_a_session_is_never_delivered_to_the_next(room: Room) -> None:
    session, _ = room.running()
    command = room.send(session)
    second, visitor = room.boot(session.client)
    assert visitor.open(str(second.boot_id)).status == 200
    nudge(command)
    assert visitor.poll().status == 204


def test_a_poll_that_asks_while_nothing_waits_is_answered_when_its_hold_ends(room: Room) -> None:
    _, visitor = room.running()
    start = time.monotonic()
    reply = visitor.poll()
    assert (reply.status, reply.body) == (204, b"")
    assert time.monotonic() - start > 0.8
    assert abs(int(reply.headers["Fleet-Time"]) - time.time() * 1000) < 5000


def test_rubbish_on_the_channel_does_not_end_the_hearing(patient_room: Room) -> None:
    session, visitor = patient_room.running()
    with redis.Redis.from_url(patient_room.redis_url) as hints:
        for rubbish in (
            b"",
            b"\xff",
            b"[]",
            b"{}",
            b'{"commands": 5}',
            b'{"commands": [5]}',
            b'{"commands": [null]}',
            b'{"commands": ["x"]}',
            b'{"commands": [["x", "x", "x", "x", 1, "", "", ""]]}',
            b'{"commands": [[' + (b'"00000000-0000-4000-8000-000000000000", ' * 4) + b'1, "key", "", {"key": 5}]]}',
            b"[" * 100_000,
        ):
            hints.publish(sending.CHANNEL, rubbish)
    visitor.park()
    command = patient_room.send(session)
    assert patient_room.opened(visitor.reply(), session) == [str(command.pk)]


# --- reports ----------------------------------------------------------------------------------------------------------


def test_reports_are_answered_once_each_with_what_became_of_them(room: Room) -> None:
    session, visitor = room.running()
    foreign, _ = room.running(2)
    mine, theirs = room.send(session, Verb.CYCLE), room.send(foreign)
    reports = [
        {"command": str(pk), "state": said, "reason": "", "at_ms": 1, "result": {}}
        for pk, said in ((mine.pk, "accepted"), (mine.pk, "failed"), (theirs.pk, "failed"), (uuid.uuid4(), "accepted"))
    ]
    answer = visitor.post("/agent/v1/reports", {"reports": reports}).json
    assert answer["accepted"] == [str(mine.pk)] * 2
    assert [one["reason"] for one in answer["rejected"]] == ["not a command of this client"] * 2
    assert (status(mine), status(theirs)) == (CommandStatus.FAILED, CommandStatus.SENT)
    assert AuditEntry.objects.filter(action="report.rejected").count() == 2


def test_a_report_is_answered_only_after_it_is_durable(room: Room) -> None:
    session, visitor = room.running()
    command = room.send(session)
    report = {"command": str(command.pk), "state": "accepted", "reason": "", "at_ms": 1, "result": {}}
    with transaction.atomic():
        Command.objects.select_for_update().get(pk=command.pk)  # nobody else can write it now
        visitor.send("POST", "/agent/v1/reports", json.dumps({"reports": [report]}).encode())
        assert is_parked(visitor, 0.5)
        assert status(command) == CommandStatus.SENT
    assert visitor.reply().json["accepted"] == [str(command.pk)]
    assert status(command) == CommandStatus.ACCEPTED


# --- ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_restart_of_the_gateway_costs_a_pause_and_no_command(room: Room, how: str) -> None:
    session, visitor = room.running()
    visitor.park()
    time.sleep(0.1)
    if how == "stop":
        room.gate.stop()
        reply = visitor.reply()
        assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
    else:
        room.gate.service.kill()
        with pytest.raises(ConnectionError):
            visitor.reply()
    visitor.close()
    command = room.send(session)
    room.gate.start()
    assert room.opened(visitor.poll(), session) == [str(command.pk)]
    assert visitor.report(command.pk, "accepted").json["accepted"] == [str(command.pk)]
    assert state(session) == (SessionStatus.OPEN, ClientState.READY)
    assert status(command) == CommandStatus.ACCEPTED


def test_while_redis_is_away_the_sweep_delivers_and_afterwards_nudges_wake_again(
    transactional_db: None, settings: Settings
) -> None:
    with redis_server() as queue:
        port = int(queue.url.split(":")[2].split("/")[0])
        with gateway(queue.url, poll_hold=HOLD_S) as gate, make_room(gate, queue.url, settings) as room:
            session, visitor = room.running()
            visitor.park()
            time.sleep(0.2)
            queue.stop()
            start = time.monotonic()
            first = room.send(session)
            assert room.opened(visitor.reply(), session) == [str(first.pk)]
            assert time.monotonic() - start < HOLD_S - 3
            visitor.report(first.pk, "refused", "busy")
            with redis_server(port) as back, redis.Redis.from_url(back.url) as hints:
                wait_for(lambda: hints.pubsub_numsub(sending.CHANNEL)[0][1], "the gateway listens again")
                visitor.park(cursor=first.envelope.sequence or 0)
                second = room.order(session)
                start = time.monotonic()
                tasks.send_order(str(second.order_id))
                assert room.opened(visitor.reply(), session) == [str(second.pk)]
                assert time.monotonic() - start < HOLD_S - 3


def test_a_redis_that_hangs_makes_nobody_absent(transactional_db: None, settings: Settings) -> None:
    with (
        redis_server() as queue,
        gateway(queue.url, poll_hold=20, lost_after=4) as gate,
        make_room(gate, queue.url, settings) as room,
    ):
        session, visitor = room.running()
        visitor.park()
        queue.process.send_signal(signal.SIGSTOP)
        try:
            late = timezone.now() + timedelta(seconds=3)  # the first sweep may be before it asks Redis, no other
            wait_for(lambda: BootSession.objects.get(pk=session.pk).last_seen > late, "presence is written down", 15)
        finally:
            queue.process.send_signal(signal.SIGCONT)


def test_a_gateway_without_its_key_says_what_is_missing(room: Room) -> None:
    gate = room.gate
    gate.stop()
    own = gate.environment.pop("FLEET_SESSION_KEY")
    try:
        with pytest.raises(AssertionError, match="the gateway ended"):
            gate.start()
        assert "This process has no session key, so it cannot sign. Set FLEET_SESSION_KEY" in gate.log
    finally:
        gate.environment["FLEET_SESSION_KEY"] = own
        gate.service.log_path.unlink()
        gate.start()
