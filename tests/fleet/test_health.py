from collections.abc import Iterator

import pytest
from django.test import Client as Browser
from pytest_django import Settings

from fleet import health
from tests.services import Service, celery_sends_to, celery_worker, redis_server, wait_for


@pytest.fixture
def redis(settings: Settings) -> Iterator[Service]:
    with redis_server() as service:
        settings.REDIS_URL = service.url
        yield service


def test_nobody_lives_until_the_clock_was_heard_by_each(db: None, redis: Service, client: Browser) -> None:
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()["workers"]["sender"]) == (503, None)
    health.say_alive("default")
    health.say_alive("sender")
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "well", "database": True, "redis": True, "workers": {"default": 0, "sender": 0, "builds": None}},
    )


def test_a_redis_that_is_away_is_told_and_nothing_breaks(db: None, redis: Service, client: Browser) -> None:
    redis.stop()
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()["redis"], answer.json()["database"]) == (503, False, True)
    assert client.post("/healthz").status_code == 405


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_worker_says_that_it_lives(redis: Service, client: Browser) -> None:
    from fleet.tasks import say_alive

    with celery_worker("sender", {"FLEET_REDIS_URL": redis.url}), celery_sends_to(redis.url):
        say_alive.apply_async(args=("sender",), queue="sender")
        wait_for(lambda: client.get("/healthz").json()["workers"]["sender"] == 0, "the sender was heard")
