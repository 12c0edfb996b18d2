"""What a worker does to the store: it collects what need not be kept by a plan that can be looked at first, archives, restores.

What a plan leaves out is decided by ``images.keeping``. A build, an import or a restore that puts an artefact at the same
moment is safe: the plan holds only files put before its time, each is looked at again under the lock of the store when
its turn comes, and that time lies before the start of any build under way.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import Min
from django.utils import timezone

from fleet import audit
from fleet.exceptions import WrongState
from images.builder.chunks import Archive
from images.builder.errors import BuildError, DiskFull
from images.builder.scratch import sweep
from images.builder.store import Store, Stored
from images.keeping import Claims, artefacts_in
from images.layer_models import LayerBuild
from images.models import ImageVersion, Storage, VersionStatus

Tell = Callable[[str], object]
COLLECTOR = "store"  # the actor in the audit log
SEND_AGAIN = timedelta(seconds=60)


@dataclass(frozen=True)
class Plan:
    """What would be removed, archived first, and left for being young; of ``files`` bytes in ``number`` files."""

    remove: tuple[Stored, ...]
    young: tuple[Stored, ...]
    archive: tuple[ImageVersion, ...]
    claims: Claims
    before: float  # seconds since the epoch: what was put later is young
    number: int
    files: int

    @property
    def bytes(self) -> int:
        return sum(artefact.bytes for artefact in self.remove)


def plan(store: Store, now: float | None = None) -> Plan:
    """What a collection would do now (s since the epoch, for tests)."""
    before = (time.time() if now is None else now) - settings.STORE_GRACE * 3600
    for rows in (ImageVersion.objects.all(), LayerBuild.objects.all()):
        building = rows.filter(status=VersionStatus.BUILDING).aggregate(first=Min("started_at"))["first"]
        if building is not None:
            before = min(before, building.timestamp())
    there = list(store.artefacts())  # before the rows: what a row claims later was put, or touched, later
    claims, archive = Claims(), Archive(store)
    archived = ImageVersion.objects.filter(storage=Storage.CHUNKS).select_related("image").order_by("image", "number")
    lacking = tuple(
        version
        for version in archived
        if any(not archive.has(sha256) for sha256 in _own(version, claims) if store.path(sha256).is_file())
    )
    unneeded = [artefact for artefact in there if artefact.sha256 not in claims.files]
    return Plan(
        tuple(artefact for artefact in unneeded if artefact.put_at < before),
        tuple(artefact for artefact in unneeded if artefact.put_at >= before),
        lacking,
        claims,
        before,
        len(there),
        sum(artefact.bytes for artefact in there),
    )


def _own(version: ImageVersion, claims: Claims) -> list[str]:
    """The artefacts of a version that no other needs as a file."""
    return [sha256 for sha256, _ in artefacts_in(version.manifest) if sha256 not in claims.files]


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    lock = os.open(store.objects, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WrongState("The store is being collected already.", hint="Wait until that has ended.") from None
        yield
    finally:
        os.close(lock)


@dataclass(frozen=True)
class Collected:
    """Bytes freed, of how many files; bytes that archiving added and that dropped chunks gave back."""

    bytes: int
    files: int
    archived_bytes: int
    chunk_bytes: int


def collect(store: Store, tell: Tell = lambda _: None) -> Collected:
    """Archive what is to be archived, then remove what nobody needs. Asked twice, the second finds nothing to do.

    Raises WrongState while another collection is under way; at its end BuildError when a version to archive is damaged, which
    stays as it is.
    """
    with _alone(store):
        sweep(store.ingest)
        todo, archive = plan(store), Archive(store)
        added, damaged = 0, None
        for number, version in enumerate(todo.archive, 1):
            tell(f"archiving {version} ({number} of {len(todo.archive)})")
            try:
                added += _archive(version, archive, todo.claims)
            except DiskFull:
                raise
            except BuildError as error:
                damaged = error
        freed = files = 0
        for artefact in todo.remove:
            if artefact.sha256 in todo.claims.chunks and not archive.has(artefact.sha256):
                continue
            size = store.remove(artefact.sha256, todo.before)
            if size:
                tell(f"removed {artefact.sha256}, {size} bytes")
            freed, files = freed + size, files + bool(size)
        dropped = archive.collect(todo.claims.chunks.keys())
    if files or added or dropped:
        detail = {"files": files, "bytes": freed, "archived": added, "chunks": dropped}
        audit.record("store.collected", "store", site=None, actor=COLLECTOR, **detail)
    if damaged:
        raise damaged
    return Collected(freed, files, added, dropped)


def _archive(version: ImageVersion, archive: Archive, claims: Claims) -> int:
    added = sum(archive.add(sha256) for sha256 in _own(version, claims))
    ImageVersion.objects.filter(pk=version.pk).update(chunk_bytes=version.chunk_bytes + added)
    return added


def restore(pk: int, store: Store) -> None:
    """Make an archived version files again, if that was asked for; twice is harmless.

    Raises BuildError: the version stays archived, and the log says why.
    """
    version = ImageVersion.objects.select_related("image__site").filter(pk=pk, storage=Storage.RESTORING).first()
    if version is None:
        return
    archive = Archive(store)
    try:
        for sha256, _ in artefacts_in(version.manifest):
            if not (store.touch(sha256) and store.whole(sha256)):
                archive.restore(sha256)
    except BuildError as error:
        _restored(version, Storage.CHUNKS, "version.not-restored", why=str(error)[:500])
        raise
    _restored(version, Storage.FILES, "version.restored", chunk_bytes=0)


@transaction.atomic
def _restored(version: ImageVersion, storage: Storage, action: str, why: str = "", **changes: int) -> None:
    if ImageVersion.objects.filter(pk=version.pk, storage=Storage.RESTORING).update(storage=storage, **changes):
        detail = {"why": why} if why else {}
        audit.record(action, version, site=version.image.site, actor=COLLECTOR, **detail)


def overdue() -> list[int]:
    """Versions that wait to be restored, whose message may be lost."""
    now = timezone.now()
    waiting = ImageVersion.objects.filter(storage=Storage.RESTORING, sent_at__lt=now - SEND_AGAIN)
    keys = list(waiting.values_list("pk", flat=True))
    ImageVersion.objects.filter(pk__in=keys).update(sent_at=now)
    return keys


@dataclass(frozen=True)
class Damage:
    """An artefact that is not as it should be, and whose it is."""

    sha256: str
    what: str
    owners: tuple[str, ...]

    def __str__(self) -> str:
        whose = ", ".join(self.owners[:5]) + (f" and {len(self.owners) - 5} more" if len(self.owners) > 5 else "")
        return f"{self.sha256} {self.what}: {whose or 'no version needs it'}"


def verify(store: Store, tell: Callable[[int, int], object] = lambda done, total: None) -> Iterator[Damage]:
    """Read all that is there and all that should be; ``tell`` is told of how many bytes of how many were read."""
    claims, archive, there = Claims(), Archive(store), list(store.artefacts())
    total, done = sum(artefact.bytes for artefact in there), 0
    for artefact in there:
        sha256 = artefact.sha256
        owners = (*claims.files.get(sha256, ()), *claims.chunks.get(sha256, ()))
        if not store.whole(sha256) and store.path(sha256).exists():
            yield Damage(sha256, "is damaged", owners)
        done += artefact.bytes
        tell(done, total)
    present = {artefact.sha256 for artefact in there}
    for sha256, names in sorted(claims.files.items()):
        if sha256 not in present and not store.path(sha256).exists():
            yield Damage(sha256, "is missing", tuple(names))
    for sha256, names in sorted(claims.chunks.items()):
        if archive.has(sha256):
            if not archive.sound(sha256):
                yield Damage(sha256, "is damaged in the archive", tuple(names))
        elif sha256 not in present:
            yield Damage(sha256, "is missing from the archive", tuple(names))
