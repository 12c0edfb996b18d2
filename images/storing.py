"""What people ask of the store: forget a version, archive it, restore it, take it elsewhere and bring it here.

Asked here, done by a worker of ``builds``, which alone may write the store; the row says what is wanted, and the clock finds
what a lost message left behind.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from fleet import audit
from fleet.exceptions import OperatorError, WrongState
from fleet.queue import enqueue
from fleet.roles import Right
from images import keeping, layers, services, signatures, tasks
from images.builder import parcel
from images.builder.errors import BuildError, RecipeError
from images.builder.manifest import Manifest
from images.builder.recipe import Recipe, canonical_json
from images.builder.store import Artefact, Store
from images.models import HomeTemplate, Image, ImageVersion, Storage, VersionStatus


def _unused(version: ImageVersion, what: str) -> None:
    """Refuse what would take a version from those who need it; nobody begins to need it before the transaction ends."""
    ImageVersion.objects.select_for_update().get(pk=version.pk)
    version.refresh_from_db(fields=["status", "storage"])
    if version.status != VersionStatus.READY:
        raise WrongState(
            f"{version} cannot be {what}: it is {version.get_status_display().lower()}.",
            hint="Only a ready version takes room in the store.",
        )
    if reasons := keeping.holds().get(version.pk):
        more = f", and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        raise WrongState(
            f"{version} cannot be {what}: {', '.join(reasons[:3])}{more}.",
            hint="Release another version to them, and wait until no client runs this one.",
        )


@transaction.atomic
def forget(version: ImageVersion, actor: services.Actor, reason: str = "") -> None:
    """Give the artefacts of a version up; its row, steps and history stay. The next collection frees the room.

    Raises Forbidden, and WrongState naming who still needs it.
    """
    services.require(actor, Right.BUILD, version)
    _unused(version, "forgotten")
    if version.storage == Storage.NOTHING:
        raise WrongState(f"{version} is forgotten already.", hint="There is nothing to do.")
    _keep_as(version, Storage.NOTHING, chunk_bytes=0)
    _record("version.forgotten", version, actor, reason)
    enqueue(tasks.collect)


@transaction.atomic
def archive(version: ImageVersion, actor: services.Actor, reason: str = "") -> None:
    """Keep a version that nobody boots as chunks: it takes what makes it differ from the others. Raises as ``forget``."""
    services.require(actor, Right.BUILD, version)
    _unused(version, "archived")
    if version.storage != Storage.FILES:
        raise WrongState(f"{version} cannot be archived: {_kept(version)}.", hint="Only what is kept as files can.")
    _keep_as(version, Storage.CHUNKS)
    _record("version.archived", version, actor, reason)
    enqueue(tasks.collect)


@transaction.atomic
def restore(version: ImageVersion, actor: services.Actor, reason: str = "") -> None:
    """Make an archived version files again, so that it can be released."""
    services.require(actor, Right.BUILD, version)
    ImageVersion.objects.select_for_update().get(pk=version.pk)
    version.refresh_from_db(fields=["storage"])
    if version.storage != Storage.CHUNKS:
        raise WrongState(f"{version} cannot be restored: {_kept(version)}.", hint="Only an archived version can.")
    _keep_as(version, Storage.RESTORING, sent_at=timezone.now())
    _record("version.restoring", version, actor, reason)
    enqueue(tasks.restore, version.pk)


def _kept(version: ImageVersion) -> str:
    return (
        "it is kept as files" if version.storage == Storage.FILES else f"it is {version.get_storage_display().lower()}"
    )


def _keep_as(version: ImageVersion, storage: Storage, **changes: Any) -> None:
    ImageVersion.objects.filter(pk=version.pk).update(storage=storage, **changes)
    version.refresh_from_db(fields=["storage", *changes])


def _record(action: str, version: ImageVersion, actor: Any, reason: str, **detail: Any) -> None:
    audit.record(action, version, site=version.image.site, actor=actor, reason=reason.strip()[:200], **detail)


def export(
    version: ImageVersion, have: Iterable[ImageVersion], store: Store, output: Path, tell: Callable[[str], object]
) -> parcel.Shipped:
    """Write ``version`` to a new file, without what the versions ``have`` have, which the other side must have, too.

    Raises WrongState for what is not in the store, BuildError for what is damaged there.
    """
    for wanted in (version, *have):
        if wanted.status != VersionStatus.READY or wanted.storage == Storage.NOTHING:
            state = wanted.get_status_display() if wanted.status != VersionStatus.READY else "forgotten"
            raise WrongState(f"{wanted} is {state.lower()}.", hint="Only what the store has can be exported.")
    base = {sha256 for other in have for sha256, _ in keeping.artefacts_in(other.manifest)}
    artefacts = dict(keeping.artefacts_in(version.manifest))
    contents = tuple(Artefact(sha256, size) for sha256, size in artefacts.items())
    label = parcel.Label(str(version), version.digest, version.recipe, contents, tuple(sorted(base)), version.signature)
    shipped = parcel.export(label, store, output, tell)
    audit.record(
        *("version.exported", version),
        site=version.image.site,
        actor="store",
        bytes=shipped.bytes,
        have=[str(other) for other in have],
    )
    return shipped


def bring(file: Path, image: Image, actor: User, store: Store, tell: Callable[[str], object]) -> ImageVersion:
    """Take the version in an exported file into ``image``; one that is known by its digest becomes files again.

    Raises Forbidden, BuildError for a file that is damaged, foreign or lacks its base: no row is made then.
    """
    services.require(actor, Right.BUILD, image)
    seen: dict[str, Any] = {}

    def accept(label: parcel.Label, manifest: dict[str, Any]) -> None:
        try:
            Recipe.from_dict(label.recipe)
            Manifest.from_dict(manifest)
        except (RecipeError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise BuildError(f"its recipe or manifest is not one of this program's ({error})") from error
        if why := signatures.fault_of(canonical_json(manifest), label.signature):
            raise BuildError(
                f"{why}. Who knows where it comes from puts that server's image.pub into FLEET_PUBLIC_KEYS as image-<name>.pub"
            )
        if set(keeping.artefacts_in(manifest)) != {(item.sha256, item.bytes) for item in label.artefacts}:
            raise BuildError("it does not list the artefacts that its manifest names")
        seen.update(manifest)

    try:
        with file.open("rb") as stream:
            label = parcel.unpack(stream, store, accept, tell)
    except BuildError as error:
        raise OperatorError(f"{file} is not imported: {error}.", hint="Nothing was changed.") from error
    return _known(label, seen, image, actor)


@transaction.atomic
def _known(label: parcel.Label, manifest: dict[str, Any], image: Image, actor: User) -> ImageVersion:
    Image.objects.select_for_update().get(pk=image.pk)  # the lock under which versions are numbered
    version = ImageVersion.objects.filter(image=image, digest=label.digest).first()
    home = Manifest.from_dict(manifest).home
    if version is None:
        last = ImageVersion.objects.filter(image=image).aggregate(last=Max("number"))["last"] or 0
        now = timezone.now()
        version = ImageVersion.objects.create(
            image=image,
            number=last + 1,
            recipe=label.recipe,
            reason=f"imported {label.name}"[:200],
            requested_by=actor,
            started_at=now,
            finished_at=now,
            status=VersionStatus.READY,
            digest=label.digest,
            signature=label.signature,
            manifest=manifest,
        )
        layers.queue_all(version)
    else:
        _keep_as(version, Storage.FILES, chunk_bytes=0)
    HomeTemplate.objects.get_or_create(
        image=image, sha256=home.sha256, defaults={"bytes": home.bytes, "tree_digest": manifest["home_digest"]}
    )
    _record("version.imported", version, actor, "", origin=label.name, digest=label.digest)
    return version
