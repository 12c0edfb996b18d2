"""The targets of a campaign, thousands at a time: made, ordered, followed and closed in sets."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import Case, Count, Exists, OuterRef, Q, QuerySet, Subquery, Value, When
from django.db.models.functions import Coalesce, Concat
from django.utils import timezone

from agents.models import Campaign, Command, CommandStatus, Offline, Target, TargetStatus, Verb
from agents.selecting import Chosen, connected, open_command
from fleet.models import Client, ClientState

BATCH = 2000  # rows in one INSERT
CHUNK = 2000  # commands made in one transaction: who stops a campaign waits for no more than that
EXECUTED = (TargetStatus.SUCCEEDED, TargetStatus.FAILED, TargetStatus.REFUSED, TargetStatus.EXPIRED, TargetStatus.LOST)


def tally(campaign: Campaign, **only: Any) -> dict[str, int]:
    """How many targets are in which status; those that nobody is in are left out."""
    counted = Target.objects.filter(campaign=campaign, **only).order_by().values_list("status")
    return dict(counted.annotate(Count("pk")))


def told(counts: dict[str, int]) -> str:
    """Counts for people: ``40 succeeded, 2 failed``."""
    return ", ".join(f"{counts[status]} {status.label.lower()}" for status in TargetStatus if counts.get(status))


def make(campaign: Campaign, planned: Sequence[Sequence[Chosen]]) -> int:
    """A target for each client of each wave; how many."""
    made = Target.objects.bulk_create(
        (
            Target(campaign=campaign, client_id=client.pk, wave=number, place=place)
            for number, wave in enumerate(planned, 1)
            for place, client in enumerate(wave)
        ),
        batch_size=BATCH,
    )
    return len(made)


def follow(campaign: Campaign) -> int:
    """Copy the ends of commands to their targets; how many."""
    ended = Command.objects.filter(pk=OuterRef("command_id"))
    rows = Target.objects.filter(campaign=campaign, status=TargetStatus.ORDERED)
    return rows.exclude(command__status__in=Command.OPEN).update(
        status=Subquery(ended.values("status")),
        reason=Subquery(ended.values("reason")),
        ended_at=Coalesce(Subquery(ended.values("finished_at")), timezone.now()),
    )


def due(campaign: Campaign, now: datetime) -> QuerySet[Target]:
    """Those whose turn has come, free to carry it out: all of earlier waves, and of this one as the time over which it is spread goes by."""
    turn = Q(wave__lt=campaign.wave) | (Q(wave=campaign.wave) & Q(place__lt=reached(campaign, now)))
    waiting = Target.objects.filter(turn, campaign=campaign, status=TargetStatus.WAITING)
    return waiting.exclude(Exists(open_command("client"))).order_by("wave", "place")


def reached(campaign: Campaign, now: datetime) -> int:
    """The place up to which the clients of the present wave have their turn."""
    size = Target.objects.filter(campaign=campaign, wave=campaign.wave).count()
    passed = (now - (campaign.wave_at or now)).total_seconds()
    if passed >= campaign.spread_s:
        return size
    return min(size, int(size * passed / campaign.spread_s) + 1)


def able(campaign: Campaign) -> Q:
    """Who can carry it out as things stand: those that are connected; of a wake-up, those that are not."""
    return Q(~connected("client")) if campaign.order.verb == Verb.WAKE else Q(connected("client"))


def order_due(campaign: Campaign, room: int, now: datetime) -> int:
    """Make the commands of up to ``room`` targets whose turn it is, and part with those before them that cannot be reached; how many."""
    turn = due(campaign, now)
    chosen = list(turn.filter(able(campaign)).values_list("pk", "wave", "place")[: room + 1])
    unable = turn.exclude(able(campaign))
    if len(chosen) > room:
        chosen.pop()
        if not chosen:
            return 0
        _, wave, place = chosen[-1]
        unable = unable.filter(Q(wave__lt=wave) | Q(wave=wave, place__lt=place))
    _part_with(campaign, unable, now)
    return _order(campaign, [pk for pk, *_ in chosen], now)


def _order(campaign: Campaign, keys: Sequence[int], now: datetime) -> int:
    """A command for each of these targets, unless its client was ordered something else this very moment: it then waits on."""
    if not keys:
        return 0
    expires = min(now + timedelta(seconds=settings.COMMAND_LIFE), campaign.expires_at)
    clients = Target.objects.filter(pk__in=keys).order_by("client").values_list("client", flat=True)
    # In one order everywhere, or two who order something of the same clients would wait for each other.
    Command.objects.bulk_create(
        (
            Command(order=campaign.order, client_id=client, verb=campaign.order.verb, expires_at=expires, queued_at=now)
            for client in clients
        ),
        batch_size=BATCH,
        ignore_conflicts=True,
    )
    made = Command.objects.filter(order=campaign.order, client=OuterRef("client"), status=CommandStatus.QUEUED)
    return Target.objects.filter(Exists(made), pk__in=keys).update(
        status=TargetStatus.ORDERED, command=Subquery(made.values("pk")[:1])
    )


def _part_with(campaign: Campaign, unable: QuerySet[Target], now: datetime) -> None:
    """What the campaign wants of those that cannot be reached when it is their turn."""
    if campaign.order.verb == Verb.WAKE:
        close(unable, TargetStatus.SKIPPED, Value("is on already"), now)
    elif campaign.offline == Offline.SKIP:
        close(unable, TargetStatus.SKIPPED, _not_connected(), now)
    elif campaign.offline == Offline.FAIL:
        close(unable, TargetStatus.FAILED, _not_connected(), now)
    elif campaign.wait_until and campaign.wait_until <= now:
        why = Value(f"did not connect until {campaign.wait_until:%Y-%m-%d %H:%M}")
        close(unable, TargetStatus.EXPIRED, why, now)


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
            waiting.exclude(connected("client")), TargetStatus.EXPIRED, Value("did not connect until it expired"), now
        )
    close_all(campaign, TargetStatus.EXPIRED, "it expired before it was their turn")
