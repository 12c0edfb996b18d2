"""Whether boots are good: counted by release, and what follows when too many are bad.

A boot is good when its daemon says within the release's limit that the client is ready. It is bad when the client says that it
cannot boot, when it is not ready in time, when the client boots anew without having been ready or having said that it goes down, or
when it took a kernel and was never heard of again. Each client counts by its last boot, so a reset button does no harm.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.db.models import Case, Q, QuerySet, Value, When
from django.utils import timezone

from agents.models import BootSession, BootToken, SessionStatus, Verdict
from images import releasing
from images.models import Release

_WAITING = (SessionStatus.BOOTING, SessionStatus.OPEN, SessionStatus.LOST)


def ready(sessions: Collection[UUID]) -> None:
    """The clients of these sessions are ready; said often, counted once."""
    now = timezone.now()
    unjudged = BootSession.objects.filter(pk__among=sessions, verdict="").exclude(release=None).order_by()
    for limit in set(unjudged.values_list("release__ready_within_s", flat=True)) if sessions else ():
        began = now - timedelta(seconds=limit)
        good = Case(When(planned_at__gte=began, then=Value(Verdict.GOOD)), default=Value(Verdict.BAD))
        of_limit = BootSession.objects.filter(pk__among=sessions, verdict="", release__ready_within_s=limit)
        of_limit.update(verdict=good, ready_at=now)


def failed(sessions: Collection[UUID]) -> None:
    """The clients of these sessions cannot boot: they say so, or boot anew; nothing where they were ready before."""
    BootSession.objects.filter(pk__among=sessions, verdict="").update(verdict=Verdict.BAD)


@dataclass(frozen=True)
class Standing:
    """How the clients that booted a release fare, each by its last boot of it."""

    good: int
    bad: int

    @property
    def booted(self) -> int:
        return self.good + self.bad

    def __str__(self) -> str:
        return f"{self.good} good, {self.bad} bad"


def standing(release: Release) -> Standing:
    last: dict[UUID, tuple[datetime, bool]] = {}

    def note(client: UUID, at: datetime, bad: bool) -> None:
        if client not in last or last[client][0] < at:
            last[client] = (at, bad)

    sessions = BootSession.objects.filter(release=release).exclude(verdict="")
    for client, at, verdict in sessions.values_list("client", "planned_at", "verdict"):
        note(client, at, verdict == Verdict.BAD)
    for client, at in _silent(release).values_list("client", "created_at"):
        note(client, at, bad=True)
    bad = sum(is_bad for _, is_bad in last.values())
    return Standing(len(last) - bad, bad)


def _silent(release: Release) -> QuerySet[BootToken]:
    """Boots that took kernel and initrd, and were never heard of."""
    return BootToken.objects.filter(release=release, heard_at=None, used_at=None, expires_at__lt=timezone.now())


def judge() -> None:
    """Count the boots that took too long, and end the releases that too many clients cannot boot."""
    for release in Release.objects.filter(Q(current=True) | Q(canary=True), ended_at=None).select_related(
        "client_class__site", "version__image"
    ):
        late = timezone.now() - timedelta(seconds=release.ready_within_s)
        waiting = BootSession.objects.filter(release=release, verdict="", status__in=_WAITING, planned_at__lt=late)
        waiting.update(verdict=Verdict.BAD)
        if release.most_bad and (why := _too_bad(release)):
            releasing.end_bad(release, why)


def _too_bad(release: Release) -> str:
    """Why a release has to end, in words; empty when it may stay."""
    # Asked first, as it is the rule: with ten thousand good boots there is nothing to count.
    if not (BootSession.objects.filter(release=release, verdict=Verdict.BAD).exists() or _silent(release).exists()):
        return ""
    known = standing(release)
    if not known.bad or 2 * known.bad < known.booted:
        return ""
    limit = release.most_bad
    if release.canary:
        limit = max(1, min(limit, len(releasing.clients_of(release))))
    if known.bad < limit:
        return ""
    return f"of {known.booted} clients that booted {release.version}, {known.bad} did not become ready"
