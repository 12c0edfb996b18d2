"""Keys rotate under a gateway and a daemon that run: neither is restarted, and nothing that is on its way is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from agents import rotation, tasks
from agents.daemon import protocol
from agents.models import BootSession, Command, CommandStatus
from agents.signing import ids, public_keys
from fleet.slots import Slots
from tests.agents.boots import plan_of
from tests.agents.gateways import Gateway, Visitor, daemon, gateway, is_signed
from tests.agents.rooms import Room, make_room
from tests.services import Service, redis_server, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(django_db_setup: None) -> Iterator[tuple[Gateway, Service]]:
    with redis_server() as queue, gateway(queue.url, poll_hold=1) as gate:
        yield gate, queue


@pytest.fixture
def room(transactional_db: None, served: tuple[Gateway, Service], settings: Settings) -> Iterator[Room]:
    with make_room(served[0], served[1].url, settings) as room:
        yield room


def slots_of(room: Room, kind: str) -> Slots:
    return Slots.at(kind, room.gate.keys, room.gate.keys / f"{kind}.key")


def delivered(visitor: Visitor) -> list[dict[str, str]]:
    """What the gateway hands out, at its next sweep at the latest."""
    found: list[dict[str, str]] = []

    def came() -> bool:
        answer = visitor.poll()
        found.extend(answer.json["commands"] if answer.status == 200 else [])
        return bool(found)

    wait_for(came, "a command is delivered")
    return found


def test_a_daemon_that_booted_before_obeys_the_new_key(room: Room) -> None:
    """The daemon's own code, from its boot plan to its acceptance; nobody touches it."""
    slots = slots_of(room, "command")
    first = slots.present
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()  # what the daemon will say
    plan = plan_of(room.client(), boot_id=boot_id)
    with daemon(plan, room.gate.url) as running:
        session = BootSession.objects.get(pk=plan["session"])

        def is_open() -> bool:
            session.refresh_from_db()
            return session.status == "open"

        wait_for(is_open, "the daemon has opened its session")
        rotation.advance(slots, "publish")
        second = slots.next
        assert plan["command_keys"].startswith(f"{first}:"), "it booted with the old one alone"
        assert plan["command_keys"].count(":") == 1
        wait_for(lambda: not rotation.hindrances(slots, "switch"), "it has asked for the new one")
        rotation.advance(slots, "switch")
        command = room.send(session)
        assert command.envelope.key_id == second

        def accepted() -> bool:
            command.refresh_from_db()
            return command.accepted_at is not None

        wait_for(accepted, f"the daemon has accepted it:\n{running.log}")
        assert "unknown-key" not in running.log
    assert rotation.advance(slots, "retire") == []


def test_what_the_old_key_signed_is_still_delivered_and_good(room: Room) -> None:
    session, visitor = room.running()
    command = room.send(session)
    slots = slots_of(room, "command")
    first = slots.present
    rotation.advance(slots, "publish")
    wait_for(lambda: visitor.poll(cursor=99).headers["Fleet-Time"] == "0", "it is told to ask for the next key")
    keys = protocol.parse_keys(visitor.open(str(session.boot_id)).json["keys"])
    assert set(keys) == {first, slots.next}
    rotation.advance(slots, "switch")
    [wrapped] = delivered(visitor)
    assert wrapped["key"] == first
    found = protocol.authenticate(wrapped, keys, str(session.client_id), str(session.boot_id))
    assert found.command == str(command.pk)
    assert rotation.hindrances(slots, "retire"), "it is on its way"
    visitor.report(command.pk, protocol.ACCEPTED)
    assert rotation.advance(slots, "retire") == []


def test_nothing_is_given_to_a_daemon_that_would_not_believe_it(room: Room) -> None:
    """As when a stolen key is changed at once: it asks for the new one first, and is not told lies in between."""
    session, visitor = room.running()
    slots = slots_of(room, "command")
    rotation.advance(slots, "publish")
    assert rotation.advance(slots, "switch", now=True) != []
    command = room.send(session)
    assert visitor.poll().headers["Fleet-Time"] == "0"
    keys = protocol.parse_keys(visitor.open(str(session.boot_id)).json["keys"])
    [wrapped] = delivered(visitor)
    assert wrapped["key"] == slots.present
    assert protocol.authenticate(wrapped, keys, str(session.client_id), str(session.boot_id))
    command.refresh_from_db()
    assert command.status == CommandStatus.SENT
    rotation.advance(slots, "retire", now=True)
    wait_for(lambda: visitor.poll(cursor=99).headers["Fleet-Time"] == "0", "it is told to forget the old key, too")
    keys = protocol.parse_keys(visitor.open(str(session.boot_id)).json["keys"])
    assert list(keys) == [slots.present]
    assert int(visitor.poll(cursor=99).headers["Fleet-Time"]) > 0, "and then left in peace"


def test_the_gateway_signs_with_the_new_session_key_without_a_restart(room: Room) -> None:
    slots = slots_of(room, "session")
    rotation.advance(slots, "publish")
    session, visitor = room.running()
    assert session.session_keys == ids(public_keys(room.gate.keys, "session"))
    rotation.advance(slots, "switch")
    answer = visitor.open(str(session.boot_id))
    assert answer.headers["Fleet-Signature"].startswith(f"{slots.present}:")
    assert is_signed(answer, room.gate.keys)
    with room.gate.visitor() as firmware:
        assert firmware.get("/boot/v1/start.ipxe").status == 200
    rotation.advance(slots, "retire")


def test_a_running_sender_picks_it_up_between_two_orders(room: Room) -> None:
    sessions = [room.running(number)[0] for number in (1, 2)]
    slots = slots_of(room, "command")
    before = room.order(sessions[0])
    tasks.send_due()
    rotation.advance(slots, "publish")
    rotation.advance(slots, "switch", now=True)
    after = room.order(sessions[1])
    tasks.send_due()
    keys = [Command.objects.get(pk=command.pk).envelope.key_id for command in (before, after)]
    assert keys == [slots.old, slots.present]
    rotation.advance(slots, "retire", now=True)
