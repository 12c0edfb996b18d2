"""The targets of a campaign, thousands at a time: made, ordered, followed and closed in sets."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import Case, Count, Exists, OuterRef, Q, QuerySet, Subquery, Value, When
from django.db.models.functions import Concat
from django.utils import timezone

from agents.models import Campaign, Command, Offline, Order, Target, TargetStatus, Verb
from agents.selecting import Chosen, able, open_command
from fleet.models import Client, ClientState
from fleet.rows import insert_rows, update_rows

EXECUTED = (TargetStatus.SUCCEEDED, TargetStatus.FAILED, TargetStatus.REFUSED, TargetStatus.EXPIRED, TargetStatus.LOST)


def tallies(campaigns: Iterable[Campaign]) -> dict[UUID, dict[str, int]]:
    """``tally`` of several campaigns by one query."""
    counts: dict[UUID, dict[str, int]] = defaultdict(dict)
    counted = Target.objects.filter(campaign__in=list(campaigns)).order_by().values_list("campaign", "status")
    for campaign, status, number in counted.annotate(Count("pk")):
        counts[campaign][status] = number
    return counts


def tally(campaign: Campaign, *only: Q) -> dict[str, int]:
    """How many targets are in which status; those that nobody is in are left out."""
    counted = Target.objects.filter(*only, campaign=campaign).order_by().values_list("status")
    return dict(counted.annotate(Count("pk")))


def told(counts: dict[str, int]) -> str:
    """Counts for people: ``40 succeeded, 2 failed``."""
    return ", ".join(f"{counts[status]} {status.label.lower()}" for status in TargetStatus if counts.get(status))


def make(campaign: Campaign, planned: Sequence[Sequence[Chosen]]) -> int:
    """A target for each client of each wave; how many."""
    places = ((client.pk, number, place) for number, wave in enumerate(planned, 1) for place, client in enumerate(wave))
    return insert_rows(Target(campaign_id=campaign.pk), ["client", "wave", "place"], places)


def all_ordered(campaign: Campaign) -> bool:
    """Whether each target has its command, and none has ended."""
    return not Target.objects.filter(campaign=campaign).exclude(status=TargetStatus.ORDERED).exists()


def follow(campaign: Campaign) -> int:
    """Copy the ends of commands to their targets; how many."""
    rows = Target.objects.filter(campaign=campaign, status=TargetStatus.ORDERED).exclude(
        command__status__in=Command.OPEN
    )
    columns = ("status", "reason", "ended_at")
    ends = list(rows.order_by().values_list("pk", "command__status", "command__reason", "command__finished_at"))
    return update_rows(Target, columns, ends, status=TargetStatus.ORDERED)


def due(campaign: Campaign, now: datetime) -> QuerySet[Target]:
    """Those whose turn has come, free to carry it out: all of earlier waves, and of this one as the time over which it is spread goes by."""
    turn = Q(wave__lt=campaign.wave) | (Q(wave=campaign.wave) & Q(place__lt=reached(campaign, now)))
    waiting = Target.objects.filter(turn, campaign=campaign, status=TargetStatus.WAITING)
    return waiting.exclude(Exists(open_command("client"))).order_by("wave", "place")


def reached(campaign: Campaign, now: datetime) -> int:
    """The place up to which the clients of the present wave have their turn."""
    size = Target.objects.filter(campaign=campaign, wave=campaign.wave).count()
    passed = (now - (campaign.wave_at or now)).total_seconds()
    if not campaign.spread_s or passed >= campaign.spread_s:  # a clock that is set back must not hold up a wave, nor us
        return size
    return min(size, int(size * passed / campaign.spread_s) + 1)


def order_due(campaign: Campaign, room: int, now: datetime) -> tuple[int, int]:
    """Make the commands of up to ``room`` targets whose turn it is, and part with those before them that cannot be reached.

    How many were ordered, and of how many it parted.
    """
    turn, can = due(campaign, now), able(campaign.order.verb, "client")
    chosen = list(turn.filter(can).values_list("pk", "client", "wave", "place")[: room + 1])
    unable = turn.exclude(can)
    if len(chosen) > room:
        chosen.pop()
        *_, wave, place = chosen[-1]
        unable = unable.filter(Q(wave__lt=wave) | Q(wave=wave, place__lt=place))
    return _order(campaign, {pk: client for pk, client, *_ in chosen}, now), _part_with(campaign, unable, now)


def _order(campaign: Campaign, clients: Mapping[int, UUID], now: datetime) -> int:
    """A command for each of these targets, unless its client was ordered something else this very moment: it then waits on.

    ``clients`` are those of the targets, by the targets' keys.
    """
    if not clients:
        return 0
    order = campaign.order
    expires = min(now + timedelta(seconds=settings.COMMAND_LIFE), campaign.expires_at)
    pattern = Command(order=order, verb=order.verb, queued_at=now, expires_at=expires)
    commands = {_command_of(order, key): key for key in clients}
    # In one order everywhere, or two who order something of the same clients would wait for each other.
    made = sorted((clients[key], command) for command, key in commands.items())
    there: Iterable[UUID] = commands
    if insert_rows(pattern, ["client", "id"], made) != len(made):
        there = Command.objects.filter(pk__among=list(commands)).order_by().values_list("pk", flat=True)
    ordered = ((commands[pk], TargetStatus.ORDERED, pk) for pk in there)
    return update_rows(Target, ["status", "command"], ordered, status=TargetStatus.WAITING)


def _command_of(order: Order, target: int) -> UUID:
    """The key of a target's command. It is the target's own, so that no step that runs twice can order anything twice."""
    return UUID(hashlib.md5(f"{order.pk} {target}".encode(), usedforsecurity=False).hexdigest())


def _part_with(campaign: Campaign, unable: QuerySet[Target], now: datetime) -> int:
    """Do what the campaign wants of those that cannot be reached when it is their turn; how many have ended by it."""
    if campaign.order.verb == Verb.WAKE:
        return close(unable, TargetStatus.SKIPPED, Value("is on already"), now)
    if campaign.offline == Offline.SKIP:
        return close(unable, TargetStatus.SKIPPED, _not_connected(), now)
    if campaign.offline == Offline.FAIL:
        return close(unable, TargetStatus.FAILED, _not_connected(), now)
    if campaign.wait_until and campaign.wait_until <= now:
        why = Value(f"did not connect until {campaign.wait_until:%Y-%m-%d %H:%M}")
        return close(unable, TargetStatus.EXPIRED, why, now)
    return 0


def _not_connected() -> Concat:
    """With what its client was then: a database's word for it."""
    words = (When(state=state, then=Value(str(state.label).lower())) for state in ClientState)
    client = Client.objects.filter(pk=OuterRef("client_id"))
    return Concat(Value("not connected: "), Subquery(client.values_list(Case(*words, default=Value("")))))


def close(waiting: QuerySet[Target], status: TargetStatus, reason: Any, now: datetime) -> int:
    """End targets that have no command; how many."""
    return waiting.order_by().update(status=status, reason=reason, ended_at=now)


def close_all(campaign: Campaign, status: TargetStatus, reason: str) -> int:
    """End all that wait."""
    waiting = Target.objects.filter(campaign=campaign, status=TargetStatus.WAITING)
    return close(waiting, status, Value(reason[:300]), timezone.now())


def expire(campaign: Campaign, now: datetime) -> None:
    """The campaign's time is over: end all that wait, each with what it waited for."""
    waiting = Target.objects.filter(campaign=campaign, status=TargetStatus.WAITING)
    close(waiting.filter(Exists(open_command("client"))), TargetStatus.EXPIRED, Value("was busy until it expired"), now)
    if campaign.order.verb != Verb.WAKE:
        close(
            waiting.exclude(able(campaign.order.verb, "client")),
            TargetStatus.EXPIRED,
            Value("did not connect until it expired"),
            now,
        )
    close_all(campaign, TargetStatus.EXPIRED, "it expired before it was their turn")
