"""How much a site bears at once: what the sender may sign now, and how long that makes an order take.

Two bounds. The site's caps stand in the database, for people to set; an order can be approved to go beyond them. The ceiling stands in the
sender's own environment (FLEET_CEILING): nothing and nobody goes beyond it.
"""

import math
from collections.abc import Sequence
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
    open_ones = (CommandStatus.SENT, CommandStatus.ACCEPTED)
    return Command.objects.filter(client__site=site, verb=verb, status__in=open_ones).count()


def granted(book: Book, site: int, verb: str, waiting: QuerySet[Command], most: int) -> Sequence[UUID]:
    """Which of the ``waiting`` commands of one site and verb may be signed now, the oldest first; no more than ``most``.

    Who is beyond the cap goes first: a second person wanted it so.
    """
    room = max(0, min(most, settings.CEILING[verb] - book.signed(verb)))
    approved = waiting.exclude(UNAPPROVED).exclude(PAUSED).order_by("queued_at", "pk")
    beyond = list(approved.filter(order__beyond_cap=True).values_list("pk", flat=True)[:room])
    room -= len(beyond)
    if room and (cap := cap_of(site, verb)):
        if cap.per_minute:
            room = min(room, cap.per_minute - book.signed(verb, site) - len(beyond))
        if cap.at_once:
            room = min(room, cap.at_once - under_way(site, verb) - len(beyond))
    return [*beyond, *approved.filter(order__beyond_cap=False).values_list("pk", flat=True)[: max(0, room)]]


def takes_s(site: Site, verb: str, number: int) -> int:
    """How long ``number`` commands take at the most because of the caps of a site; 0 where they all go at once."""
    cap = cap_of(site, verb)
    if cap is None:
        return 0
    minutes = math.ceil(number / cap.per_minute) - 1 if cap.per_minute else 0
    rounds = math.ceil(number / cap.at_once) - 1 if cap.at_once else 0
    return max(60 * minutes, settings.COMMAND_LIFE * rounds)
