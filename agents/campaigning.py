"""What the worker does with campaigns: it begins them, makes commands wave by wave, judges, and ends them.

Every part runs in a transaction of its own with the campaign's row locked, and does what is due at that moment: it may run twice, side
by side, late or again after a crash.
"""

import logging
import time
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from django.db import OperationalError, transaction
from django.db.models import Max, Q
from django.utils import timezone

from agents import caps, freezing, services, targets
from agents.models import (
    Campaign,
    CampaignStatus,
    Command,
    CommandStatus,
    Envelope,
    Offline,
    OnFailure,
    Order,
    Target,
    TargetStatus,
)
from agents.selecting import Selection, able, choose
from agents.waves import waves
from fleet import audit
from fleet.exceptions import FleetError, Forbidden
from fleet.transitions import move

log = logging.getLogger(__name__)
CLOCK = "clock"
MINUTE = timedelta(seconds=60)  # over which a cap counts
CHUNK = 2000  # commands made in one transaction: who stops a campaign waits for no more than that
# To look how far ten thousand are costs what they need themselves: it is left alone for so many times what that took, if that is
# longer than from one of the clock's calls to the next.
REST, SHORTEST_REST_S, LONGEST_REST_S = 20, 1.0, 3.0
_rests_until: dict[UUID, float] = {}  # this worker's, by its monotonic clock


def step() -> None:
    """Go on with all that have not ended; the clock calls it."""
    open_ones = Campaign.objects.filter(ended_at=None).order_by("order__ordered_at").values_list("pk", flat=True)
    rests = {key: _rests_until.get(key, 0.0) for key in open_ones}
    _rests_until.clear()
    for key, until in rests.items():
        if (began := time.monotonic()) >= until:
            go_on(key)
            rest = REST * (time.monotonic() - began)
            until = time.monotonic() + min(LONGEST_REST_S, rest) if rest > SHORTEST_REST_S else 0.0
        _rests_until[key] = until


def begin(campaign: Campaign) -> list[audit.Event]:
    """What is due at once of one that is just being ordered, with its order: targets, and commands. Nobody can stop it before that is
    committed, so they are made in one go. Returns what is to be written down of it, when all else is done.
    """
    if campaign.status != CampaignStatus.RUNNING:
        return []
    now = timezone.now()
    try:
        with transaction.atomic():
            began = _resolve(campaign, now)
            if room := _room(campaign.order, now):
                _order_due(campaign, now, room)
            return [began]
    except OperationalError as error:
        log.warning("%s is begun by the worker: %s", campaign, error)
        campaign.refresh_from_db(fields=_BEGUN)
        return []


def go_on(key: UUID, chunk: int = CHUNK) -> None:
    """Do what is due in one campaign, so that between two parts, of ``chunk`` commands, whoever stops it need not wait."""
    try:
        look = True
        while _part(key, chunk, look=look):
            look = False
    except (FleetError, OperationalError) as error:  # of the database: a deadlock, or a lock held for too long
        log.warning("Campaign %s goes on a second later: %s", key, error)


@transaction.atomic
def _part(key: UUID, chunk: int, *, look: bool) -> bool:
    """The next part; True when another one is due at once. With ``look`` it begins with what has become of the commands there are."""
    rows = Campaign.objects.select_related("order__site", "order__ordered_by").filter(pk=key, ended_at=None)
    campaign = rows.select_for_update(of=("self",), no_key=True, skip_locked=True).first()
    if campaign is None:
        return False  # another worker is at it
    now = timezone.now()
    if campaign.started_at is None and campaign.status in Campaign.LIVE:
        return _begin(campaign, now)
    if campaign.status not in Campaign.LIVE:
        _clear(campaign)  # also of what was just being signed when it was stopped
    if look:
        targets.follow(campaign)
    if look and campaign.status in Campaign.LIVE:
        if now >= campaign.expires_at:
            targets.expire(campaign, now)
        _keep_fresh(campaign.order, min(now + timedelta(seconds=settings.COMMAND_LIFE), campaign.expires_at))
    if campaign.status == CampaignStatus.RUNNING:
        return _run(campaign, now, chunk)
    _end_if_over(campaign)
    return False


def _begin(campaign: Campaign, now: datetime) -> bool:
    """Resolve the selection, once it is time and nothing stands against it."""
    order = campaign.order
    if now >= campaign.expires_at:
        awaited = campaign.status == CampaignStatus.AWAITING
        why = "nobody approved it in time" if awaited else "it did not begin in time"
        halt(campaign, CampaignStatus.STOPPED, why, CLOCK)
        return False
    if campaign.status == CampaignStatus.AWAITING and order.approved_at:
        move(campaign, CampaignStatus.SCHEDULED)
    if campaign.status == CampaignStatus.SCHEDULED and now >= (campaign.starts_at or now):
        move(campaign, CampaignStatus.RUNNING)
    if campaign.status != CampaignStatus.RUNNING or not _may(campaign):
        return False
    audit.record_many(order.site, [_resolve(campaign, now)])
    return True


_BEGUN = ["wave", "started_at", "wave_at", "judged_from"]


def _resolve(campaign: Campaign, now: datetime) -> audit.Event:
    """Make its targets, and have it in its first wave; what is to be written down of that."""
    planned = waves(campaign, choose(Selection.from_json(campaign.selection), campaign.order.site))
    number = targets.make(campaign, planned)
    campaign.wave, campaign.started_at, campaign.wave_at, campaign.judged_from = 1, now, now, now
    campaign.save(update_fields=_BEGUN)
    sizes = [len(wave) for wave in planned]
    return audit.Event("campaign.started", campaign, CLOCK, {"clients": number, "waves": sizes})


def _may(campaign: Campaign) -> bool:
    """Whether who ordered it still may; else it ends."""
    order, why = campaign.order, "who ordered it is gone"
    if order.ordered_by is not None:
        try:
            services.require(order, order.ordered_by)
            return True
        except Forbidden as error:
            why = error.message
    halt(campaign, CampaignStatus.STOPPED, f"stopped: {why}", CLOCK)
    return False


def _run(campaign: Campaign, now: datetime, chunk: int) -> bool:
    """Judge, go on to the next wave, order what is due."""
    wave_over = _wave_is_over(campaign, now)
    more = wave_over and campaign.wave < _last_wave(campaign)
    if why := _failed(campaign) or (_not_enough(campaign) if more else ""):
        return _hold(campaign, why)
    if more:
        wave = campaign.wave + 1
        Campaign.objects.filter(pk=campaign.pk).update(wave=wave, wave_at=now, judged_from=now)
        audit.record(
            "campaign.wave", campaign, site=campaign.order.site, actor=CLOCK, wave=wave, **targets.tally(campaign)
        )
        return True
    if _end_if_over(campaign):
        return False
    room = min(_room(campaign.order, now), chunk)
    if not room or not _may(campaign):
        return False
    number, parted = _order_due(campaign, now, room)
    return number == chunk or bool(parted and not number)


def _order_due(campaign: Campaign, now: datetime, room: int) -> tuple[int, int]:
    """Make commands of those whose turn it is; how many, and of how many targets it parted that cannot be reached."""
    number, parted = targets.order_due(campaign, room, now)
    if number:
        services.hand_over(campaign.order)
    return number, parted


def _last_wave(campaign: Campaign) -> int:
    return Target.objects.filter(campaign=campaign).aggregate(last=Max("wave"))["last"] or 0


def _wave_is_over(campaign: Campaign, now: datetime) -> bool:
    """All of it have ended, but for those that are waited for until they connect: they hold nobody up."""
    in_wave = Target.objects.filter(campaign=campaign, wave=campaign.wave)
    holding = Q(status=TargetStatus.ORDERED) | Q(status=TargetStatus.WAITING)
    if campaign.offline == Offline.WAIT:
        absent = Q(place__lt=targets.reached(campaign, now)) & ~able(campaign.order.verb, "client")
        holding = Q(status=TargetStatus.ORDERED) | (Q(status=TargetStatus.WAITING) & ~absent)
    return not in_wave.filter(holding).exists()


def _end_if_over(campaign: Campaign) -> bool:
    """End a campaign all of whose targets have ended, if it is so."""
    if Target.objects.filter(campaign=campaign, status__in=Target.OPEN).exists():
        return False
    counts, now = targets.tally(campaign), timezone.now()
    if campaign.status in Campaign.LIVE:
        outcome = targets.told(counts) or "nobody was selected"
        move(campaign, CampaignStatus.DONE, ended_at=now, outcome=outcome[:300])
    else:
        campaign.ended_at = now
        campaign.save(update_fields=["ended_at"])
    audit.record("campaign.ended", campaign, site=campaign.order.site, actor=CLOCK, **counts)
    return True


# --- thresholds --------------------------------------------------------------------------------------------------


def _judged(campaign: Campaign) -> tuple[int, int]:
    """How many carried it out, or should have, since the wave began or a person said to go on; and how many of them succeeded."""
    waited_for = Q(status=TargetStatus.EXPIRED, command=None)  # and did not come
    counts = targets.tally(campaign, Q(ended_at__gte=campaign.judged_from) & ~waited_for)
    return sum(counts.get(status, 0) for status in targets.EXECUTED), counts.get(TargetStatus.SUCCEEDED, 0)


def _failed(campaign: Campaign) -> str:
    """Why too many failed to go on, in words; "" when it may, and when nobody is left who could be spared."""
    executed, succeeded = _judged(campaign)
    failed = executed - succeeded
    if executed < campaign.judged_after or 100 * failed <= campaign.failed_percent * executed:
        return ""
    if (
        not Target.objects.filter(campaign=campaign, status__in=Target.OPEN)
        .exclude(command__status=CommandStatus.ACCEPTED)
        .exists()
    ):
        return ""
    return f"{failed} of {executed} failed in wave {campaign.wave}: more than {campaign.failed_percent} %"


def _not_enough(campaign: Campaign) -> str:
    """Why the next wave must not begin, in words; "" when it may."""
    executed, succeeded = _judged(campaign)
    by_itself = campaign.judged_from == campaign.wave_at  # nobody said to go on all the same
    if campaign.canary and campaign.wave == 1 and not executed and by_itself:
        return "nobody of the canary carried it out, so it has shown nothing"
    if executed >= campaign.judged_after and 100 * succeeded < campaign.success_percent * executed:
        return f"{succeeded} of {executed} succeeded in wave {campaign.wave}: less than {campaign.success_percent} %"
    return ""


def _hold(campaign: Campaign, why: str) -> bool:
    """A threshold was passed."""
    if campaign.on_failure == OnFailure.ABORT:
        halt(campaign, CampaignStatus.ABORTED, f"aborted: {why}", CLOCK)
    else:
        move(campaign, CampaignStatus.PAUSED, paused_at=timezone.now(), outcome=f"paused: {why}"[:300])
        counts = targets.tally(campaign)
        audit.record("campaign.paused", campaign, site=campaign.order.site, actor=CLOCK, why=why, **counts)
    return False


# --- commands in the queue ---------------------------------------------------------------------------------------


def _room(order: Order, now: datetime) -> int:
    """How many commands the sender may sign soon, so that none waits long in the queue and nobody else's waits behind them."""
    if freezing.standing(order.site_id):
        return 0
    queued = Command.objects.open(CommandStatus.QUEUED).filter(verb=order.verb)
    room = settings.CEILING[order.verb] - queued.count()
    if not order.beyond_cap and (cap := caps.cap_of(order.site_id, order.verb)):
        here = queued.filter(client__site=order.site_id).count()
        if cap.per_minute:
            signed = Envelope.objects.filter(command__verb=order.verb, command__client__site=order.site_id)
            room = min(room, cap.per_minute - signed.filter(signed_at__gt=now - MINUTE).count() - here)
        if cap.at_once:
            room = min(room, cap.at_once - caps.under_way(order.site_id, order.verb) - here)
    return max(0, room)


def _keep_fresh(order: Order, expires: datetime) -> None:
    """A command's time begins when it is signed: what waits for a ceiling, or for a freeze to be lifted, is given its time again."""
    late = expires - timedelta(seconds=settings.COMMAND_LIFE / 3)
    queued = Command.objects.open(CommandStatus.QUEUED).filter(order=order, verb=order.verb, expires_at__lt=late)
    services.unlocked(queued).update(expires_at=expires)


def halt(campaign: Campaign, status: CampaignStatus, why: str, actor: User | AnonymousUser | str) -> int:
    """End a campaign before its time: nobody who has not accepted does anything. How many commands were called back. Raises WrongState."""
    with transaction.atomic():
        move(campaign, status, outcome=why[:300], paused_at=None)
        audit.hold(campaign.order.site)
        counts = targets.tally(campaign)
        number = services.call_back(campaign.order, why)
        detail = {"why": why, "called_back": number, **counts}
        audit.record(f"campaign.{status}", campaign, site=campaign.order.site, actor=actor, **detail)
    with transaction.atomic():  # of its own, so that clients need not wait for it
        _clear(campaign)
        targets.follow(campaign)
        _end_if_over(campaign)
    return number


def _clear(campaign: Campaign) -> None:
    """End what waits in a campaign that was ended."""
    audit.hold(campaign.order.site)
    services.call_back(campaign.order, campaign.outcome)
    targets.close_all(campaign, TargetStatus.CANCELLED, campaign.outcome)
