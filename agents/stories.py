"""What is told of commands that have ended: by whom they were ordered and why, of which client, in which boot, and when what was."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from agents.models import Command, Verb, args_of
from fleet.models import Client

_PATHS = {
    "site": "order__site",
    "why": "order__reason",
    "by": "order__ordered_by__username",
    "client_name": "client__name",
    "seat": "client__seat",
    "class_now": "client__client_class__name",
    "session": "envelope__session",
    "boot_id": "envelope__session__boot_id",
    "class_then": "envelope__session__client_class__name",
    "body": "envelope__body",
}


class Story(NamedTuple):
    """Of one command; columns and no rows, of which ten thousand would take seconds to make."""

    pk: UUID
    verb: str
    status: str
    reason: str
    queued_at: datetime
    sent_at: datetime | None
    accepted_at: datetime | None
    finished_at: datetime | None
    order: UUID
    site: int
    why: str
    by: str | None
    client: UUID
    client_name: str
    seat: str
    class_now: str | None
    session: UUID | None
    boot_id: UUID | None
    class_then: str | None
    body: bytes | memoryview | None

    @property
    def args(self) -> dict[str, Any]:
        """As they were signed."""
        return args_of(self.body)

    @property
    def who(self) -> str:
        """The client, as people call it."""
        return str(Client(name=self.client_name, seat=self.seat))

    @property
    def whom(self) -> str:
        return f"{Verb(self.verb).label.lower()} of {self.who}"

    @property
    def class_name(self) -> str:
        """Of its boot; of the client where there was none."""
        return (self.class_then if self.session else self.class_now) or ""


def of(commands: Collection[UUID]) -> list[Story]:
    """In the order of their keys."""
    rows = Command.objects.filter(pk__among=commands).order_by("pk")
    return [Story(*row) for row in rows.values_list(*(_PATHS.get(name, name) for name in Story._fields))]
