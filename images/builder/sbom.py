"""The bill of materials of a version: CycloneDX 1.5 as JSON (ECMA-424), the same bytes for the same version."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from images.builder.manifest import Manifest
from images.builder.recipe import Recipe

_NAMESPACE = uuid.UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")  # RFC 9562, of object identifiers


def document(name: str, manifest: Manifest, recipe: Recipe) -> str:
    """The bill of the version `name`, one JSON object: its packages as libraries, its artefacts as files with their SHA-256."""
    made = datetime.fromtimestamp(manifest.epoch, UTC)
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, manifest.digest)}",
        "version": 1,
        "metadata": {
            "timestamp": f"{made:%Y-%m-%dT%H:%M:%SZ}",
            "component": {
                "type": "operating-system",
                "bom-ref": manifest.digest,
                "name": name,
                "version": manifest.digest[:12],
                "hashes": [{"alg": "SHA-256", "content": manifest.digest}],
            },
        },
        "components": [*_packages(manifest, recipe), *_artefacts(manifest)],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _packages(manifest: Manifest, recipe: Recipe) -> Iterator[dict[str, Any]]:
    kind, distribution = {"rpm": ("rpm", "")}.get(recipe.family, ("deb", f"{recipe.family}/"))
    for package in manifest.packages:
        epoch, _, rest = package.version.rpartition(":")
        # purl-spec: an rpm's epoch is a qualifier, a deb's is part of the version.
        version = rest if kind == "rpm" else package.version
        qualifiers = {"arch": package.architecture, "distro": recipe.suite}
        if kind == "rpm" and epoch:
            qualifiers["epoch"] = epoch
        words = "&".join(f"{key}={quote(value, safe='')}" for key, value in sorted(qualifiers.items()))
        purl = f"pkg:{kind}/{distribution}{quote(package.name, safe='')}@{quote(version, safe='')}?{words}"
        yield {"type": "library", "bom-ref": purl, "name": package.name, "version": package.version, "purl": purl}


def _artefacts(manifest: Manifest) -> Iterator[dict[str, Any]]:
    for part, artefact in manifest.artefacts().items():
        yield {
            "type": "file",
            "bom-ref": f"{part}:{artefact.sha256}",
            "name": part,
            "hashes": [{"alg": "SHA-256", "content": artefact.sha256}],
        }
