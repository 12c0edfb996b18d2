"""Which version a client boots; and canaries: a version that some clients of a class get before all do.

    canary ──→ promoted   (all clients get it, by a release of its own)
           └─→ withdrawn  (by a person, or by itself when too many of its boots were bad)

Boots are counted where they are seen (agents/judging.py); here is what follows from it.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from django.db import transaction
from django.utils import timezone

from fleet import audit
from fleet.exceptions import OperatorError, WrongState
from fleet.models import Client, ClientClass
from fleet.roles import Right
from images import keeping, services, signatures
from images.models import ImageVersion, Release
from images.services import Actor

CLOCK = "clock"


@dataclass(frozen=True)
class Limits:
    """When a boot is bad, and how many bad clients end a release (0: none)."""

    ready_within_s: int = Release.READY_WITHIN_S
    most_bad: int = Release.MOST_BAD


def canary_of(client_class: ClientClass | int) -> Release | None:
    """The canary of the class that is under way."""
    releases = Release.objects.select_related("version__image", "home", "client_class")
    return releases.filter(client_class=client_class, canary=True, ended_at=None).first()


def release_for(client: Client, client_class: ClientClass | int) -> Release | None:
    """What a client boots as one of ``client_class``: the canary if it is among its clients, else the current release."""
    canary = canary_of(client_class)
    if canary and gets(canary, client):
        return canary
    releases = Release.objects.select_related("version__image", "home", "client_class")
    return releases.filter(client_class=client_class, current=True).first()


def gets(canary: Release, client: Client) -> bool:
    """Whether a client is among those of a canary; chosen by share, it is the same at each boot."""
    return _drawn(canary, client) or canary.clients.filter(pk=client.pk).exists()


def _drawn(canary: Release, client: Client) -> bool:
    lot = hashlib.sha256(f"{canary.pk} {client.pk}".encode()).digest()
    return int.from_bytes(lot[:4], "big") % 100 < canary.share


def clients_of(canary: Release) -> list[Client]:
    """The clients that a canary has now: chosen by name, or drawn of its class."""
    named = set(canary.clients.values_list("pk", flat=True))
    clients = Client.objects.filter(client_class=canary.client_class_id).order_by("name")
    return [client for client in clients if client.pk in named or _drawn(canary, client)]


@transaction.atomic
def start(
    version: ImageVersion,
    client_class: ClientClass,
    actor: Actor,
    reason: str = "",
    *,
    share: int = 0,
    clients: Iterable[Client] = (),
    limits: Limits = Limits(),
) -> Release:
    """Give ``version`` to a share of the class's clients (percent) and to these: they boot it from their next boot on.

    Raises Forbidden, WrongState when the class has a canary, and OperatorError for a choice that is none.
    """
    _, canary = services.fitting(version, client_class, actor)
    if other := canary_of(client_class):
        raise WrongState(
            f"{client_class} has a canary already, {other.version}.", hint="Promote it or withdraw it first."
        )
    chosen = list(clients)
    if not 0 <= share <= 100 or not (share or chosen):
        raise OperatorError("Nobody would get the canary.", hint="Choose clients, or a share of 1 to 100 percent.")
    if not 10 <= limits.ready_within_s <= 3600 or not 0 <= limits.most_bad <= 10000:
        raise OperatorError(
            f"{limits.ready_within_s} s and {limits.most_bad} clients are no limits.",
            hint="10 to 3600 seconds, 0 to 10000 clients.",
        )
    if strangers := [str(client) for client in chosen if client.client_class_id != client_class.pk]:
        raise OperatorError(
            f"{', '.join(strangers)} is not of the class {client_class}.", hint="Choose clients of this class."
        )
    canary.canary, canary.current, canary.share = True, False, share
    canary.ready_within_s, canary.most_bad = limits.ready_within_s, limits.most_bad
    canary.released_by, canary.reason = services.by(actor), reason.strip()[:200]
    canary.save(force_insert=True)
    canary.clients.set(chosen)
    _record("version.canary", canary, actor, canary.reason, share=share, clients=[str(client) for client in chosen])
    return canary


@transaction.atomic
def promote(canary: Release, actor: Actor, reason: str = "") -> Release:
    """Give a canary's version to all clients of its class. Raises Forbidden, and WrongState when it ended already."""
    services.require(actor, Right.RELEASE, canary)
    current = services.current_of(canary.client_class)
    _end(canary, "promoted")
    keeping.require_files(canary.version)
    signatures.require(canary.version)
    new = Release(client_class=canary.client_class, version=canary.version, home=canary.home)
    new.ready_within_s, new.most_bad = canary.ready_within_s, canary.most_bad
    return services.give(current, new, actor, reason, "promoted")


@transaction.atomic
def withdraw(canary: Release, actor: Actor, reason: str = "") -> None:
    """Take a canary back: its clients boot the current release from their next boot on. Raises as ``promote``."""
    services.require(actor, Right.RELEASE, canary)
    services.current_of(canary.client_class)
    _end(canary, "withdrawn")
    _record("version.withdrawn", canary, actor, reason.strip()[:200])


@transaction.atomic
def end_bad(release: Release, why: str) -> bool:
    """End a release that does badly: a canary is withdrawn, a current release rolled back. False when it ended meanwhile.

    One that has nothing before it stays, and says so.
    """
    current = services.current_of(release.client_class)
    release.refresh_from_db()
    if release.ended_at is not None or not (release.canary or (current and current.pk == release.pk)):
        return False
    if release.canary:
        _end(release, f"withdrawn by itself: {why}")
        _record("version.withdrawn", release, CLOCK, why)
        return True
    try:
        with transaction.atomic():
            services.go_back(release.client_class, CLOCK, f"by itself: {why}")
        outcome = f"rolled back by itself: {why}"
    except WrongState as error:
        outcome = f"bad, but not rolled back ({error.message}): {why}"
        _record("version.bad", release, CLOCK, outcome[:200])
    release.ended_at, release.outcome = timezone.now(), outcome[:200]
    release.save(update_fields=["ended_at", "outcome"])
    return True


def _end(canary: Release, outcome: str) -> None:
    canary.refresh_from_db(fields=["ended_at", "outcome", "canary"])
    if not canary.is_under_way:
        raise WrongState(
            f"{canary.version} is no canary of {canary.client_class} any more: {canary.outcome or 'it never was'}.",
            hint="Look at the history of its releases.",
        )
    canary.ended_at, canary.outcome = timezone.now(), outcome[:200]
    canary.save(update_fields=["ended_at", "outcome"])


def _record(action: str, release: Release, actor: Actor | str, reason: str, **detail: object) -> None:
    audit.record(
        action,
        release.version,
        site=release.client_class.site,
        actor=actor,
        client_class=release.client_class.slug,
        digest=release.version.digest,
        reason=reason,
        **detail,
    )
