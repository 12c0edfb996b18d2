"""A driver layer: what some clients of an image need beside it, or in the place of what it has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from images.builder.change import Change
from images.builder.chroot.family import Package
from images.builder.errors import BuildError, RecipeError
from images.builder.recipe import Recipe, canonical_json
from images.builder.store import Artefact, Store


@dataclass(frozen=True, slots=True)
class LayerManifest:
    """A layer as built against one version: `digest` is the SHA-256 of its canonical JSON, an artefact of the store."""

    base: str  # digest of the version it lies over
    change: Mapping[str, Any]  # what was done to that
    root: Artefact  # squashfs with its hash tree behind it, an overlay's lower directory over the version's
    root_hash: str  # of the hash tree (images/builder/verity.py)
    root_blocks: int  # of 4096 bytes, before the hash tree
    plan: Artefact  # cpio newc: how the root plan differs from the version's; its member .gone lists what goes first
    packages: tuple[Package, ...]  # that the version has not, or not in this state
    volatile: Mapping[str, int]  # of the plan: directories, copies, symlinks; bytes copied
    files: Mapping[str, str]  # path → fingerprint, "" for what the layer hides; directories are left out
    real: tuple[str, ...]  # directories that are one link into the share without the layer, and many with it
    unpacked_bytes: int
    epoch: int  # no time in the layer is later (s)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "packages": [list(asdict(package).values()) for package in self.packages]}

    def to_json(self) -> bytes:
        """Canonical JSON: what the digest is of."""
        return canonical_json(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerManifest:
        """Read what `to_dict` gave."""
        values = dict(data)
        values.update({part: Artefact(**values[part]) for part in ("root", "plan")})
        values["packages"] = tuple(Package(*row) for row in values["packages"])
        values["real"] = tuple(values["real"])
        return cls(**values)

    @classmethod
    def load(cls, store: Store, digest: str) -> LayerManifest:
        """The layer of this digest, all of it in the store. Raises BuildError or OSError when it is not."""
        manifest = cls.from_dict(json.loads(store.path(digest).read_bytes()))
        for artefact in (manifest.root, manifest.plan):
            store.require(artefact)
        return manifest


def wanted(recipe: Recipe, **values: Any) -> Change:
    """What makes a layer over a version of `recipe`: packages to install, files, a script.

    Raises RecipeError, naming the field, for what no layer can be.
    """
    if set(values) - {"install", "files", "script"}:
        raise RecipeError("layer", "a layer installs packages, puts files and runs a script, and nothing else")
    try:
        return Change.of(recipe, **{name: value for name, value in values.items() if value})
    except RecipeError as error:
        if any(values.values()):
            raise
        raise RecipeError("install", "the layer is empty: name packages, a file or a script") from error


def clash(one: LayerManifest, other: LayerManifest) -> str:
    """A path of which two layers of the same version say different things; "" when one client can have both."""
    if one.base != other.base:
        raise BuildError(f"the layers {one.digest[:12]} and {other.digest[:12]} are of different versions")
    for path in sorted(one.files.keys() & other.files.keys()):
        if one.files[path] != other.files[path]:
            return path
    for first, second in ((one, other), (other, one)):
        # What one has as a file may be a directory of the other; a directory that one spells out lacks what the other adds.
        covering = {*first.files, *first.real}
        for path in sorted(second.files):
            if path not in first.files and any(above in covering for above in _above(path)):
                return path
    return ""


def _above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(2, len(parts))]
