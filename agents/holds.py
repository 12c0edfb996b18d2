"""Local holds: what a client says of itself, that its user must be left alone until some time."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from agents.models import BootSession
from fleet import audit
from fleet.models import Client

MOST_REASON = 100
LONGEST = timedelta(hours=4)  # agents/daemon bounds it by itself; a client that says more is not believed more
_SLACK = timedelta(minutes=5)


class BadHold(ValueError):
    """What a daemon told does not have the form of docs/protocol.md."""


def clean(said: dict[str, object]) -> tuple[str, datetime | None]:
    """The reason and until when; ``("", None)`` where there is no hold any more. BadHold names what is wrong."""
    reason, until_ms = said.get("reason"), said.get("until_ms")
    if not isinstance(reason, str) or len(reason) > MOST_REASON or not reason.isprintable():
        raise BadHold(f"The reason is one line of at most {MOST_REASON} characters.")
    if not reason:
        return "", None
    if type(until_ms) is not int or not 0 <= until_ms < 1 << 45:
        raise BadHold("until_ms is no time.")
    return reason, min(datetime.fromtimestamp(until_ms / 1000, UTC), timezone.now() + LONGEST + _SLACK)


def forget(clients: Iterable[UUID]) -> None:
    """New boots: who held the PC before is gone."""
    Client.objects.filter(pk__among=list(clients)).exclude(hold_reason="").update(hold_reason="", hold_until=None)


@transaction.atomic
def take(session: BootSession, reason: str, until: datetime | None) -> None:
    """Note the hold of a session's client, and write down that it changed. Saying it twice changes nothing."""
    client = Client.objects.select_for_update(no_key=True).select_related("site").get(pk=session.client_id)
    if (client.hold_reason, client.hold_until) == (reason, until):
        return
    client.hold_reason, client.hold_until = reason, until
    client.save(update_fields=["hold_reason", "hold_until"])
    said = {"reason": reason, "until": until.isoformat(timespec="seconds")} if until else {}
    audit.record("client.held" if until else "client.released", client, site=client.site, actor="gateway", **said)
