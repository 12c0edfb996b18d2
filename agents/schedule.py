"""What the clock does: it ends what nobody ends, and finds who fell silent."""

import logging
import time
from datetime import datetime, timedelta

import redis
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from agents import judging, rollouts, waking
from agents.daemon.link import CAP_S
from agents.evidence import end, silence
from agents.models import BootSession, Command, CommandStatus, SessionStatus, Verb
from agents.observing import locked, observe
from agents.sending import connection
from fleet.alive import GATEWAY_UP
from fleet.exceptions import WrongState
from fleet.models import Client, ClientState
from fleet.transitions import move

log = logging.getLogger(__name__)


def tick() -> None:
    waking.step()
    _expire()
    _lose_boots()
    if _gateway_listens():
        _lose_sessions()
        _lose_commands()  # after the silence that proves a power-down
        rollouts.step()
        judging.judge()  # a gateway that was away is no fault of a version


def _commands(*statuses: CommandStatus, **late: datetime) -> "list[Command]":
    rows = Command.objects.select_related(
        "order__site", "order__ordered_by", "client", "envelope__session__client_class"
    )
    return list(rows.open(*statuses).filter(**late))


def _expire() -> None:
    """Nobody accepted in time."""
    for command in _commands(CommandStatus.QUEUED, CommandStatus.SENT, expires_at__lte=timezone.now()):
        _end(command, CommandStatus.EXPIRED, "nobody accepted it in time")


def _lose_commands() -> None:
    """Accepted, but nothing proves the effect. A restart has as long as a boot may take, a capture as long as its upload.

    Where the user is warned first it counts from the end of the warning.
    """
    limits = {Verb.RESTART: settings.BOOT_LIMIT, Verb.CAPTURE: settings.CAPTURE_LIMIT}
    limits[Verb.POWEROFF] = settings.COMMAND_LIFE + settings.LOST_AFTER
    soonest = timezone.now() - timedelta(seconds=min(settings.COMMAND_LIFE, *limits.values()))
    for command in _commands(CommandStatus.ACCEPTED, accepted_at__lt=soonest):
        limit = limits.get(Verb(command.verb), settings.COMMAND_LIFE)
        assert command.accepted_at is not None
        warned = command.accepted_at + timedelta(seconds=command.order.args.get("warn_s", 0))
        if timezone.now() - max(warned, command.acts_at or warned) > timedelta(seconds=limit):
            _end(command, CommandStatus.LOST, f"accepted, but without a proof within {limit} s")


def _end(command: Command, status: CommandStatus, reason: str) -> None:
    try:
        end(command, status, reason)
    except WrongState as error:
        log.info("%s", error)


def _lose_boots() -> None:
    """A boot that takes too long, or stopped before it had a plan."""
    late = timezone.now() - timedelta(seconds=settings.BOOT_LIMIT)
    for session in BootSession.objects.filter(status=SessionStatus.BOOTING, planned_at__lt=late):
        _lose(session)
    for client in Client.objects.filter(state=ClientState.BOOTING, since__lt=late, last_seen__lt=late):
        if not BootSession.objects.filter(client=client, status__in=BootSession.LIVE).exists():
            observe(client, ClientState.LOST)


def _lose_sessions() -> None:
    """Who was not heard of for too long. Silence after a power-down is what was asked for."""
    late = timezone.now() - timedelta(seconds=settings.LOST_AFTER)
    for session in BootSession.objects.filter(status=SessionStatus.OPEN, last_seen__lt=late):
        _lose(session)


def _lose(session: BootSession) -> None:
    try:
        _lose_now(session)
    except WrongState as error:
        log.info("%s", error)


@transaction.atomic
def _lose_now(judged: BootSession) -> None:
    """The session and its client at once, unless something was heard since it was ``judged``.

    In two steps the gateway, which hears of the client in between, would leave an open session and a client called lost.
    """
    client = locked(judged.client_id)
    session = BootSession.objects.get(pk=judged.pk)
    if (session.status, session.last_seen) != (judged.status, judged.last_seen):
        return
    if silence(session, "silent since it accepted"):
        move(session, SessionStatus.CLOSED, ended_at=timezone.now())
        observe(client, ClientState.OFF)
    else:
        move(session, SessionStatus.LOST, ended_at=timezone.now())
        observe(client, ClientState.LOST)


def _gateway_listens() -> bool:
    """True if the gateway has listened long enough for silence to mean something: else it was we who did not hear.

    A daemon that found no gateway may pause for CAP_S before it tries again.
    """
    try:
        up = connection().get(GATEWAY_UP)
    except redis.RedisError:
        return False
    return isinstance(up, bytes) and time.time() - float(up) > max(settings.LOST_AFTER, CAP_S)
