"""Commands and restores for ``/metrics``: what waits by the database, and how long things took in this process.

Of a command: signed by the sender, delivered by the gateway's nudged poll, accepted by the client's report. All three times are the
server's. The histograms are the gateway's, which takes the reports; with several gateways each has its share.
"""

from collections.abc import Iterable, Mapping
from functools import cache

import redis
from django.db.models import Count, Min
from django.utils import timezone
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from agents import waiting
from agents.models import BootSession, Campaign, Command, CommandStatus, Freeze, HomeRestore, Target
from fleet import alive
from fleet.metrics import DATABASE, GATEWAY, Asked
from fleet.models import Site

ACCEPTED = Histogram(
    "fleet_nudge_to_accepted_seconds",
    "From the signed command in the database to the report that its client accepted it.",
    ("verb",),
    registry=GATEWAY,
    buckets=(0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30, 60),
)
RESTORED = Histogram(
    "fleet_restore_phase_seconds",
    "Phases of home restores, as the clients measured them.",
    ("phase",),
    registry=GATEWAY,
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30),
)
SKEW = Histogram(
    "fleet_clock_skew_seconds",
    "By how much the clock of a client was off when it opened its session, either way.",
    registry=GATEWAY,
    buckets=(0.1, 0.5, 1, 2, 5, 30, 300, 3600, 86400),
)
PARKED = Gauge("fleet_parked_polls", "Long polls that wait at this moment.", registry=GATEWAY)
POLLS = Counter("fleet_polls", "Long polls by how they ended.", ("how",), registry=GATEWAY)
REQUESTS = Counter(
    "fleet_requests", "Requests of clients by the answer's status.", ("route", "status"), registry=GATEWAY
)
REJECTED = Counter("fleet_rejected_admissions", "Requests beyond a route's limit (429).", ("route",), registry=GATEWAY)


@cache
def _request(route: str, status: int) -> Counter:
    return REQUESTS.labels(route, status)


def answered(route: str, status: int, number: int = 1) -> None:
    _request(route, status).inc(number)


@cache
def _poll(how: str) -> Counter:
    return POLLS.labels(how)


def polled(how: str, number: int = 1) -> None:
    _poll(how).inc(number)


def accepted(sent: Iterable[tuple[str, float | None]], at: float) -> None:
    """Commands of these verbs, signed then, were accepted; in seconds since 1970."""
    for verb, sent_at in sent:
        if sent_at is not None:
            _accepted(verb).observe(at - sent_at)


@cache
def _accepted(verb: str) -> Histogram:
    return ACCEPTED.labels(verb)


def restored(restores: Iterable[HomeRestore]) -> None:
    for restore in restores:
        for phase, milliseconds in restore.phases_ms.items():
            RESTORED.labels(phase).observe(milliseconds / 1000)


def commands() -> Iterable[Metric]:
    open_ones = GaugeMetricFamily("fleet_commands", "Commands that have not ended.", labels=("status",))
    oldest = GaugeMetricFamily("fleet_oldest_command_seconds", "Age of the oldest of them.", labels=("status",))
    rows = Command.objects.open().values_list("status")
    found = {
        status: (number, since) for status, number, since in rows.annotate(Count("pk"), Min("queued_at")).order_by()
    }
    for status in map(CommandStatus, Command.OPEN):
        number, since = found.get(status, (0, None))
        open_ones.add_metric((status.value,), number)
        oldest.add_metric((status.value,), (timezone.now() - since).total_seconds() if since else 0)
    yield from (open_ones, oldest, _restores(), *_why(), _sessions())


def _restores() -> Metric:
    family = CounterMetricFamily("fleet_restores", "Home restores in the audit log.", labels=("site", "result"))
    rows = HomeRestore.objects.values_list("site__slug", "result").annotate(Count("pk"))
    for site, result, number in rows.order_by():
        family.add_metric((site, result), number)
    return family


def _why() -> Iterable[Metric]:
    """Why commands are not signed yet, and how many were signed lately; the sender's ceiling is in ``fleet_ceiling``."""
    number = GaugeMetricFamily(
        "fleet_waiting_commands", "Commands not signed yet, by what they wait for.", labels=("why",)
    )
    oldest = GaugeMetricFamily("fleet_waiting_seconds", "Age of the oldest of them; 0: none waits.", labels=("why",))
    now = timezone.now()
    for why, found in waiting.waiting(_ceiling()).items():
        number.add_metric((why.value,), found.number)
        oldest.add_metric((why.value,), (now - found.since).total_seconds() if found.since else 0)
    signed = GaugeMetricFamily("fleet_signed_last_minute", "Commands signed within a minute.", labels=("site", "verb"))
    sites = dict(Site.objects.values_list("pk", "slug"))
    for (site, verb), times in waiting.signed_within_a_minute().items():
        signed.add_metric((sites[site], verb), times)
    return number, oldest, signed


def _ceiling() -> Mapping[str, int]:
    try:
        return dict(alive.listen().parts["sender"].facts.get("ceiling", {}))
    except redis.RedisError:
        return {}


def _sessions() -> Metric:
    """Before the oldest protocol is given up (FLEET_PROTOCOL_FLOOR), nobody should speak it."""
    family = GaugeMetricFamily("fleet_sessions", "Sessions of running PCs.", labels=("protocol",))
    rows = BootSession.objects.filter(status__in=BootSession.LIVE).values_list("protocol").annotate(Count("pk"))
    for protocol, number in rows.order_by():
        family.add_metric((str(protocol),), number)
    return family


def bounds() -> Iterable[Metric]:
    """What a site may do at once, how much of it is used, and what is frozen."""
    labels = ("site", "verb", "bound")
    limit = GaugeMetricFamily("fleet_cap", "What a site's cap allows: per_minute, at_once.", labels=labels)
    used = GaugeMetricFamily("fleet_cap_used", "How much of it is used, by the database.", labels=labels)
    for use in waiting.uses():
        which = (use.cap.site.slug, use.cap.verb, use.bound)
        limit.add_metric(which, use.limit)
        used.add_metric(which, use.used)
    frozen = GaugeMetricFamily(
        "fleet_frozen_seconds", "Since signing is frozen; site all: everywhere.", labels=("site",)
    )
    now = timezone.now()
    for site, since in Freeze.objects.filter(lifted_at=None).values_list("site__slug", "frozen_at"):
        frozen.add_metric((site or "all",), (now - since).total_seconds())
    yield from (limit, used, frozen)


def campaigns() -> Iterable[Metric]:
    """Those that have not ended, and how far their targets are."""
    labels = ("site", "status")
    number = GaugeMetricFamily("fleet_campaigns", "Campaigns that have not ended.", labels=labels)
    targets = GaugeMetricFamily("fleet_campaign_targets", "Clients of these campaigns.", labels=labels)
    rows = Campaign.objects.filter(ended_at=None).values_list("order__site__slug", "status").annotate(Count("pk"))
    for site, status, found in rows.order_by():
        number.add_metric((site, status), found)
    under_way = Target.objects.filter(campaign__ended_at=None).values_list("campaign__order__site__slug", "status")
    for site, status, found in under_way.annotate(Count("pk")).order_by():
        targets.add_metric((site, status), found)
    yield from (number, targets)


for gather in (commands, bounds, campaigns):
    DATABASE.register(Asked(gather))
