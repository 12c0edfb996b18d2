"""What the store must keep, and why: asked by the collector, and before a version is forgotten or archived.

A holder names versions that must stay files, each with the reason in words. Other apps add theirs when they start
(``AppConfig.ready``): those who know what clients run are not known here.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from itertools import groupby, pairwise
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from fleet.exceptions import WrongState
from images.layer_models import LayerBuild, LayerStatus
from images.models import HomeTemplate, ImageVersion, Release, Storage, VersionStatus

Holder = Callable[[], Iterable[tuple[int, str]]]
_holders: list[Holder] = []


def register(holder: Holder) -> Holder:
    """Have ``holder`` asked for the primary keys of versions in use and why; at most once, however often it is registered."""
    if holder not in _holders:
        _holders.append(holder)
    return holder


def holds() -> dict[int, list[str]]:
    """Versions that must stay files, by primary key, each with its reasons."""
    found: dict[int, list[str]] = {}
    for holder in _holders:
        for version, why in holder():
            found.setdefault(version, []).append(why)
    return found


@register
def _released() -> Iterator[tuple[int, str]]:
    """What classes boot, may be rolled back to, or booted so lately that a client may be on its way."""
    lately = timezone.now() - timedelta(hours=settings.STORE_GRACE)
    releases = Release.objects.select_related("client_class", "restores").order_by("client_class_id", "-pk")
    for _, group in groupby(releases, lambda release: release.client_class_id):
        every = list(group)
        for canary in every:
            if canary.is_under_way or (canary.ended_at and canary.canary and canary.ended_at > lately):
                yield canary.version_id, f"some clients of {canary.client_class} boot it"
        history = [release for release in every if not release.canary]
        yield from ((release.version_id, f"{release.client_class} boots it") for release in history if release.current)
        for newer, older in pairwise(history):
            if newer.released_at > lately:
                yield older.version_id, f"{older.client_class} booted it until {newer.released_at:%Y-%m-%d %H:%M}"
        for earlier in _behind(history)[: settings.RELEASES_KEPT]:
            yield earlier.version_id, f"{earlier.client_class} may be rolled back to it"


def _behind(history: list[Release]) -> list[Release]:
    """The releases of a class that ``roll_back`` comes to, one after the other, each version once; newest first."""
    current = next((release for release in history if release.current), None)
    behind: dict[int, Release] = {}
    while current is not None:
        effective = current.restores or current
        current = next((release for release in history if release.pk < effective.pk), None)
        if current is not None:
            behind.setdefault(current.version_id, current)
    return list(behind.values())


@register
def _parents() -> Iterator[tuple[int, str]]:
    """What a version, or a layer, that waits or builds is made of."""
    under_way = ImageVersion.objects.filter(status__in=(VersionStatus.QUEUED, VersionStatus.BUILDING))
    for version in under_way.filter(parent__isnull=False).select_related("image"):
        assert version.parent_id is not None
        yield version.parent_id, f"{version} is derived from it"
    for build in LayerBuild.objects.filter(status__in=(LayerStatus.QUEUED, LayerStatus.BUILDING)).select_related(
        "layer"
    ):
        yield build.version_id, f"the layer {build.layer} is built for it"


@transaction.atomic
def require_files(version: ImageVersion) -> None:
    """Refuse a version that cannot be booted or derived from as it is kept; within a transaction it stays so until its end.

    Raises WrongState.
    """
    storage = Storage(ImageVersion.objects.select_for_update().values_list("storage", flat=True).get(pk=version.pk))
    if storage == Storage.CHUNKS:
        raise WrongState(f"{version} is archived.", hint="Restore it on its page first; that takes less than a minute.")
    if storage == Storage.RESTORING:
        raise WrongState(f"{version} is being restored from the archive.", hint="Try again in a minute.")
    if storage == Storage.NOTHING:
        raise WrongState(
            f"{version} was forgotten, its artefacts may be gone.",
            hint="Build it again, or import it from where it was exported to.",
        )


@transaction.atomic
def require_template(template: HomeTemplate) -> None:
    """Refuse a home template that went, or may go, with the versions it came from. Raises WrongState."""
    versions = ImageVersion.objects.select_for_update().filter(
        image=template.image_id, manifest__home__sha256=template.sha256
    )
    kept = list(versions.values_list("storage", flat=True))
    if kept and Storage.FILES not in kept:
        raise WrongState(
            f"{template} belongs to versions that are archived or forgotten.",
            hint="Restore one of them, or build another.",
        )


def artefacts_in(manifest: Any) -> Iterator[tuple[str, int]]:
    """Digest and bytes of every artefact that a manifest names at whatever depth, parts that are new to us included."""
    if isinstance(manifest, dict):
        if isinstance(manifest.get("sha256"), str):
            yield manifest["sha256"], int(manifest.get("bytes", 0))
        for value in manifest.values():
            yield from artefacts_in(value)
    elif isinstance(manifest, list):
        for value in manifest:
            if isinstance(value, dict):
                yield from artefacts_in(value)


class Claims:
    """Who needs which artefact: ``files`` as a file and ``chunks`` archived, by digest, each with names for people."""

    def __init__(self) -> None:
        self.files: dict[str, list[str]] = {}
        self.chunks: dict[str, list[str]] = {}
        self.bytes: dict[str, int] = {}
        held = holds()
        named: dict[str, bool] = {}  # the artefacts of versions: whether a version that is kept has it
        ready = (
            ImageVersion.objects.filter(status=VersionStatus.READY).select_related("image").order_by("image", "number")
        )
        for version in ready.only("image__slug", "number", "digest", "manifest", "storage").iterator(chunk_size=50):
            self._claim(self.files, version.digest, str(version))  # the manifest, of the forgotten too
            kept = version.pk in held or version.storage != Storage.NOTHING
            as_files = version.pk in held or version.storage == Storage.FILES
            as_chunks = version.storage in (Storage.CHUNKS, Storage.RESTORING)
            for sha256, size in artefacts_in(version.manifest):
                named[sha256] = named.get(sha256, False) or kept
                self.bytes[sha256] = size
                if as_files:
                    self._claim(self.files, sha256, str(version))
                if as_chunks:
                    self._claim(self.chunks, sha256, str(version))
        self._claim_layers()
        kept_releases = Release.objects.exclude(version__storage=Storage.NOTHING)
        in_use = set(kept_releases.values_list("home_id", flat=True))
        for template in HomeTemplate.objects.exclude(sha256="").select_related("image"):
            if template.pk in in_use or template.sha256 not in named:
                self._claim(self.files, template.sha256, str(template))
                self.bytes[template.sha256] = template.bytes

    def _claim_layers(self) -> None:
        """Of each layer for each version that is kept, the newest build; and what it replaced so lately that a client may be on its way.

        Clients have their layers in memory once they run.
        """
        lately = timezone.now() - timedelta(hours=settings.STORE_GRACE)
        ready = LayerBuild.objects.filter(status=LayerStatus.READY).exclude(version__storage=Storage.NOTHING)
        replaced: dict[tuple[int, int], datetime | None] = {}
        rows = ready.select_related("layer", "version__image").order_by("-finished_at", "-pk")
        for build in rows.only(
            "layer__slug", "version__image__slug", "version__number", "digest", "manifest", "finished_at"
        ):
            newer = replaced.get((build.layer_id, build.version_id))
            replaced[build.layer_id, build.version_id] = build.finished_at
            if newer is None or newer > lately:
                self._claim(self.files, build.digest, str(build))
                for sha256, size in artefacts_in(build.manifest):
                    self._claim(self.files, sha256, str(build))
                    self.bytes[sha256] = size

    @staticmethod
    def _claim(claims: dict[str, list[str]], sha256: str, who: str) -> None:
        names = claims.setdefault(sha256, [])
        if who not in names:
            names.append(who)
