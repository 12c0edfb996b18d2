"""What protocol a daemon must speak, how the server speaks to it, and that nobody makes either of them speak an older one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from agents.daemon import protocol
from agents.models import BootSession, SessionStatus
from tests.agents.boots import FACTS, make_release, plan_of
from tests.agents.gateways import Gateway, gateway
from tests.agents.rooms import Room, make_room
from tests.services import Service, redis_server
from tests.world import World, make_client


def test_the_signed_plan_says_what_the_server_speaks(world: World, keys: Path) -> None:
    make_release(world.gamer)
    plan = plan_of(make_client(world.clubroom))
    assert plan["protocol"] == "1", "the initrd's conversation is another"
    assert plan["daemon"] == str(protocol.VERSION)


def test_the_floor_is_no_higher_than_what_the_server_speaks(settings: Settings) -> None:
    assert 1 <= settings.PROTOCOL_FLOOR <= protocol.VERSION
    assert set(protocol.VERBS) == set(range(1, protocol.VERSION + 1))


@pytest.fixture(scope="module")
def served(django_db_setup: None) -> Iterator[tuple[Gateway, Service]]:
    with redis_server() as queue, gateway(queue.url, poll_hold=1, protocol_floor=2) as gate:
        yield gate, queue


@pytest.fixture
def room(transactional_db: None, served: tuple[Gateway, Service], settings: Settings) -> Iterator[Room]:
    with make_room(served[0], served[1].url, settings) as room:
        yield room


def body(session: BootSession, speaks: int) -> dict[str, object]:
    return {"protocol": speaks, "nonce": "n" * 32, "boot_id": str(session.boot_id), "facts": FACTS}


@pytest.mark.slow
def test_a_daemon_below_the_floor_is_refused_and_its_client_says_why(room: Room) -> None:
    session, visitor = room.boot(room.client())
    for _ in range(2):
        answer = visitor.post("/agent/v1/session", body(session, 1))
        why = "Its daemon speaks protocol 1, and this server wants 2 at least: boot it with a newer version."
        assert (answer.status, answer.json["detail"]) == (400, why)
    session.refresh_from_db()
    session.client.refresh_from_db()
    assert session.client.trouble == why
    assert session.status == SessionStatus.BOOTING, "nothing can be ordered of it"
    assert visitor.post("/agent/v1/session", body(session, 2)).json["protocol"] == 2
    session.refresh_from_db()
    session.client.refresh_from_db()
    assert (session.status, session.protocol, session.client.trouble) == (SessionStatus.OPEN, 2, "")


@pytest.mark.slow
@pytest.mark.parametrize("speaks", [0, -1, 99, True, "2", 2.0, None])
def test_what_is_no_protocol_of_ours_is_refused(room: Room, speaks: int) -> None:
    session, visitor = room.boot(room.client())
    answer = visitor.post("/agent/v1/session", body(session, speaks))
    assert (answer.status, answer.json["detail"]) == (400, "This server speaks the protocols 1, 2, 3.")


@pytest.mark.slow
def test_what_a_session_speaks_is_kept_and_signed(room: Room) -> None:
    session, visitor = room.boot(room.client())
    assert visitor.open(str(session.boot_id)).json["protocol"] == protocol.VERSION
    session.refresh_from_db()
    assert session.protocol == protocol.VERSION
