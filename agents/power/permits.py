"""What the sender has let: to switch on one client, until some time. Signed with the command key, kept as a command's envelope.

A wake packet needs no secret, so a row in the database would be enough to have ten thousand of them sent, past every cap. Gateways, the signing
of relays' commands and power ports therefore believe permits alone, which the sender gives within caps, ceiling and freeze.
"""

from collections.abc import Mapping
from datetime import datetime

from django.conf import settings
from django.utils import timezone

from agents.models import Command, Envelope
from fleet import signing
from fleet.signing import Signer

_HEAD = "fleet wake 1"  # no daemon could take it for an envelope, which is JSON


def permit(command: Command, signer: Signer, now: datetime, until: datetime) -> Envelope:
    """The permit to wake the client of ``command``."""
    body = f"{_HEAD}\n{command.pk}\n{command.client.mac}\n{round(until.timestamp() * 1000)}\n".encode()
    return Envelope(command=command, body=body, signature=signer.sign(body), key_id=signer.key_id, signed_at=now)


def keys() -> dict[str, bytes]:
    """The public command keys by which permits are judged."""
    return signing.public_keys(settings.PUBLIC_KEYS, "command")


def permitted(command: Command, known: Mapping[str, bytes]) -> str:
    """The MAC that a command may have woken at this moment, by its permit; empty where it has none that holds."""
    envelope = getattr(command, "envelope", None)
    public = known.get(envelope.key_id) if envelope else None
    if envelope is None or public is None:
        return ""
    body = bytes(envelope.body)
    if not signing.verify(public, body, bytes(envelope.signature)):
        return ""
    head, *values = body.decode().splitlines()
    if head != _HEAD:  # an envelope of a command of another kind, put here by somebody
        return ""
    key, mac, until_ms = values
    return mac if key == str(command.pk) and timezone.now().timestamp() * 1000 < int(until_ms) else ""
