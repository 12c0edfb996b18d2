"""``/healthz``: the truth of the parts a server needs, for a monitor or a load balancer. Facts only, no versions, no paths."""

import time
from typing import Any

import redis
from django.conf import settings
from django.db import DatabaseError
from django.db import connection as database
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

CLOCK = "clock"
QUEUES = ("default", "sender", "builds")
LATE_S = 45  # the clock speaks every ten seconds


def _key(part: str) -> str:
    return f"fleet.alive.{part}"


def connection() -> redis.Redis:
    """A Redis that is asked and not waited for."""
    return redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=2)


def say_alive(part: str) -> None:
    """Note that ``part`` lives: the clock, which sends a message, or the worker of a queue, through which it went."""
    with connection() as connected:
        connected.set(_key(part), str(time.time()), ex=3600)


def silences() -> dict[str, int | None]:
    """Seconds since each part was last heard, None for never. Raises RedisError."""
    parts = (CLOCK, *QUEUES)
    with connection() as connected:
        said: Any = connected.mget([_key(part) for part in parts])
    return {part: round(time.time() - float(at)) if at else None for part, at in zip(parts, said, strict=True)}


@require_safe
@never_cache
def healthz(request: HttpRequest) -> JsonResponse:
    """200 when all is well, 503 else. ``clock``, ``workers``: seconds since each was last heard, null for never.

    The worker of builds is told of and not judged: it is silent as long as it builds.
    """
    ages: dict[str, int | None] = dict.fromkeys((CLOCK, *QUEUES))
    try:
        ages = silences()
        answers = True
    except redis.RedisError:
        answers = False
    facts = {
        "database": database_answers(),
        "redis": answers,
        "clock": ages[CLOCK],
        "workers": {queue: ages[queue] for queue in QUEUES},
    }
    judged = [age for part, age in ages.items() if part != "builds"]
    well = facts["database"] and answers and all(age is not None and age <= LATE_S for age in judged)
    return JsonResponse({"status": "well" if well else "failing", **facts}, status=200 if well else 503)


def database_answers() -> bool:
    """Whether the database takes a question at this moment."""
    try:
        with database.cursor() as cursor:
            cursor.execute("SELECT 1")
            return cursor.fetchone() is not None
    except DatabaseError:
        return False
