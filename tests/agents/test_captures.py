"""Homes that arrive at the gateway as the process it is: all of one is kept, or nothing."""

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from pytest_django.fixtures import Settings

from agents import sending, services
from agents.daemon import protocol
from agents.models import BootSession, Command, CommandStatus, Verb
from images import homes
from images.models import HomeTemplate
from tests.agents.gateways import Gateway, Reply, Visitor, gateway
from tests.agents.rooms import Room, make_room
from tests.services import Service, celery_sends_to, redis_server, wait_for

pytestmark = pytest.mark.slow
HOME = b"h" * 300_000
SENT = {"bytes": len(HOME), "sha256": hashlib.sha256(HOME).hexdigest()}


@pytest.fixture(scope="module")
def served(django_db_setup: None) -> Iterator[tuple[Gateway, Service]]:
    with redis_server() as queue, gateway(queue.url, poll_hold=1, capture_limit=3) as gate:
        yield gate, queue


@pytest.fixture
def room(transactional_db: None, served: tuple[Gateway, Service], settings: Settings) -> Iterator[Room]:
    with make_room(served[0], served[1].url, settings) as room:
        yield room
        assert uploads(room) == [], "a test left something"


def uploads(room: Room) -> list[Path]:
    directory = room.gate.directory / "uploads"
    return list(directory.iterdir()) if directory.is_dir() else []


def accepted(room: Room, session: BootSession, visitor: Visitor, most: int = homes.MOST_BYTES) -> Command:
    """A capture that the client has accepted; ``most`` bytes of it at the most."""
    with celery_sends_to("redis://127.0.0.1:1/0"):
        command = services.order(Verb.CAPTURE, [session.client], "why", room.world.otto).commands.get()
    with patch.object(homes, "MOST_BYTES", most):
        sending.send(Command.objects.filter(pk=command.pk))
    assert visitor.report(command.pk, protocol.ACCEPTED).json["accepted"] == [str(command.pk)]
    return command


def put(visitor: Visitor, command: object, body: bytes = HOME) -> Reply:
    """A whole upload, in pieces."""
    begin(visitor, command)
    for start in range(0, len(body), 100_000):
        piece(visitor, body[start : start + 100_000])
    visitor.connection.send(b"0\r\n\r\n")
    return visitor.reply()


def begin(visitor: Visitor, command: object) -> None:
    visitor.connection.putrequest("PUT", f"/agent/v1/capture?command={command}")
    visitor.connection.putheader("Transfer-Encoding", "chunked")
    visitor.connection.putheader("Authorization", f"Bearer {visitor.bearer}")
    visitor.connection.endheaders()


def piece(visitor: Visitor, body: bytes) -> None:
    visitor.connection.send(b"%x\r\n%s\r\n" % (len(body), body))


def status(command: Command) -> str:
    command.refresh_from_db()
    return command.status


def test_a_home_that_arrived_as_the_client_says_is_a_candidate(room: Room) -> None:
    session, visitor = room.running()
    command = accepted(room, session, visitor)
    reply = put(visitor, command.pk)
    assert (reply.status, reply.json) == (200, SENT)
    again = put(visitor, command.pk)
    assert (again.status, "arrived already" in again.json["detail"]) == (409, True)
    assert [path.read_bytes() for path in uploads(room)] == [HOME]
    assert visitor.report(command.pk, protocol.SUCCEEDED, "", SENT).json["accepted"] == [str(command.pk)]
    assert status(command) == CommandStatus.SUCCEEDED
    row = HomeTemplate.objects.get(origin="capture")
    assert [path.name for path in uploads(room)] == [str(row.archive)]
    uploads(room)[0].unlink()


def test_a_home_that_is_not_what_the_client_says_is_removed(room: Room) -> None:
    session, visitor = room.running()
    command = accepted(room, session, visitor)
    assert put(visitor, command.pk, HOME[:-1]).status == 200
    visitor.report(command.pk, protocol.SUCCEEDED, "", SENT)
    assert status(command) == CommandStatus.FAILED
    assert uploads(room) == []
    assert not HomeTemplate.objects.filter(origin="capture").exists()


def test_nothing_is_taken_without_an_accepted_capture_of_this_very_client(room: Room) -> None:
    session, visitor = room.running()
    other, stranger = room.running(2)
    command = accepted(room, session, visitor)
    for who, key, code in (
        (stranger, command.pk, 409),
        (visitor, uuid.uuid4(), 409),
        (visitor, "x", 400),
        (room.gate.visitor("0" * 64), command.pk, 401),
    ):
        assert put(who, key, b"x").status == code
    restart = room.send(other)
    assert stranger.report(restart.pk, protocol.ACCEPTED).status == 200
    assert put(stranger, restart.pk, b"x").status == 409
    assert status(command) == CommandStatus.ACCEPTED


def test_one_that_is_too_large_or_breaks_off_is_gone_and_may_come_again(room: Room) -> None:
    session, visitor = room.running()
    command = accepted(room, session, visitor, most=200_000)
    with room.gate.visitor(visitor.bearer) as large:
        assert put(large, command.pk).status == 413
    assert uploads(room) == []
    cut = room.gate.visitor(visitor.bearer)
    begin(cut, command.pk)
    piece(cut, HOME[:9000])
    wait_for(lambda: uploads(room), "some of it is there", 5)
    with room.gate.visitor(visitor.bearer) as second:
        answer = put(second, command.pk, b"x")
        assert (answer.status, "being received" in answer.json["detail"]) == (409, True)
    cut.close()
    wait_for(lambda: not uploads(room), "it is gone", 5)
    assert put(visitor, command.pk, b"x").status == 200
    visitor.report(command.pk, protocol.FAILED, "changed its mind")
    assert status(command) == CommandStatus.FAILED


def test_one_that_never_ends_is_gone_when_its_time_is_over(room: Room) -> None:
    session, visitor = room.running()
    command = accepted(room, session, visitor)
    begin(visitor, command.pk)
    piece(visitor, b"x")
    reply = visitor.reply()
    assert (reply.status, reply.json["detail"]) == (408, "The home did not come in time.")
    assert uploads(room) == []


def test_one_whose_capture_ends_meanwhile_is_gone(room: Room) -> None:
    session, visitor = room.running()
    command = accepted(room, session, visitor)
    begin(visitor, command.pk)
    piece(visitor, b"x")
    wait_for(lambda: uploads(room), "some of it is there", 5)
    Command.objects.filter(pk=command.pk).update(status=CommandStatus.LOST)
    visitor.connection.send(b"0\r\n\r\n")
    assert visitor.reply().status == 409
    assert uploads(room) == []
