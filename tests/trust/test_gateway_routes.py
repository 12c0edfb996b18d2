"""Every route of the gateway: what wrong credentials get there, and that each has a bound on how much it admits."""

import hashlib
import json
import urllib.parse
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from pytest_django.fixtures import Settings

from agents.gateway.app import Gateway as Application
from agents.gateway.http import Answer, Bucket, Request
from agents.models import BootSession, BootToken
from agents.revoking import revoke
from fleet import services
from fleet.models import Client
from tests.agents.boots import FACTS, form, plan_of, token_of
from tests.agents.gateways import Gateway, Line, Reply, Visitor, gateway
from tests.agents.rooms import Room, make_room
from tests.agents.test_gateway_input import put
from tests.services import Service, redis_server
from tests.trust.routes import BEARER, BOOT_TOKEN, FIRMWARE, GATEWAY, MONITOR
from tests.world import make_client

STRANGER = "52:54:00:00:00:99"


@pytest.fixture
def application(keys: Path) -> Application:
    """The gateway's own table of routes, in this process."""
    return Application()


def test_every_route_says_who_may_ask_it(application: Application) -> None:
    there = set(application._routes)
    assert sorted(there - GATEWAY) == [], "routes without a stated answer: put them into tests/trust/routes.py"
    assert sorted(GATEWAY - there) == [], "no such routes any more"


# --- bounds -----------------------------------------------------------------------------------------------------------


def asked(application: Application, method: str, path: str) -> Answer:
    """The answer of the application itself: no database, no other process."""
    line = Line()
    application.handle(Request(method, path, {}, line))
    return line.answers.get_nowait()


@pytest.mark.parametrize("route", [*sorted(GATEWAY), ("GET", "/store/" + "0" * 64)], ids=lambda route: route[1])
def test_each_route_admits_so_much_and_then_says_when_to_come_again(
    application: Application, route: tuple[str, str]
) -> None:
    method, path = route
    if path.startswith("/store/"):
        bucket = application._store
    else:
        handler, bucket = application._routes[route]
        application._routes[route] = (handler, bucket)
    assert 0 < bucket._rate <= 2000
    assert 1 <= bucket._burst <= 50000
    bucket._level, bucket._rate = 0.0, 0.05  # all that it admits at once has just been
    answer = asked(application, method, path)
    assert answer.status == 429
    assert int(answer.headers["Retry-After"]) == 21
    assert json.loads(answer.body)["detail"] == "Too many requests at once."


def test_a_bucket_fills_again() -> None:
    bucket = Bucket(1000.0, 1.0)
    bucket.admit()
    bucket._at -= 1.0  # a second ago
    bucket.admit()


# --- credentials ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(django_db_setup: None) -> Iterator[tuple[Gateway, Service]]:
    with redis_server() as queue, gateway(queue.url, poll_hold=1, metrics_token="m" * 40) as gate:
        yield gate, queue


@pytest.fixture
def room(transactional_db: None, served: tuple[Gateway, Service], settings: Settings) -> Iterator[Room]:
    with make_room(served[0], served[1].url, settings) as room:
        yield room


BODIES: dict[str, dict[str, Any]] = {
    "/agent/v1/session": {"protocol": 2, "nonce": "n" * 32, "boot_id": "x", "facts": FACTS},
    "/agent/v1/reports": {"reports": []},
    "/agent/v1/writes": {"writes": []},
    "/agent/v1/bye": {},
}
QUERIES = {
    "/agent/v1/next": "?cursor=0&state=ready",
    "/agent/v1/capture": "?command=12345678-1234-1234-1234-123456789abc",
    "/boot/v1/client.ipxe": f"?mac={STRANGER}&site=clubroom",
}


def ask(
    gate: Gateway, route: tuple[str, str], headers: dict[str, str] | None = None, body: bytes | None = None
) -> Reply:
    method, path = route
    content = body if body is not None else json.dumps(BODIES[path]).encode() if path in BODIES else None
    with Visitor(gate.port) as visitor:
        return visitor.ask(method, path + QUERIES.get(path, ""), content, **(headers or {}))


@pytest.mark.slow
def test_a_daemons_routes_know_the_bearer_of_a_living_session_and_nothing_else(room: Room) -> None:
    client = room.client()
    unused = token_of(client.mac)
    plan = plan_of(client)
    lost = BootSession.objects.get(pk=plan["session"])
    superseded = plan["bearer"]
    plan_of(client)
    used = BootToken.objects.filter(client=client).exclude(used_at=None).first()
    assert used is not None
    session, visitor = room.running(2)
    revoked_session, revoked = room.running(3)
    revoke(revoked_session, room.world.vera)
    api = services.issue_token(User.objects.create_superuser("root"), "script")[1]
    wrong = {
        "nobody": {},
        "a bearer of nobody's": {"Authorization": f"Bearer {'0' * 64}"},
        "not enough of one": {"Authorization": f"Bearer {visitor.bearer[:63]}"},
        "too much of one": {"Authorization": f"Bearer {visitor.bearer}0"},
        "one in capitals": {"Authorization": f"Bearer {visitor.bearer.upper()}"},
        "its hash, as the database has it": {"Authorization": f"Bearer {session.bearer_digest}"},
        "another scheme": {"Authorization": f"Basic {visitor.bearer}"},
        "no scheme": {"Authorization": visitor.bearer},
        "a boot token": {"Authorization": f"Bearer {unused}"},
        "a boot token of that length": {"Authorization": f"Bearer {unused * 2}"},
        "a superuser's API token": {"Authorization": f"Bearer {api}"},
        "the token for metrics": {"Authorization": f"Bearer {'m' * 40}"},
        "a bearer in the address": {"X-Bearer": visitor.bearer},
        "a revoked one": {"Authorization": f"Bearer {revoked.bearer}"},
    }
    before = Client.objects.values("pk", "state").order_by("pk")
    kept = list(before)
    for route in sorted(BEARER):
        for name, headers in wrong.items():
            answer = ask(room.gate, route, headers)
            assert answer.status == 401, (route, name, answer.status)
            assert answer.headers["WWW-Authenticate"] == "Bearer", (route, name)
        answer = ask(room.gate, route, {"Authorization": f"Bearer {superseded}"})
        assert answer.status == 409, (route, answer.status)
        answer = ask(room.gate, route, {"Authorization": f"Bearer {visitor.bearer}"})
        assert answer.status not in (401, 403, 404, 405), (route, answer.status)
        assert answer.status < 500, (route, answer.status)
    lost.refresh_from_db()
    assert lost.status == "superseded"
    now = list(before)
    assert [row for row in now if row["pk"] == client.pk] == [row for row in kept if row["pk"] == client.pk]


@pytest.mark.slow
def test_a_boot_asks_with_its_own_token_once_and_in_time(room: Room) -> None:
    mine, theirs = room.client(1), room.client(2)
    other = token_of(theirs.mac)
    used = token_of(mine.mac)
    expired = token_of(mine.mac)
    api = services.issue_token(User.objects.create_superuser("root"), "script")[1]
    session, visitor = room.running(3)
    plan_route, trouble_route = sorted(BOOT_TOKEN)

    def say(route: tuple[str, str], token: str, mac: str = mine.mac, headers: dict[str, str] | None = None) -> Reply:
        fields = form(token, mac) if route == plan_route else {"token": token, "mac": mac}
        if route == trouble_route:
            fields |= {"stage": "root", "error": "mount", "detail": "x"}
        return ask(room.gate, route, headers, urllib.parse.urlencode(fields).encode())

    wrong = {
        "none": "",
        "an invented one": "0" * 32,
        "another client's": other,
        "a session's bearer": visitor.bearer,
        "an API token": api,
        "its hash, as the database has it": BootToken.objects.filter(client=mine).values_list("digest", flat=True)[0],
    }
    for route, status in BOOT_TOKEN.items():
        for name, token in wrong.items():
            answer = say(route, token)
            assert answer.status == status, (route, name, answer.status)
        answer = say(route, "", headers={"Authorization": f"Bearer {used}"})
        assert answer.status == status, (route, "in a header")
        assert say(route, used, mac=theirs.mac).status == status, (route, "of another MAC")
    assert say(plan_route, used).status == 200
    assert b"action=boot" not in say(plan_route, used).body
    assert say(plan_route, used).status == 403, "twice"
    assert say(trouble_route, used).status == 204, "who has booted with it may still say that it failed"
    BootToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert say(plan_route, expired).status == 403
    session.refresh_from_db()
    assert session.status == "open"


@pytest.mark.slow
def test_firmware_is_answered_without_credentials_and_gets_no_secret_but_a_token_of_its_own(room: Room) -> None:
    private = (room.gate.keys / "session.key").read_text().strip().partition(":")[2]
    for route, status in FIRMWARE.items():
        answer = ask(room.gate, route)
        assert answer.status == status, route
        assert private.encode() not in answer.body, route
    pending = Client.objects.get(mac=STRANGER)
    assert pending.admission == "pending"
    token = answer.body.partition(b"fleet.token=")[2][:32].decode()
    plan = ask(room.gate, min(BOOT_TOKEN), body=urllib.parse.urlencode(form(token, STRANGER)).encode())
    assert b"action=wait" in plan.body
    assert b"bearer" not in plan.body, "a token for a MAC is good for nothing before somebody admits the client"
    for admission in ("maintenance", "retired"):
        kept_out = make_client(room.world.clubroom, f"52:54:00:00:01:{len(admission):02x}", admission=admission)
        with Visitor(room.gate.port) as firmware:
            answer = firmware.get(f"/boot/v1/client.ipxe?mac={kept_out.mac}")
        assert answer.status == 200
        assert b"fleet.token=" not in answer.body, admission
    assert not BootToken.objects.exclude(client=pending).exists()


@pytest.mark.slow
def test_metrics_and_the_store(room: Room) -> None:
    session, visitor = room.running()
    api = services.issue_token(User.objects.create_superuser("root"), "script")[1]
    for route, status in MONITOR.items():
        for secret in ("", "x" * 40, visitor.bearer, api, "m" * 39):
            headers = {"Authorization": f"Bearer {secret}"} if secret else {}
            assert ask(room.gate, route, headers).status == status, secret
        assert ask(room.gate, route, {"Authorization": f"Bearer {'m' * 40}"}).status == 200
    content = b"an artefact"
    put(room.gate.store, content)
    known = ("GET", f"/store/{hashlib.sha256(content).hexdigest()}")
    for headers in ({}, {"Authorization": f"Bearer {'0' * 64}"}, {"Authorization": f"Bearer {visitor.bearer}"}):
        assert ask(room.gate, known, headers).body == content, "public, and checked by its name"
        assert ask(room.gate, ("GET", "/store/" + "0" * 64), headers).status == 404
        assert ask(room.gate, ("PUT", known[1]), headers, b"x").status == 405
    assert session.client_id


@pytest.mark.slow
def test_other_methods_and_other_addresses_have_no_credentials_at_all(room: Room) -> None:
    _, visitor = room.running()
    headers = {"Authorization": f"Bearer {visitor.bearer}"}
    for _, path in sorted(GATEWAY):
        for other in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            if (other, path) not in GATEWAY:
                assert ask(room.gate, (other, path), headers, b"").status == 405, (other, path)
    for path in ("/admin/", "/api/v1/clients/", "/agent/v1/", "/agent/v2/next", "/agent/v1/session/x", "/boot/v1/"):
        assert ask(room.gate, ("GET", path), headers).status == 404, path
