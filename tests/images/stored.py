"""Versions whose artefacts really lie in a store, small enough to need no build."""

import os
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from images.builder.manifest import Manifest
from images.builder.sitefiles import SiteFile
from images.builder.store import Artefact, Store
from images.models import HomeTemplate, Image, ImageVersion
from tests.images.versions import make_manifest, make_version

PARTS = ("kernel", "initrd", "root", "plan", "home")
ROOT_BYTES = 2_000_000


def noise(seed: object, size: int) -> bytes:
    """Bytes that nothing compresses, the same for the same seed."""
    return random.Random(str(seed)).randbytes(size)


def put(store: Store, content: bytes) -> Artefact:
    with store.scratch() as ready:
        (ready / "file").write_bytes(content)
        return store.put(ready / "file")


def stored_version(image: Image, store: Store, salt: str = "", **parts: bytes) -> ImageVersion:
    """A ready version of ``image``; its parts differ by ``salt`` unless their bytes are given."""
    contents = {part: noise(f"{part}{salt}", ROOT_BYTES if part == "root" else 5000) for part in PARTS} | parts
    artefacts: Any = {part: put(store, content) for part, content in contents.items()}
    settings = SiteFile(put(store, b""), put(store, f"the site's {salt}\n".encode()), 0o640)  # the package's is empty
    manifest: Manifest = replace(make_manifest(salt), **artefacts, site_files={"/etc/tool.conf": settings})
    put(store, manifest.to_json())
    version = make_version(image, manifest=manifest.to_dict(), digest=manifest.digest)
    HomeTemplate.objects.filter(
        image=image, sha256=make_manifest(f"{image.slug}-{version.number}").home.sha256
    ).delete()
    HomeTemplate.objects.get_or_create(
        image=image, sha256=manifest.home.sha256, defaults={"bytes": 5000, "tree_digest": manifest.home_digest}
    )
    return version


def like(parent: bytes, seed: object) -> bytes:
    """What a small change makes of it: some bytes more in the middle, so that all behind them move."""
    middle = len(parent) // 2
    return parent[:middle] + noise(seed, 1000) + parent[middle:]


def paths(store: Store, version: ImageVersion) -> dict[str, Path]:
    """Where its artefacts lie, or would: the parts by their names, and what the site has in its file."""
    contents = version.contents
    assert contents is not None
    artefacts = {**contents.artefacts(), "site": contents.site_files["/etc/tool.conf"].site}
    return {part: store.path(artefact.sha256) for part, artefact in artefacts.items()}


def age(store: Store, days: float = 30) -> None:
    """As if all had been put that long ago."""
    then = time.time() - days * 86400
    for artefact in store.artefacts():
        os.utime(store.path(artefact.sha256), (then, then))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.fixture
def store(tmp_path: Path, settings: Any) -> Store:
    settings.STORE, settings.BUILD_WORK = tmp_path / "store", tmp_path / "work"
    return Store(settings.STORE)
