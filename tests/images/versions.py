"""Images and versions for tests that need no build."""

import hashlib
from typing import Any

from django.db.models import Max
from django.utils import timezone

from fleet.models import Site
from images import signatures
from images.builder.chroot.family import Package
from images.builder.layer import LayerManifest
from images.builder.manifest import Manifest
from images.builder.recipe import canonical_json
from images.builder.store import Artefact
from images.layer_models import Layer, LayerBuild, LayerStatus
from images.models import HomeTemplate, Image, ImageVersion, VersionStatus

GL = "/usr/lib/x86_64-linux-gnu/libGL.so.1"


def make_image(site: Site | None, slug: str = "gamer", **fields: Any) -> Image:
    return Image.objects.create(site=site, slug=slug, name=f"{slug.capitalize()} image", **fields)


def make_manifest(salt: str = "") -> Manifest:
    """What a build would leave, without its artefacts."""

    def artefact(part: str) -> Artefact:
        return Artefact(hashlib.sha256(f"{part}{salt}".encode()).hexdigest(), 1000)

    return Manifest(
        kernel=artefact("kernel"),
        initrd=artefact("initrd"),
        root=artefact("root"),
        plan=artefact("plan"),
        home=artefact("home"),
        root_hash="cd" * 64,
        root_blocks=1,
        home_digest="ab" * 32,
        kernel_release="6.1.0-1-amd64",
        packages=(Package("bash", "5.2", "amd64"), Package("tmux", "3.3a", "amd64")),
        volatile={"directories": 1, "copies": 2, "symlinks": 3, "bytes": 4},
        unpacked_bytes=5000,
        epoch=1_700_000_000,
    )


def make_version(image: Image, status: VersionStatus = VersionStatus.READY, **fields: Any) -> ImageVersion:
    """A version in any state; a ready one has a manifest and a home template."""
    number = (ImageVersion.objects.filter(image=image).aggregate(last=Max("number"))["last"] or 0) + 1
    values: dict[str, Any] = {"number": number, "recipe": image.recipe().to_dict(), "status": status}
    if status == VersionStatus.READY:
        manifest = make_manifest(f"{image.slug}-{number}")
        contents = fields.get("manifest", manifest.to_dict())
        body = canonical_json(contents)
        signature = signatures.signed(body)
        values |= {"manifest": contents, "digest": hashlib.sha256(body).hexdigest(), "signature": signature}
        HomeTemplate.objects.create(
            image=image, sha256=manifest.home.sha256, bytes=1000, tree_digest=manifest.home_digest
        )
    return ImageVersion.objects.create(image=image, **(values | fields))


def make_layer_contents(version: ImageVersion, salt: str, **values: Any) -> LayerManifest:
    root, plan = (Artefact(digest * 32, 1000) for digest in (f"{salt}0", f"{salt}1"))
    facts: dict[str, Any] = {
        "root": root,
        "plan": plan,
        "packages": (),
        "volatile": {},
        "files": {GL: salt},
        "real": (),
    }
    facts |= {"unpacked_bytes": 5, "epoch": 0, "root_hash": "cd" * 64, "root_blocks": 1}
    return LayerManifest(version.digest, {}, **(facts | values))


def make_layer_build(layer: Layer, version: ImageVersion, salt: str = "a", **values: Any) -> LayerBuild:
    made = make_layer_contents(version, salt, **values)
    facts = {
        "status": LayerStatus.READY,
        "digest": made.digest,
        "signature": signatures.signed(made.to_json()),
        "manifest": made.to_dict(),
        "finished_at": timezone.now(),
    }
    return LayerBuild.objects.create(layer=layer, version=version, change={}, **facts)
