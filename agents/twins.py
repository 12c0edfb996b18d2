"""Two machines with one MAC address: noticed, written down and shown; what is done about it is for people to decide.

A reboot is no twin: what ran before says nothing any more. So a session that was superseded and still speaks while the younger one
lives is a second machine, and so is a boot that asks for a plan once more after another one had its turn.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from agents.models import BootSession
from fleet import audit
from fleet.models import Client

# What a boot left behind may arrive after the next one began: a gateway that stood still reads both at once.
LATE = timedelta(seconds=10)
NOTED_EVERY = timedelta(minutes=1)


@transaction.atomic
def heard(session_id: UUID) -> None:
    """A superseded session spoke."""
    session = BootSession.objects.select_related("client__site").get(pk=session_id)
    younger = BootSession.objects.filter(client=session.client, status__in=BootSession.LIVE).first()
    if younger is not None and timezone.now() - younger.planned_at > LATE:
        _note(session.client, session.boot_id, younger.boot_id)


def booted(boots: Sequence[tuple[Client, UUID]]) -> None:
    """Boots ask for their plans: the same as once before, though another one came between (A, B, A)."""
    before = BootSession.objects.filter(
        client__among=[client for client, _ in boots], boot_id__among=[boot for _, boot in boots]
    )
    known = set(before.order_by().values_list("client", "boot_id"))  # hardly ever any
    for client, boot_id in boots:
        if (client.pk, boot_id) in known:
            last = (
                BootSession.objects.filter(client=client).order_by("-planned_at").values_list("boot_id", flat=True)[:9]
            )
            boots_of_it = list(last)
            if boot_id in boots_of_it[1:] and boots_of_it[0] != boot_id:
                _note(client, boot_id, boots_of_it[0])


def _note(client: Client, one: UUID, other: UUID) -> None:
    """The alarm stands until somebody takes it back; one entry says how it began."""
    now = timezone.now()
    if Client.objects.filter(pk=client.pk, twin_at=None).update(twin_at=now):
        boots = [str(one), str(other)]
        audit.record("client.twin", client, site=client.site, actor="gateway", mac=client.mac, boots=boots)
    else:
        Client.objects.filter(pk=client.pk, twin_at__lt=now - NOTED_EVERY).update(twin_at=now)
