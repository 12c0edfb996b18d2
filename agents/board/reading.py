"""Reads a site's board from the database: a fixed number of queries, however many clients there are."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from django.db.models import OuterRef, Prefetch, Q, Subquery
from django.urls import NoReverseMatch, reverse

from agents import freezing
from agents.board.facts import (
    BuildLine,
    ClassCount,
    ClassMark,
    Count,
    Doing,
    Fact,
    FreezeLine,
    LastCommand,
    Notice,
    Reading,
    RestoreLine,
    Tile,
)
from agents.board.orders import phases_of, read_orders
from agents.board.releases import read_releases
from agents.models import BootSession, Command, HomeRestore, SessionStatus
from agents.seats import natural, seat_of
from fleet.hardware import DISPLAY, adapter_name
from fleet.models import Admission, Client, ClientClass, ClientState, Site
from images import releasing
from images.models import BuildStep, ImageVersion, VersionStatus
from images.releasing import Offer

RECENT_RESTORES = 8
# The builder has these many steps for an ordinary recipe; only a hint for the bar until the build has ended.
_STEPS_OF_A_BUILD = 10


def read(site: Site) -> Reading:
    """The board of ``site`` as it is now."""
    clients = list(Client.objects.filter(site=site).exclude(admission=Admission.RETIRED).select_related("client_class"))
    clients.sort(key=lambda client: natural(seat_of(client)))
    commands = list(
        Command.objects.open().filter(client__site=site).only("client_id", "verb", "status").order_by("-queued_at")
    )
    offers = releasing.offers_at(site)
    tiles = _tiles(site, clients, commands, offers)
    states = Counter(tile.state for tile in tiles)
    marks = Counter(tile.mark.slug for tile in tiles if tile.mark)
    classes = list(ClientClass.objects.filter(site=site).order_by("name"))
    of = {kind.slug: kind.pk for kind in classes}
    late = Counter(
        of[tile.mark.slug]
        for tile in tiles
        if tile.mark and tile.connected and tile.next_version and tile.next_version != tile.version
    )
    return Reading(
        {
            "freezes": _freezes(site),
            "notices": _notices(site, clients),
            "clients": [*tiles],
            "counts": [Count(state.value, str(state.label), states[state.value]) for state in ClientState],
            "classes": [ClassCount(kind.slug, mark(kind), marks[kind.slug]) for kind in classes],
            "releases": read_releases(site, classes, offers, late, mark, admin_url),
            "builds": _builds(site),
            "commands": read_orders(site),
            "restores": _restores(site),
        }
    )


def mark(kind: ClientClass) -> ClassMark:
    """The class as it is shown: ``Paper contest`` gets the letters PC."""
    letters = "".join(word[0] for word in re.findall(r"\w+", kind.name)[:2]).upper()
    return ClassMark(kind.slug, kind.name, kind.colour, letters or kind.slug[:1].upper())


def _tiles(site: Site, clients: list[Client], open_commands: list[Command], offers: Mapping[int, Offer]) -> list[Tile]:
    sessions = BootSession.objects.filter(client__site=site, status__in=BootSession.LIVE)
    booted = sessions.select_related("release__version__image").defer(
        "facts", "release__version__manifest", "release__version__recipe"
    )
    versions = {session.client_id: str(session.release.version) for session in booted if session.release}
    connected = {session.client_id for session in booted if session.status == SessionStatus.OPEN}
    doing = {
        command.client_id: Doing(command.verb, command.get_verb_display(), command.get_status_display().lower())
        for command in open_commands
    }
    sent = Command.objects.filter(client=OuterRef("pk"), envelope__sequence__isnull=False).order_by("-queued_at")
    newest = Client.objects.filter(site=site).annotate(newest=Subquery(sent.values("pk")[:1]))
    last = {
        command.client_id: command
        for command in Command.objects.filter(pk__in=newest.values("newest"))
        .select_related("order__ordered_by")
        .defer("result", "args")
    }
    return [
        Tile(
            key=str(client.pk),
            seat=client.seat,
            name=client.name,
            mark=mark(client.client_class) if client.client_class else None,
            state=client.state,
            state_word=client.get_state_display(),
            since=client.since,
            admission=client.admission,
            admission_word=client.get_admission_display(),
            adapter=_adapter(client.adapters),
            version=versions.get(client.pk, ""),
            next_version=_next(offers, client),
            trouble=client.trouble,
            doing=doing.get(client.pk),
            mac=client.mac,
            product=client.product,
            memory=f"{client.memory_kib / (1 << 20):.1f} GiB" if client.memory_kib else "",
            connected=client.pk in connected,
            heard=None if client.pk in connected else client.last_seen,
            last=_last(last[client.pk]) if client.pk in last else None,
            admin_url=admin_url("fleet_client", client.pk),
            twin=client.twin_at is not None,
        )
        for client in clients
    ]


def _freezes(site: Site) -> list[Fact]:
    row = freezing.standing(site)
    if row is None:
        return []
    where, lift_url = ("", reverse("board-lift", args=[site.slug])) if row.site_id else (" at all sites", "")
    return [FreezeLine(str(row.pk), where, row.reason, str(row.frozen_by or "Nobody"), row.frozen_at, lift_url)]


def _notices(site: Site, clients: list[Client]) -> list[Fact]:
    """Who waits to be admitted, whose MAC address two have, and whether newcomers are admitted without asking."""
    found = list[Fact]()
    if site.enrolment_open:
        until = f"New PCs are admitted without asking until {site.enrolment_until:%-d %b %H:%M} UTC"
        found.append(Notice("enrolment", until, "admission-pending", admin_url("fleet_site", site.pk)))
    if waiting := sum(client.admission == Admission.PENDING for client in clients):
        words = f"{waiting} new PC{'s wait' if waiting > 1 else ' waits'} to be admitted"
        url = _clients_url(site, admission__exact=Admission.PENDING)
        found.append(Notice("pending", words, "admission-pending", url))
    if twins := [str(client) for client in clients if client.twin_at]:
        words = f"Another PC has the MAC address of {', '.join(twins[:3])}{' …' if len(twins) > 3 else ''}"
        found.append(Notice("twins", words, "trouble", _clients_url(site, twin_at__isempty=0)))
    return found


def _clients_url(site: Site, **filters: object) -> str:
    return f"{reverse('admin:fleet_client_changelist')}?{urlencode({'site__id__exact': site.pk, **filters})}"


def _next(offers: Mapping[int, Offer], client: Client) -> str:
    release = offers.get(client.client_class_id or 0, Offer()).to(client)
    return str(release.version) if release else ""


def _last(command: Command) -> LastCommand:
    order = command.order
    return LastCommand(
        verb_word=command.get_verb_display(),
        status=command.status,
        status_word=command.get_status_display(),
        at=command.finished_at or command.accepted_at or command.sent_at or command.queued_at,
        by=order.ordered_by.get_username() if order.ordered_by else "nobody",
        why=order.reason,
        explanation=command.reason,
    )


def admin_url(model: str, key: object) -> str:
    """The page of a row in the admin, or "" for a model that the admin doesn't have."""
    try:
        return reverse(f"admin:{model}_change", args=[key])
    except NoReverseMatch:
        return ""


def _adapter(adapters: list[Mapping[str, Any]]) -> str:
    """The display adapters by name; the ids where nobody knows a name."""
    shown = [row for row in adapters if str(row.get("pci_class", "")).startswith(DISPLAY)]
    return ", ".join(adapter_name(str(row["vendor"]), str(row["device"])) for row in shown)


def _builds(site: Site) -> list[Fact]:
    # Output grows to megabytes: it stays in the database.
    steps = Prefetch("steps", BuildStep.objects.defer("output", "command").order_by("number"))
    versions = (
        ImageVersion.objects.filter(Q(image__site=site) | Q(image__site=None))
        .filter(status__in=[VersionStatus.QUEUED, VersionStatus.BUILDING])
        .select_related("image")
        .defer("manifest", "recipe")
        .prefetch_related(steps)
        .order_by("requested_at")
    )
    return [_build(version) for version in versions]


def _build(version: ImageVersion) -> BuildLine:
    steps = list(version.steps.all())
    # One that runs, though shorter ones beside it began later and have ended.
    running = [step for step in steps if step.finished_at is None]
    shown = (running or steps)[-1] if steps else None
    inner = (running[-1].fraction if running[-1].progress else 0.5) if running else 0.0
    progress = (len(steps) - len(running) + inner) / max(_STEPS_OF_A_BUILD, len(steps) + 1)
    return BuildLine(
        key=str(version.pk),
        name=str(version),
        status=version.status,
        status_word=version.get_status_display(),
        at=version.started_at or version.requested_at,
        step=shown.title if shown else "",
        said=shown.progress if shown and running else "",
        number=shown.number if shown else 0,
        percent=round(100 * progress),
        admin_url=admin_url("images_imageversion", version.pk),
    )


def _restores(site: Site) -> list[Fact]:
    rows = HomeRestore.objects.filter(site=site).order_by("-at", "-id")[:RECENT_RESTORES]
    return [
        RestoreLine(
            key=str(row.pk),
            client=row.client_name,
            result=row.result,
            result_word=row.get_result_display(),
            at=row.at,
            by=row.asked_by,
            why=row.reason,
            explanation=row.explanation,
            total_ms=phases_of(row.phases_ms)[1],
            files=row.files,
            bytes=row.bytes,
            admin_url=admin_url("agents_homerestore", row.pk),
        )
        for row in rows
    ]
