"""What people ask of clients: orders. The web process writes rows; the sender (``agents.sending``) signs them."""

from collections.abc import Iterable
from datetime import timedelta

from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from django.db import IntegrityError, transaction
from django.utils import timezone

from agents import capturing
from agents.models import Command, CommandStatus, Order, Verb
from fleet import audit
from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import Client
from fleet.queue import enqueue
from fleet.roles import Right
from fleet.transitions import move

MOST_CLIENTS = 1000
RIGHTS = {Verb.CAPTURE: Right.RELEASE}  # it makes what a whole class may get; OPERATE for the others


@transaction.atomic
def order(verb: str, clients: Iterable[Client], reason: str, actor: User | AnonymousUser) -> Order:
    """Order ``verb`` of each client: one command each, which always ends in a terminal status.

    Raises OperatorError without clients or a reason, for an unknown verb, or for clients of several sites; Forbidden when
    the actor may not operate one of them; WrongState naming the clients that still carry out another command. A capture is of
    one client, and asks for more (``agents.capturing``).
    """
    chosen = {client.pk: client for client in clients}
    reason = reason.strip()
    if verb not in Verb.values:
        raise OperatorError(f"{verb!r} is not an order.", hint=f"Choose one of {', '.join(Verb.values)}.")
    if not chosen:
        raise OperatorError("No client is chosen.", hint="Choose at least one.")
    if len(chosen) > MOST_CLIENTS:
        raise OperatorError(
            f"{len(chosen)} clients are more than one order takes.", hint=f"Choose {MOST_CLIENTS} or fewer."
        )
    if not reason:
        raise OperatorError("An order needs a reason.", hint="Say in a few words why: it stands in the audit log.")
    if len(reason) > 200:
        raise OperatorError("The reason is too long.", hint="Say it in 200 characters.")
    right = RIGHTS.get(Verb(verb), Right.OPERATE)
    allowed = Client.objects.visible_to(actor, right).filter(pk__in=chosen).select_related("site")
    rows = {client.pk: client for client in allowed}
    if missing := [str(chosen[pk]) for pk in chosen if pk not in rows]:
        missed = {client.site for pk, client in chosen.items() if pk not in rows}
        raise Forbidden(
            f"You may not order anything of {', '.join(missing)}.",
            hint=f"Ask {'an organiser' if right == Right.RELEASE else 'a volunteer'} of that site.",
            site=missed.pop() if len(missed) == 1 else None,
        )
    sites = {client.site for client in rows.values()}
    if len(sites) > 1:
        raise OperatorError("An order is for clients of one site.", hint="Give one order per site.")
    busy = Command.objects.filter(client__in=rows, status__in=Command.OPEN).select_related("client")
    if names := [f"{command.client} ({command.get_verb_display().lower()})" for command in busy]:
        raise WrongState(f"Still busy: {', '.join(names)}.", hint="Wait until that has ended, or leave them out.")
    if verb == Verb.CAPTURE:
        capturing.may_order(list(rows.values()), actor)

    site = sites.pop()
    person = actor if isinstance(actor, User) else None
    made = Order.objects.create(site=site, verb=verb, reason=reason, ordered_by=person)
    expires = timezone.now() + timedelta(seconds=settings.COMMAND_LIFE)
    try:
        with transaction.atomic():
            Command.objects.bulk_create(
                Command(order=made, client=client, verb=verb, expires_at=expires) for client in rows.values()
            )
    except IntegrityError:
        raise WrongState(
            "One of the clients was ordered something this very moment.", hint="Look, and try again."
        ) from None
    audit.record(
        "order",
        made,
        site=site,
        actor=actor,
        verb=verb,
        reason=reason,
        clients=[str(client) for client in rows.values()],
    )
    from agents.tasks import send_order

    enqueue(send_order, str(made.pk))
    return made


@transaction.atomic
def cancel(command: Command, actor: User | AnonymousUser) -> None:
    """Take back a command that was not sent yet. Raises Forbidden, or WrongState once it is on its way."""
    if not Command.objects.filter(pk=command.pk).visible_to(actor, Right.OPERATE).exists():
        raise Forbidden(
            f"You may not cancel the {command}.", hint="Ask a volunteer of its site.", site=command.order.site
        )
    move(command, CommandStatus.CANCELLED, finished_at=timezone.now(), reason=f"cancelled by {actor}")
    audit.record("command.cancelled", command, site=command.order.site, actor=actor)


@transaction.atomic
def cancel_queued(order: Order, actor: User | AnonymousUser) -> int:
    """Take back what of ``order`` was not sent yet; how many. Raises Forbidden, or WrongState when all of it is sent."""
    if not Order.objects.filter(pk=order.pk).visible_to(actor, Right.OPERATE).exists():
        raise Forbidden("You may not cancel that order.", hint="Ask a volunteer of its site.", site=order.site)
    taken_back = 0
    for command in Command.objects.filter(order=order, status=CommandStatus.QUEUED):
        try:
            cancel(command, actor)
        except WrongState:
            continue  # the sender was quicker
        taken_back += 1
    if not taken_back:
        raise WrongState("Nothing of that order waits any more.", hint="What was sent cannot be called back.")
    return taken_back
