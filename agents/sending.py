"""What the sender does, the only worker with the command key: keep to caps and freezes, audit, sign, hand over.

Commands are signed in groups of one site and verb. What a group may hold is written into the sender's book first, then the audit entry is
committed, then the signatures are made: no envelope can be abroad of which book and log know nothing. Where a sender dies between, the
next one signs the same commands under the same numbers.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from uuid import UUID

import redis
from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from agents import caps, freezing
from agents.book import Book
from agents.daemon import protocol
from agents.models import BootSession, Command, CommandStatus, Order, SessionStatus, Verb
from fleet import audit
from fleet.models import Client
from fleet.rows import update_rows
from fleet.signing import Signer
from fleet.transitions import move
from images import homes
from images.models import HomeTemplate

log = logging.getLogger(__name__)
CHANNEL = "fleet.nudge"
GROUP = 500  # commands signed in one go: the first of ten thousand are on their way while the last are signed
EARLY_MS = 1000  # a client's idea of the server's time may be so much behind


@cache
def _signer() -> Signer:
    return Signer.load(settings.COMMAND_KEY, "command")


@cache
def connection() -> redis.Redis:
    return redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=2)


def nudge(clients: Iterable[object]) -> None:
    """Wake the parked polls of ``clients``. A hint: the gateway sweeps for what a lost one would have told."""
    try:
        connection().publish(CHANNEL, json.dumps({"clients": [str(client) for client in clients]}))
    except redis.RedisError as error:
        log.warning("Redis is away, so the gateway finds the commands at its next sweep: %s", error)


def send(waiting: QuerySet[Command]) -> int:
    """Sign and hand over what caps and freezes let through of the queued commands among ``waiting``; how many.

    One that has nobody to go to ends here, with the reason. Raises SiteError without the key or the book.
    """
    _signer()
    sent = 0
    queued = waiting.filter(status=CommandStatus.QUEUED)
    for site, verb in queued.order_by().values_list("order__site", "verb").distinct():
        mine = queued.filter(order__site=site, verb=verb)
        while (group := _send_group(site, verb, mine)) is not None:
            sent += group
    return sent


def _send_group(site: int, verb: str, waiting: QuerySet[Command]) -> int | None:
    """The next group of one site and verb; how many were sent, None when none may be now."""
    with Book.at(settings.SENDER_BOOK) as book:
        if freezing.standing(site):
            return None
        keys = caps.granted(book, site, verb, waiting, GROUP)
        if not keys:
            return None
        # Before anything else: what is written here and never signed costs a little patience, the other way round a cap.
        book.note(verb, site, len(keys))
        ready = _prepare(keys)
        if not ready:
            return 0
        _sign(ready)
    nudge(command.client_id for command in ready)
    return len(ready)


@transaction.atomic
def _prepare(keys: Sequence[UUID]) -> list[Command]:
    """Number the commands, bind each to its client's present boot, and write them down. Those that cannot be sent end."""
    # In this order everywhere, or two of us would wait for each other.
    locked = Client.objects.select_for_update(of=("self",), no_key=True).filter(commands__in=keys).order_by("pk")
    clients = {client.pk: client for client in locked}
    commands = Command.objects.filter(pk__in=keys, status=CommandStatus.QUEUED).select_related("order__site")
    sessions = {
        session.client_id: session
        for session in BootSession.objects.filter(client__in=clients, status=SessionStatus.OPEN).select_related(
            "release__home", "release__client_class"
        )
    }
    ready, hopeless = list[Command](), defaultdict[tuple[CommandStatus, str], list[UUID]](list)
    templates = dict[int, HomeTemplate]()
    now = timezone.now()
    for command in commands:
        session = sessions.get(command.client_id)
        if command.expires_at <= now:
            hopeless[CommandStatus.EXPIRED, "not sent in time"].append(command.pk)
        elif session is None:
            hopeless[CommandStatus.FAILED, "the client is not connected"].append(command.pk)
        elif why := _bind(command, session, clients[command.client_id], templates):
            hopeless[CommandStatus.FAILED, why].append(command.pk)
        else:
            ready.append(command)
    for (status, why), ended in hopeless.items():
        still = Command.objects.filter(pk__in=ended, status=CommandStatus.QUEUED)
        still.update(status=status, finished_at=now, reason=why)
    update_rows(Client, ["sequence"], ((pk, clients[pk].sequence) for pk in {command.client_id for command in ready}))
    numbered = ((command.pk, command.args, command.sequence, command.session) for command in ready)
    update_rows(Command, ["args", "sequence", "session"], numbered, status=CommandStatus.QUEUED)
    _write_down(ready)
    return ready


def _bind(command: Command, session: BootSession, client: Client, templates: dict[int, HomeTemplate]) -> str:
    """Complete a command for this boot of its client; else why that cannot be."""
    args = {**command.order.args, **({"force": True} if command.order.force else {})}
    if command.verb == Verb.RELAY:
        args = command.args
    if session.protocol < 2 and (args or command.verb in (Verb.MESSAGE, Verb.RELAY)):
        what = "messages" if command.verb == Verb.MESSAGE else "warnings and holds"
        return f"its daemon speaks protocol 1, which knows no {what}: boot it with a newer version"
    if command.verb == Verb.CYCLE:
        release = session.release
        if release is None:
            return "its release is gone, and with it the template"
        if release.pk not in templates:
            templates[release.pk] = homes.now_for(release)
        home = templates[release.pk]
        args |= {"home": home.sha256, "home_bytes": home.bytes, "home_digest": home.tree_digest}
    elif command.verb == Verb.CAPTURE:
        args["most_bytes"] = homes.MOST_BYTES
    command.args, command.session = args, session
    if command.sequence is None:
        client.sequence += 1
        command.sequence = client.sequence
    return ""


def _write_down(ready: Iterable[Command]) -> None:
    """One entry for each order: every command of the group with its client, its boot and its number."""
    orders = defaultdict[Order, list[Command]](list)
    for command in ready:
        orders[command.order].append(command)
    for order, commands in orders.items():
        signed = [
            {
                "command": str(command.pk),
                "client": str(command.client_id),
                "boot": str(command.session.boot_id) if command.session else "",
                "sequence": command.sequence,
            }
            for command in commands
        ]
        audit.record("commands.signed", order, site=order.site, actor="sender", verb=order.verb, commands=signed)


@transaction.atomic
def _sign(ready: Iterable[Command]) -> None:
    """Make the envelopes. Who was cancelled meanwhile stays cancelled."""
    signer, now = _signer(), timezone.now()
    rows = []
    for command in ready:
        try:
            body = _body(command, round(now.timestamp() * 1000))
        except ValueError as error:  # nobody's but ours, and no reason to send nothing any more to anybody
            log.exception("The %s cannot be signed", command)
            move(command, CommandStatus.FAILED, finished_at=now, reason=str(error)[:300])
            continue
        rows.append((command.pk, CommandStatus.SENT, body, signer.sign(body), signer.key_id, now))
    columns = ["status", "envelope", "signature", "key_id", "sent_at"]
    update_rows(Command, columns, rows, status=CommandStatus.QUEUED)


def _body(command: Command, now_ms: int) -> bytes:
    assert command.session is not None
    assert command.sequence is not None
    return protocol.encode(
        protocol.Command(
            command=str(command.pk),
            client=str(command.client_id),
            boot=str(command.session.boot_id),
            sequence=command.sequence,
            verb=command.verb,
            args=command.args,
            not_before_ms=now_ms - EARLY_MS,
            expires_ms=round(command.expires_at.timestamp() * 1000),
        )
    )
