"""What a worker does with an archive of a home: it looks it through, packs it, and leaves it for a person to accept."""

import logging
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from fleet import audit
from fleet.exceptions import WrongState
from fleet.transitions import move
from images import builds
from images.builder import template
from images.builder.errors import BuildError, RecipeError
from images.builder.recipe import Recipe
from images.builder.run import Runner
from images.builder.store import Artefact
from images.models import HomeTemplate, Image, ImageVersion, Storage, TemplateStatus, VersionStatus
from images.unwatched import Unwatched

log = logging.getLogger(__name__)

SEND_AGAIN = timedelta(seconds=20)


def compared_with(image: Image) -> tuple[ImageVersion, HomeTemplate]:
    """The newest version, whose user and template a new one is made and looked at with."""
    ready = ImageVersion.objects.filter(image=image, status=VersionStatus.READY, storage=Storage.FILES)
    version = ready.order_by("-number").first()
    if version is None or version.contents is None:
        raise WrongState(f"{image} has no version yet.", hint="Build one first: a template belongs to its user.")
    return version, HomeTemplate.objects.get(image=image, sha256=version.contents.home.sha256)


def pack(pk: int) -> None:
    """What a worker does with an archive; twice is harmless."""
    with builds.held(f"home-{pk}") as mine:
        row = HomeTemplate.objects.select_related("image__site").filter(pk=pk, status=TemplateStatus.PACKING).first()
        if not mine or row is None:
            return
        archive: Path = settings.UPLOADS / str(row.archive)
        version, before = compared_with(row.image)
        where = builds.context()
        try:
            if not archive.is_file():
                raise BuildError("what was uploaded is gone; upload it again")
            old, recipe = Artefact(before.sha256, before.bytes), Recipe.from_dict(version.recipe)
            run = Runner(Unwatched(str(row)))
            made = template.make(archive, recipe, old, where.store, where.work, where.daemon, run)
        except RecipeError as error:
            _fail(row, str(error).removeprefix("archive: "))
        except BuildError as error:
            log.warning("%s: %s", row, error)
            _fail(row, f"It could not be packed: {error}")
        else:
            _packed(row, made)
        archive.unlink(missing_ok=True)


@transaction.atomic
def _packed(row: HomeTemplate, made: template.Template) -> None:
    same = HomeTemplate.objects.filter(image=row.image, sha256=made.squashfs.sha256).first()
    if same is not None:
        _fail(row, f"It is the same as {same}.")
        return
    details = {
        "files": made.contents.files,
        "bytes": made.contents.bytes,
        "secrets": [(readable(path), what) for path, what in made.contents.secrets],
        "difference": {**made.difference, "paths": [readable(path) for path in made.difference["paths"]]},
    }
    values = {"sha256": made.squashfs.sha256, "bytes": made.squashfs.bytes, "tree_digest": made.tree_digest}
    move(row, TemplateStatus.PROPOSED, details=details, **values)


def readable(path: str) -> str:
    r"""A file name as text that a database and a page take: bytes that are no UTF-8 as ``\xe9``."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@transaction.atomic
def _fail(row: HomeTemplate, failure: str) -> None:
    move(row, TemplateStatus.FAILED, failure=failure[:1000], decided_at=timezone.now())
    audit.record("home.failed", row, site=row.image.site, actor=builds.WORKER, failure=failure[:500])


def overdue() -> list[int]:
    """Archives whose message may be lost, to be sent for again; and uploads that no row names are removed."""
    packing = HomeTemplate.objects.filter(status=TemplateStatus.PACKING)
    wanted = {str(key) for key in packing.values_list("archive", flat=True)}
    uploads: Path = settings.UPLOADS
    for path in uploads.iterdir() if uploads.is_dir() else ():
        old = timezone.now().timestamp() - path.stat().st_mtime > 3600
        if path.name not in wanted and old:
            path.unlink(missing_ok=True)
    return list(packing.filter(created_at__lt=timezone.now() - SEND_AGAIN).values_list("pk", flat=True))
