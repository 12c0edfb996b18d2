"""/metrics of the web process: what the database and Redis say, for who brings the token."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.db import DatabaseError
from django.test import Client as Browser
from django.utils import timezone
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from pytest_django.fixtures import Settings

from agents import services
from agents.models import Command, Verb
from fleet import alive, metrics
from fleet.models import ClientState
from images.models import VersionStatus
from tests.images.versions import make_image, make_version
from tests.services import Service, redis_server
from tests.world import World, make_client

TOKEN = "t" * 40


@pytest.fixture
def redis(settings: Settings) -> Iterator[Service]:
    settings.METRICS_TOKEN = TOKEN
    with redis_server() as service:
        settings.REDIS_URL = service.url
        yield service


def read(client: Browser) -> dict[tuple[str, ...], float]:
    """(name, label values in the order of their names) → value."""
    answer = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("configured", "brought", "status"),
    [("", "", 404), ("", "Bearer ", 404), (TOKEN, "", 401), (TOKEN, "Bearer x", 401), (TOKEN, TOKEN, 401)],
)
def test_nobody_reads_them_without_the_token(
    db: None, client: Browser, settings: Settings, configured: str, brought: str, status: int
) -> None:
    settings.METRICS_TOKEN = configured
    answer = client.get("/metrics", headers={"Authorization": brought})
    assert answer.status_code == status
    assert "fleet_clients" not in answer.text
    assert "FLEET_METRICS_TOKEN" in answer.text


def test_they_are_only_read(db: None, redis: Service, client: Browser) -> None:
    assert client.post("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 405


def test_pcs_queues_and_silences_are_those_of_this_moment(world: World, redis: Service, client: Browser) -> None:
    before = read(client)
    make_client(world.clubroom, "52:54:00:00:00:77", client_class=world.gamer, state=ClientState.LOST)
    alive.say_alive("clock")
    with alive.connection() as connected:
        connected.rpush("builds", "a message")
    after = read(client)
    lost = ("fleet_clients", world.gamer.slug, world.clubroom.slug, "lost")
    assert after[lost] == before.get(lost, 0) + 1
    assert (before["fleet_silence_seconds", "clock"], after["fleet_silence_seconds", "clock"]) == (float("inf"), 0)
    assert (before["fleet_queue_messages", "builds"], after["fleet_queue_messages", "builds"]) == (0, 1)
    assert after["fleet_up", "redis"] == after["fleet_up", "database"] == 1


def test_what_waits_is_counted_with_its_age(world: World, redis: Service, client: Browser) -> None:
    order = services.order(Verb.CYCLE, [make_client(world.clubroom, "52:54:00:00:00:77")], "why", world.vera)
    Command.objects.filter(order=order).update(queued_at=timezone.now() - timedelta(minutes=5))
    now = timezone.now()
    image = make_image(world.clubroom)
    make_version(image, VersionStatus.QUEUED, requested_at=now - timedelta(minutes=2))
    make_version(image, VersionStatus.FAILED, started_at=now - timedelta(seconds=45), finished_at=now)
    found = read(client)
    assert found["fleet_commands", "queued"] == 1
    assert found["fleet_oldest_command_seconds", "queued"] == pytest.approx(300, abs=30)
    assert found["fleet_builds", "queued"] == 1
    assert found["fleet_builds", "building"] == 0
    assert found["fleet_oldest_build_seconds", "queued"] == pytest.approx(120, abs=30)
    assert found["fleet_build_duration_seconds_bucket", image.slug, "30.0", "failed"] == 0
    assert found["fleet_build_duration_seconds_bucket", image.slug, "60.0", "failed"] == 1
    assert found["fleet_build_duration_seconds_sum", image.slug, "failed"] == pytest.approx(45)


def test_a_redis_that_is_away_is_told_and_the_rest_is_there(world: World, redis: Service, client: Browser) -> None:
    redis.stop()
    found = read(client)
    assert found["fleet_up", "redis"] == 0
    assert found["fleet_commands", "queued"] == 0


def test_a_database_that_is_away_leaves_its_part_out() -> None:
    def gather() -> Iterator[Metric]:
        raise DatabaseError("away")

    assert list(metrics.Asked(gather).collect()) == []
