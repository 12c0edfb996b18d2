"""What the sender has let: to switch on one client, until some time. Signed with the command key, kept where a command has its envelope.

A wake packet needs no secret, so a row in the database would be enough to have ten thousand of them sent, past every cap. Gateways, the signing
of relays' commands and power ports therefore believe permits alone, which the sender gives within caps, ceiling and freeze.
"""

from collections.abc import Mapping
from datetime import datetime

from django.conf import settings
from django.utils import timezone

from agents.models import Command
from fleet import signing
from fleet.signing import Signer

_HEAD = "fleet wake 1"  # no daemon could take it for an envelope, which is JSON


def permit(command: Command, signer: Signer, until: datetime) -> tuple[bytes, bytes, str]:
    """The permit, its signature and the id of the key: what ``Command`` keeps of an envelope."""
    body = f"{_HEAD}\n{command.pk}\n{command.client.mac}\n{round(until.timestamp() * 1000)}\n".encode()
    return body, signer.sign(body), signer.key_id


def keys() -> dict[str, bytes]:
    """The public command keys by which permits are judged."""
    return signing.public_keys(settings.PUBLIC_KEYS, "command")


def permitted(command: Command, known: Mapping[str, bytes]) -> str:
    """The MAC that a command may have woken at this moment, by its permit; empty where it has none that holds."""
    public, body = known.get(command.key_id), bytes(command.envelope)
    if public is None or not signing.verify(public, body, bytes(command.signature)):
        return ""
    head, *values = body.decode().splitlines()
    if head != _HEAD:  # an envelope of a command of another kind, put here by somebody
        return ""
    key, mac, until_ms = values
    return mac if key == str(command.pk) and timezone.now().timestamp() * 1000 < int(until_ms) else ""
