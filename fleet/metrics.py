"""``/metrics`` for Prometheus: what is counted in this process, and what the database and Redis say when they are asked.

The web process and each gateway have one. Workers have no page: what they do stands in the database, and what they count in Redis
(``fleet.alive``). Names of sites and classes stand in it, so it is for those who hold FLEET_METRICS_TOKEN; without a token there is no such
page. Naming: https://prometheus.io/docs/practices/naming/
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import redis
from django.conf import settings
from django.db import DatabaseError
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fleet import alive, health
from fleet.models import Client

PROCESS = CollectorRegistry()  # memory, processor and files of whoever is asked
GATEWAY = CollectorRegistry()  # what a gateway counted itself
PARTS = CollectorRegistry()  # what /healthz judges, and more of it
DATABASE = CollectorRegistry()  # what anybody would find there, so that only one process is asked
CONTENT_TYPE = CONTENT_TYPE_LATEST


def refusal(authorization: str) -> int:
    """0 for who brings the token, else the status to answer: 404 where there is none, 401 for another."""
    if not settings.METRICS_TOKEN:
        return 404
    return 0 if health.holds_token(authorization) else 401


@require_safe
@never_cache
def metrics(request: HttpRequest) -> HttpResponse:
    """The web process's page. A database that is away leaves its part out: it is told by ``fleet_up``."""
    if status := refusal(request.headers.get("Authorization", "")):
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        return HttpResponse(WHY[status], status=status, headers=headers, content_type="text/plain; charset=utf-8")
    pages = [generate_latest(PARTS), generate_latest(PROCESS)]
    if health.ask_database().answers:  # else whoever asks would wait with us
        pages.append(generate_latest(DATABASE))
    return HttpResponse(b"".join(pages), content_type=CONTENT_TYPE)


WHY = {
    404: "There are no metrics here until FLEET_METRICS_TOKEN is set (docs/deploy.md).\n",
    401: "The bearer token of FLEET_METRICS_TOKEN is needed.\n",
}


class Asked(Collector):
    """Metrics that a function gathers when somebody looks; none where the database goes away meanwhile."""

    def __init__(self, gather: Callable[[], Iterable[Metric]]) -> None:
        self._gather = gather

    def describe(self) -> Iterable[Metric]:
        return ()  # or the function would be asked when it registers

    def collect(self) -> Iterable[Metric]:
        try:
            return list(self._gather())
        except DatabaseError:
            return ()


def clients() -> Iterable[Metric]:
    labels = ("site", "client_class", "state")
    family = GaugeMetricFamily("fleet_clients", "PCs by what the board shows of them.", labels=labels)
    counted = Client.objects.values_list("site__slug", "client_class__slug", "state").annotate(number=Count("pk"))
    for site, client_class, state, number in counted.order_by():
        family.add_metric((site, client_class or "", state), number)
    held = GaugeMetricFamily(
        "fleet_held_clients", "PCs with a local hold, which refuse soft commands.", labels=("site",)
    )
    twins = GaugeMetricFamily("fleet_twin_clients", "PCs of which two had the same MAC address.", labels=("site",))
    holds, two = Q(hold_until__gt=timezone.now()), Q(twin_at__isnull=False)
    odd = Client.objects.values_list("site__slug").annotate(held=Count("pk", filter=holds), two=Count("pk", filter=two))
    for site, holding, doubled in odd.order_by():
        held.add_metric((site,), holding)
        twins.add_metric((site,), doubled)
    yield from (family, held, twins)


def parts() -> Iterable[Metric]:
    """What is found without the database, and whether that answers."""
    up = GaugeMetricFamily("fleet_up", "Whether it answers; a gateway: whether one listens.", labels=("part",))
    database = health.ask_database()
    up.add_metric(("database",), database.answers)
    waiting: dict[str, tuple[int, float]] = {}
    said = None
    try:
        said, waiting = alive.listen(), _waiting()
        up.add_metric(("gateway",), said.gateway)
    except redis.RedisError:
        pass
    up.add_metric(("redis",), said is not None)
    missing = GaugeMetricFamily("fleet_unapplied_migrations", "Which this code has and the database has not.")
    if database.unapplied is not None:
        missing.add_metric((), len(database.unapplied))
    yield from (up, missing, *_rooms(), *_heard(said), *_queues(waiting))


def _rooms() -> Iterable[Metric]:
    free = GaugeMetricFamily("fleet_disk_free_bytes", "Of the file system that holds it.", labels=("place",))
    size = GaugeMetricFamily("fleet_disk_size_bytes", "Of the file system that holds it.", labels=("place",))
    for place, room in health.rooms().items():
        free.add_metric((place,), room.free)
        size.add_metric((place,), room.size)
    return free, size


def _heard(said: alive.Said | None) -> Iterable[Metric]:
    """What clock and workers say of themselves; no values while Redis is away."""
    text = "Since clock or worker was heard; Inf: never."
    silent = GaugeMetricFamily("fleet_silence_seconds", text, labels=("part",))
    able = GaugeMetricFamily("fleet_able", "Whether the worker says that it can do its work.", labels=("worker",))
    text = "What the sender signs within a minute at the most, as it says."
    ceiling = GaugeMetricFamily("fleet_ceiling", text, labels=("verb",))
    tasks = CounterMetricFamily("fleet_tasks", "Tasks by how they ended.", labels=("task", "outcome"))
    proved = GaugeMetricFamily("fleet_audit_proved_age_seconds", "Since all of the audit log was proved.")
    faults = GaugeMetricFamily("fleet_audit_faults", "That were found then.")
    text = "Chains of the audit log that do not go on from what the sender saw of them."
    tampered = GaugeMetricFamily("fleet_audit_tampered_chains", text)
    if said is not None:
        for part, heard in said.parts.items():
            silent.add_metric((part,), math.inf if heard.silent_s is None else heard.silent_s)
            if part in alive.QUEUES and heard.silent_s is not None:
                able.add_metric((part,), not heard.trouble)
        for verb, number in said.parts["sender"].facts.get("ceiling", {}).items():
            ceiling.add_metric((verb,), number)
        for (name, outcome), number in said.tasks.items():
            tasks.add_metric((name, outcome), number)
        if "tampered" in said.parts["sender"].facts:
            tampered.add_metric((), len(said.parts["sender"].facts["tampered"]))
        if said.audited.silent_s is not None:
            proved.add_metric((), said.audited.silent_s)
            faults.add_metric((), said.audited.facts.get("faults", 0))
    return silent, able, ceiling, tasks, proved, faults, tampered


def _waiting() -> dict[str, tuple[int, float]]:
    """By queue: how many messages wait in Redis, and since when, in seconds, the first of them. Raises RedisError."""
    with alive.connection() as connected:
        return {
            queue: (cast(int, connected.llen(queue)), _age(cast(bytes | None, connected.lindex(queue, -1))))
            for queue in alive.QUEUES
        }


def _age(message: bytes | None) -> float:
    """Since a task's message was sent (``fleet.celery`` notes when)."""
    try:
        return max(0.0, time.time() - float(json.loads(message or b"")["headers"]["fleet"]["at"]))
    except (ValueError, TypeError, KeyError):
        return 0.0


def _queues(waiting: Mapping[str, tuple[int, float]]) -> Iterable[Metric]:
    messages = GaugeMetricFamily("fleet_queue_messages", "Messages that wait in Redis for a worker.", labels=("queue",))
    text = "Age of the message that waits longest; 0: none waits."
    oldest = GaugeMetricFamily("fleet_queue_oldest_seconds", text, labels=("queue",))
    for queue, (number, seconds) in waiting.items():
        messages.add_metric((queue,), number)
        oldest.add_metric((queue,), seconds)
    return messages, oldest


disable_created_metrics()  # type: ignore[no-untyped-call]  # when a counter began says the process's own start
ProcessCollector(registry=PROCESS)
PARTS.register(Asked(parts))
DATABASE.register(Asked(clients))
