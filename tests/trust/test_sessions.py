"""Sessions are revoked: from that moment on their bearer is good for nothing, whichever gateway remembers it."""

import json
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from django.test import Client as Browser
from pytest_django.fixtures import Settings

from agents import revoking, sending
from agents.models import BootSession, CommandStatus, SessionStatus
from agents.sending import CHANNEL
from fleet.exceptions import Forbidden, WrongState
from fleet.models import AuditEntry, ClientState
from tests.agents.boots import boot, make_release
from tests.agents.gateways import Gateway, gateway
from tests.agents.rooms import Room, make_room
from tests.agents.test_sending import ordered, sent
from tests.api import call
from tests.services import Service, redis_server
from tests.world import World, make_client, person


@pytest.fixture
def session(world: World, keys: Path) -> BootSession:
    make_release(world.gamer)
    return boot(make_client(world.clubroom))


def test_a_volunteer_revokes_what_lives_and_what_may_come_back(world: World, session: BootSession) -> None:
    revoking.revoke(session, world.vera, "its seat was empty")
    session.refresh_from_db()
    assert session.status == SessionStatus.REVOKED
    assert session.ended_at is not None
    session.client.refresh_from_db()
    assert session.client.state == ClientState.LOST
    entry = AuditEntry.objects.get(action="session.revoked")
    assert (entry.actor, entry.detail) == ("vera", {"reason": "its seat was empty", "boot": str(session.boot_id)})
    with pytest.raises(WrongState, match="cannot become revoked: it is revoked"):
        revoking.revoke(session, world.vera)
    younger = boot(session.client)
    assert younger.status == SessionStatus.OPEN, "who boots anew is served"
    BootSession.objects.filter(pk=younger.pk).update(status=SessionStatus.LOST)
    younger.refresh_from_db()
    revoking.revoke(younger, world.vera)


@pytest.mark.parametrize("status", [SessionStatus.CLOSED, SessionStatus.SUPERSEDED])
def test_what_has_ended_is_not_revoked(world: World, session: BootSession, status: SessionStatus) -> None:
    BootSession.objects.update(status=status)
    with pytest.raises(WrongState):
        revoking.revoke(session, world.vera)
    assert not AuditEntry.objects.filter(action="session.revoked").exists()


def test_nobody_else_revokes(world: World, session: BootSession) -> None:
    world.otto.memberships.update(role="viewer")
    for somebody in (world.mallory, world.otto, person("nina")):
        with pytest.raises(Forbidden, match="You may not revoke"):
            revoking.revoke(session, somebody)
    session.refresh_from_db()
    assert session.status == SessionStatus.OPEN


def test_what_was_on_its_way_to_it_ends_too(world: World, session: BootSession) -> None:
    command = sent(ordered(world, session.client))
    assert command.status == CommandStatus.SENT
    revoking.revoke(session, world.vera)
    command.refresh_from_db()
    assert (command.status, command.reason) == (CommandStatus.EXPIRED, "its session was revoked")
    waiting = sent(ordered(world, session.client))
    assert (waiting.status, waiting.reason) == (CommandStatus.FAILED, "the client is not connected")


def test_over_the_api_and_in_the_admin(world: World, session: BootSession, client: Browser) -> None:
    path = f"sessions/{session.pk}/revoke/"
    assert call(world.mallory, path, {})[0] == 404
    status, said = call(world.vera, path, {"reason": "why"})
    assert (status, said["status"]) == (200, "revoked")
    assert call(world.vera, path, {})[0] == 409
    client.force_login(world.vera)
    younger = boot(session.client)
    chosen = {"action": "revoke", "_selected_action": [str(younger.pk)]}
    page = client.post("/admin/agents/bootsession/", chosen, follow=True).content.decode()
    assert "is served again when it boots anew" in page
    assert "cannot become revoked" in client.post("/admin/agents/bootsession/", chosen, follow=True).content.decode()
    youngest = boot(session.client)
    client.post("/admin/fleet/client/", {"action": "revoke", "_selected_action": [str(session.client_id)]})
    youngest.refresh_from_db()
    assert youngest.status == SessionStatus.REVOKED
    assert AuditEntry.objects.filter(action="session.revoked").count() == 3


# --- the gateway as the process it is ---------------------------------------------------------------------------------

HOLD_S = 20


@pytest.fixture(scope="module")
def served(django_db_setup: None) -> Iterator[tuple[Gateway, Service]]:
    """One whose polls are held so long that no answer of theirs comes of time."""
    with redis_server() as queue, gateway(queue.url, poll_hold=HOLD_S) as gate:
        yield gate, queue


@pytest.fixture
def room(transactional_db: None, served: tuple[Gateway, Service], settings: Settings) -> Iterator[Room]:
    with make_room(served[0], served[1].url, settings) as room:
        yield room


@pytest.mark.slow
@pytest.mark.parametrize("redis_is_there", [True, False], ids=["by a hint", "by the sweep"])
def test_a_parked_poll_ends_and_no_route_knows_the_bearer_any_more(
    room: Room, settings: Settings, redis_is_there: bool
) -> None:
    session, visitor = room.running()
    visitor.park()
    if not redis_is_there:
        sending.connection.cache_clear()
        settings.REDIS_URL = "redis://127.0.0.1:1/0"
    revoking.revoke(session, room.world.vera)
    answer = visitor.reply()
    assert (answer.status, answer.json["detail"]) == (401, "This session was revoked.")
    for method, path in (
        *(("GET", "next?cursor=0&state=ready"), ("POST", "session"), ("POST", "reports"), ("POST", "bye")),
        *(("PUT", "writes"), ("PUT", "capture?command=12345678-1234-1234-1234-123456789abc")),
    ):
        assert visitor.ask(method, f"/agent/v1/{path}", b"{}").status == 401, path
    session.refresh_from_db()
    assert session.status == SessionStatus.REVOKED, "nothing it said opened it again"


@pytest.mark.slow
def test_a_hint_that_is_a_lie_costs_nobody_a_session(room: Room) -> None:
    """Whoever has Redis can have a gateway look sessions up. The database says what is so."""
    session, visitor = room.running()
    visitor.park()
    with redis.Redis.from_url(room.redis_url) as somebody:
        for _ in range(3):
            somebody.publish(CHANNEL, json.dumps({"cut_off": [str(session.pk)]}))
    assert not select.select([visitor.connection.sock], [], [], 1)[0], "the poll stays parked"
    command = room.send(session)
    assert room.opened(visitor.reply(), session) == [str(command.pk)]


@pytest.mark.slow
@pytest.mark.parametrize("rubbish", ["[]", "{}", '{"cut_off": 7}', '{"cut_off": ["x"]}', '{"clients": null}'])
def test_rubbish_from_redis_is_told_and_harms_nobody(room: Room, rubbish: str) -> None:
    _, visitor = room.running()
    with redis.Redis.from_url(room.redis_url) as somebody:
        somebody.publish(CHANNEL, rubbish)
    assert visitor.get("/boot/v1/start.ipxe").status == 200
