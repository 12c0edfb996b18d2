"""The lines of a boot plan that follow from a version alone; the gateway and the checker add who boots it, and how."""

from collections.abc import Mapping
from typing import Any

from images.models import ImageVersion


def of(version: ImageVersion) -> dict[str, object]:
    """What a ready version's artefacts are called, how large they are, and who plays (docs/protocol.md, section 1)."""
    manifest: Mapping[str, Any] | None = version.manifest
    assert manifest is not None
    return {
        "version": version,
        "digest": version.digest,
        "root": manifest["root"]["sha256"],
        "root_bytes": manifest["root"]["bytes"],
        "root_hash": manifest["root_hash"],
        "root_blocks": manifest["root_blocks"],
        "plan": manifest["plan"]["sha256"],
        "plan_bytes": manifest["plan"]["bytes"],
        "user": version.recipe["user"],
        "uid": version.recipe["uid"],
    }
