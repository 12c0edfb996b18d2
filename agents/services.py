"""What people ask of clients: orders. The web process writes rows; the sender (``agents.sending``) signs them."""

import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils import timezone

from agents import arguments, caps, capturing
from agents.models import Campaign, Command, CommandStatus, Order, Verb
from fleet import audit
from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import Client, Site
from fleet.queue import enqueue
from fleet.roles import Right
from fleet.transitions import move

MOST_CLIENTS = 1000
ORDERED = tuple(verb for verb in Verb if verb != Verb.RELAY)  # by people; that one is the server's own
RIGHTS = {Verb.CAPTURE: Right.RELEASE}  # it makes what a whole class may get; OPERATE for the others
APPROVAL_S = 3600  # how long an order waits for its second person
PASSES, PAUSE_S = 10, 0.05  # of calling back what was just being signed or accepted
CANCELLABLE = (CommandStatus.QUEUED, CommandStatus.SENT)  # a client asks before it acts


@transaction.atomic
def order(
    verb: str,
    clients: Iterable[Client],
    reason: str,
    actor: User | AnonymousUser,
    *,
    args: Mapping[str, Any] = {},
    force: bool = False,
    beyond_cap: bool = False,
) -> Order:
    """Order ``verb`` of each client: one command each, which always ends in a terminal status.

    Raises OperatorError without clients or a reason, for an unknown verb or arguments, or for clients of several sites; Forbidden when
    the actor may not operate one of them; WrongState naming the clients that still carry out another command. A capture is of
    one client, and asks for more (``agents.capturing``). ``force`` is for clients with a local hold, and asks for RELEASE.
    """
    chosen = {client.pk: client for client in clients}
    if not chosen:
        raise OperatorError("No client is chosen.", hint="Choose at least one.")
    if len(chosen) > MOST_CLIENTS:
        raise OperatorError(
            f"{len(chosen)} clients are more than one order takes.",
            hint=f"Choose {MOST_CLIENTS} or fewer, or make it a campaign.",
        )
    asked = prepare(verb, reason, actor, args=args, force=force, beyond_cap=beyond_cap)
    rows = _allowed(chosen, RIGHTS.get(Verb(verb), Right.OPERATE), actor)
    sites = {client.site for client in rows}
    if len(sites) > 1:
        raise OperatorError("An order is for clients of one site.", hint="Give one order per site.")
    busy = Command.objects.open().filter(client__in=rows).select_related("client")
    if names := [f"{command.client} ({command.get_verb_display().lower()})" for command in busy]:
        raise WrongState(f"Still busy: {', '.join(names)}.", hint="Wait until that has ended, or leave them out.")
    if verb == Verb.CAPTURE:
        capturing.may_order(rows, actor)

    asked.site = sites.pop()
    require(asked, actor)
    asked.save(force_insert=True)
    life = APPROVAL_S if beyond_cap else settings.COMMAND_LIFE + caps.takes_s(asked.site, verb, len(rows))
    expires = timezone.now() + timedelta(seconds=life)
    try:
        with transaction.atomic():
            Command.objects.bulk_create(
                Command(order=asked, client=client, verb=verb, expires_at=expires) for client in rows
            )
    except IntegrityError:
        raise WrongState(
            "One of the clients was ordered something this very moment.", hint="Look, and try again."
        ) from None
    audit.record("order", asked, site=asked.site, actor=actor, **told(asked), clients=[str(client) for client in rows])
    hand_over(asked)
    return asked


def prepare(
    verb: str,
    reason: str,
    actor: User | AnonymousUser,
    *,
    args: Mapping[str, Any] = {},
    force: bool = False,
    beyond_cap: bool = False,
) -> Order:
    """An order that makes sense, without a site yet and not saved. Raises OperatorError."""
    reason = reason.strip()
    if verb not in ORDERED:
        raise OperatorError(f"{verb!r} is not an order.", hint=f"Choose one of {', '.join(ORDERED)}.")
    if not reason:
        raise OperatorError("An order needs a reason.", hint="Say in a few words why: it stands in the audit log.")
    if len(reason) > 200:
        raise OperatorError("The reason is too long.", hint="Say it in 200 characters.")
    return Order(
        verb=verb,
        reason=reason,
        ordered_by=actor if isinstance(actor, User) else None,
        args=arguments.clean(Verb(verb), args),
        force=force,
        beyond_cap=beyond_cap,
    )


def require(asked: Order, actor: User | AnonymousUser) -> None:
    """Raises Forbidden where the actor may not order this at the order's site."""
    right = Right.RELEASE if asked.force else RIGHTS.get(Verb(asked.verb), Right.OPERATE)
    if not Site.objects.filter(pk=asked.site_id).visible_to(actor, right).exists():
        what = "pass over a local hold" if asked.force else "order that"
        raise Forbidden(f"You may not {what} at {asked.site}.", hint=f"Ask {_who(right)}.", site=asked.site)


def told(asked: Order) -> dict[str, Any]:
    """What the audit log says of an order, whoever made it."""
    odd = {name: True for name in ("force", "beyond_cap") if getattr(asked, name)}
    return {"verb": asked.verb, "reason": asked.reason, **({"args": asked.args} if asked.args else {}), **odd}


def _allowed(chosen: Mapping[Any, Client], right: Right, actor: User | AnonymousUser) -> list[Client]:
    """The chosen clients. Raises Forbidden naming those of which the actor may order nothing."""
    allowed = Client.objects.visible_to(actor, right).filter(pk__in=chosen).select_related("site")
    rows = {client.pk: client for client in allowed}
    if missing := [str(chosen[pk]) for pk in chosen if pk not in rows]:
        missed = {client.site for pk, client in chosen.items() if pk not in rows}
        raise Forbidden(
            f"You may not order anything of {', '.join(missing)}.",
            hint=f"Ask {_who(right)} of that site.",
            site=missed.pop() if len(missed) == 1 else None,
        )
    return list(rows.values())


def _who(right: Right) -> str:
    return "an organiser" if right == Right.RELEASE else "a volunteer"


def hand_over(row: Order) -> None:
    """Tell the sender that commands of ``row`` are queued, once they are committed."""
    from agents.tasks import send_order

    enqueue(send_order, str(row.pk))


@transaction.atomic
def approve(row: Order, actor: User | AnonymousUser) -> None:
    """Let an order go beyond the site's caps, as its second person. The sender's ceiling bounds it still.

    Raises Forbidden without RELEASE at its site or for one's own order, WrongState for one that needs no approval or has it.
    """
    if not Order.objects.filter(pk=row.pk).visible_to(actor, Right.RELEASE).exists():
        raise Forbidden("You may not approve that order.", hint="Ask an organiser of its site.", site=row.site)
    if row.ordered_by == actor:
        raise Forbidden("Nobody approves their own order.", hint="Ask another organiser.", site=row.site)
    waiting = Order.objects.filter(pk=row.pk, beyond_cap=True, approved_by=None)
    if not waiting.update(approved_by=actor, approved_at=timezone.now()):
        raise WrongState("That order awaits no approval.", hint="Reload the page to see how it stands.")
    row.refresh_from_db()
    life = timezone.now() + timedelta(seconds=settings.COMMAND_LIFE)
    Command.objects.filter(order=row, status=CommandStatus.QUEUED).update(expires_at=life)
    audit.record("order.approved", row, site=row.site, actor=actor, **told(row))
    hand_over(row)


@transaction.atomic
def cancel(command: Command, actor: User | AnonymousUser) -> None:
    """Take back a command that its client has not accepted yet. Raises Forbidden, or WrongState once it has."""
    if not Command.objects.filter(pk=command.pk).visible_to(actor, Right.OPERATE).exists():
        raise Forbidden(
            f"You may not cancel the {command}.", hint="Ask a volunteer of its site.", site=command.order.site
        )
    move(command, CommandStatus.CANCELLED, finished_at=timezone.now(), reason=f"cancelled by {actor}")
    audit.record("command.cancelled", command, site=command.order.site, actor=actor)


def cancel_order(row: Order, actor: User | AnonymousUser) -> int:
    """Take back what of an order no client has accepted yet; how many. Raises Forbidden, or WrongState when all is accepted.

    Whoever accepts in this moment is either before it or after it.
    """
    if not Order.objects.filter(pk=row.pk).visible_to(actor, Right.OPERATE).exists():
        raise Forbidden("You may not cancel that order.", hint="Ask a volunteer of its site.", site=row.site)
    if Campaign.objects.filter(pk=row.pk, status__in=Campaign.LIVE).exists():
        raise WrongState("That is a campaign, which would go on.", hint="Stop the campaign.")
    why = f"cancelled by {actor}"
    with transaction.atomic():
        audit.hold(row.site)
        taken_back = call_back(row, why)
        if not taken_back:
            raise WrongState(
                "Nothing of that order waits any more.", hint="What a client has accepted cannot be called back."
            )
        audit.record("order.cancelled", row, site=row.site, actor=actor, commands=taken_back)
    return taken_back + call_back_rest(row, why)


@transaction.atomic
def call_back(row: Order, reason: str) -> int:
    """Cancel what of an order is not accepted, in one statement; how many. The caller has asked for the right, and writes it down.

    What is being signed or accepted at this very moment is left for ``call_back_rest``.
    """
    waiting = unlocked(Command.objects.filter(order=row, status__in=CANCELLABLE))
    return waiting.update(status=CommandStatus.CANCELLED, finished_at=timezone.now(), reason=reason[:300])


def call_back_rest(row: Order, reason: str) -> int:
    """Cancel what was left, once the others are committed; how many."""
    number = 0
    for _ in range(PASSES):
        if not Command.objects.filter(order=row, status__in=CANCELLABLE).exists():
            break
        time.sleep(PAUSE_S)
        number += call_back(row, reason)
    return number


def unlocked(commands: QuerySet[Command]) -> QuerySet[Command]:
    """Those of ``commands`` that nobody else changes now, locked. To wait for one while others wait for us is how deadlocks are made."""
    rows = commands.select_for_update(no_key=True, skip_locked=True).order_by()
    return commands.filter(pk__in=list(rows.values_list("pk", flat=True)))
