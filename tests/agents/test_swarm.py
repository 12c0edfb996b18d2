"""A swarm's clients against a real gateway: they boot, obey, misbehave, and the verdict counts what came of it."""

import json
import threading
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from pytest_django.fixtures import Settings

from agents import sending, services
from agents.models import BootSession, Command, HomeRestore, SessionStatus, Verb
from agents.swarm.ledger import PREFIX, Ledger
from agents.swarm.nature import Nature
from fleet.models import Client
from tests.agents.gateways import gateway
from tests.agents.rooms import Room, make_room
from tests.services import celery_sends_to, redis_server, wait_for
from tests.world import World

pytestmark = pytest.mark.slow
CLIENTS = 20


@pytest.fixture
def room(transactional_db: None, settings: Settings) -> Iterator[Room]:
    with redis_server() as queue, gateway(queue.url, poll_hold=5) as gate, make_room(gate, queue.url, settings) as room:
        yield room


def swarm(room: Room, verb: Verb, **options: Any) -> tuple[dict[str, float], str]:
    """A swarm of which all are ordered something once they are there; its verdict, and what it printed."""
    failed: list[BaseException] = []

    def organiser() -> None:
        try:
            there = BootSession.objects.filter(client__mac__startswith=PREFIX, status=SessionStatus.OPEN)
            wait_for(lambda: there.count() == CLIENTS, "the swarm is connected", 60)
            clients = list(Client.objects.filter(mac__startswith=PREFIX))
            with celery_sends_to("redis://127.0.0.1:1/0"):
                services.order(verb, clients, "a rehearsal", room.world.vera)
            sending.send(Command.objects.select_related("client", "order__site"))
            wait_for(lambda: not Command.objects.filter(status__in=Command.OPEN).exists(), "all have ended", 60)
        except BaseException as error:
            failed.append(error)
        finally:
            connection.close()

    thread, output = threading.Thread(target=organiser), StringIO()
    thread.start()
    try:
        call_command(
            "swarm",
            *(
                "--clients",
                str(CLIENTS),
                "--commands",
                str(CLIENTS),
                "--seconds",
                "90",
                "--site",
                room.world.clubroom.slug,
                "--gateway",
                room.gate.url,
            ),
            *(word for name, value in options.items() for word in (f"--{name}", str(value))),
            stdout=output,
            stderr=StringIO(),
        )
    finally:
        thread.join()
    assert failed == []
    printed = output.getvalue()
    return json.loads(printed.splitlines()[-1]), printed


def test_all_are_cycled_once_and_each_restore_has_its_row(room: Room) -> None:
    found, _ = swarm(room, Verb.CYCLE, delay=0.2)
    assert (found["commands"], found["succeeded"], found["boots"]) == (CLIENTS, CLIENTS, CLIENTS)
    assert found["lost"] == found["twice"] == found["unaudited"] == 0
    assert 0 < found["accepted_p50_s"] <= found["accepted_p99_s"] <= found["ended_s"]
    assert 0 < found["recorded_s"] < found["ended_s"]
    assert HomeRestore.objects.count() == CLIENTS


def test_clients_that_misbehave_lose_nothing_and_do_nothing_twice(room: Room) -> None:
    found, printed = swarm(room, Verb.CYCLE, duplicate=0.5, drop=0.2, fail=0.3, reboot=0.2, skew=300)
    assert found["commands"] == CLIENTS
    assert found["succeeded"] < CLIENTS
    assert found["boots"] > CLIENTS
    assert found["lost"] == found["twice"] == found["unaudited"] == 0
    assert "dropped by the swarm" in printed


def test_a_restart_is_proved_by_the_boot_that_follows(room: Room) -> None:
    found, _ = swarm(room, Verb.RESTART, delay=0.1)
    assert (found["succeeded"], found["boots"]) == (CLIENTS, 2 * CLIENTS)
    assert found["lost"] == found["twice"] == 0


def test_a_restore_without_a_row_a_command_done_twice_and_one_that_never_ended_are_counted(room: Room) -> None:
    session, _ = room.running()
    Client.objects.filter(pk=session.client_id).update(mac=f"{PREFIX}00:00:00:01")
    ledger = Ledger(began=0)
    command = str(room.send(session, Verb.CYCLE).pk)
    ledger.effects[command] += 2
    ledger.cycles.add(command)
    found = ledger.verdict()
    assert (found["lost"], found["twice"], found["unaudited"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--clients", "0"], "1 to 50000"),
        (["--site", "nowhere"], "no site 'nowhere'"),
        (["--drop", "2"], "--drop is 2"),
        (["--delay", "-1"], "--delay is -1"),
        ([], "No version is released"),
    ],
)
def test_what_cannot_be_played_is_refused_by_name(world: World, words: list[str], complaint: str) -> None:
    with pytest.raises(CommandError, match=complaint):
        call_command("swarm", "--site", world.clubroom.slug, *words)


def test_a_seed_gives_the_same_dice() -> None:
    nature = Nature(drop=0.5)
    assert nature.random_of(1, 7).random() == nature.random_of(1, 7).random() != nature.random_of(2, 7).random()
