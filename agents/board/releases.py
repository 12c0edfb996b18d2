"""The part of the board about versions: what each class boots, its canary, who is behind, and what ended by itself."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta

from django.urls import reverse
from django.utils import timezone

from agents.board.facts import ClassMark, Fact, ReleaseLine
from agents.judging import standing
from agents.models import Rollout, RolloutStatus
from fleet.models import ClientClass, Site
from images.models import Release
from images.releasing import Offer

NOTICE = timedelta(hours=24)  # for so long the board tells that a release ended by itself


def read_releases(
    site: Site,
    classes: Iterable[ClientClass],
    offers: Mapping[int, Offer],
    late: Counter[int],
    mark: Callable[[ClientClass], ClassMark],
    admin_url: Callable[[str, object], str],
) -> list[Fact]:
    """``late``: how many clients of each class run an older version than they would boot."""
    lately = Release.objects.filter(client_class__site=site, ended_at__gt=timezone.now() - NOTICE)
    ended = lately.filter(outcome__contains="by itself").select_related("version__image").order_by("pk")
    ended = ended.defer("version__manifest", "version__recipe")
    notices = {release.client_class_id: f"{release.version} was {release.outcome}" for release in ended}
    rollouts = {
        row.client_class_id: row
        for row in Rollout.objects.filter(client_class__site=site, status=RolloutStatus.RUNNING)
    }
    lines: list[Fact] = []
    for kind in classes:
        offer, rollout = offers.get(kind.pk, Offer()), rollouts.get(kind.pk)
        release, canary = offer.current, offer.canary
        shown = canary or release
        if shown is None:
            continue
        lines.append(
            ReleaseLine(
                key=str(kind.pk),
                mark=mark(kind),
                version=str(release.version) if release else "",
                canary=str(canary.version) if canary else "",
                canary_word=f"{standing(canary)}" if canary else "",
                behind=late[kind.pk],
                restart_url=reverse("board-rollout", args=[site.slug, kind.pk]),
                rollout=f"{rollout.at_once} at a time" if rollout else "",
                stop_url=reverse("board-rollout-stop", args=[site.slug, rollout.pk]) if rollout else "",
                notice=notices.get(kind.pk, ""),
                admin_url=admin_url("images_release", shown.pk),
            )
        )
    return lines
