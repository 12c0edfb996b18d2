"""What clients say of holds, warnings and messages: taken from their own bearer alone, bounded, and shown to people."""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from agents import attendance, evidence, holds, services, tasks
from agents.daemon import protocol
from agents.models import BootSession, Command, CommandStatus, Verb
from fleet.models import AuditEntry
from tests.agents.boots import FACTS, boot, make_release
from tests.agents.gateways import gateway
from tests.agents.rooms import Room, make_room
from tests.services import redis_server
from tests.world import World, make_client


@pytest.fixture
def session(world: World, keys: Path) -> BootSession:
    make_release(world.gamer)
    session = boot(make_client(world.clubroom))
    BootSession.objects.update(protocol=2)
    session.refresh_from_db()
    return session


def in_minutes(minutes: float) -> int:
    return round((time.time() + 60 * minutes) * 1000)


def accepted(world: World, session: BootSession, verb: Verb, args: dict[str, Any]) -> Command:
    command = services.order(verb, [session.client], "why", world.vera, args=args).commands.get()
    tasks.send_due()
    assert tell(command, protocol.ACCEPTED) == ""
    command.refresh_from_db()
    return command


def tell(command: Command, state: str, **result: object) -> str:
    command.refresh_from_db()
    assert command.envelope.session is not None
    return evidence.take_report(command.envelope.session, protocol.report(str(command.pk), state, 0, "", result))


def test_a_hold_is_noted_until_it_is_released_and_said_twice_it_changes_nothing(session: BootSession) -> None:
    said: dict[str, object] = {"reason": "match running", "until_ms": in_minutes(90)}
    reason, until = holds.clean(said)
    for _ in range(2):
        holds.take(session, reason, until)
    client = session.client
    client.refresh_from_db()
    assert (client.hold_reason, client.hold_until) == ("match running", until)
    assert AuditEntry.objects.get(action="client.held").detail["reason"] == "match running"
    holds.take(session, *holds.clean({"reason": "", "until_ms": 0}))
    client.refresh_from_db()
    assert (client.hold_reason, client.hold_until) == ("", None)
    assert AuditEntry.objects.filter(action="client.released").count() == 1


def test_no_client_is_held_for_longer_than_a_few_hours() -> None:
    _, until = holds.clean({"reason": "for ever", "until_ms": in_minutes(60 * 24 * 365)})
    assert until is not None
    assert until <= timezone.now() + holds.LONGEST + timedelta(minutes=6)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"reason": 7},
        {"reason": "x" * 101, "until_ms": 1},
        {"reason": "a\x1b[2J", "until_ms": 1},
        {"reason": "x"},
        {"reason": "x", "until_ms": True},
        {"reason": "x", "until_ms": -1},
        {"reason": "x", "until_ms": 1 << 60},
    ],
)
def test_what_is_no_hold_is_refused(said: dict[str, object]) -> None:
    with pytest.raises(holds.BadHold):
        holds.clean(said)


def test_a_new_boot_forgets_who_held_the_one_before(world: World, session: BootSession) -> None:
    holds.take(session, "match running", timezone.now() + timedelta(hours=1))
    attendance.open_session(session, str(session.boot_id), attendance.clean_facts(FACTS))
    session.client.refresh_from_db()
    assert session.client.hold_reason, "the same boot: its daemon began anew"
    boot(session.client)
    session.client.refresh_from_db()
    assert (session.client.hold_reason, session.client.hold_until) == ("", None)


def test_a_message_ends_when_it_was_shown(world: World, session: BootSession) -> None:
    command = accepted(world, session, Verb.MESSAGE, {"text": "Dinner is ready"})
    assert command.envelope.args == {"text": "Dinner is ready", "seconds": 60}
    assert tell(command, protocol.SUCCEEDED, shown="tty1") == ""
    command.refresh_from_db()
    assert (command.status, command.result) == (CommandStatus.SUCCEEDED, {"shown": "tty1"})


def test_who_warns_its_user_first_is_waited_for_until_it_acts(
    world: World, session: BootSession, settings: Settings, heard: None
) -> None:
    command = accepted(world, session, Verb.CYCLE, {"warn_s": 600, "text": "Ten minutes", "more": 2})
    later = timezone.now() - timedelta(seconds=settings.COMMAND_LIFE + 5)
    Command.objects.update(accepted_at=later)
    tasks.tick()
    command.refresh_from_db()
    assert command.status == CommandStatus.ACCEPTED, "the warning lasts ten minutes"
    assert tell(command, protocol.ACCEPTED, acts_at_ms=in_minutes(15)) == ""
    Command.objects.update(accepted_at=timezone.now() - timedelta(seconds=600 + settings.COMMAND_LIFE + 5))
    tasks.tick()
    command.refresh_from_db()
    assert command.status == CommandStatus.ACCEPTED, "the user asked for five minutes more"
    Command.objects.update(acts_at=timezone.now() - timedelta(seconds=settings.COMMAND_LIFE + 5))
    tasks.tick()
    command.refresh_from_db()
    assert command.status == CommandStatus.LOST


@pytest.mark.parametrize("rubbish", ["soon", -1, True, 1 << 60, None, [1]])
def test_a_moment_that_is_none_is_no_moment(world: World, session: BootSession, rubbish: object) -> None:
    command = accepted(world, session, Verb.CYCLE, {"warn_s": 600})
    assert tell(command, protocol.ACCEPTED, acts_at_ms=rubbish) == ""
    command.refresh_from_db()
    assert command.acts_at is None


@pytest.fixture
def room(transactional_db: None, settings: Settings) -> Iterator[Room]:
    with redis_server() as queue, gateway(queue.url) as gate, make_room(gate, queue.url, settings) as room:
        yield room


@pytest.mark.slow
def test_a_client_tells_its_hold_over_the_wire(room: Room) -> None:
    session, visitor = room.running()
    body = b'{"reason": "finals", "until_ms": %d}' % in_minutes(30)
    assert visitor.ask("PUT", "/agent/v1/hold", body).status == 204
    session.client.refresh_from_db()
    assert session.client.hold_reason == "finals"
    for rubbish in (b"{}", b"[", b'{"reason": 7}', b'{"reason": "x", "until_ms": "soon"}'):
        assert visitor.ask("PUT", "/agent/v1/hold", rubbish).status == 400
    assert room.gate.visitor("f" * 64).ask("PUT", "/agent/v1/hold", body).status == 401
