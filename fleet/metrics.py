"""``/metrics`` for Prometheus: what is counted in this process, and what the database and Redis say when they are asked.

The web process and each gateway have one. Names of sites and classes stand in it, so it is for those who hold
FLEET_METRICS_TOKEN; without a token there is no such page. Naming: https://prometheus.io/docs/practices/naming/
"""

import math
from collections.abc import Callable, Iterable
from typing import cast

import redis
from django.conf import settings
from django.db import DatabaseError
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.utils.crypto import constant_time_compare
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fleet import health
from fleet.models import Client

PROCESS = CollectorRegistry()  # what this process counted itself
DATABASE = CollectorRegistry()  # what anybody would find there, so that only one process is asked
CONTENT_TYPE = CONTENT_TYPE_LATEST


def refusal(authorization: str) -> int:
    """0 for who brings the token, else the status to answer: 404 where there is none, 401 for another."""
    if not settings.METRICS_TOKEN:
        return 404
    return 0 if constant_time_compare(authorization, f"Bearer {settings.METRICS_TOKEN}") else 401


@require_safe
@never_cache
def metrics(request: HttpRequest) -> HttpResponse:
    """The web process's page."""
    if status := refusal(request.headers.get("Authorization", "")):
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        return HttpResponse(WHY[status], status=status, headers=headers, content_type="text/plain; charset=utf-8")
    return HttpResponse(generate_latest(DATABASE) + generate_latest(PROCESS), content_type=CONTENT_TYPE)


WHY = {
    404: "There are no metrics here until FLEET_METRICS_TOKEN is set (docs/deploy.md).\n",
    401: "The bearer token of FLEET_METRICS_TOKEN is needed.\n",
}


class Asked(Collector):
    """Metrics that a function gathers when somebody looks. A database that is away leaves them out: it is told by ``fleet_up``."""

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
    family = GaugeMetricFamily(
        "fleet_clients", "PCs by what the board shows of them.", labels=("site", "client_class", "state")
    )
    counted = Client.objects.values_list("site__slug", "client_class__slug", "state").annotate(number=Count("pk"))
    for site, client_class, state, number in counted.order_by():
        family.add_metric((site, client_class or "", state), number)
    yield family


def parts() -> Iterable[Metric]:
    """What /healthz judges, and how long the queues are."""
    up = GaugeMetricFamily("fleet_up", "Whether it answers.", labels=("part",))
    silent = GaugeMetricFamily(
        "fleet_silence_seconds", "Since clock or worker was heard; Inf: never.", labels=("part",)
    )
    waiting = GaugeMetricFamily("fleet_queue_messages", "Messages that wait in Redis for a worker.", labels=("queue",))
    up.add_metric(("database",), health.database_answers())
    try:
        with health.connection() as connected:
            for queue in health.QUEUES:
                waiting.add_metric((queue,), cast(int, connected.llen(queue)))
        for part, seconds in health.silences().items():
            silent.add_metric((part,), math.inf if seconds is None else seconds)
        up.add_metric(("redis",), True)
    except redis.RedisError:
        up.add_metric(("redis",), False)
    yield from (up, silent, waiting)


DATABASE.register(Asked(parts))
DATABASE.register(Asked(clients))
