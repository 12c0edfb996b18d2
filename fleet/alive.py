"""What the parts of the server say of themselves, through Redis: that they live, and what keeps them from their work.

A worker has no page that a monitor could ask, so what it has to say or to count lies here. Redis may forget it: it is said again.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import redis
from django.conf import settings
from django.db import DatabaseError
from django.db import connection as database

CLOCK = "clock"
QUEUES = ("default", "sender", "builds")
GATEWAY_UP = "fleet.gateway.up"  # since when (s since 1970) a gateway listens; gone soon after it
AUDITED = "fleet.audited"  # when all chains of the audit log were last proved, and how many faults there were
TASKS = "fleet.tasks"  # how often each task ended how, by "<task> <outcome>"
LATE_S = 45  # the clock speaks every ten seconds

State = Callable[[], Mapping[str, Any]]
_states: dict[str, State] = {}


def _key(part: str) -> str:
    return f"fleet.alive.{part}"


def connection() -> redis.Redis:
    """A Redis that is asked and not waited for."""
    return redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=2)


def register(queue: str, state: State) -> None:
    """Have the worker of ``queue`` say with each sign of life what ``state`` finds: ``trouble``, in words, where it cannot do its work."""
    _states[queue] = state


def say_alive(part: str) -> None:
    """Note that ``part`` lives: the clock, which sends a message, or the worker of a queue, through which it went."""
    said: dict[str, Any] = {"at": time.time(), "trouble": ""}
    if part in QUEUES:
        said |= _states[part]() if part in _states else {}
        if not database_answers():
            said["trouble"] = "It cannot reach the database."
    with connection() as connected:
        connected.set(_key(part), json.dumps(said), ex=3600)


def database_answers() -> bool:
    try:
        with database.cursor() as cursor:
            cursor.execute("SELECT 1")
            return cursor.fetchone() is not None
    except DatabaseError:
        return False


def say_audited(faults: int) -> None:
    """Note that the whole audit log was proved now. Raises RedisError."""
    with connection() as connected:
        connected.set(AUDITED, json.dumps({"at": time.time(), "faults": faults}))


def count_task(name: str, outcome: str) -> None:
    """Note that a task ended: ``succeeded`` or ``failed``. Raises RedisError."""
    with connection() as connected:
        connected.hincrby(TASKS, f"{name} {outcome}", 1)


@dataclass(frozen=True)
class Heard:
    """``silent_s``: seconds since it was last heard, None for never. ``trouble``: why it cannot do its work."""

    silent_s: int | None = None
    trouble: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def late(self) -> bool:
        return self.silent_s is None or self.silent_s > LATE_S


@dataclass(frozen=True)
class Said:
    """What Redis knows: of the parts by name, whether a gateway listens, when the audit log was last proved, how often tasks ended."""

    parts: Mapping[str, Heard]
    gateway: bool
    audited: Heard
    tasks: Mapping[tuple[str, str], int]


def listen() -> Said:
    """Raises RedisError."""
    parts = (CLOCK, *QUEUES)
    with connection() as connected:
        *said, audited, gateway = cast(list[bytes | None], connected.mget([*map(_key, parts), AUDITED, GATEWAY_UP]))
        ended = cast(dict[bytes, bytes], connected.hgetall(TASKS))
    return Said(
        parts=dict(zip(parts, map(_heard, said), strict=True)),
        gateway=gateway is not None,
        audited=_heard(audited),
        tasks={(name, outcome): int(ended[key]) for key in ended for name, _, outcome in [key.decode().partition(" ")]},
    )


def _heard(said: bytes | None) -> Heard:
    try:
        facts = json.loads(said or b"")
        return Heard(max(0, round(time.time() - facts["at"])), facts.get("trouble", ""), facts)
    except (ValueError, TypeError, KeyError, AttributeError):  # nothing, or of another version of ours
        return Heard()
