"""What the volatile rules of an image copy into the memory of each client, judged by its newest ready version.

A build judges by what it has built. This is for the person who types: the files of the version before are at hand.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from django.conf import settings

from images.builder import ruling, squashfs
from images.builder.errors import BuildError
from images.builder.store import Store
from images.builder.volatile import Rule

if TYPE_CHECKING:
    from images.models import Image, ImageVersion

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weighed:
    """The weight of each rule, in their order, by the files of ``version``."""

    version: ImageVersion
    weights: tuple[ruling.Weight, ...]

    @property
    def files(self) -> int:
        return sum(weight.files for weight in self.weights)

    @property
    def bytes(self) -> int:
        return sum(weight.bytes for weight in self.weights)


def weigh(image: Image, rules: Sequence[Rule]) -> Weighed | None:
    """What each rule would copy; None without a ready version whose root can be read."""
    if image.pk is None:
        return None
    ready = image.versions.filter(status="ready", storage="files").select_related("image")
    version = ready.defer("recipe", "failure").order_by("-number").first()
    if version is None or version.contents is None:
        return None
    try:
        tree = _tree(Store(settings.STORE).require(version.contents.root))
    except (BuildError, OSError) as error:
        log.warning("The rules of %s cannot be weighed by %s: %s", image, version, error)
        return None
    return Weighed(version, ruling.weigh(tree, rules, [f"/home/{image.user}"]))


def refuse(image: Image, rules: Sequence[Rule]) -> None:
    """Raise RecipeError for rules that copy more than clients are asked to hold. Without a version to judge by, the build does."""
    if weighed := weigh(image, rules):
        refuse_heavy(weighed)


def refuse_heavy(weighed: Weighed) -> None:
    """`ruling.refuse_heavy` within the limits of this server."""
    ruling.refuse_heavy(weighed.weights, total_bytes=settings.VOLATILE_MIB << 20, judged_by=str(weighed.version))


# A root of 16,000 paths takes a tenth of a second and 5 MB; a path of the store never changes what it has.
@lru_cache(maxsize=2)
def _tree(root: Path) -> ruling.Image:
    return ruling.Image(squashfs.entries(root))
