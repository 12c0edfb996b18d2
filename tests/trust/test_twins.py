"""Two machines with one MAC address raise an alarm, which a person takes back; a reboot raises none."""

import uuid
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.test import Client as Browser
from django.utils import timezone
from pytest_django.fixtures import Settings

from agents import attendance, netboot, twins
from agents.board.reading import read
from agents.models import BootSession, SessionStatus
from fleet import services
from fleet.exceptions import Forbidden, WrongState
from fleet.models import AuditEntry, Client
from tests.agents.boots import boot, form, make_release, plan_of, token_of
from tests.agents.gateways import Gateway, gateway
from tests.agents.rooms import Room, make_room
from tests.api import call
from tests.services import Service, redis_server, wait_for
from tests.world import World, make_client

LATER = twins.LATE + timedelta(seconds=1)


@pytest.fixture
def client_pc(world: World, keys: object) -> Client:
    make_release(world.gamer)
    return make_client(world.clubroom)


def alarmed(client: Client) -> bool:
    client.refresh_from_db()
    return client.twin_at is not None


def some_time_ago(session: BootSession) -> None:
    BootSession.objects.filter(pk=session.pk).update(planned_at=timezone.now() - LATER)


def entries() -> list[AuditEntry]:
    return list(AuditEntry.objects.filter(action="client.twin"))


def test_a_superseded_boot_that_still_speaks_is_another_machine(client_pc: Client) -> None:
    older = boot(client_pc)
    younger = boot(client_pc)
    some_time_ago(younger)
    assert not alarmed(client_pc), "two boots are a reboot"
    twins.heard(older.pk)
    assert alarmed(client_pc)
    [entry] = entries()
    assert entry.detail == {"mac": client_pc.mac, "boots": [str(older.boot_id), str(younger.boot_id)]}
    twins.heard(older.pk)
    assert len(entries()) == 1, "one entry for one alarm"


def test_its_last_words_that_come_late_are_not(client_pc: Client) -> None:
    """A gateway that stood still reads them together with the next boot's first ones."""
    older = boot(client_pc)
    boot(client_pc)
    twins.heard(older.pk)
    assert not alarmed(client_pc)


@pytest.mark.parametrize("status", [SessionStatus.CLOSED, SessionStatus.LOST, SessionStatus.REVOKED])
def test_nobody_is_there_twice_when_the_younger_is_gone(client_pc: Client, status: SessionStatus) -> None:
    older, younger = boot(client_pc), boot(client_pc)
    some_time_ago(younger)
    BootSession.objects.filter(pk=younger.pk).update(status=status)
    twins.heard(older.pk)
    assert not alarmed(client_pc)


def test_boots_that_take_turns_are_two_machines(client_pc: Client) -> None:
    one, other = str(uuid.uuid4()), str(uuid.uuid4())
    for boot_id in (one, other):
        plan_of(client_pc, boot_id=boot_id)
        assert not alarmed(client_pc)
    plan_of(client_pc, boot_id=one)
    assert alarmed(client_pc), "A, B, A"
    assert entries()[0].detail["boots"] == [one, other]


def test_reboots_however_many_are_one_machine(client_pc: Client) -> None:
    for _ in range(5):
        session = boot(client_pc)
        some_time_ago(session)
    BootSession.objects.filter(pk=session.pk).update(status=SessionStatus.LOST)
    boot(client_pc)
    closing = BootSession.objects.get(client=client_pc, status=SessionStatus.OPEN)
    attendance.close_session(closing)
    boot(client_pc)
    assert not alarmed(client_pc)


def test_a_plan_asked_for_twice_by_one_boot_is_one_machine(client_pc: Client) -> None:
    """It waited to be admitted, or its answer was lost: same boot, nobody in between."""
    boot_id = str(uuid.uuid4())
    Client.objects.update(admission="pending")
    token = token_of(client_pc.mac)
    netboot.boot_plan(form(token, client_pc.mac, boot_id=boot_id))
    Client.objects.update(admission="in-service")
    netboot.boot_plan(form(token, client_pc.mac, boot_id=boot_id))
    plan_of(client_pc, boot_id=boot_id)
    assert not alarmed(client_pc)


def test_who_may_admit_takes_the_alarm_back_and_it_comes_again(world: World, client_pc: Client) -> None:
    older, younger = boot(client_pc), boot(client_pc)
    some_time_ago(younger)
    twins.heard(older.pk)
    world.otto.memberships.update(role="viewer")
    for somebody in (world.mallory, world.otto):
        with pytest.raises(Forbidden):
            services.take_back_twin(client_pc, somebody)
    services.take_back_twin(client_pc, world.vera)
    assert not alarmed(client_pc)
    with pytest.raises(WrongState, match="There is no such alarm"):
        services.take_back_twin(client_pc, world.vera)
    assert AuditEntry.objects.get(action="client.twin-taken-back").actor == "vera"
    twins.heard(older.pk)
    assert alarmed(client_pc)
    assert len(entries()) == 2


def test_the_alarm_is_shown_and_changes_nothing_by_itself(world: World, client_pc: Client, client: Browser) -> None:
    session = boot(client_pc)
    Client.objects.update(twin_at=timezone.now())
    session.refresh_from_db()
    assert session.status == SessionStatus.OPEN
    client.force_login(world.vera)
    page = client.get("/sites/clubroom/").content.decode()
    assert "Another PC has its MAC address" in page
    assert "Another PC has the MAC address of A1 (pc-01)" in page
    listed = client.get("/admin/fleet/client/?twin_at__isempty=0").content.decode()
    assert "pc-01" in listed
    assert call(world.vera, "clients/?twin=true")[1]["results"][0]["twin_at"] is not None
    assert call(world.vera, "clients/?twin=false")[1]["results"] == []
    chosen = {"action": "take_back_twin", "_selected_action": [str(client_pc.pk)]}
    client.post("/admin/fleet/client/", chosen)
    assert not alarmed(client_pc)
    assert read(world.clubroom).sections["notices"] == []
    assert call(world.vera, f"clients/{client_pc.pk}/take-back-twin/", {})[0] == 409
    assert call(world.mallory, f"clients/{client_pc.pk}/take-back-twin/", {})[0] == 404


# --- the gateway as the process it is ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(django_db_setup: None) -> Iterator[tuple[Gateway, Service]]:
    with redis_server() as queue, gateway(queue.url, poll_hold=1) as gate:
        yield gate, queue


@pytest.fixture
def room(transactional_db: None, served: tuple[Gateway, Service], settings: Settings) -> Iterator[Room]:
    with make_room(served[0], served[1].url, settings) as room:
        yield room


@pytest.mark.slow
@pytest.mark.parametrize("path", ["next?cursor=0&state=ready", "bye"])
def test_the_gateway_hears_the_one_that_was_superseded(room: Room, path: str) -> None:
    session, visitor = room.running()
    younger = BootSession.objects.get(pk=plan_of(session.client)["session"])
    wait_for(lambda: visitor.poll().status == 409, "the gateway found out that another one had given a plan")
    some_time_ago(younger)
    asked = visitor.get(f"/agent/v1/{path}") if "next" in path else visitor.post(f"/agent/v1/{path}", {})
    assert asked.status == 409
    assert alarmed(session.client)
    younger.refresh_from_db()
    assert younger.status == SessionStatus.BOOTING, "whoever of them is the right one, nothing is done to the other"
