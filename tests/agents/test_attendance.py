"""What the gateway writes of who is there: sessions opened, heard of, closed; and that no stranger's word outlives theirs."""

import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.utils import timezone

from agents import attendance, schedule, scripts
from agents.attendance import BadFacts, Said, clean_facts
from agents.models import BootSession, CommandStatus, SessionStatus, Verb
from fleet.exceptions import WrongState
from fleet.models import Client, ClientState
from tests.agents.boots import FACTS, boot, make_release, plan_of
from tests.agents.restores import make_command
from tests.world import World, make_client


@pytest.fixture
def client(world: World, keys: Path) -> Client:
    """A client whose class has a release."""
    make_release(world.gamer)
    return make_client(world.clubroom)


def shown(client: Client) -> str:
    client.refresh_from_db()
    return client.state


def said(session: BootSession, state: str, seconds: float = 0) -> dict[uuid.UUID, Said]:
    """A daemon's word, ``seconds`` from now."""
    return {session.pk: Said(state, timezone.now() + timedelta(seconds=seconds))}


def test_an_opened_session_keeps_the_facts_and_shows_the_client_booting_until_its_daemon_says_more(
    client: Client,
) -> None:
    session = boot(client)
    assert (session.status, session.facts["boot_ms"]) == (SessionStatus.OPEN, {"kernel": 900, "daemon": 4200})
    assert shown(client) == ClientState.BOOTING
    for state in ("ready", "in-use", "cycling"):
        attendance.says_state(session.pk, state)
        assert shown(client) == state


def test_a_client_is_in_the_network_that_its_daemon_says_and_stays_there_when_one_says_none(client: Client) -> None:
    for said, kept in (
        ("10.20.0.0/24", "10.20.0.0/24"),
        (None, "10.20.0.0/24"),
        ("", "10.20.0.0/24"),
        ("10.0.0.0/8", "10.0.0.0/8"),
    ):
        session = boot(client)
        facts = clean_facts(FACTS if said is None else {**FACTS, "network": said})
        attendance.open_session(session, str(session.boot_id), facts)
        client.refresh_from_db()
        assert client.network == kept


def test_a_session_opened_twice_stays_as_it_is(client: Client) -> None:
    session = boot(client)
    attendance.says_state(session.pk, "cycling")
    opened = session.opened_at
    attendance.open_session(session, str(session.boot_id), FACTS)
    session.refresh_from_db()
    assert (session.status, session.opened_at) == (SessionStatus.OPEN, opened)
    assert shown(client) == ClientState.CYCLING


def test_another_boot_cannot_open_a_session(client: Client) -> None:
    session = BootSession.objects.get(pk=plan_of(client)["session"])
    with pytest.raises(WrongState, match="another boot's"):
        attendance.open_session(session, str(uuid.uuid4()), FACTS)
    session.refresh_from_db()
    assert session.status == SessionStatus.BOOTING


@pytest.mark.parametrize("lost", [False, True], ids=["open", "lost"])
def test_a_superseded_session_opens_no_more_not_even_if_it_was_lost_before(client: Client, lost: bool) -> None:
    older = boot(client)
    if lost:
        BootSession.objects.filter(pk=older.pk).update(status=SessionStatus.LOST, ended_at=timezone.now())
    younger = boot(client)
    with pytest.raises(WrongState):
        attendance.open_session(older, str(older.boot_id), FACTS)
    attendance.says_state(older.pk, "in-use")
    attendance.seen(said(older, "in-use"))
    attendance.close_session(older)
    older.refresh_from_db()
    younger.refresh_from_db()
    assert (older.status, younger.status) == (SessionStatus.SUPERSEDED, SessionStatus.OPEN)
    assert shown(client) == ClientState.BOOTING


def test_a_session_that_counted_as_lost_is_open_again_as_soon_as_it_is_heard_of(client: Client) -> None:
    session = boot(client)
    session.refresh_from_db()
    schedule._lose(session)
    assert shown(client) == ClientState.LOST
    attendance.seen(said(session, "in-use", -60))  # parked since a minute
    session.refresh_from_db()
    assert (session.status, session.ended_at) == (SessionStatus.OPEN, None)
    assert shown(client) == ClientState.IN_USE


def test_who_is_heard_of_while_the_clock_judges_is_not_lost(client: Client) -> None:
    judged = boot(client)
    attendance.says_state(judged.pk, "ready")
    judged.refresh_from_db()
    with time_machine.travel(timezone.now() + timedelta(minutes=1), tick=False):
        attendance.seen(said(judged, "ready"))
        schedule._lose(judged)  # as it was read a moment before
    assert BootSession.objects.get(pk=judged.pk).status == SessionStatus.OPEN
    assert shown(client) == ClientState.READY


def test_a_client_shown_otherwise_than_its_daemon_says_is_mended(client: Client) -> None:
    session = boot(client)
    attendance.says_state(session.pk, "ready")
    Client.objects.filter(pk=client.pk).update(state=ClientState.LOST)
    attendance.seen(said(session, "ready", 1))
    assert shown(client) == ClientState.READY


def test_a_boot_script_for_its_mac_does_not_hide_a_client_that_runs(client: Client) -> None:
    session = boot(client)
    attendance.says_state(session.pk, "in-use")
    before = said(session, "in-use")
    scripts.client_script({"mac": client.mac})
    attendance.seen(before)
    assert shown(client) == ClientState.BOOTING, "it may have been reset, and its last poll stands parked still"
    attendance.seen(said(session, "in-use", 1))
    assert shown(client) == ClientState.IN_USE


def test_a_session_without_a_state_is_only_noted(client: Client) -> None:
    session = boot(client)
    BootSession.objects.update(last_seen=timezone.now() - timedelta(minutes=5))
    attendance.seen(said(session, ""))
    session.refresh_from_db()
    assert timezone.now() - session.last_seen < timedelta(seconds=5)
    assert shown(client) == ClientState.BOOTING


def test_many_sessions_are_noted_with_few_queries(client: Client, django_assert_max_num_queries: Any) -> None:
    present = said(boot(client), "booting") | {uuid.uuid4(): Said("ready", timezone.now()) for _ in range(1200)}
    with django_assert_max_num_queries(20):
        attendance.seen(present)


def test_bye_shows_the_client_off_and_proves_an_accepted_power_down(world: World, client: Client) -> None:
    command = make_command(world, client, Verb.POWEROFF)
    session = command.envelope.session
    assert session is not None
    for _ in range(2):
        attendance.close_session(session)
        command.refresh_from_db()
        session.refresh_from_db()
        assert (command.status, session.status) == (CommandStatus.SUCCEEDED, SessionStatus.CLOSED)
        assert shown(client) == ClientState.OFF


def test_bye_of_a_lost_session_counts(client: Client) -> None:
    session = boot(client)
    schedule._lose(session)
    attendance.close_session(session)
    assert shown(client) == ClientState.OFF


ADAPTER = {
    "address": "0000:00:02.0",
    "vendor": "1013",
    "device": "00b8",
    "subvendor": "1af4",
    "subdevice": "1100",
    "class": "030000",
}


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        (None, "not an object"),
        ([], "not an object"),
        ({**FACTS, "memory_kib": -1}, "memory_kib"),
        ({**FACTS, "memory_kib": 1 << 40}, "memory_kib"),
        ({**FACTS, "cpus": True}, "cpus"),
        ({**FACTS, "cpus": "2"}, "cpus"),
        ({key: value for key, value in FACTS.items() if key != "cpus"}, "cpus"),
        ({**FACTS, "kernel": "6.1\n"}, "kernel"),
        ({**FACTS, "product": "\ud800"}, "product"),
        ({**FACTS, "serial": "x" * 201}, "serial"),
        ({**FACTS, "network": 10}, "network"),
        ({**FACTS, "network": "10.20.0.5/24"}, "network"),
        ({**FACTS, "network": "10.20.0.0/255.255.255.0"}, "network"),
        ({**FACTS, "network": "fd00::/64"}, "network"),
        ({**FACTS, "boot_ms": []}, "boot_ms"),
        ({**FACTS, "boot_ms": {"kernel": float("nan")}}, "boot_ms"),
        ({**FACTS, "boot_ms": {"kernel": float("inf")}}, "boot_ms"),
        ({**FACTS, "boot_ms": {"../etc": 1}}, "boot_ms"),
        ({**FACTS, "boot_ms": {"a" * number: 1 for number in range(1, 22)}}, "boot_ms"),
        ({**FACTS, "adapters": {}}, "adapters"),
        ({**FACTS, "adapters": [ADAPTER] * 17}, "adapters"),
        ({**FACTS, "adapters": ["1013:00b8"]}, "adapter"),
        ({**FACTS, "adapters": [{**ADAPTER, "vendor": "\0"}]}, "adapter"),
        ({**FACTS, "adapters": [{**ADAPTER, "device": "\ud800"}]}, "adapter"),
        ({**FACTS, "adapters": [{**ADAPTER, "class": 30000}]}, "adapter"),
    ],
)
def test_facts_that_are_none_are_refused_by_name(facts: object, named: str) -> None:
    with pytest.raises(BadFacts, match=named):
        clean_facts(facts)


def test_facts_keep_what_is_known_and_drop_the_rest() -> None:
    assert clean_facts({**FACTS, "adapters": [{**ADAPTER, "x": 1}], "password": "x"}) == {
        **FACTS,
        "boot_ms": {"kernel": 900, "daemon": 4200},
        "adapters": [ADAPTER],
    }
