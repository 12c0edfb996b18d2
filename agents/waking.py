"""Power on: a command that others carry out, proven by the new session of its client (docs/power.md).

The sender begins it (``send``), as it alone may let commands out; the clock tries again and ends what came to nothing (``step``).
``agents.evidence`` ends it when the client boots.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import partial
from uuid import UUID

import redis
from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, QuerySet
from django.utils import timezone

from agents import freezing
from agents.evidence import end
from agents.models import (
    BootSession,
    BootToken,
    Command,
    CommandStatus,
    Envelope,
    Order,
    SessionStatus,
    Verb,
    Wake,
    Way,
)
from agents.power import permits, relays
from fleet import audit
from fleet.exceptions import WrongState
from fleet.models import Admission, Client
from fleet.queue import enqueue
from fleet.signing import Signer

log = logging.getLogger(__name__)
GRACE_S = 60  # after BOOT_LIMIT, by which ``step`` has ended what is not proven


def on_already(clients: Iterable[Client]) -> dict[UUID, str]:
    """Which of the clients are on, each with the sentence that says so."""
    sessions = BootSession.objects.filter(client__in=clients, status__in=BootSession.LIVE)
    return {
        session.client_id: f"is on already, since {session.planned_at:%Y-%m-%d %H:%M}"
        if session.status == SessionStatus.OPEN
        else f"boots already, since {session.planned_at:%Y-%m-%d %H:%M}"
        for session in sessions
    }


@transaction.atomic
def send(keys: Sequence[UUID], signer: Signer) -> int:
    """Begin to switch on the clients of these queued commands; for how many. One that makes no sense ends here, with the reason.

    The caller has asked caps and freezes. The audit entry is committed before anybody hears of it, and with it the permits.
    """
    # In this order everywhere, or two of us would wait for each other.
    list(Client.objects.select_for_update(of=("self",), no_key=True).filter(commands__in=keys).order_by("pk"))
    queued = list(
        Command.objects.select_for_update(of=("self",))
        .filter(pk__in=keys, verb=Verb.WAKE, status=CommandStatus.QUEUED)
        .select_related("order__site", "client__power_port")
    )
    on = on_already(command.client for command in queued)
    now = timezone.now()
    wakes = []
    for command in queued:
        if command.expires_at <= now:
            end(command, CommandStatus.EXPIRED, "not sent in time")
        elif why := on.get(command.client_id) or _barred(command.client):
            end(command, CommandStatus.FAILED, why)
        else:
            wakes.append(_wake(command))
    until = now + timedelta(seconds=settings.BOOT_LIMIT)
    expires = until + timedelta(seconds=GRACE_S)
    let = Command.objects.filter(pk__in=[wake.command_id for wake in wakes], status=CommandStatus.QUEUED)
    let.update(status=CommandStatus.SENT, sent_at=now, expires_at=expires)
    Envelope.objects.bulk_create(permits.permit(wake.command, signer, now, until) for wake in wakes)
    Wake.objects.bulk_create(wakes)
    going = _begin(wakes)
    _write_down(going)
    return len(going)


def _barred(client: Client) -> str:
    if client.admission == Admission.IN_SERVICE:
        return ""
    return f"it is {client.get_admission_display().lower()}, so it would not boot: take it into service first"


def _wake(command: Command) -> Wake:
    client = command.client
    adapter = next(iter(client.adapters), None)
    return Wake(
        command=command,
        way=Way.PORT if hasattr(client, "power_port") else Way.RELAYS,
        product=client.product,
        adapter=f"{adapter['vendor']}:{adapter['device']}" if adapter else "",
    )


def _begin(wakes: Sequence[Wake]) -> list[Wake]:
    """Begin a round for each, and have those told who carry it out; which are on their way. The others end."""
    ported = [wake for wake in wakes if wake.way == Way.PORT]
    for wake in ported:
        relays.count(wake, begun=True)
    relays.save(ported)
    hopeless = set(relays.begin(wake for wake in wakes if wake.way == Way.RELAYS))
    for wake in hopeless:
        where = f"in its network {network}" if (network := wake.command.client.network) else "(its network is unknown)"
        host = "the server has no boot host (FLEET_WAKE_BROADCAST is empty)"
        end(wake.command, CommandStatus.FAILED, f"nobody can wake it: {host}, and no PC is awake {where}")
    going = [wake for wake in wakes if wake not in hopeless]
    transaction.on_commit(partial(_tell, {wake.command.order_id for wake in going}))
    return going


def _tell(orders: Iterable[UUID]) -> None:
    """Have relays' commands signed, and the boot host look. Hints both: sender and gateway look by themselves, too."""
    from agents.sending import CHANNEL, connection
    from agents.tasks import send_order

    for order in orders:
        enqueue(send_order, str(order))
    try:
        connection().publish(CHANNEL, json.dumps({"wake": True}))
    except redis.RedisError as error:
        log.warning("Redis is away, so the gateway finds whom to wake at its next sweep: %s", error)


def _write_down(wakes: Iterable[Wake]) -> None:
    """One entry for each order: whom, by which way."""
    orders = defaultdict[Order, list[Wake]](list)
    for wake in wakes:
        orders[wake.command.order].append(wake)
    for order, begun in orders.items():
        told = [
            {"command": str(wake.command_id), "client": str(wake.command.client_id), "way": wake.way} for wake in begun
        ]
        audit.record("commands.woken", order, site=order.site, actor="sender", verb=Verb.WAKE.value, commands=told)


def step() -> None:
    """What the clock does: it ends what is not proven in time, and tries again while nothing is heard."""
    under_way = Wake.objects.under_way().select_related("command__order__site", "command__client")
    late = timezone.now() - timedelta(seconds=settings.BOOT_LIMIT)
    for wake in under_way.filter(command__sent_at__lte=late):
        _give_up(wake)
    sessions = {
        "command__client__sessions__status": SessionStatus.OPEN,
        "command__client__sessions__planned_at__lt": F("command__sent_at"),
    }
    for wake in under_way.filter(**sessions):
        _end(wake, "it was on all the time: after a silence it was heard again")
    _again()


@transaction.atomic
def _again() -> None:
    due = Wake.objects.under_way().filter(next_at__lte=timezone.now())
    wakes = list(due.select_for_update(of=("self",)).select_related("command__order__site", "command__client"))
    # A round makes commands of relays: where nothing is signed, none begins.
    frozen = {site for site in {wake.command.order.site for wake in wakes} if freezing.standing(site)}
    wakes = [wake for wake in wakes if wake.command.order.site not in frozen]
    heard = set(_heard(due))
    _begin([wake for wake in wakes if wake.pk not in heard])
    Wake.objects.filter(pk__in=heard).update(next_at=None)


def _heard(wakes: QuerySet[Wake]) -> QuerySet[Wake, UUID]:
    """The keys of those whose firmware asked for the boot script since: they are awake, and need no more packets."""
    asked = BootToken.objects.filter(client=OuterRef("command__client"), created_at__gte=OuterRef("command__sent_at"))
    return wakes.filter(Exists(asked)).values_list("pk", flat=True)


def _give_up(wake: Wake) -> None:
    """The time of a boot is over: what of it is known."""
    limit = f"within {settings.BOOT_LIMIT} s"
    client = wake.command.client
    if _heard(Wake.objects.filter(pk=wake.pk)):
        _end(wake, f"it woke, but opened no session {limit}. {client.trouble}".strip())
    elif wake.way == Way.PORT:
        done = (
            "its power port switched it on, but it did not boot" if wake.sent_at else "its power port was not reached"
        )
        _end(wake, wake.trouble or f"{done} {limit}")
    else:
        sent = wake.relays.filter(status=CommandStatus.SUCCEEDED).select_related("client").order_by("queued_at")
        by = [*(["the boot host"] if wake.sent_at else []), *dict.fromkeys(str(relay.client) for relay in sent)]
        if by:
            _end(wake, f"did not wake {limit}: packets were sent by {', '.join(by)}", asleep=True)
        else:
            _end(wake, f"nobody sent its packets {limit}: neither a gateway nor an awake PC has taken that on")


def _end(wake: Wake, reason: str, *, asleep: bool = False) -> None:
    try:
        with transaction.atomic():
            end(wake.command, CommandStatus.FAILED, reason)
            Wake.objects.filter(pk=wake.pk).update(asleep=asleep, next_at=None)
    except WrongState as error:
        log.info("%s", error)  # it came after all
