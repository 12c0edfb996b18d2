"""What a campaign would do, told before anything is written."""

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings
from django.utils import timezone

from agents import caps, freezing
from agents.models import Campaign, Offline, Verb
from agents.selecting import MOST_CLIENTS, Chosen, Selection, choose
from agents.waves import waves
from fleet.models import ClientState


@dataclass(frozen=True)
class Wave:
    """Clients that have their turn together, in the order in which they have it."""

    number: int
    names: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Preview:
    """How things stand at this moment; whom it reaches is decided when it starts. Names are those that people use."""

    total: int
    reached: int  # who would carry it out now
    states: tuple[tuple[str, str, int], ...]  # state, its word, how many
    offline: tuple[str, ...]
    busy: tuple[str, ...]  # with what: A3 (restart)
    held: tuple[str, ...]  # why and until when: A4 (match running until 21:30)
    in_use: tuple[str, ...]
    waves: tuple[Wave, ...]
    takes_s: int  # from its start to the last command, at the most, where all goes well
    needs_approval: bool
    warnings: tuple[str, ...]


def preview(campaign: Campaign) -> Preview:
    """Of a campaign as ``campaigns.plan`` made it. Reads the database, however many clients, in a handful of queries."""
    order = campaign.order
    selection = Selection.from_json(campaign.selection)
    chosen = choose(selection, order.site)
    planned = waves(campaign, chosen)
    states = Counter(client.state for client in chosen)
    reached = sum(client.able(order.verb) for client in chosen)
    takes_s = _takes_s(campaign, len(chosen) if campaign.offline == Offline.WAIT else reached, len(planned))
    return Preview(
        total=len(chosen),
        reached=reached,
        states=tuple((state.value, str(state.label), states[state]) for state in ClientState if states[state]),
        offline=tuple(client.called for client in chosen if not client.connected),
        busy=tuple(f"{client.called} ({_word(client.busy)})" for client in chosen if client.busy),
        held=tuple(f"{client.called} ({client.hold})" for client in chosen if client.hold),
        in_use=tuple(client.called for client in chosen if client.state == ClientState.IN_USE),
        waves=tuple(Wave(number, tuple(client.called for client in wave)) for number, wave in enumerate(planned, 1)),
        takes_s=takes_s,
        needs_approval=order.beyond_cap,
        warnings=tuple(_warnings(campaign, selection, chosen, takes_s)),
    )


def _word(verb: str) -> str:
    return str(Verb(verb).label).lower()


def _takes_s(campaign: Campaign, number: int, waves: int) -> int:
    """By the site's caps, or beyond them by the ceiling; by the spread of each wave; and by the warning that users get."""
    order = campaign.order
    capped = 0 if order.beyond_cap else caps.takes_s(order.site, order.verb, number)
    ceiling = settings.CEILING[order.verb]
    minutes = (number - 1) // ceiling if ceiling and number else 0
    return max(capped, 60 * minutes, waves * campaign.spread_s) + int(order.args.get("warn_s", 0))


def _warnings(campaign: Campaign, selection: Selection, chosen: list[Chosen], takes_s: int) -> list[str]:
    order, verb = campaign.order, campaign.order.verb
    begins = campaign.starts_at or timezone.now()
    found = []
    if not chosen:
        found.append(f"No PC of {order.site} is that now: {selection}.")
    if len(chosen) > MOST_CLIENTS:
        found.append(f"{len(chosen)} PCs are more than one campaign takes: {MOST_CLIENTS}.")
    if frozen := freezing.standing(order.site):
        found.append(f"Nothing is signed at present: {frozen.reason}.")
    if begins + timedelta(seconds=takes_s) > campaign.expires_at:
        found.append(
            "It expires before all of them have had their turn: those that are left then are not ordered anything."
        )
    if 0 < len(chosen) <= campaign.canary:
        found.append("All of them are the canary: nothing comes after it.")
    held = sum(bool(client.hold) for client in chosen)
    if held and order.force:
        found.append(f"{_pcs(held)} with a local hold {'carries' if held == 1 else 'carry'} it out all the same.")
    elif held and verb not in (Verb.MESSAGE, Verb.WAKE):
        found.append(f"{_pcs(held)} with a local hold will refuse.")
    unable = sum(not client.able(verb) for client in chosen)
    if unable and verb == Verb.WAKE:
        found.append(f"{_pcs(unable)} {'is' if unable == 1 else 'are'} left out: on already.")
    elif unable and campaign.offline == Offline.SKIP:
        found.append(
            f"{_pcs(unable)} {'is left out unless it connects' if unable == 1 else 'are left out unless they connect'} in time."
        )
    elif unable and campaign.offline == Offline.FAIL:
        found.append(
            f"{_pcs(unable)} {'counts as failed unless it connects' if unable == 1 else 'count as failed unless they connect'} in time."
        )
    return found


def _pcs(number: int) -> str:
    return f"{number} PC{'' if number == 1 else 's'}"
