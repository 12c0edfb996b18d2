import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import time_machine
from django.test import Client as Browser
from pytest_django import Settings

from fleet import health
from tests.services import PROJECT, Service, celery_sends_to, celery_worker, redis_server, wait_for


@pytest.fixture
def redis(settings: Settings) -> Iterator[Service]:
    with redis_server() as service:
        settings.REDIS_URL = service.url
        yield service


def test_nobody_lives_until_heard_and_each_alone(db: None, redis: Service, client: Browser) -> None:
    silent: dict[str, Any] = {
        "status": "failing",
        "database": True,
        "redis": True,
        "clock": None,
        "workers": {"default": None, "sender": None, "builds": None},
    }
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()) == (503, silent)
    for part in ("default", "sender", "clock"):
        answer = client.get("/healthz")
        assert (answer.status_code, answer.json()["status"]) == (503, "failing"), f"without {part}"
        health.say_alive(part)
    answer = client.get("/healthz")
    heard = {"status": "well", "clock": 0, "workers": {"default": 0, "sender": 0, "builds": None}}
    assert (answer.status_code, answer.json()) == (200, silent | heard)
    assert answer["Cache-Control"].startswith("max-age=0, no-cache, no-store")


def test_a_clock_that_stopped_is_told_from_workers_that_did(db: None, redis: Service, client: Browser) -> None:
    for part in ("clock", "default", "sender"):
        health.say_alive(part)
    with time_machine.travel(time.time() + health.LATE_S + 1):
        health.say_alive("clock")
        answer = client.get("/healthz")
        assert (answer.status_code, answer.json()["clock"]) == (503, 0)
        assert answer.json()["workers"]["sender"] == health.LATE_S + 1


def test_a_monitor_need_not_speak_https(db: None, redis: Service, client: Browser, settings: Settings) -> None:
    settings.SECURE_SSL_REDIRECT = True
    assert client.get("/healthz").status_code == 503
    assert client.get("/").status_code == 301


@pytest.mark.slow
def test_a_database_that_is_away_is_told(redis: Service) -> None:
    ask = "from django.test import Client; r = Client().get('/healthz'); print(r.status_code, r.content.decode())"
    environment = {"FLEET_DATABASE_URL": "postgres://x:secret@127.0.0.1:1/x", "FLEET_REDIS_URL": redis.url}
    asked = subprocess.run(
        [sys.executable, "-c", f"import django; django.setup(); {ask}"],
        env={**os.environ, **environment, "FLEET_ALLOWED_HOSTS": "testserver"},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    status, _, facts = asked.stdout.partition(" ")
    assert (status, json.loads(facts)["database"], json.loads(facts)["redis"]) == ("503", False, True)
    assert "secret" not in asked.stdout


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
        assert client.get("/healthz").json()["clock"] is not None, "and who sent it"
