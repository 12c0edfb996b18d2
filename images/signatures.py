"""Versions are signed by who built them; nobody boots, changes or vouches for one that is not.

The web process and whoever writes to the database without the image key cannot bring a root of their own to the clients.
"""

import base64
import hashlib
from collections.abc import Iterator

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import QuerySet

from fleet import audit, signing
from fleet.exceptions import Forbidden, SiteError, WrongState
from fleet.roles import Right
from images.builder.errors import BuildError
from images.builder.manifest import Manifest
from images.builder.recipe import canonical_json
from images.builder.store import Store
from images.layer_models import LayerBuild, LayerStatus
from images.models import ImageVersion, Storage, VersionStatus

UNSIGNED = "it is not signed"


def signer() -> signing.Signer:
    """The image key. SiteError when this process was not given it."""
    return signing.Signer.load(settings.IMAGE_KEY, "image")


def state() -> dict[str, str]:
    """What the worker of builds says of itself with each sign of life (``fleet.alive``): without the key every build is in vain."""
    try:
        signer()
    except SiteError as error:
        return {"trouble": str(error)}
    return {}


def signed(manifest: bytes) -> str:
    """The signature of a version, ``<key id>:<base64>``, by its manifest's canonical JSON."""
    key = signer()
    return f"{key.key_id}:{base64.b64encode(key.sign(manifest)).decode()}"


def fault(built: ImageVersion | LayerBuild) -> str:
    """Why the manifest of a ready version or layer is not to be believed, as an end of a sentence; empty when it is."""
    body = canonical_json(built.manifest or {})
    if hashlib.sha256(body).hexdigest() != built.digest:
        return "its manifest is not that of its digest"
    return fault_of(body, built.signature)


def fault_of(manifest: bytes, signature: str) -> str:
    """The same of a manifest's bytes."""
    key_id, _, encoded = signature.partition(":")
    if not signature:
        return UNSIGNED
    public = signing.public_keys(settings.PUBLIC_KEYS, "image").get(key_id)
    if public is None:
        return f"it is signed by the key {key_id}, which this server does not trust"
    try:
        proof = base64.b64decode(encoded, validate=True)
    except ValueError:
        proof = b""
    return "" if signing.verify(public, manifest, proof) else "its signature is wrong"


def signed_by(key_id: str) -> Iterator[str]:
    """The names of the versions and layers that are kept and signed by a key."""
    for rows in _kept():
        for built in rows.filter(signature__startswith=f"{key_id}:").iterator(chunk_size=50):
            yield str(built)


@transaction.atomic
def vouch(version: ImageVersion, actor: User, store: Store, reason: str) -> None:
    """Sign a ready version that is not signed: all its artefacts are read first. Raises Forbidden, WrongState, BuildError."""
    if not type(version).objects.filter(pk=version.pk).visible_to(actor, Right.BUILD).exists():
        raise Forbidden(f"You may not vouch for {version}.", hint="Ask somebody with a higher role at its site.")
    why = fault(version)
    if version.status != VersionStatus.READY or why != UNSIGNED:
        state = why or version.get_status_display().lower()
        raise WrongState(f"{version} is not signed now: {state}.", hint="Only a ready version without a signature is.")
    manifest = Manifest.load(store, version.digest)
    for artefact in manifest.everything():
        if not store.whole(artefact.sha256):
            raise BuildError(f"{version} is not signed: its artefact {artefact.sha256} is damaged; build it again")
    version.signature = signed(manifest.to_json())
    version.save(update_fields=["signature"])
    detail = {"digest": version.digest, "key": version.signature.partition(":")[0], "reason": reason.strip()[:200]}
    audit.record("version.signed", version, site=version.image.site, actor=actor, **detail)


def faults() -> Iterator[str]:
    """What is kept but not to be believed, versions and layers, each with why."""
    for rows in _kept():
        for built in rows.iterator(chunk_size=50):
            if why := fault(built):
                yield f"{built} is not to be believed: {why}"


def _kept() -> list[QuerySet[ImageVersion] | QuerySet[LayerBuild]]:
    versions = ImageVersion.objects.filter(status=VersionStatus.READY).exclude(storage=Storage.NOTHING)
    builds = LayerBuild.objects.filter(status=LayerStatus.READY, version__in=versions)
    return [versions.select_related("image"), builds.select_related("layer", "version__image")]


def require(version: ImageVersion) -> None:
    """Refuse a ready version that is not signed by a trusted builder. Raises WrongState."""
    if why := fault(version):
        raise WrongState(
            f"{version} is not used: {why}.",
            hint="Build it again, or vouch for what is stored: `manage.py image sign`.",
        )
