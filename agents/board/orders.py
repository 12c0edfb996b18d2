"""The orders on a site's board: progress, and what became of those that failed. Four queries, however many PCs."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from django.db.models import Count, F, Max, Q
from django.urls import reverse

from agents.board.facts import PHASES, STEPS, Fact, Fate, OrderLine, Phase
from agents.models import Command, CommandStatus, Order
from agents.seats import natural, seat_of
from agents.services import CANCELLABLE
from fleet.models import Site

RECENT_ORDERS = 8
MOST_FATES = 12  # seats named one by one under an order that went wrong
MOST_SEATS = 40


def read_orders(site: Site) -> list[Fact]:
    """What is on its way at ``site``, then what was ordered last."""
    people = Order.objects.filter(site=site).select_related("ordered_by")
    running = list(people.filter(commands__is_open=True).distinct().order_by("-ordered_at"))
    known = {order.pk for order in running}
    recent = [order for order in people.order_by("-ordered_at")[:RECENT_ORDERS] if order.pk not in known]
    orders = [*running, *recent]
    tallies: dict[Any, dict[str, int]] = defaultdict(dict)
    ends: dict[Any, Any] = {}
    asked = Command.objects.filter(order__in=orders, verb=F("order__verb"))  # not those of relays that carry it out
    counted = asked.order_by().values_list("order", "status")
    for key, status, number, last in counted.annotate(Count("pk"), Max("finished_at")):
        tallies[key][status] = number
        ends[key] = max(filter(None, (ends.get(key), last)), default=None)
    single = [order.pk for order in orders if sum(tallies[order.pk].values()) == 1]
    # Those that succeeded are a number; a thousand of them need not be read twice a second.
    told = (
        asked.filter(~Q(status=CommandStatus.SUCCEEDED) | Q(order__in=single))
        .select_related("client")
        .only("order_id", "status", "reason", "result", "client__seat", "client__name")
    )
    commands: dict[Any, list[Command]] = defaultdict(list)
    for command in sorted(told, key=lambda command: natural(seat_of(command.client))):
        commands[command.order_id].append(command)
    return [_line(site, order, tallies[order.pk], ends.get(order.pk), commands[order.pk]) for order in orders]


def _line(site: Site, order: Order, tally: dict[str, int], ended_at: Any, commands: Sequence[Command]) -> OrderLine:
    total = sum(tally.values())
    ended = total - sum(tally.get(status, 0) for status in Command.OPEN)
    fates = [
        Fate(seat_of(command.client), command.status, command.get_status_display(), command.reason)
        for command in commands
        if command.status not in Command.OPEN and command.status != CommandStatus.SUCCEEDED
    ]
    only = commands[0] if total == 1 and commands else None
    result = only.result if only else None
    phases, total_ms = phases_of(result.get("phases_ms") if isinstance(result, dict) else None)
    return OrderLine(
        key=str(order.pk),
        verb=order.verb,
        verb_word=order.get_verb_display(),
        whom=seat_of(only.client) if only else f"{total} PCs",
        at=order.ordered_at if ended < total or ended_at is None else ended_at,
        by=order.ordered_by.get_username() if order.ordered_by else "nobody",
        why=order.reason,
        total=total,
        ended=ended,
        succeeded=tally.get(CommandStatus.SUCCEEDED, 0),
        waiting=sum(tally.get(status, 0) for status in CANCELLABLE),
        fates=tuple(fates[:MOST_FATES]),
        more_fates=max(0, len(fates) - MOST_FATES),
        running=() if only else _running(commands),
        steps=_steps(only) if only and only.status in Command.OPEN else (),
        phases=phases,
        total_ms=total_ms,
        cancel_url=reverse("board-cancel", args=[site.slug, order.pk]),
    )


def _running(commands: Sequence[Command]) -> tuple[tuple[str, str], ...]:
    """Where those on their way are, the furthest first: ``(("Accepted", "A1, A2"), ("Sent", "A3"))``."""
    seats: dict[str, list[str]] = defaultdict(list)
    for command in commands:
        seats[command.status].append(seat_of(command.client))
    words = {status: ", ".join(names[:MOST_SEATS]) for status, names in seats.items()}
    words |= {
        status: f"{words[status]} and {len(names) - MOST_SEATS} more"
        for status, names in seats.items()
        if len(names) > MOST_SEATS
    }
    return tuple(
        (str(CommandStatus(status).label), words[status]) for status in reversed(Command.OPEN) if status in words
    )


def _steps(command: Command) -> tuple[tuple[str, bool], ...]:
    """The way of one command, and how far on it it is."""
    reached = Command.OPEN.index(CommandStatus(command.status))
    return tuple((word, number <= reached) for number, word in enumerate(STEPS))


def phases_of(phases_ms: Any) -> tuple[tuple[Phase, ...], int]:
    """A cycle's phases as the client reported them; whatever is no number is left out."""
    if not isinstance(phases_ms, dict):
        return (), 0
    known = {name: int(phases_ms[name]) for name in PHASES if isinstance(phases_ms.get(name), int | float)}
    total = phases_ms.get("total")
    whole = int(total) if isinstance(total, int | float) else sum(known.values())
    phases, passed = [], 0
    for name, ms in known.items():
        phases.append(Phase(name, ms, round(100 * passed / max(whole, 1)), round(100 * ms / max(whole, 1))))
        passed += ms
    return tuple(phases), whole
