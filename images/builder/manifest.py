"""What a build leaves: the artefacts of a version and what is known of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from images.builder.chroot.family import Package
from images.builder.recipe import canonical_json
from images.builder.sitefiles import SiteFile
from images.builder.store import Artefact, Store

PARTS = ("kernel", "initrd", "root", "plan", "home")


@dataclass(frozen=True, slots=True)
class Manifest:
    """A version: `digest` is the SHA-256 of its canonical JSON, which is itself an artefact of the store."""

    kernel: Artefact
    initrd: Artefact
    root: Artefact  # squashfs with its hash tree behind it, what clients mount at /.ro
    plan: Artefact  # cpio newc, what clients unpack into their tmpfs
    home: Artefact  # squashfs of the user's home
    root_hash: str  # of the hash tree (images/builder/verity.py)
    root_blocks: int  # of 4096 bytes, before the hash tree
    home_digest: str  # tree digest (docs/protocol.md) of the home
    kernel_release: str
    packages: tuple[Package, ...]
    volatile: Mapping[str, int]  # directories, copies, symlinks; bytes copied
    unpacked_bytes: int  # of the files in the root before they were packed
    epoch: int  # no time in the version is later (s)
    parent: str = ""  # digest of the version it was derived from
    change: Mapping[str, Any] | None = None  # what made it of that
    site_files: Mapping[str, SiteFile] = field(
        default_factory=dict
    )  # by path: what packages ship and the site has changed

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_json()).hexdigest()

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by part, and `unpacked`, the files of the root before they were packed."""
        parts = {part: artefact.bytes for part, artefact in self.artefacts().items()}
        return {**parts, "unpacked": self.unpacked_bytes}

    def artefacts(self) -> dict[str, Artefact]:
        """The artefact of each part."""
        return {part: getattr(self, part) for part in PARTS}

    def everything(self) -> Iterator[Artefact]:
        """All that a store must have for it: the parts, and both contents of the site's files."""
        yield from self.artefacts().values()
        for file in self.site_files.values():
            yield from (file.original, file.site)

    def to_dict(self) -> dict[str, Any]:
        values = {**asdict(self), "packages": [list(asdict(package).values()) for package in self.packages]}
        if not self.site_files:
            del values["site_files"]  # as manifests were before there was such a thing: their digests stay
        return values

    def to_json(self) -> bytes:
        """Canonical JSON: what the digest is of."""
        return canonical_json(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """Read what `to_dict` gave."""
        values = dict(data)
        values.update({part: Artefact(**values[part]) for part in PARTS})
        values["site_files"] = {path: SiteFile.from_dict(row) for path, row in data.get("site_files", {}).items()}
        values["packages"] = tuple(Package(*row) for row in values["packages"])
        return cls(**values)

    @classmethod
    def load(cls, store: Store, digest: str) -> Manifest:
        """The version of this digest, all of it in the store. Raises BuildError or OSError when it is not."""
        manifest = cls.from_dict(json.loads(store.path(digest).read_bytes()))
        for artefact in manifest.everything():
            store.require(artefact)
        return manifest
