"""A hall of connected PCs without releases, and what becomes of what is ordered of them."""

from collections.abc import Iterable
from typing import Any
from uuid import uuid4

from django.utils import timezone

from agents import campaigning, campaigns, evidence
from agents.models import (
    BootSession,
    Campaign,
    Cap,
    Command,
    CommandStatus,
    Freeze,
    SessionStatus,
    Target,
    TargetStatus,
    Verb,
)
from agents.selecting import Selection
from fleet import services
from fleet.models import Admission, Client, ClientState, Site
from fleet.transitions import move
from tests.agents.restores import make_envelope, make_session
from tests.world import World, make_client


def make_hall(site: Site, *seats: str, **fields: Any) -> dict[str, Client]:
    """A connected client that is ready on each seat."""
    fields = {"state": ClientState.READY} | fields
    first = Client.objects.count() + 1
    made = {
        seat: make_client(
            site, f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}", seat=seat, name=f"pc{number}", **fields
        )
        for number, seat in enumerate(seats, first)
    }
    for client in made.values():
        make_session(client)
    return made


def leaves(client: Client, state: ClientState = ClientState.OFF) -> None:
    BootSession.objects.filter(client=client, status=SessionStatus.OPEN).update(status=SessionStatus.CLOSED)
    Client.objects.filter(pk=client.pk).update(state=state)


def comes(client: Client) -> None:
    make_session(client)
    Client.objects.filter(pk=client.pk).update(state=ClientState.READY)


def planned(world: World, **changes: Any) -> Campaign:
    """A campaign of vera's at the club room that is not saved: a restart of all, unless told otherwise."""
    wanted: dict[str, Any] = {"verb": Verb.RESTART, "reason": "new version", "selection": Selection()} | changes
    return campaigns.plan(world.clubroom, wanted.pop("actor", world.vera), **wanted)


def started(world: World, **changes: Any) -> Campaign:
    """One that the worker has begun."""
    actor = changes.get("actor", world.vera)
    campaign = campaigns.start(planned(world, **changes), actor)
    return stepped(campaign)


def stepped(campaign: Campaign) -> Campaign:
    """The campaign after a second of the clock, or more: it may rest."""
    campaigning._rests_until.clear()
    campaigning.step()
    campaign.refresh_from_db()
    return campaign


def ordered(campaign: Campaign) -> list[str]:
    """The seats that have an open command of it."""
    return _seats(Target.objects.filter(campaign=campaign, command__status__in=Command.OPEN))


def fates(campaign: Campaign) -> dict[str, str]:
    """What became of each seat."""
    rows = Target.objects.filter(campaign=campaign).select_related("client")
    return {target.client.seat: TargetStatus(target.status).value for target in rows}


def reason_of(campaign: Campaign, client: Client) -> str:
    return Target.objects.get(campaign=campaign, client=client).reason


def accepts(*clients: Client) -> None:
    """The sender has signed their commands, and they have accepted."""
    for command in _open(clients):
        if command.status == CommandStatus.ACCEPTED:
            continue
        session = BootSession.objects.get(client=command.client, status=SessionStatus.OPEN)
        now = timezone.now()
        make_envelope(command, session)
        move(command, CommandStatus.SENT, sent_at=now)
        move(command, CommandStatus.ACCEPTED, accepted_at=now)


def ends(status: CommandStatus, *clients: Client, reason: str = "so it was") -> None:
    """They carried out what was ordered of them, with this end."""
    accepts(*clients)
    for command in _open(clients):
        evidence.end(command, status, reason)


def _open(clients: Iterable[Client]) -> Iterable[Command]:
    keys = [client.pk for client in clients]
    return Command.objects.filter(client__in=keys, status__in=Command.OPEN).select_related("client", "order__site")


def _seats(targets: Any) -> list[str]:
    return list(targets.order_by("wave", "place").values_list("client__seat", flat=True))


def make_crowd(site: Site, number: int) -> None:
    """So many connected clients that are ready, in rows of a hundred."""
    first = Client.objects.count()
    clients = Client.objects.bulk_create(
        Client(
            site=site,
            mac=f"52:54:01:{n >> 16:02x}:{n >> 8 & 255:02x}:{n & 255:02x}",
            name=f"pc{n}",
            seat=f"R{n // 100}-{n % 100}",
            admission=Admission.IN_SERVICE,
            state=ClientState.READY,
        )
        for n in range(first, first + number)
    )
    BootSession.objects.bulk_create(
        BootSession(client=client, boot_id=uuid4(), bearer_digest=str(client.pk), status=SessionStatus.OPEN)
        for client in clients
    )


def make_rows(world: World, command: Command) -> None:
    """At the club room: a campaign whose one target has this command; a tag, a cap, a freeze."""
    campaign = Campaign.objects.create(order=command.order, expires_at=timezone.now())
    Target.objects.create(
        campaign=campaign, client=command.client, wave=1, place=0, status=command.status, command=command
    )
    services.tag([command.client], "stage", world.vera)
    Cap.objects.create(site=world.clubroom, verb=Verb.CYCLE, at_once=5)
    Freeze.objects.create(site=world.clubroom, reason="smoke")
