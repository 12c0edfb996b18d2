"""Packages of versions for which their archives have newer ones by now: looked up by a worker, shown to people."""

import logging
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from django.utils import timezone

from images import builds
from images.builder import director
from images.builder.errors import BuildError
from images.builder.recipe import Recipe
from images.models import ImageVersion, Release, Storage, VersionStatus
from images.unwatched import Unwatched

log = logging.getLogger(__name__)

EVERY = timedelta(hours=20)


def look(pk: int) -> None:
    """Look up what is pending for a ready version; twice is harmless. What was known stays when the archives cannot be read."""
    with builds.held(f"upgrades-{pk}") as mine:
        ready = ImageVersion.objects.filter(pk=pk, status=VersionStatus.READY, storage=Storage.FILES)
        version = ready.first()
        if not mine or version is None or version.contents is None:
            return
        found: dict[str, Any] = {"at": timezone.now().isoformat(timespec="seconds")}
        try:
            recipe, steps = Recipe.from_dict(version.recipe), Unwatched(str(version))
            upgrades = director.pending(version.contents, recipe, builds.context(), steps)
        except BuildError as error:
            log.warning("The upgrades of %s could not be looked up: %s", version, error)
            found |= {
                "failure": str(error).splitlines()[-1][:500],
                "packages": (version.upgrades or {}).get("packages", []),
            }
        else:
            found["packages"] = [asdict(upgrade) for upgrade in upgrades]
        found["security"] = sum(package["security"] for package in found["packages"])
        ready.update(upgrades=found)


def due() -> list[int]:
    """Versions that classes boot and nobody has looked at for most of a day."""
    released = set(Release.objects.filter(current=True).values_list("version_id", flat=True))
    versions = ImageVersion.objects.filter(pk__in=released).values_list("pk", "upgrades")
    before = (timezone.now() - EVERY).isoformat(timespec="seconds")
    return [pk for pk, upgrades in versions if not upgrades or upgrades["at"] < before]
