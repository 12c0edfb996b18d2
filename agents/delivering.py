"""What waits to be delivered to clients: read by the gateway, for many of them at once."""

from collections.abc import Sequence
from uuid import UUID

from agents.daemon import protocol
from agents.models import Command, CommandStatus


def awaited() -> list[UUID]:
    """Clients to which a command is on its way."""
    return list(Command.objects.filter(status=CommandStatus.SENT).order_by().values_list("client_id", flat=True))


def envelopes(asked: Sequence[tuple[UUID, int]]) -> list[list[dict[str, str]]]:
    """The deliverable commands of each session above its cursor, oldest first. One that was delivered and not accepted comes again."""
    sessions = [session for session, _ in asked]
    sent = Command.objects.filter(session__in=sessions, status=CommandStatus.SENT).order_by("sequence")
    found: dict[UUID | None, list[tuple[int, dict[str, str]]]] = {}
    for command in sent.values_list("session", "sequence", "envelope", "signature", "key_id", named=True):
        envelope = protocol.envelope(bytes(command.envelope), bytes(command.signature), command.key_id)
        found.setdefault(command.session, []).append((command.sequence or 0, envelope))
    return [
        [envelope for sequence, envelope in found.get(session, ()) if sequence > cursor] for session, cursor in asked
    ]
