"""In which order a campaign reaches its clients."""

import math
from collections.abc import Sequence
from itertools import groupby

from agents.models import Campaign, WaveBy
from agents.seats import natural
from agents.selecting import Chosen
from fleet.models import ClientState


def waves(campaign: Campaign, chosen: Sequence[Chosen]) -> list[list[Chosen]]:
    """The clients of each wave, every one of them once. ``chosen`` comes in the order people read it.

    The canary are those of which something can be learned: who can carry the order out now, and before them nobody who is in use.
    """
    canary, rest = _canary(campaign, chosen)
    return [wave for wave in (canary, *_split(campaign, rest)) if wave]


def _canary(campaign: Campaign, chosen: Sequence[Chosen]) -> tuple[list[Chosen], list[Chosen]]:
    def reluctance(client: Chosen) -> tuple[bool, bool, bool]:
        return (
            not client.able(campaign.order.verb),
            bool(client.busy or client.hold),
            client.state == ClientState.IN_USE,
        )

    first = {client.pk for client in sorted(chosen, key=reluctance)[: campaign.canary]}
    return [client for client in chosen if client.pk in first], [client for client in chosen if client.pk not in first]


def _split(campaign: Campaign, rest: list[Chosen]) -> list[list[Chosen]]:
    if campaign.wave_by == WaveBy.ROW:
        by_row = sorted(rest, key=lambda client: natural(client.row))  # stable: within a row as people read it
        return [list(wave) for _, wave in groupby(by_row, key=lambda client: client.row)]
    if campaign.wave_by == WaveBy.SHARE:
        size = max(1, math.ceil(len(rest) * campaign.share / 100))
        return [rest[start : start + size] for start in range(0, len(rest), size)]
    return [rest]
