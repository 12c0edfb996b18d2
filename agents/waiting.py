"""Why commands wait that no sender has signed yet, and how much of its bounds each site uses: for those who watch, not for the sender.

It goes by the database alone. What was signed within a minute the sender knows better, from its book, which nobody else may read.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from django.db.models import Count, Min, QuerySet
from django.utils import timezone

from agents.caps import UNAPPROVED
from agents.models import Cap, Command, CommandStatus, Envelope, Freeze

MINUTE = timedelta(seconds=60)


class Why(StrEnum):
    """What keeps queued commands from being signed. SENDER: nothing does, so it is late, busy or dead."""

    FREEZE = "freeze"
    APPROVAL = "approval"
    CAP = "cap"
    CEILING = "ceiling"
    SENDER = "sender"


@dataclass(frozen=True)
class Waiting:
    number: int = 0
    since: datetime | None = None

    def and_(self, number: int, since: datetime) -> "Waiting":
        return Waiting(self.number + number, min(self.since or since, since))


@dataclass(frozen=True)
class Use:
    """Of one bound of a cap (``per_minute``, ``at_once``): how much of it is used."""

    cap: Cap
    bound: str
    limit: int
    used: int


def signed_within_a_minute() -> dict[tuple[int, str], int]:
    """By site and verb."""
    rows = Envelope.objects.filter(signed_at__gt=timezone.now() - MINUTE).order_by()
    by = rows.values_list("command__order__site", "command__verb")
    return {(site, verb): number for site, verb, number in by.annotate(Count("pk"))}


def uses() -> Iterator[Use]:
    """Of each bound of each cap."""
    signed = signed_within_a_minute()
    open_ones = Command.objects.open(CommandStatus.SENT, CommandStatus.ACCEPTED).order_by()
    under_way = {
        (site, verb): number
        for site, verb, number in open_ones.values_list("client__site", "verb").annotate(Count("pk"))
    }
    for cap in Cap.objects.select_related("site").order_by("site", "verb"):
        which = (cap.site_id, cap.verb)
        if cap.per_minute is not None:
            yield Use(cap, "per_minute", cap.per_minute, signed.get(which, 0))
        if cap.at_once is not None:
            yield Use(cap, "at_once", cap.at_once, under_way.get(which, 0))


def waiting(ceiling: Mapping[str, int]) -> dict[Why, Waiting]:
    """How many commands wait why, and since when the oldest of them.

    ``ceiling`` is the sender's, by verb. A cap is what holds them back where not all of them fit into what it leaves, and it is in use:
    where nobody has used any of it, the sender should have.
    """
    found = dict.fromkeys(Why, Waiting())
    frozen = set(Freeze.objects.filter(lifted_at=None).values_list("site", flat=True))
    bounds: dict[tuple[int, str], list[Use]] = {}
    for use in uses():
        bounds.setdefault((use.cap.site_id, use.cap.verb), []).append(use)
    signed: dict[str, int] = {}
    for (_, verb), number in signed_within_a_minute().items():
        signed[verb] = signed.get(verb, 0) + number
    queued = Command.objects.open(CommandStatus.QUEUED)
    for site, _, _, number, since in _groups(queued.filter(UNAPPROVED)):
        why = Why.FREEZE if frozen & {site, None} else Why.APPROVAL
        found[why] = found[why].and_(number, since)
    for site, verb, beyond, number, since in _groups(queued.exclude(UNAPPROVED)):
        used, most = signed.get(verb, 0), ceiling.get(verb, math.inf)
        here = [] if beyond else bounds.get((site, verb), [])
        if frozen & {site, None}:
            why = Why.FREEZE
        elif any(use.used and use.limit - use.used < number for use in here):
            why = Why.CAP
        elif most - used < number and (used or not most):
            why = Why.CEILING
        else:
            why = Why.SENDER
        found[why] = found[why].and_(number, since)
    return found


def _groups(queued: QuerySet[Command]) -> Iterator[tuple[int, str, bool, int, datetime]]:
    """By site, verb and whether they go beyond the cap: how many, and since when the oldest waits."""
    by = queued.order_by().values_list("order__site", "verb", "order__beyond_cap")
    yield from by.annotate(number=Count("pk"), since=Min("queued_at"))
