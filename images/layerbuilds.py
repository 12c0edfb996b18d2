"""What a worker does with a queued layer: it builds it against its version. And what the clock does for lost workers."""

import logging

from django.db import transaction
from django.utils import timezone

from fleet import audit
from fleet.exceptions import FleetError, WrongState
from fleet.transitions import move
from images import builds, signatures
from images.builder import director
from images.builder.errors import BuildError, DiskFull, RecipeError
from images.builder.layer import LayerManifest
from images.builder.recipe import Recipe
from images.follower import Cancelled, Follower, OutOfTime
from images.keeping import artefacts_in
from images.layer_models import LayerBuild, LayerStatus, LayerStep

log = logging.getLogger(__name__)


def run(pk: int) -> None:
    """Build the queued layer ``pk``; twice is harmless, also at once."""
    with builds.held(f"layer-{pk}") as mine:
        rows = LayerBuild.objects.select_related("layer__image__site", "version__image")
        row = rows.filter(pk=pk, status=LayerStatus.QUEUED).first()
        if not mine or row is None:
            return
        try:
            move(row, LayerStatus.BUILDING, started_at=timezone.now())
            _build(row)
        except WrongState:
            log.info("%s was cancelled, or ended by the clock.", row)


def _build(row: LayerBuild) -> None:
    image = row.version.image
    where = builds.context(most_bytes=image.most_mib << 20)
    follower = Follower(row, log.debug, image.most_minutes * 60)
    try:
        signatures.signer()  # or all the work would be for nothing
        signatures.require(row.version)
        with follower, follower.cancellable():
            recipe = Recipe.from_dict(row.version.recipe)
            made = _unchanged(row, where) or director.layer(row.version.digest, recipe, row.changes, where, follower)
    except OutOfTime:
        director.sweep_up(where)
        _fail(row, f"It was broken off after {image.most_minutes} minutes, the limit of {image}.")
    except Cancelled:
        director.sweep_up(where)
    except FleetError as error:
        _fail(row, str(error))
    except BuildError as error:
        _fail(row, _explain(error, follower))
    except Exception as error:
        _fail(row, f"The build broke off by a fault of the server: {type(error).__name__}: {error}. See its log.")
        raise
    else:
        with transaction.atomic():
            sealed = {"digest": made.digest, "signature": signatures.signed(made.to_json()), "manifest": made.to_dict()}
            move(row, LayerStatus.READY, **sealed, finished_at=timezone.now())
            audit.record("layer.ready", row, site=row.layer.image.site, actor=builds.WORKER, digest=made.digest)


def _unchanged(row: LayerBuild, where: director.Context) -> LayerManifest | None:
    """What the same layer gave over the same bytes: a version that was built again and is the same as the one before it."""
    same = LayerBuild.objects.filter(layer=row.layer, status=LayerStatus.READY, version__digest=row.version.digest)
    for other in same.exclude(version=row.version).filter(change=row.change).order_by("-pk"):
        if (
            not signatures.fault(other)
            and where.store.touch(other.digest)
            and all(where.store.touch(one) for one, _ in artefacts_in(other.manifest))
        ):
            return other.contents
    return None


def _explain(error: BuildError, follower: Follower) -> str:
    """What failed, and the command that did."""
    if isinstance(error, DiskFull):
        return f"The disk was full. {error}"
    step = follower.failed_step
    text = f"{step.title if step else 'The build'}: {error}"
    if isinstance(error, RecipeError):
        text += "\n\nCorrect the layer and build it again."
    return f"{text}\n\nThe failing command:\n{step.command}" if step and step.command else text


@transaction.atomic
def _fail(row: LayerBuild, failure: str) -> None:
    move(row, LayerStatus.FAILED, failure=failure.replace("\0", ""), finished_at=timezone.now())
    LayerStep.objects.filter(build=row, finished_at=None).update(failed=True, finished_at=timezone.now())
    audit.record(
        "layer.failed", row, site=row.layer.image.site, actor=builds.WORKER, failure=failure.splitlines()[0][:500]
    )


def fail_lost() -> None:
    """Fail the builds whose worker was lost; what they left is swept up by the next build."""
    for row in LayerBuild.objects.filter(status=LayerStatus.BUILDING).select_related("layer__image__site"):
        with builds.held(f"layer-{row.pk}") as free:
            if not free:
                continue
            try:
                _fail(row, "Its worker was lost in mid-build (killed, or the server restarted). Build it again.")
            except WrongState:
                continue  # it ended while we looked


def overdue() -> list[int]:
    """Queued builds whose message may be lost, to be sent for again."""
    now = timezone.now()
    late = LayerBuild.objects.filter(status=LayerStatus.QUEUED, sent_at__lt=now - builds.SEND_AGAIN)
    keys = list(late.order_by("requested_at").values_list("pk", flat=True))
    LayerBuild.objects.filter(pk__in=keys).update(sent_at=now)
    return keys
