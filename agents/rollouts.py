"""Bringing clients to the version they would boot: counted, and restarted a few at a time while nobody uses them."""

import logging
from collections.abc import Iterable

from django.contrib.auth.models import AnonymousUser, User
from django.db import IntegrityError, transaction
from django.utils import timezone

from agents import services
from agents.models import BootSession, Command, Rollout, RolloutStatus, SessionStatus, Verb
from fleet import audit
from fleet.exceptions import FleetError, Forbidden, OperatorError, WrongState
from fleet.models import Client, ClientClass, ClientState
from fleet.roles import Right
from fleet.transitions import move
from images import releasing

log = logging.getLogger(__name__)
CLOCK = "clock"
SHARE = 10  # a tenth of those that are behind are restarted at once, unless somebody says otherwise


def behind(client_class: ClientClass) -> list[Client]:
    """The connected clients of a class that run another version than they would boot now."""
    offer = releasing.offer_of(client_class)
    sessions = BootSession.objects.filter(client__client_class=client_class, status=SessionStatus.OPEN)
    sessions = sessions.select_related("client", "release").order_by("client__name")
    return [
        session.client
        for session in sessions
        if (new := offer.to(session.client)) and (not session.release or session.release.version_id != new.version_id)
    ]


@transaction.atomic
def start(client_class: ClientClass, actor: User | AnonymousUser, reason: str = "", at_once: int = 0) -> Rollout:
    """Have the clients that are behind restarted, ``at_once`` of them at a time (0: a tenth).

    Raises Forbidden, OperatorError for a number that is none, and WrongState when none is behind or a rollout runs already.
    """
    if not ClientClass.objects.filter(pk=client_class.pk).visible_to(actor, Right.OPERATE).exists():
        raise Forbidden(
            f"You may not restart clients of {client_class}.", hint="Ask a volunteer.", site=client_class.site
        )
    late = behind(client_class)
    if not late:
        raise WrongState(f"No client of {client_class} runs an older version.", hint="There is nothing to do.")
    if not 0 <= at_once <= services.MOST_CLIENTS:
        raise OperatorError(f"{at_once} clients at once?", hint=f"Choose 1 to {services.MOST_CLIENTS}.")
    row = Rollout(
        client_class=client_class,
        at_once=at_once or max(1, len(late) // SHARE),
        reason=reason.strip()[:200] or "a newer version",
        ordered_by=actor if isinstance(actor, User) else None,
    )
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError:
        raise WrongState(
            f"Clients of {client_class} are being restarted already.", hint="Wait for it, or stop it first."
        ) from None
    detail = {"client_class": client_class.slug, "clients": [str(client) for client in late], "at_once": row.at_once}
    audit.record("rollout.started", row, site=client_class.site, actor=actor, reason=row.reason, **detail)
    return row


@transaction.atomic
def stop(row: Rollout, actor: User | AnonymousUser) -> None:
    """Restart no more of them; what was sent is not called back. Raises Forbidden, and WrongState when it ended."""
    if not Rollout.objects.filter(pk=row.pk).visible_to(actor, Right.OPERATE).exists():
        raise Forbidden(f"You may not stop the {row}.", hint="Ask a volunteer.", site=row.client_class.site)
    _end(row, RolloutStatus.STOPPED, f"stopped by {actor}", actor)


def step() -> None:
    """Go on with all that run; the clock calls it."""
    for row in Rollout.objects.filter(status=RolloutStatus.RUNNING).select_related("client_class__site", "ordered_by"):
        try:
            _step(row)
        except FleetError as error:
            log.info("%s: %s", row, error)


@transaction.atomic
def _step(row: Rollout) -> None:
    Rollout.objects.select_for_update().get(pk=row.pk)
    commands = list(Command.objects.filter(order__rollout=row).select_related("client"))
    tried = {command.client_id: command.client for command in commands}
    lost = [client for client in tried.values() if client.state == ClientState.LOST or client.trouble]
    if len(lost) >= max(1, row.at_once):
        names = ", ".join(str(client) for client in lost[:8])
        return _end(row, RolloutStatus.STOPPED, f"stopped by itself: {names} did not come back", CLOCK)
    under_way = {command.client_id for command in commands if command.status in Command.OPEN}
    under_way |= {client.pk for client in tried.values() if client.state == ClientState.BOOTING}
    waiting = [client for client in behind(row.client_class) if client.pk not in tried]
    if not waiting and not under_way:
        return _end(row, RolloutStatus.DONE, f"{len(tried)} restarted", CLOCK)
    _restart(row, waiting, row.at_once - len(under_way))
    return None


def _restart(row: Rollout, waiting: Iterable[Client], room: int) -> None:
    busy = set(Command.objects.open().values_list("client", flat=True))
    idle = [client for client in waiting if client.state == ClientState.READY and client.pk not in busy]
    if room <= 0 or not idle:
        return
    if row.ordered_by is None:
        _end(row, RolloutStatus.STOPPED, "stopped: who asked for it is gone", CLOCK)
        return
    try:
        with transaction.atomic():
            order = services.order(Verb.RESTART, idle[:room], row.reason, row.ordered_by)
    except Forbidden as error:
        _end(row, RolloutStatus.STOPPED, f"stopped: {error.message}", CLOCK)
        return
    order.rollout = row
    order.save(update_fields=["rollout"])


def _end(row: Rollout, status: RolloutStatus, outcome: str, actor: User | AnonymousUser | str) -> None:
    move(row, status, ended_at=timezone.now(), outcome=outcome[:300])
    audit.record(f"rollout.{status}", row, site=row.client_class.site, actor=actor, outcome=outcome[:300])
