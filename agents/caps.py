"""How much a site bears at once: what the sender may sign now, and how long that makes an order take.

Two bounds. The site's caps stand in the database, for people to set; an order can be approved to go beyond them. The ceiling stands in the
sender's own environment (FLEET_CEILING): nothing and nobody goes beyond it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from django.conf import settings
from django.db.models import F, Q, QuerySet

from agents.book import Book
from agents.models import CampaignStatus, Cap, Command, CommandStatus
from fleet.models import Site

# What the sender may not sign before a second person has approved it.
UNAPPROVED = Q(order__beyond_cap=True) & (Q(order__approved_by=None) | Q(order__approved_by=F("order__ordered_by")))

PAUSED = Q(order__campaign__status=CampaignStatus.PAUSED)


def cap_of(site: Site | int, verb: str) -> Cap | None:
    return Cap.objects.filter(site=site, verb=verb).first()


def under_way(site: int, verb: str) -> int:
    """Commands of ``verb`` at a site that were signed and have not ended."""
    signed = Command.objects.open(CommandStatus.SENT, CommandStatus.ACCEPTED)
    return signed.filter(client__site=site, verb=verb).count()


class Candidate(NamedTuple):
    """A queued command that the sender may sign as far as there is room."""

    key: UUID
    beyond_cap: bool


def candidates(waiting: QuerySet[Command], most: int) -> Sequence[Candidate]:
    """Those of the ``waiting`` that nobody need approve first, at most so many: those beyond the cap, as a second person wanted it so,
    then the oldest.
    """
    rows = waiting.exclude(UNAPPROVED).exclude(PAUSED).order_by("-order__beyond_cap", "queued_at", "pk")
    return [Candidate(*row) for row in rows.values_list("pk", "order__beyond_cap")[:most]]


def granted(book: Book, site: int, verb: str, group: Sequence[Candidate], *, signing: int = 0) -> Sequence[UUID]:
    """Which of a ``group`` of candidates, of one site and verb, may be signed now, while so many others are being signed."""
    room = max(0, settings.CEILING[verb] - book.signed(verb))
    beyond = [one.key for one in group if one.beyond_cap][:room]
    room -= len(beyond)
    if room and (cap := cap_of(site, verb)):
        if cap.per_minute:
            room = min(room, cap.per_minute - book.signed(verb, site) - len(beyond))
        if cap.at_once:
            room = min(room, cap.at_once - signing - under_way(site, verb) - len(beyond))
    return [*beyond, *[one.key for one in group if not one.beyond_cap][: max(0, room)]]


def takes_s(site: Site, verb: str, number: int) -> int:
    """How long ``number`` commands take at the most because of the caps of a site; 0 where they all go at once."""
    cap = cap_of(site, verb)
    if cap is None:
        return 0
    minutes = math.ceil(number / cap.per_minute) - 1 if cap.per_minute else 0
    rounds = math.ceil(number / cap.at_once) - 1 if cap.at_once else 0
    return max(60 * minutes, settings.COMMAND_LIFE * rounds)
