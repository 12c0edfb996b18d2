import os

import pytest
import redis

from fleet.celery import app
from tests.services import celery_sends_to, celery_worker, redis_server, wait_for


def test_a_redis_of_our_own_answers_and_ends_with_its_context() -> None:
    with redis_server() as server, redis.Redis.from_url(server.url) as client:
        assert client.set("a", "b")
        pid = server.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
def test_a_worker_takes_what_we_enqueue_and_ends_with_its_context(transactional_db: None) -> None:
    with (
        redis_server() as server,
        celery_sends_to(server.url),
        celery_worker("default", {"FLEET_REDIS_URL": server.url}) as worker,
    ):
        app.send_task("no.such.task", queue="default")
        wait_for(lambda: "no.such.task" in worker.log, "the worker saw the task")
        pid = worker.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
