"""Commands and restores for ``/metrics``: what waits by the database, and how long things took in this process.

Of a command: signed by the sender, delivered by the gateway's nudged poll, accepted by the client's report. All three times are the
server's. The histograms are the gateway's, which takes the reports; with several gateways each has its share.
"""

from collections.abc import Iterable
from datetime import datetime
from functools import cache

from django.db.models import Count, Min
from django.utils import timezone
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from agents.models import Command, CommandStatus, HomeRestore
from fleet.metrics import DATABASE, PROCESS, Asked

ACCEPTED = Histogram(
    "fleet_nudge_to_accepted_seconds",
    "From the signed command in the database to the report that its client accepted it.",
    ("verb",),
    registry=PROCESS,
    buckets=(0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30, 60),
)
RESTORED = Histogram(
    "fleet_restore_phase_seconds",
    "Phases of home restores, as the clients measured them.",
    ("phase",),
    registry=PROCESS,
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30),
)
SKEW = Histogram(
    "fleet_clock_skew_seconds",
    "By how much the clock of a client was off when it opened its session, either way.",
    registry=PROCESS,
    buckets=(0.1, 0.5, 1, 2, 5, 30, 300, 3600, 86400),
)
PARKED = Gauge("fleet_parked_polls", "Long polls that wait at this moment.", registry=PROCESS)
POLLS = Counter("fleet_polls", "Long polls by how they ended.", ("how",), registry=PROCESS)
REQUESTS = Counter(
    "fleet_requests", "Requests of clients by the answer's status.", ("route", "status"), registry=PROCESS
)
REJECTED = Counter("fleet_rejected_admissions", "Requests beyond a route's limit (429).", ("route",), registry=PROCESS)


@cache
def _request(route: str, status: int) -> Counter:
    return REQUESTS.labels(route, status)


def answered(route: str, status: int) -> None:
    _request(route, status).inc()


@cache
def _poll(how: str) -> Counter:
    return POLLS.labels(how)


def polled(how: str) -> None:
    _poll(how).inc()


def accepted(sent: Iterable[tuple[str, datetime | None]], at: datetime) -> None:
    """Commands of these verbs, signed then, were accepted."""
    for verb, sent_at in sent:
        if sent_at is not None:
            ACCEPTED.labels(verb).observe((at - sent_at).total_seconds())


def restored(restores: Iterable[HomeRestore]) -> None:
    for restore in restores:
        for phase, milliseconds in restore.phases_ms.items():
            RESTORED.labels(phase).observe(milliseconds / 1000)


def commands() -> Iterable[Metric]:
    open_ones = GaugeMetricFamily("fleet_commands", "Commands that have not ended.", labels=("status",))
    oldest = GaugeMetricFamily("fleet_oldest_command_seconds", "Age of the oldest of them.", labels=("status",))
    rows = Command.objects.filter(status__in=Command.OPEN).values_list("status")
    found = {
        status: (number, since) for status, number, since in rows.annotate(Count("pk"), Min("queued_at")).order_by()
    }
    for status in map(CommandStatus, Command.OPEN):
        number, since = found.get(status, (0, None))
        open_ones.add_metric((status.value,), number)
        oldest.add_metric((status.value,), (timezone.now() - since).total_seconds() if since else 0)
    restores = CounterMetricFamily("fleet_restores", "Home restores in the audit log.", labels=("site", "result"))
    for site, result, number in (
        HomeRestore.objects.values_list("site__slug", "result").annotate(Count("pk")).order_by()
    ):
        restores.add_metric((site, result), number)
    yield from (open_ones, oldest, restores)


DATABASE.register(Asked(commands))
