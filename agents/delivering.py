"""What waits to be delivered to clients: read by the gateway, for many of them at once."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from agents import speaking, telling
from agents.models import BootSession, Command, CommandStatus, Envelope, SessionStatus, Verb


def awaited() -> list[UUID]:
    """Clients to which a command is on its way. One to be powered on asks for none."""
    sent = Command.objects.open(CommandStatus.SENT).exclude(verb=Verb.WAKE)
    return list(sent.order_by().values_list("client_id", flat=True))


def cut_off(since: datetime) -> set[UUID]:
    """Sessions whose bearers are good no more, since then: revoked, or superseded by way of another gateway."""
    over = (SessionStatus.SUPERSEDED, SessionStatus.REVOKED)
    return set(BootSession.objects.filter(status__in=over, ended_at__gte=since).values_list("pk", flat=True))


def envelopes(asked: Sequence[tuple[UUID, int]]) -> list[list[dict[str, str]]]:
    """The deliverable commands of each session above its cursor, oldest first. One that was delivered and not accepted comes again."""
    sessions = [session for session, _ in asked]
    sent = Envelope.objects.filter(session__among=sessions, command__status=CommandStatus.SENT).order_by("sequence")
    found: dict[UUID | None, list[tuple[int, dict[str, str]]]] = {}
    steps = []
    step = ("command__order", "command", "command__client", "session")
    rows = sent.values_list(*step, "sequence", "body", "signature", "key_id")
    for order, command, client, session, sequence, body, signature, key in rows:
        envelope = speaking.envelope(bytes(body), bytes(signature), key)
        found.setdefault(session, []).append((sequence or 0, envelope))
        steps.append(telling.Step(order, command, client, session))
    telling.delivered(steps)
    return [
        [envelope for sequence, envelope in found.get(session, ()) if sequence > cursor] for session, cursor in asked
    ]
