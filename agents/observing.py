"""What a client is, as last seen: the one writer of ``Client.state``."""

from uuid import UUID

from django.utils import timezone

from fleet.models import Client, ClientState


def locked(client: UUID) -> Client:
    """The client, locked until the present transaction ends: who judges its sessions and its state does so alone.

    Its key is not locked: who orders something of many clients makes rows that refer to them, in another order than they are locked in.
    """
    return Client.objects.select_for_update(no_key=True).get(pk=client)


def observe(client: Client, state: ClientState, **changes: object) -> bool:
    """Note that ``client`` is in ``state``; ``since`` moves only when the state is another. True when it was."""
    now = timezone.now()
    rows = Client.objects.filter(pk=client.pk).exclude(state=state).update(state=state, since=now)
    Client.objects.filter(pk=client.pk).update(last_seen=now, **changes)
    client.refresh_from_db(fields=["state", "since", "last_seen", *changes])
    return rows == 1
