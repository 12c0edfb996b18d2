"""Which version a client boots; and canaries: a version that some clients of a class get before all do.

    canary ──→ promoted   (all clients get it, by a release of its own)
           └─→ withdrawn  (by a person, or by itself when too many of its boots were bad)

Boots are counted where they are seen (agents/judging.py); here is what follows from it.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from uuid import UUID

from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from fleet import audit
from fleet.exceptions import OperatorError, WrongState
from fleet.models import Client, ClientClass, Site
from fleet.roles import Right
from images import keeping, room, services, signatures
from images.models import ImageVersion, Release
from images.services import Actor

CLOCK = "clock"


@dataclass(frozen=True)
class Limits:
    """When a boot is bad, and how many bad clients end a release (0: none)."""

    ready_within_s: int = Release.READY_WITHIN_S
    most_bad: int = Release.MOST_BAD


@dataclass(frozen=True)
class Offer:
    """What a class has for its clients: to all the current release, to some the canary."""

    current: Release | None = None
    canary: Release | None = None
    named: frozenset[UUID] = frozenset()

    def to(self, client: Client) -> Release | None:
        """What a client of the class boots; of a canary by share it is the same at each boot."""
        if self.canary and (client.pk in self.named or _drawn(self.canary, client)):
            return self.canary
        return self.current


def release_for(client: Client, client_class: ClientClass | int) -> Release | None:
    """What a client boots as one of ``client_class``."""
    return offer_of(client_class).to(client)


def offer_of(client_class: ClientClass | int) -> Offer:
    key = client_class if isinstance(client_class, int) else client_class.pk
    return _offers(Release.objects.filter(client_class=key)).get(key, Offer())


def offers_at(site: Site) -> dict[int, Offer]:
    """The offers of a site's classes by primary key, without manifests and recipes; two queries."""
    light = Release.objects.filter(client_class__site=site).defer("version__manifest", "version__recipe")
    return _offers(light)


def _offers(releases: QuerySet[Release]) -> dict[int, Offer]:
    under_way = releases.filter(Q(current=True) | Q(canary=True, ended_at=None))
    found: dict[int, Offer] = {}
    for release in under_way.select_related("version__image", "home", "client_class").prefetch_related("clients"):
        offer = found.get(release.client_class_id, Offer())
        if release.canary:
            named = frozenset(client.pk for client in release.clients.all())
            found[release.client_class_id] = replace(offer, canary=release, named=named)
        else:
            found[release.client_class_id] = replace(offer, current=release)
    return found


def _drawn(canary: Release, client: Client) -> bool:
    lot = hashlib.sha256(f"{canary.pk} {client.pk}".encode()).digest()
    return int.from_bytes(lot[:4], "big") % 100 < canary.share


def clients_of(canary: Release) -> list[Client]:
    """The clients that a canary has now: chosen by name, or drawn of its class."""
    offer = offer_of(canary.client_class_id)
    return [
        client
        for client in Client.objects.filter(client_class=canary.client_class_id).order_by("name")
        if offer.to(client) == canary
    ]


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
    under_way = Release.objects.filter(client_class=client_class, canary=True, ended_at=None)
    if other := under_way.select_related("version__image").first():
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
    room.require_room(client_class, canary.home)
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
    except OperatorError as error:
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
