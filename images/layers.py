"""Which driver layers a class needs of a version: asked at a release and at every boot. And what a new version has built."""

from itertools import combinations

from fleet import audit
from fleet.exceptions import OperatorError, WrongState
from fleet.models import ClientClass
from images import quota, signatures
from images.builder.errors import RecipeError
from images.builder.layer import clash
from images.builder.recipe import Recipe
from images.layer_models import Layer, LayerBuild, LayerStatus
from images.models import ImageVersion

WORKER = "builds"  # the actor in the audit log
UNDER_WAY = (LayerStatus.QUEUED, LayerStatus.BUILDING)


def needed(client_class: ClientClass, version: ImageVersion) -> list[LayerBuild]:
    """The layers with which the class boots the version, the lowest first; empty for a class that needs none.

    Raises WrongState, naming the layer and what to do, while one is not ready for this version or two do not go together.
    """
    layers = Layer.objects.filter(classes=client_class, image=version.image_id).order_by("slug")
    builds = [_ready(layer, client_class, version) for layer in layers]
    for one, other in combinations(builds, 2):
        require_together(one, other, client_class)
    return builds


def _ready(layer: Layer, client_class: ClientClass, version: ImageVersion) -> LayerBuild:
    builds = LayerBuild.objects.filter(layer=layer, version=version).select_related("layer", "version__image")
    if ready := builds.filter(status=LayerStatus.READY).order_by("-finished_at", "-pk").first():
        assert ready.contents is not None
        other = "" if ready.contents.base == version.digest else "it was built for another version"
        if why := signatures.fault(ready) or other:
            raise WrongState(f"{ready} is not used: {why}.", hint="Build it on the layer's page.")
        return ready
    last = builds.order_by("-pk").first()
    state = last.get_status_display().lower() if last else "not built"
    hint = "Wait for its build." if last and last.status in UNDER_WAY else "Build it on the layer's page."
    raise WrongState(f"{client_class} needs the layer {layer}, which is {state} for {version}.", hint=hint)


def require_together(one: LayerBuild, other: LayerBuild, client_class: ClientClass) -> None:
    """Refuse two layers of a class that say different things of one path. Raises WrongState."""
    assert one.contents is not None
    assert other.contents is not None
    if path := clash(one.contents, other.contents):
        raise WrongState(
            f"{client_class} cannot have both {one.layer} and {other.layer}: each has its own {path}.",
            hint="Take the class from one of them, or make one layer of both.",
        )


def queue_all(version: ImageVersion) -> None:
    """Have every layer of the image built against a version that became ready; part of that transaction."""
    for layer in Layer.objects.filter(image=version.image_id):
        row = LayerBuild(layer=layer, version=version, reason=f"{version} is new")
        try:
            row.change = layer.change(Recipe.from_dict(version.recipe)).to_dict()
            quota.require_room(version.image)
        except (RecipeError, OperatorError) as error:
            row.status, row.failure, row.change = LayerStatus.FAILED, str(error), row.change or {}
        row.save(force_insert=True)
        audit.record("layer.requested", row, site=version.image.site, actor=WORKER, reason=row.reason)


def waiting(version: int) -> list[int]:
    """The queued builds of layers for the version with this primary key."""
    queued = LayerBuild.objects.filter(version=version, status=LayerStatus.QUEUED)
    return list(queued.order_by("requested_at").values_list("pk", flat=True))
