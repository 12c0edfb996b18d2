"""Celery's way in: fetch, call one function."""

from contextlib import suppress
from typing import Any

import redis
from celery import shared_task
from celery.signals import before_task_publish

from fleet import alive


@shared_task(ignore_result=True)
def say_alive(queue: str) -> None:
    alive.say_alive(queue)


@before_task_publish.connect(sender="fleet.tasks.say_alive")
def clock_is_alive(**_: Any) -> None:
    """Whoever sends that message is the clock. A Redis that is away is told of by the sending itself."""
    with suppress(redis.RedisError):
        alive.say_alive(alive.CLOCK)
