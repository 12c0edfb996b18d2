"""The processes themselves, each logged in to PostgreSQL as its own user."""

import json
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connection
from pytest_django.fixtures import Settings

from agents import services, tasks
from agents.daemon import protocol
from agents.models import BootSession, Command, CommandStatus, HomeRestore, Verb
from fleet.models import AuditCheckpoint, Client
from images import services as images_services
from images.finding_models import Finding
from images.models import HomeTemplate, ImageVersion
from tests.agents.boots import form
from tests.agents.gateways import Gateway, Visitor, gateway
from tests.agents.rooms import Room, make_room
from tests.images.versions import make_image
from tests.services import Service, celery_sends_to, celery_worker, database_url, redis_server, wait_for
from tests.trust.test_grants import as_process, grant
from tests.trust.test_rotation_live import delivered
from tests.world import make_world

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        connection.vendor != "postgresql", reason="SQLite has no users; `make test` runs this on PostgreSQL, too"
    ),
]


def url_of(process: str) -> str:
    """The test database, as its user; the cluster of tests trusts everybody's word for who they are."""
    return re.sub(r"//[^@]*@", f"//fleet_{process}@", database_url())


@pytest.fixture(scope="module")
def served(django_db_setup: None, django_db_blocker: pytest.FixtureRequest) -> Iterator[tuple[Gateway, Service]]:
    with django_db_blocker.unblock():  # type: ignore[attr-defined]
        grant()
    with redis_server() as queue, gateway(queue.url, poll_hold=1, database_url=url_of("gateway")) as gate:
        yield gate, queue


@pytest.fixture
def room(transactional_db: None, served: tuple[Gateway, Service], settings: Settings) -> Iterator[Room]:
    with make_room(served[0], served[1].url, settings) as room:
        yield room


def test_a_client_lives_a_whole_life_with_the_gateways_rights(room: Room, settings: Settings, tmp_path: Path) -> None:
    """From the firmware's first question to its goodbye; ``make_room`` fails for a traceback in the gateway's log."""
    client = room.client()
    with room.gate.visitor() as firmware:
        stranger = firmware.get("/boot/v1/client.ipxe?mac=52:54:00:00:00:99&site=clubroom&product=X&serial=1")
        assert stranger.status == 200
        plan, token = boots(firmware, client)
        asked = urllib.parse.urlencode(form(token, client.mac)).encode()
        assert firmware.ask("POST", "/boot/v1/plan", asked).status == 403, "which is written down"
        trouble = {"token": token, "mac": client.mac, "stage": "root", "error": "mount", "detail": "x"}
        failed = urllib.parse.urlencode(trouble).encode()
        assert firmware.ask("POST", "/boot/v1/trouble", failed).status == 204
        plan, _ = boots(firmware, client)
    session = BootSession.objects.get(pk=plan["session"])
    visitor = room.gate.visitor(plan["bearer"])
    assert visitor.open(str(session.boot_id)).status == 200
    assert visitor.poll(state=protocol.READY).status == 204
    wrote = {"path": "/srv", "files": 1, "bytes": 4096, "examples": ["/srv/x"]}
    assert visitor.ask("PUT", "/agent/v1/writes", json.dumps({"writes": [wrote]}).encode()).status == 204
    assert Finding.objects.count() == 1
    command = _sent(room, session, Verb.CYCLE)
    assert [envelope["key"] for envelope in delivered(visitor)] == [command.envelope.key_id]
    assert visitor.report(command.pk, protocol.ACCEPTED).json["accepted"] == [str(command.pk)]
    done = {"after": command.envelope.args["home_digest"], "phases_ms": {"total": 900}}
    visitor.report(command.pk, protocol.SUCCEEDED, result=done)
    command.refresh_from_db()
    assert command.status == CommandStatus.SUCCEEDED
    assert HomeRestore.objects.get().result == "restored"
    assert visitor.report("12345678-1234-1234-1234-123456789abc", protocol.FAILED).json["rejected"]
    taken = _sent(room, session, Verb.CAPTURE)
    visitor.report(taken.pk, protocol.ACCEPTED)
    body = b"a home"
    sent = visitor.ask("PUT", f"/agent/v1/capture?command={taken.pk}", body).json
    visitor.report(taken.pk, protocol.SUCCEEDED, result={**sent, "files": 1, "skipped": 0})
    taken.refresh_from_db()
    assert taken.status == CommandStatus.SUCCEEDED, taken.reason
    assert HomeTemplate.objects.filter(origin="capture").exists()
    assert visitor.post("/agent/v1/bye", {"reason": "shutdown"}).status == 204
    client.refresh_from_db()
    assert (client.state, client.serial) == ("off", "7")
    assert AuditCheckpoint.objects.exists()
    assert Client.objects.filter(mac="52:54:00:00:00:99").exists()


def boots(firmware: Visitor, client: Client) -> tuple[dict[str, str], str]:
    """One more boot of a client: its plan and the token that it was for."""
    script = firmware.get(f"/boot/v1/client.ipxe?mac={client.mac}&product=OptiPlex&serial=7").body.decode()
    token = script.partition("fleet.token=")[2][:32]
    asked = urllib.parse.urlencode(form(token, client.mac)).encode()
    text = firmware.ask("POST", "/boot/v1/plan", asked).body.decode()
    return protocol.parse_plan(text.rpartition("signature=")[0]), token


def _sent(room: Room, session: BootSession, verb: Verb) -> Command:
    with celery_sends_to("redis://127.0.0.1:1/0"):
        command = services.order(verb, [session.client], "why", room.world.otto).commands.get()
    with as_process("sender"):
        tasks.send_order(str(command.order_id))
        tasks.send_checkpoints()
    command.refresh_from_db()
    return command


@pytest.mark.build
@pytest.mark.root
def test_a_worker_of_builds_notes_how_a_build_went(transactional_db: None, tmp_path: Path, settings: Settings) -> None:
    world = make_world()
    grant()
    with redis_server() as queue, celery_sends_to(queue.url):
        environment = {
            "FLEET_REDIS_URL": queue.url,
            "FLEET_DATABASE_URL": url_of("builds"),
            "FLEET_STORE": str(tmp_path / "store"),
            "FLEET_BUILD_WORK": str(tmp_path / "work"),
        }
        with celery_worker("builds", environment) as worker:
            wrong = make_image(world.clubroom, "wrong", packages="no-such-game")
            version = images_services.request_build(wrong, world.vera)

            def ended() -> bool:
                version.refresh_from_db()
                return version.status == "failed"

            wait_for(ended, "the build failed", 300)
            assert "permission denied" not in worker.log
    assert "has no package no-such-game" in version.failure
    assert ImageVersion.objects.get().steps.exists()
