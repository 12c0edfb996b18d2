"""What a client is, as last seen: the one writer of ``Client.state``."""

from collections.abc import Collection
from uuid import UUID

from django.db.models import Case, F, When
from django.utils import timezone

from fleet.models import Client, ClientState


def locked(client: UUID) -> Client:
    """The client, locked until the present transaction ends: who judges its sessions and its state does so alone.

    Its key is not locked: who orders something of many clients makes rows that refer to them, in another order than they are locked in.
    """
    return Client.objects.select_for_update(no_key=True).get(pk=client)


def locked_all(clients: Collection[UUID]) -> dict[UUID, ClientState]:
    """The same of many, with the state that each is shown in. In one order everywhere, or two of us would wait for each other."""
    rows = Client.objects.select_for_update(no_key=True).filter(pk__among=clients).order_by("pk")
    return {pk: ClientState(state) for pk, state in rows.values_list("pk", "state")}


def observe(client: Client, state: ClientState, **changes: object) -> bool:
    """Note that ``client`` is in ``state``; ``since`` moves only when the state is another. True when it was."""
    now = timezone.now()
    rows = Client.objects.filter(pk=client.pk).exclude(state=state).update(state=state, since=now)
    Client.objects.filter(pk=client.pk).update(last_seen=now, **changes)
    client.refresh_from_db(fields=["state", "since", "last_seen", *changes])
    return rows == 1


def observe_all(clients: Collection[UUID], state: ClientState, **changes: object) -> None:
    """The same of many, which are locked."""
    now = timezone.now()
    since = Case(When(state=state, then=F("since")), default=now)
    if clients:
        Client.objects.filter(pk__among=clients).update(state=state, since=since, last_seen=now, **changes)
