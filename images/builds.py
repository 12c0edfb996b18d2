"""What a worker does: it builds a queued version and moves it to its end. And what the clock does for lost workers.

A build holds a lock on a file of its version while it lives. The kernel drops it at whatever end, so a version that is
building while its lock is free has lost its worker. The workers of ``builds`` and the clock share one host and its
BUILD_WORK.
"""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from fleet import audit
from fleet.exceptions import FleetError, WrongState
from fleet.transitions import move
from images import layers, merges, signatures, volatility
from images.builder import director
from images.builder.errors import BuildError, DiskFull, RecipeError
from images.builder.manifest import Manifest
from images.builder.recipe import Recipe
from images.builder.store import Store
from images.follower import Cancelled, Follower, OutOfTime
from images.keeping import artefacts_in
from images.layer_models import Step
from images.merge_models import FileMerge
from images.models import BuildStep, HomeTemplate, ImageVersion, Storage, VersionStatus

log = logging.getLogger(__name__)

WORKER = "builds"  # the actor in the audit log
SEND_AGAIN = timedelta(seconds=20)


def context(*, most_bytes: int = 0, keep: bool = False) -> director.Context:
    """Where versions are built, by the settings."""
    return director.Context(
        settings.BUILD_WORK,
        Store(settings.STORE),
        settings.DAEMON,
        most_bytes=most_bytes,
        copied_bytes=settings.VOLATILE_MIB << 20,
        keep=keep,
    )


@contextmanager
def held(version: int | str) -> Iterator[bool]:
    """Hold the lock of a version's build, or of a template's packing; yields False when another process holds it."""
    locks: Path = settings.BUILD_WORK / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    path = locks / str(version)
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            yield False
            return
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(lock).st_ino:
                break
        os.close(lock)  # its last holder removed it between our opening and our locking
    try:
        yield True
    finally:
        path.unlink()
        os.close(lock)


def run(pk: int, tell: Callable[[str], object] = log.debug, place: Path | None = None) -> list[int]:
    """Build the queued version ``pk``; returns the versions that waited for it. ``tell`` is told of each step.

    ``place`` is where its parent was changed by hand.

    Does nothing when it is not queued any more, when another worker has it, or while its image has another build.
    """
    with held(pk) as mine:
        version = ImageVersion.objects.select_related("image__site", "parent").filter(pk=pk).first()
        if not mine or version is None or version.status != VersionStatus.QUEUED:
            return []
        if version.change and version.change["by_hand"] and place is None:
            return []  # only who changed it can build it
        try:
            with transaction.atomic():
                move(version, VersionStatus.BUILDING, started_at=timezone.now())
        except (WrongState, IntegrityError) as error:  # the database lets an image have one build at a time
            log.info("%s is not built now: %s", version, error)
            return []
        try:
            _build(version, tell, place)
        except WrongState:
            log.info("%s was cancelled when it was nearly done.", version)
    waiting = ImageVersion.objects.filter(image=version.image, status=VersionStatus.QUEUED).order_by("number")
    return list(waiting.values_list("pk", flat=True)[:1])


def _build(version: ImageVersion, tell: Callable[[str], object], place: Path | None) -> None:
    where = context(most_bytes=version.image.most_mib << 20)
    follower = Follower(version, tell, version.image.most_minutes * 60)
    try:
        signatures.signer()  # or all the work would be for nothing
        if version.parent:
            signatures.require(version.parent)
        with follower, follower.cancellable():
            recipe = Recipe.from_dict(version.recipe)
            if version.parent and version.changes:
                manifest = director.derive(version.parent.digest, recipe, version.changes, where, follower, place)
            else:
                manifest = _unchanged(version, recipe, where, follower) or director.build(recipe, where, follower)
    except OutOfTime:
        director.sweep_up(where)
        limit = version.image.most_minutes
        _fail(
            version,
            f"It was broken off after {limit} minutes, the limit of {version.image}: the step that was under way then is the last "
            "one below. Give the image more time, or find out what that step waited for.",
        )
    except Cancelled:
        director.sweep_up(where)
    except FleetError as error:
        _fail(version, str(error))
    except BuildError as error:
        _fail(version, _explain(version, error, follower.failed_step))
    except Exception as error:
        _fail(version, f"The build broke off by a fault of the server: {type(error).__name__}: {error}. See its log.")
        raise
    else:
        _finish(
            version,
            manifest,
            volatility.compare(version, manifest, where.store),
            merges.find(version, manifest, where.store),
        )


def _unchanged(version: ImageVersion, recipe: Recipe, where: director.Context, follower: Follower) -> Manifest | None:
    """What the last build gave, if this one would give the same; notes what this one is built from."""
    version.provenance = director.provenance(recipe, where)  # before, not after: what appears meanwhile is not in it
    ready = ImageVersion.objects.filter(
        image=version.image, status=VersionStatus.READY, parent=None, storage=Storage.FILES
    )
    last = ready.exclude(provenance="").filter(provenance=version.provenance).order_by("-number").first()
    if (
        last is None
        or signatures.fault(last)
        or not all(where.store.touch(sha256) for sha256, _ in artefacts_in(last.manifest))
    ):
        return None
    with follower.step("compare", f"Compare with {last}") as step:
        step.output(f"Recipe, archives and builder are those of {last}, so this version is the same.\n")
    return last.contents


@transaction.atomic
def _finish(
    version: ImageVersion, manifest: Manifest, volatile_change: dict[str, Any] | None, to_decide: list[FileMerge]
) -> None:
    HomeTemplate.objects.get_or_create(
        image=version.image,
        sha256=manifest.home.sha256,
        defaults={"bytes": manifest.home.bytes, "tree_digest": manifest.home_digest},
    )
    move(
        version,
        VersionStatus.READY,
        digest=manifest.digest,
        signature=signatures.signed(manifest.to_json()),
        manifest=manifest.to_dict(),
        provenance=version.provenance,
        volatile_change=volatile_change,
        finished_at=timezone.now(),
    )
    FileMerge.objects.bulk_create(to_decide)
    audit.record("version.ready", version, site=version.image.site, actor=WORKER, digest=manifest.digest)
    layers.queue_all(version)


@transaction.atomic
def _fail(version: ImageVersion, failure: str) -> None:
    move(version, VersionStatus.FAILED, failure=failure.replace("\0", ""), finished_at=timezone.now())
    BuildStep.objects.filter(version=version, finished_at=None).update(failed=True, finished_at=timezone.now())
    audit.record(
        "version.failed", version, site=version.image.site, actor=WORKER, failure=failure.splitlines()[0][:500]
    )


def _explain(version: ImageVersion, error: BuildError, step: Step | None) -> str:
    """What failed, the command, and what to do next."""
    match error:
        case DiskFull():
            return f"The disk was full. {error}"
        case RecipeError():
            next_step = f"Correct the {error.field.replace('_', ' ')} of the recipe and build again."
        case _:
            next_step = "If the same happens again, the command below tells more when it is run by hand."
    text = f"{step.title if step else 'The build'}: {error}\n\n{next_step}"
    if step and step.command:
        text += (
            f"\n\nThe failing command:\n{step.command}\n\n"
            f"To replay it: `manage.py image replay {version}` builds up to it and leaves its directory."
        )
    return text


def fail_lost() -> None:
    """Fail the versions whose worker was lost, and remove what their builds left."""
    lost = False
    for version in ImageVersion.objects.filter(status=VersionStatus.BUILDING).select_related("image__site"):
        with held(version.pk) as free:
            if not free:
                continue
            try:
                _fail(version, "Its worker was lost in mid-build (killed, or the server restarted). Try it again.")
            except WrongState:
                continue  # it ended while we looked
            lost = True
    if lost:
        director.sweep_up(context())


def overdue() -> list[int]:
    """Queued versions that could be building but wait: their messages may be lost, so they are to be sent again."""
    now = timezone.now()
    busy = ImageVersion.objects.filter(status=VersionStatus.BUILDING).values("image")
    waiting = ImageVersion.objects.filter(status=VersionStatus.QUEUED, sent_at__lt=now - SEND_AGAIN)
    waiting = waiting.exclude(change__by_hand=True)
    keys = list(waiting.exclude(image__in=busy).order_by("requested_at").values_list("pk", flat=True))
    ImageVersion.objects.filter(pk__in=keys).update(sent_at=now)
    return keys
