"""A club night in rows: 24 PCs in every state, builds, orders and restores, as the server's own parts would have left them."""

import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import time_machine
from django.contrib.auth.models import User
from django.utils import timezone

from agents import evidence
from agents.models import BootSession, Command, CommandStatus, Envelope, Order, SessionStatus, Verb
from fleet.models import Admission, Client, ClientClass, ClientState, Site
from images.models import BuildStep, HomeTemplate, ImageVersion, Release, VersionStatus
from tests.agents.restores import make_envelope
from tests.images.versions import make_image, make_version
from tests.world import make_client

GIB = 1 << 20  # in KiB
DIGEST = "ab" * 32  # of every home template
# Vendor and device, as in pci.ids.
GTX, RADEON, CIRRUS, MATROX = ("10de", "1c03"), ("1002", "67df"), ("1013", "00b8"), ("102b", "0525")
CLASSES = {
    "gamer": ("Gamer", "blue", GTX),
    "contest": ("Paper contest", "orange", RADEON),
    "kiosk": ("Kiosk", "teal", CIRRUS),
    "retro": ("Retro corner", "purple", MATROX),
}
OFF, BOOTING, READY, IN_USE, CYCLING, LOST = ClientState
SEATS = [
    *(("gamer", f"A{n}") for n in range(1, 11)),
    *(("contest", f"B{n}") for n in range(1, 9)),
    *(("kiosk", f"K{n}") for n in range(1, 4)),
    *(("retro", f"R{n}") for n in range(1, 4)),
]
STATES = [
    *(IN_USE, IN_USE, CYCLING, READY, IN_USE, IN_USE, CYCLING, IN_USE, READY, BOOTING),
    *(IN_USE, IN_USE, READY, IN_USE, LOST, IN_USE, READY, IN_USE),
    *(IN_USE, READY, OFF),
    *(IN_USE, BOOTING, OFF),
]


def adapter(vendor: str, device: str) -> dict[str, str]:
    """A display adapter as a client reports it."""
    return {
        "address": "0000:01:00.0",
        "vendor": vendor,
        "device": device,
        "subvendor": "1043",
        "subdevice": "85e4",
        "pci_class": "030000",
    }


def make_session(client: Client, release: Release | None = None, **fields: Any) -> BootSession:
    """An open session of ``client``: it is connected."""
    values = {"boot_id": uuid.uuid4(), "bearer_digest": uuid.uuid4().hex * 2, "status": SessionStatus.OPEN}
    return BootSession.objects.create(
        client=client, client_class=client.client_class, release=release, **(values | fields)
    )


def make_order(verb: Verb, clients: Sequence[Client], reason: str, by: User | None) -> list[Command]:
    """An order and its queued commands, in the order of ``clients``."""
    at = timezone.now()
    order = Order.objects.create(site=clients[0].site, verb=verb, reason=reason, ordered_by=by, ordered_at=at)
    expires = at + timedelta(minutes=2)
    return [
        Command.objects.create(order=order, client=client, verb=verb, queued_at=at, expires_at=expires)
        for client in clients
    ]


def advance(command: Command, *statuses: CommandStatus, reason: str = "", result: dict[str, Any] | None = None) -> None:
    """Bring a command along; a terminal status comes as evidence brings it, with the restore of a cycle."""
    for status in statuses:
        if status == CommandStatus.SENT:
            make_envelope(command, sequence=Envelope.objects.count() + 1, args={"home_digest": DIGEST})
            command.status, command.sent_at = status, timezone.now()
            command.save()
        elif status == CommandStatus.ACCEPTED:
            command.status, command.accepted_at = status, timezone.now()
            command.save()
        else:
            evidence.end(command, status, reason, result)


def cycled(command: Command, files: int, size: int, total_ms: int) -> None:
    """A cycle that went well: ``files`` and ``size`` bytes thrown away, the home equal to its template again."""
    shares = {"kill": 0.12, "unmount": 0.05, "restore": 0.38, "verify": 0.21, "login": 0.24}
    phases = {name: round(total_ms * share) for name, share in shares.items()}
    result = {
        "phases_ms": {**phases, "total": sum(phases.values())},
        "files": files,
        "bytes": size,
        "after": DIGEST,
        "before": "cd" * 32,
        "killed": 41,
    }
    advance(command, CommandStatus.SENT, CommandStatus.ACCEPTED, CommandStatus.SUCCEEDED, result=result)


def make_night(site: Site, by: User) -> dict[str, Client]:
    """The whole night at ``site``; its clients by seat."""
    classes = {
        slug: ClientClass.objects.update_or_create(site=site, slug=slug, defaults={"name": name, "colour": colour})[0]
        for slug, (name, colour, _) in CLASSES.items()
    }
    releases, building = _versions(site, classes, by)
    now = timezone.now()
    clients: dict[str, Client] = {}
    for index, ((slug, seat), state) in enumerate(zip(SEATS, STATES, strict=True)):
        minutes = 2 + index * 37 % 140
        vendor, device = CLASSES[slug][2]
        client = make_client(
            site,
            mac=f"52:54:00:20:04:{index + 1:02x}",
            name=f"pc-{seat.lower()}",
            seat=seat,
            client_class=classes[slug],
            state=state,
            since=now - timedelta(minutes=0.3 if state in (CYCLING, BOOTING) else minutes),
            last_seen=now - timedelta(minutes=minutes),
            adapters=[adapter(vendor, device)],
            memory_kib=(32 if slug == "gamer" else 8) * GIB,
            product="OptiPlex 7010",
        )
        clients[seat] = client
        if state in (READY, IN_USE, CYCLING):
            opened = now - timedelta(hours=3)
            make_session(client, releases[slug], planned_at=opened, opened_at=opened, last_seen=now)
    retro = clients["R2"]
    retro.trouble = "The root did not match its SHA-256 (got 3f9c2b71…): not booted. Check the memory and the cable."
    retro.save()
    pending = clients["K3"]
    pending.admission, pending.client_class, pending.seat = Admission.PENDING, None, ""
    pending.save()
    workshop = clients["R3"]
    workshop.admission = Admission.MAINTENANCE
    workshop.save()
    _orders(clients, by)
    _builds(building, by)
    return clients


def _versions(
    site: Site, classes: dict[str, ClientClass], by: User
) -> tuple[dict[str, Release], tuple[ImageVersion, ImageVersion]]:
    releases = {}
    images = {slug: make_image(site, slug) for slug in classes}
    for slug, number in {"gamer": 12, "contest": 7, "kiosk": 3, "retro": 2}.items():
        version = make_version(images[slug], number=number)
        home = HomeTemplate.objects.get(image=images[slug])
        releases[slug] = Release.objects.create(client_class=classes[slug], version=version, home=home, released_by=by)
    now = timezone.now()
    building = make_version(
        images["gamer"],
        VersionStatus.BUILDING,
        number=13,
        requested_by=by,
        started_at=now - timedelta(seconds=74),
    )
    queued = make_version(images["contest"], VersionStatus.QUEUED, number=8, requested_by=by)
    return releases, (building, queued)


def _builds(building: tuple[ImageVersion, ImageVersion], by: User) -> None:
    now = timezone.now()
    titles = ("Check the recipe", "Fetch and install 214 packages", "Files of the recipe", "Hook 1", "Root plan")
    for number, title in enumerate((*titles, "Compress the root"), 1):
        last = number > len(titles)
        BuildStep.objects.create(
            version=building[0],
            number=number,
            name=f"step-{number}",
            title=title,
            started_at=now - timedelta(seconds=80 - 10 * number),
            finished_at=None if last else now - timedelta(seconds=70 - 10 * number),
            bytes_done=146_000_000 if last else 0,
            bytes_total=231_000_000 if last else 0,
        )


def _orders(clients: dict[str, Client], by: User) -> None:
    def of(*seats: str) -> list[Client]:
        return [clients[seat] for seat in seats]

    now = timezone.now()
    with time_machine.travel(now - timedelta(minutes=41), tick=False):
        restart = make_order(Verb.RESTART, of("B7"), "New version", by)[0]
        advance(restart, CommandStatus.SENT, CommandStatus.ACCEPTED, CommandStatus.SUCCEEDED)
    with time_machine.travel(now - timedelta(minutes=16), tick=False):
        cycled(make_order(Verb.CYCLE, of("A5"), "Next person", by)[0], 1893, 312_000_000, 1204)
    with time_machine.travel(now - timedelta(minutes=12), tick=False):
        shut = make_order(Verb.POWEROFF, of("K1", "K3"), "End of the evening", by)
        advance(shut[0], CommandStatus.SENT, CommandStatus.EXPIRED, reason="not accepted in time")
        advance(shut[1], CommandStatus.FAILED, reason="the client is not connected")
    round_two = make_order(Verb.CYCLE, of("A1", "A2", "A3", "A7", "A8", "B5", "B6", "B8"), "Between two rounds", by)
    cycled(round_two[0], 10_412, 503_000_000, 1311)
    cycled(round_two[1], 212, 8_400_000, 987)
    cycled(round_two[4], 5_120, 96_000_000, 1093)
    advance(round_two[2], CommandStatus.SENT, CommandStatus.ACCEPTED)
    advance(round_two[3], CommandStatus.SENT, CommandStatus.ACCEPTED)
    advance(
        round_two[5], CommandStatus.SENT, CommandStatus.ACCEPTED, CommandStatus.LOST, reason="nothing heard in time"
    )
    advance(round_two[6], CommandStatus.SENT)
