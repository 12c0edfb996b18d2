"""What people ask of driver layers: build one, cancel a build. Each asks for the right and is audited."""

from django.db import transaction
from django.utils import timezone

from fleet import audit
from fleet.exceptions import OperatorError, WrongState
from fleet.queue import enqueue
from fleet.roles import Right
from fleet.transitions import move
from images import keeping, quota, services, tasks
from images.builder.errors import RecipeError
from images.builder.recipe import Recipe
from images.layer_models import Layer, LayerBuild, LayerStatus
from images.layers import UNDER_WAY
from images.models import Image, ImageVersion, Release, Storage, VersionStatus


@transaction.atomic
def build(layer: Layer, version: ImageVersion, actor: services.Actor, reason: str = "") -> LayerBuild:
    """Queue a build of ``layer`` as it is now against ``version``.

    Clients that boot the two get the new build at their next boot: it takes the right to release to their classes, unless
    they have no build yet and wait for one. Raises Forbidden, WrongState, and OperatorError naming what cannot be built.
    """
    services.require(actor, Right.BUILD, layer)
    if version.image_id != layer.image_id:
        raise OperatorError(f"{layer} is a layer of {layer.image}, not of {version.image}.", hint="Choose its image's.")
    if version.status != VersionStatus.READY:
        raise WrongState(
            f"{layer} cannot be built for {version}: it is {version.get_status_display().lower()}.",
            hint="A layer of the image is built by itself when the version becomes ready.",
        )
    keeping.require_files(version)
    Image.objects.select_for_update().get(pk=layer.image_id)  # two who ask at once come one after the other
    builds = LayerBuild.objects.filter(layer=layer, version=version)
    if under_way := builds.filter(status__in=UNDER_WAY).first():
        raise WrongState(
            f"{under_way} is {under_way.get_status_display().lower()} already.", hint="Wait, or cancel it."
        )
    if builds.filter(status=LayerStatus.READY).exists():
        booting = Release.objects.filter(current=True, version=version, client_class__layers=layer)
        for release in booting.select_related("client_class"):
            services.require(actor, Right.RELEASE, release.client_class)
    try:
        change = layer.change(Recipe.from_dict(version.recipe)).to_dict()
    except RecipeError as error:
        raise OperatorError(
            f"The layer {layer} cannot be built. {error!s}.", hint="Correct it and build again."
        ) from error
    quota.require_room(layer.image)
    row = LayerBuild.objects.create(
        layer=layer, version=version, change=change, reason=reason.strip()[:200], requested_by=services.by(actor)
    )
    audit.record("layer.requested", row, site=layer.image.site, actor=actor, reason=row.reason)
    enqueue(tasks.build_layer, row.pk)
    return row


def newest(layer: Layer) -> ImageVersion:
    """The version a build is for when nobody says another. Raises WrongState when there is none."""
    ready = ImageVersion.objects.filter(image=layer.image_id, status=VersionStatus.READY, storage=Storage.FILES)
    version = ready.select_related("image").order_by("-number").first()
    if version is None:
        raise WrongState(
            f"{layer.image} has no version yet.", hint="Build one; its layers are built by themselves then."
        )
    return version


@transaction.atomic
def cancel(row: LayerBuild, actor: services.Actor, reason: str = "") -> None:
    """Cancel a build that is queued or under way; its worker sees it within a second and removes what it made."""
    services.require(actor, Right.BUILD, row)
    move(row, LayerStatus.CANCELLED, finished_at=timezone.now())
    audit.record("layer.cancelled", row, site=row.layer.image.site, actor=actor, reason=reason.strip()[:200])
