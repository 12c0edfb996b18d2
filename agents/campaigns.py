"""What people ask of campaigns: planned, looked at before, started, paused, stopped. What the worker does then: ``agents.campaigning``.

``plan`` makes a campaign that makes sense and saves nothing; ``preview`` tells what it would do; ``start`` writes it down.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from agents import campaigning, services, targets
from agents.models import Campaign, CampaignStatus, Offline, Verb, WaveBy
from agents.selecting import MOST_CLIENTS, Selection
from fleet import audit
from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import Site
from fleet.queue import enqueue
from fleet.roles import Right
from fleet.transitions import move

HOW = (
    *("starts_at", "expires_at", "offline", "wait_until", "canary", "wave_by", "share", "spread_s"),
    *("success_percent", "failed_percent", "judged_after", "on_failure"),
)
LIFE = timedelta(hours=1)  # of a campaign, unless somebody says otherwise
LONGEST = timedelta(days=7)
AHEAD = timedelta(days=31)  # for those that start later


def plan(
    site: Site,
    actor: User | AnonymousUser,
    *,
    verb: str,
    reason: str,
    selection: Selection,
    args: Mapping[str, Any] = {},
    force: bool = False,
    beyond_cap: bool = False,
    **how: Any,
) -> Campaign:
    """A campaign with its order, neither of them saved. ``how`` are fields of Campaign (``HOW``); what is left out or None has its default.

    Raises OperatorError naming what does not fit, Forbidden when the actor may not order this at ``site``.
    """
    order = services.prepare(verb, reason, actor, args=args, force=force, beyond_cap=beyond_cap)
    if verb == Verb.CAPTURE:
        raise OperatorError("A home is captured of one client.", hint="Give that as an order.")
    order.site = site
    services.require(order, actor)
    selection.check(site)
    if strange := sorted(how.keys() - set(HOW)):
        raise OperatorError(f"A campaign has no {', '.join(strange)}.", hint=f"There are {', '.join(HOW)}.")
    given = {name: value for name, value in how.items() if value is not None}
    begins = given.get("starts_at") or timezone.now()
    given.setdefault("expires_at", begins + LIFE)
    campaign = Campaign(order=order, selection=selection.to_json(), **given)
    _check_fields(campaign)
    _check_times(campaign, begins)
    _check_waves(campaign)
    return campaign


def _check_fields(campaign: Campaign) -> None:
    try:
        campaign.clean_fields(exclude=["order", "selection"])
    except ValidationError as error:
        field, messages = next(iter(error.message_dict.items()))
        raise OperatorError(f"{field}: {messages[0]}", hint="Change that, and try again.") from None


def _check_times(campaign: Campaign, begins: datetime) -> None:
    now = timezone.now()
    if campaign.starts_at and not now < campaign.starts_at <= now + AHEAD:
        raise OperatorError(
            "It cannot start then.", hint=f"Choose a time from now on, within {AHEAD.days} days; none is at once."
        )
    if not begins < campaign.expires_at <= begins + LONGEST:
        raise OperatorError(
            "It cannot expire then.", hint=f"Choose a time after it starts, and within {LONGEST.days} days of it."
        )
    if campaign.wait_until:
        if campaign.offline != Offline.WAIT:
            raise OperatorError("Those offline are not waited for.", hint="Have them waited for, or name no time.")
        if not begins < campaign.wait_until <= campaign.expires_at:
            raise OperatorError(
                "Those offline cannot be waited for until then.", hint="Choose a time before the campaign expires."
            )
    if begins + timedelta(seconds=campaign.spread_s) > campaign.expires_at:
        raise OperatorError(
            f"A wave that is spread over {campaign.spread_s} s lasts longer than the campaign.",
            hint="Spread it less, or have it expire later.",
        )


def _check_waves(campaign: Campaign) -> None:
    if campaign.wave_by != WaveBy.SHARE and campaign.share != 100:
        raise OperatorError("A share is for waves by share.", hint="Choose those, or leave the share out.")
    if campaign.canary > MOST_CLIENTS:
        raise OperatorError(f"A canary of {campaign.canary}?", hint=f"Choose {MOST_CLIENTS} or fewer.")
    one_wave = not campaign.canary and (
        campaign.wave_by == WaveBy.ALL or (campaign.wave_by == WaveBy.SHARE and campaign.share == 100)
    )
    if campaign.success_percent and one_wave:
        raise OperatorError(
            "There is one wave, so nothing comes after the successes that are asked for.",
            hint="Choose waves or a canary, or ask for no success.",
        )
    judged = campaign.success_percent or campaign.failed_percent < 100
    if judged and 0 < campaign.canary < campaign.judged_after:
        raise OperatorError(
            f"A canary of {campaign.canary} is never judged when {campaign.judged_after} must have ended before.",
            hint="Choose a larger canary, or judge after fewer.",
        )


@transaction.atomic
def start(campaign: Campaign, actor: User | AnonymousUser) -> Campaign:
    """Write down what ``plan`` made, and let the worker begin: now, at ``starts_at``, or once a second person has approved it.

    Raises Forbidden, and OperatorError for a campaign that begins now and fits nobody, or too many.
    """
    order, selection = campaign.order, Selection.from_json(campaign.selection)
    services.require(order, actor)
    number = selection.resolve(order.site).count()
    if not number and not campaign.starts_at:
        raise OperatorError(f"No PC of {order.site} is that: {selection}.", hint="Select others.")
    if number > MOST_CLIENTS:
        raise OperatorError(
            f"{number} clients are more than one campaign takes.", hint=f"Select {MOST_CLIENTS} or fewer."
        )
    order.save(force_insert=True)
    campaign.order = order  # again: now it has its key
    if order.beyond_cap:
        campaign.status = CampaignStatus.AWAITING
    elif campaign.starts_at:
        campaign.status = CampaignStatus.SCHEDULED
    campaign.save(force_insert=True)
    usual = Campaign()
    how = {name: _plain(getattr(campaign, name)) for name in HOW if getattr(campaign, name) != getattr(usual, name)}
    told = {**services.told(order), "selection": campaign.selection, "clients": number, "how": how}
    # The log's end is locked last, as everywhere: who holds it while others wait for the clients' rows waits for them.
    began = campaigning.begin(campaign)
    audit.record_many(order.site, [audit.Event("campaign.ordered", campaign, actor, told), *began])
    if not began or not targets.all_ordered(campaign):  # else there is nothing to do for it until some have ended
        _go_on(campaign)
    return campaign


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


@transaction.atomic
def approve(campaign: Campaign, actor: User | AnonymousUser) -> None:
    """Let a campaign go beyond the site's caps, as its second person. Raises Forbidden, WrongState."""
    services.approve(campaign.order, actor)
    move(campaign, CampaignStatus.SCHEDULED)
    _go_on(campaign)


@transaction.atomic
def pause(campaign: Campaign, actor: User | AnonymousUser) -> None:
    """Order nothing more for now; what is on its way ends. Raises Forbidden, WrongState."""
    _require(campaign, actor, "pause")
    move(campaign, CampaignStatus.PAUSED, paused_at=timezone.now(), outcome=f"paused by {audit.actor_name(actor)}")
    audit.record("campaign.paused", campaign, site=campaign.order.site, actor=actor, **targets.tally(campaign))


@transaction.atomic
def resume(campaign: Campaign, actor: User | AnonymousUser) -> None:
    """Go on, and judge by what ends from now on. Raises Forbidden, WrongState."""
    services.require(campaign.order, actor)
    row = Campaign.objects.select_for_update(no_key=True).get(pk=campaign.pk)
    if row.status != CampaignStatus.PAUSED:  # from others it comes to run in its own way
        raise WrongState(
            f"{campaign} cannot be resumed: it is {row.get_status_display().lower()}.", hint="Reload the page."
        )
    now = timezone.now()
    changes: dict[str, Any] = {"paused_at": None, "judged_from": now, "outcome": ""}
    if row.wave_at and row.paused_at:
        changes["wave_at"] = row.wave_at + (now - row.paused_at)  # who waits is spread as before
    move(campaign, CampaignStatus.RUNNING, **changes)
    audit.record("campaign.resumed", campaign, site=campaign.order.site, actor=actor)
    _go_on(campaign)


def stop(campaign: Campaign, actor: User | AnonymousUser) -> int:
    """End it now: whoever has not accepted a command does nothing any more. How many commands were called back.

    Raises Forbidden, WrongState once it has ended. What a client has accepted cannot be stopped, and ends by itself.
    """
    _require(campaign, actor, "stop")
    why = f"stopped by {audit.actor_name(actor)}"
    number = campaigning.halt(campaign, CampaignStatus.STOPPED, why, actor)
    return number + services.call_back_rest(campaign.order, why)


def _require(campaign: Campaign, actor: User | AnonymousUser, what: str) -> None:
    right = Right.OPERATE
    if not Campaign.objects.filter(pk=campaign.pk).visible_to(actor, right).exists():
        site = campaign.order.site
        raise Forbidden(f"You may not {what} that campaign.", hint=f"Ask a volunteer of {site}.", site=site)


def _go_on(campaign: Campaign) -> None:
    from agents.tasks import step_campaign

    enqueue(step_campaign, str(campaign.pk))
