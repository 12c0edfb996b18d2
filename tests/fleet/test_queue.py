"""enqueue(): after the commit, and never at the expense of who asked."""

import logging

import pytest
import redis
from django.db import transaction

from fleet.queue import enqueue
from fleet.tasks import say_alive
from tests.services import Service, celery_sends_to, redis_server

pytestmark = pytest.mark.django_db(transaction=True)


def waiting(server: Service) -> int:
    """Messages in the queue ``default`` that no worker has taken."""
    with redis.Redis.from_url(server.url) as connected:
        return int(str(connected.llen("default")))


def test_a_message_leaves_with_the_commit_and_not_before_it() -> None:
    with redis_server() as server, celery_sends_to(server.url):
        with transaction.atomic():
            enqueue(say_alive, "default")
            assert waiting(server) == 0
        assert waiting(server) == 1
        enqueue(say_alive, "default")
        assert waiting(server) == 2, "without a transaction at once"


def test_what_is_rolled_back_sends_nothing() -> None:
    with redis_server() as server, celery_sends_to(server.url):
        with transaction.atomic():
            enqueue(say_alive, "default")
            transaction.set_rollback(True)
        assert waiting(server) == 0


def test_a_redis_that_is_away_is_logged_and_who_asked_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with redis_server() as server, celery_sends_to(server.url):
        enqueue(say_alive, "default")
        server.stop()
        with caplog.at_level(logging.WARNING, "fleet.queue"), transaction.atomic():
            enqueue(say_alive, "default")
        [line] = [record.getMessage() for record in caplog.records if record.name == "fleet.queue"]
        assert line.startswith("Redis is away, so fleet.tasks.say_alive('default',) waits for the clock's next tick")
        # Where it comes back, the next message goes out by itself: nobody restarts the web process.
        with redis_server(int(server.url.rpartition(":")[2].partition("/")[0])) as again:
            enqueue(say_alive, "default")
            assert waiting(again) == 1
