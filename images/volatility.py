"""How the volatile files of a version differ from those of the version before it, noted when it becomes ready."""

import logging
from typing import Any

from images.builder import plandiff
from images.builder.errors import BuildError
from images.builder.manifest import Manifest
from images.builder.store import Store
from images.models import ImageVersion, Storage, VersionStatus

log = logging.getLogger(__name__)


def predecessor(version: ImageVersion) -> ImageVersion | None:
    """What a version is compared with: its parent, or else the last ready version of its image."""
    if version.parent:
        return version.parent
    ready = ImageVersion.objects.filter(image=version.image, status=VersionStatus.READY, number__lt=version.number)
    return ready.exclude(storage=Storage.NOTHING).order_by("-number").first()


def compare(version: ImageVersion, manifest: Manifest, store: Store) -> dict[str, Any] | None:
    """The difference as `ImageVersion.volatile_change` keeps it; None for a first version.

    A plan that cannot be read is told as `failure`: a version is not lost because its predecessor's plan is.
    """
    before = predecessor(version)
    if before is None or before.contents is None:
        return None
    try:
        found = plandiff.difference(store.require(before.contents.plan), store.require(manifest.plan))
    except (BuildError, OSError, ValueError) as error:
        log.warning("The volatile files of %s could not be compared with %s: %s", version, before, error)
        return {"against": str(before), "failure": str(error)[:500]}
    return {"against": str(before), **found}
