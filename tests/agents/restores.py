"""Sessions, commands and restores for tests that need no client."""

import hashlib
import json
import uuid
from datetime import timedelta
from typing import Any

from django.utils import timezone

from agents import evidence, services
from agents.models import (
    BootSession,
    Command,
    CommandStatus,
    Envelope,
    HomeRestore,
    Order,
    PowerPort,
    SessionStatus,
    Verb,
    Wake,
)
from fleet.models import Client
from tests.world import World


def make_session(client: Client, status: SessionStatus = SessionStatus.OPEN) -> BootSession:
    """A boot of ``client``, without a release."""
    boot = uuid.uuid4()
    return BootSession.objects.create(
        client=client,
        boot_id=boot,
        bearer_digest=hashlib.sha256(boot.bytes).hexdigest(),
        status=status,
        client_class=client.client_class,
        opened_at=timezone.now() if status == SessionStatus.OPEN else None,
    )


def make_envelope(command: Command, session: BootSession | None = None, **fields: Any) -> Envelope:
    """As if the sender had signed ``command``; ``args`` are what is in it."""
    body = json.dumps({"args": fields.pop("args", {})}).encode()
    signed: dict[str, Any] = {"sequence": 1, "body": body, "signature": b"", "key_id": "", "signed_at": timezone.now()}
    return Envelope.objects.create(command=command, session=session, **signed | fields)


def make_command(world: World, client: Client, verb: Verb = Verb.CYCLE, reason: str = "next player") -> Command:
    """A command of vera's that the client has accepted."""
    command = services.order(verb, [client], reason, world.vera).commands.get()
    expires = timezone.now() + timedelta(minutes=2)
    Command.objects.filter(pk=command.pk).update(status=CommandStatus.ACCEPTED, expires_at=expires)
    command.refresh_from_db()
    make_envelope(command, make_session(client), args={"home_digest": "ab" * 32})
    return command


def make_restore(world: World, client: Client) -> HomeRestore:
    """A restore that succeeded."""
    command = make_command(world, client)
    result = {"after": "ab" * 32, "before": "cd" * 32, "files": 7, "bytes": 4096, "phases_ms": {"total": 480}}
    evidence.end(command, CommandStatus.SUCCEEDED, "the home is as its template", result)
    return HomeRestore.objects.get(command=command)


def make_wake(client: Client, **fields: Any) -> Wake:
    """A client with a power port, that was to be switched on and did not wake."""
    PowerPort.objects.get_or_create(client=client, defaults={"address": "https://10.20.9.5", "credential": "bmc"})
    order = Order.objects.create(site=client.site, verb=Verb.WAKE, reason="next player")
    times = {"expires_at": timezone.now(), "sent_at": timezone.now()}
    command = Command.objects.create(order=order, client=client, verb=Verb.WAKE, status=CommandStatus.FAILED, **times)
    return Wake.objects.create(command=command, **{"way": "relays", "asleep": True, "product": "Gamer", **fields})
