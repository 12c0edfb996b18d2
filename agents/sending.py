"""What the sender does, the only worker with the command key: audit, sign, hand over.

The audit entry is committed before the signature exists, so no envelope can be abroad of which the log knows nothing.
"""

import json
import logging
from collections.abc import Iterable
from functools import cache

import redis
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from agents import waking
from agents.daemon import protocol
from agents.models import BootSession, Command, CommandStatus, SessionStatus, Verb
from agents.power import relays
from fleet import audit
from fleet.exceptions import WrongState
from fleet.models import Client
from fleet.signing import Signer
from fleet.transitions import move
from images import homes

log = logging.getLogger(__name__)
CHANNEL = "fleet.nudge"


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


def send(commands: Iterable[Command]) -> int:
    """Sign and hand over queued commands; how many. One that has nobody to go to ends here, with the reason."""
    signer = _signer()
    sent = []
    commands = list(commands)
    waking.send(command for command in commands if command.verb == Verb.WAKE)
    for command in commands:
        if command.verb == Verb.WAKE:
            continue
        try:
            if _prepare(command):
                _sign(command, signer)
                sent.append(command.client_id)
        except WrongState as error:
            log.info("%s", error)  # another run of this task had it first
    if sent:
        nudge(sent)
    return len(sent)


@transaction.atomic
def _prepare(command: Command) -> bool:
    """Number the command, bind it to the client's present boot, and write it down. False when it ended instead."""
    client = Client.objects.select_for_update(no_key=True).get(pk=command.client_id)
    command.refresh_from_db()
    if command.status != CommandStatus.QUEUED:
        return False
    now = timezone.now()
    session = (
        BootSession.objects.filter(client=client, status=SessionStatus.OPEN).select_related("release__home").first()
    )
    if command.expires_at <= now:
        move(command, CommandStatus.EXPIRED, finished_at=now, reason="not sent in time")
        return False
    if session is None:
        move(command, CommandStatus.FAILED, finished_at=now, reason="the client is not connected")
        return False
    command.args = command.args if command.verb == Verb.RELAY else {}
    if command.verb == Verb.CYCLE:
        if session.release is None:
            move(command, CommandStatus.FAILED, finished_at=now, reason="its release is gone, and with it the template")
            return False
        home = homes.now_for(session.release)
        command.args = {"home": home.sha256, "home_bytes": home.bytes, "home_digest": home.tree_digest}
    elif command.verb == Verb.CAPTURE:
        command.args = {"most_bytes": homes.MOST_BYTES}
    if command.sequence is None:
        client.sequence += 1
        client.save(update_fields=["sequence"])
        command.sequence = client.sequence
    command.session = session
    command.save(update_fields=["args", "sequence", "session"])
    audit.record(
        "command.signed",
        command,
        site=command.order.site,
        actor="sender",
        order=str(command.order_id),
        verb=command.verb,
        sequence=command.sequence,
        boot=str(session.boot_id),
    )
    return True


def _sign(command: Command, signer: Signer) -> None:
    assert command.session is not None
    assert command.sequence is not None
    now = timezone.now()
    body = protocol.encode(
        protocol.Command(
            command=str(command.pk),
            client=str(command.client_id),
            boot=str(command.session.boot_id),
            sequence=command.sequence,
            verb=command.verb,
            args=relays.with_passwords(command.args) if command.verb == Verb.RELAY else command.args,
            not_before_ms=round(now.timestamp() * 1000) - 1000,
            expires_ms=round(command.expires_at.timestamp() * 1000),
        )
    )
    move(
        command,
        CommandStatus.SENT,
        envelope=body,
        signature=signer.sign(body),
        key_id=signer.key_id,
        sent_at=now,
    )
