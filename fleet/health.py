"""``/healthz``: the truth of the parts a server needs, for a monitor or a load balancer. Facts only, no versions, no paths.

What is wrong in words, and what to do next, is for those who bring FLEET_METRICS_TOKEN, and for superusers (the admin's first page).
"""

import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import redis
from django.apps import apps
from django.conf import settings
from django.db import DatabaseError, connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.http import HttpRequest, JsonResponse
from django.utils.crypto import constant_time_compare
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from fleet import alive
from fleet.alive import CLOCK, QUEUES, Heard, Said

PATIENCE_S = 3.0  # a database that hangs is one that is away
SCARCE_SHARE, SCARCE_BYTES = 0.05, 2 << 30  # less room than both is too little


@dataclass(frozen=True)
class Database:
    """``unapplied``: migrations that this code has and the database has not; ``freezes`` of signing that stand. None: not known."""

    answers: bool = False
    unapplied: tuple[str, ...] | None = None
    freezes: int | None = None


class _Question(threading.Thread):
    """Asks the database in a thread of its own: one that hangs would keep whoever asks for ever."""

    def __init__(self) -> None:
        super().__init__(name="health", daemon=True)
        self.answer = Database()

    def run(self) -> None:
        try:
            if alive.database_answers():
                self.answer = Database(True)
                self.answer = Database(True, unapplied := _unapplied(), None if unapplied else _freezes())
        except DatabaseError:
            return  # what is known by now is the answer
        finally:
            connection.close()


_lock = threading.Lock()
_question: _Question | None = None


def ask_database() -> Database:
    """What it answers within PATIENCE_S. Who asks meanwhile waits for the same answer: strangers may ask, too."""
    global _question
    with _lock:
        if _question is None or not _question.is_alive():
            _question = _Question()
            _question.start()
        question = _question
    question.join(PATIENCE_S)
    return question.answer


@cache
def _migrations() -> frozenset[tuple[str, str]]:
    return frozenset(MigrationLoader(None).disk_migrations)


def _unapplied() -> tuple[str, ...]:
    missing = _migrations() - MigrationRecorder(connection).applied_migrations().keys()
    return tuple(sorted(f"{app}.{name}" for app, name in missing))


def _freezes() -> int:
    return int(apps.get_model("agents.Freeze")._default_manager.filter(lifted_at=None).count())


@dataclass(frozen=True)
class Room:
    """Of the file system that holds a place."""

    path: Path
    free: int
    size: int

    @property
    def scarce(self) -> bool:
        return self.free < min(SCARCE_SHARE * self.size, SCARCE_BYTES)


def rooms() -> dict[str, Room]:
    """The file systems that hold data and store, as this process sees them."""
    found = {}
    for name, path in (("data", settings.DATA), ("store", settings.STORE)):
        place = path
        while not place.exists():
            place = place.parent
        used = shutil.disk_usage(place)
        found[name] = Room(path, used.free, used.total)
    return found


# --- judged ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failing:
    """A part that fails: what is wrong, and what to do next."""

    part: str
    what: str
    next: str


@dataclass(frozen=True)
class Part:
    """As a page shows it: ``state`` is good, bad, noted or unknown; ``word`` says more, where there is more."""

    name: str
    state: str
    word: str = ""


@dataclass(frozen=True)
class Health:
    facts: Mapping[str, Any]
    failing: tuple[Failing, ...]

    @property
    def status(self) -> str:
        return "failing" if self.failing else "well"

    @property
    def parts(self) -> Iterator[Part]:
        """All of them, in a line."""
        failing = {one.part for one in self.failing}
        ages = {CLOCK: self.facts["clock"], **self.facts["workers"]}
        shown = {
            "database": self.facts["database"],
            "migrations": self.facts["migrated"],
            "redis": self.facts["redis"],
            "gateway": self.facts["gateway"],
            **ages,
            "audit": self.facts["audit"],
            "data": True,
            "store": True,
        }
        for name, fact in shown.items():
            state = "bad" if name in failing else "unknown" if fact is None else "good"
            yield Part(_SHOWN.get(name, name), state, f"{ages[name]} s" if ages.get(name) is not None else "")
        if self.facts["frozen"]:
            yield Part("signing", "noted", "frozen")


_SHOWN = {"default": "work", "audit": "audit log", "data": "room for data", "store": "room for the store"}


def look() -> Health:
    """All parts at this moment.

    The worker of builds is told of and not judged for its silence, which lasts as long as a build. That signing is frozen is a fact: a
    person wanted it so. Of what only Redis knows nothing is said while it is away, for nothing is known.
    """
    database, room = ask_database(), rooms()
    try:
        said: Said | None = alive.listen()
    except redis.RedisError:
        said = None
    parts = said.parts if said else dict.fromkeys((CLOCK, *QUEUES), Heard())
    heard = {queue: parts[queue] for queue in QUEUES}
    facts = {
        "database": database.answers,
        "redis": said is not None,
        "clock": parts[CLOCK].silent_s,
        "workers": {queue: one.silent_s for queue, one in heard.items()},
        "able": {queue: None if one.silent_s is None else not one.trouble for queue, one in heard.items()},
        "gateway": said.gateway if said else None,
        "migrated": None if database.unapplied is None else not database.unapplied,
        "room": not any(one.scarce for one in room.values()),
        "frozen": database.freezes,
        "audit": not said.parts["sender"].facts.get("tampered") if said and heard["sender"].facts else None,
    }
    return Health(facts, (*_in_database(database), *(_in_redis(said) if said else [_REDIS_AWAY]), *_in(room)))


_REDIS_AWAY = Failing(
    "redis",
    "Redis does not answer.",
    "Look at it (systemctl status redis-server); FLEET_REDIS_URL says where it should be. Orders wait in the database until it is back.",
)
_UNITS = {CLOCK: "fleet-clock", "default": "fleet-work", "sender": "fleet-sender", "builds": "fleet-builds"}


def _in_database(database: Database) -> list[Failing]:
    if not database.answers:
        next_step = "Look at it (systemctl status postgresql); FLEET_DATABASE_URL says where it should be."
        return [Failing("database", f"The database does not answer within {PATIENCE_S:g} s.", next_step)]
    if database.unapplied:
        number, first = len(database.unapplied), database.unapplied[0]
        what = f"The database lacks {number} migration{'' if number == 1 else 's'}, the first is {first}."
        return [Failing("migrations", what, "Run manage.py migrate, then restart all units.")]
    return []


def _in_redis(said: Said) -> list[Failing]:
    found = []
    for part, unit in _UNITS.items():
        heard, who = said.parts[part], "The clock" if part == CLOCK else f"The worker of {part}"
        if heard.late and part != "builds":
            since = "was never heard" if heard.silent_s is None else f"was last heard {heard.silent_s} s ago"
            busy = "" if part == CLOCK else "; it may be busy, hung, or gone"
            found.append(Failing(part, f"{who} {since}{busy}.", f"systemctl status {unit}; journalctl -u {unit}"))
        elif heard.trouble and not heard.late:
            found.append(Failing(part, f"{who} cannot do its work: {heard.trouble}", f"journalctl -u {unit}"))
    tampered = said.parts["sender"].facts.get("tampered", {}).values()
    found += [
        Failing("audit", told, "Keep the database as it is, until it is known what happened.") for told in tampered
    ]
    if not said.gateway:
        what = "No gateway listens, or none reaches the database and Redis: clients hear nothing."
        found.append(Failing("gateway", what, "systemctl status fleet-gateway; journalctl -u fleet-gateway"))
    return found


def _in(room: Mapping[str, Room]) -> list[Failing]:
    return [
        Failing(
            name,
            f"{one.free / 2**30:.1f} of {one.size / 2**30:.0f} GiB are free at {one.path}.",
            "manage.py store usage shows what takes room; docs/deploy.md, “Room for images”, how to make some.",
        )
        for name, one in room.items()
        if one.scarce
    ]


# --- told ------------------------------------------------------------------------------------------------------------


def holds_token(authorization: str) -> bool:
    """Whether that header brings FLEET_METRICS_TOKEN; nobody does where there is none."""
    token = settings.METRICS_TOKEN
    return bool(token) and constant_time_compare(authorization, f"Bearer {token}")


@require_safe
@never_cache
def healthz(request: HttpRequest) -> JsonResponse:
    """200 when all is well, 503 else. ``clock``, ``workers``: seconds since each was last heard, null for never."""
    health = look()
    told: dict[str, Any] = {"status": health.status, **health.facts}
    if holds_token(request.headers.get("Authorization", "")):
        told["failing"] = [vars(one) for one in health.failing]
    response = JsonResponse(told, status=503 if health.failing else 200)
    vars(response)["_has_been_logged"] = True  # to Django: a monitor asks every few seconds, and is told already
    return response
