"""``/healthz``: the truth of the parts a server needs, for a monitor or a load balancer. Facts only, no versions, no paths."""

import time
from typing import Any

import redis
from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

QUEUES = ("default", "sender", "builds")
LATE_S = 45


def _key(queue: str) -> str:
    return f"fleet.alive.{queue}"


def _redis() -> redis.Redis:
    return redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=2)


def say_alive(queue: str) -> None:
    """Note that the clock's message went through the worker of ``queue``."""
    with _redis() as connected:
        connected.set(_key(queue), str(time.time()), ex=3600)


@require_safe
@never_cache
def healthz(request: HttpRequest) -> JsonResponse:
    """200 when all is well, 503 else. ``workers``: seconds since the clock last heard of each, null for never.

    The worker of builds is told of and not judged: it is silent as long as it builds.
    """
    facts: dict[str, Any] = {"database": _database(), "redis": False, "workers": dict.fromkeys(QUEUES)}
    try:
        with _redis() as connected:
            said: Any = connected.mget([_key(queue) for queue in QUEUES])
        facts["redis"] = True
        facts["workers"] = {
            queue: round(time.time() - float(at)) if at else None for queue, at in zip(QUEUES, said, strict=True)
        }
    except redis.RedisError:
        pass
    judged = [facts["workers"][queue] for queue in QUEUES if queue != "builds"]
    well = facts["database"] and facts["redis"] and all(age is not None and age <= LATE_S for age in judged)
    return JsonResponse({"status": "well" if well else "failing", **facts}, status=200 if well else 503)


def _database() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            return cursor.fetchone() is not None
    except DatabaseError:
        return False
