"""Driver layers as rows: who may build one, what a release and a boot need of them, and what the store keeps."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.urls import reverse
from django.utils import timezone
from pytest_django.fixtures import Settings

from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import AuditEntry, ClientClass, Site
from fleet.roles import Role
from images import builds, collecting, keeping, layer_orders, layerbuilds, layers, quota, services, storing
from images.builder.store import Artefact, Store
from images.layer_models import LayerStatus
from images.models import (
    Image,
    ImageVersion,
    Layer,
    LayerBuild,
    LayerFile,
    Release,
    VersionStatus,
)
from tests.api import call
from tests.images.test_admin import as_, order, page
from tests.images.versions import GL, make_image, make_layer_build, make_version
from tests.world import World, member, person

READY = LayerStatus.READY


@pytest.fixture
def version(world: World) -> ImageVersion:
    return make_version(make_image(world.clubroom))


@pytest.fixture
def layer(world: World, version: ImageVersion) -> Layer:
    """Needed by the gamers."""
    row = Layer.objects.create(image=version.image, slug="nvidia", name="NVidia's own GL", packages="hello\r\ntree")
    LayerFile.objects.create(layer=row, path="/etc/X11/xorg.conf", content="Driver\r\n")
    row.classes.add(world.gamer)
    return row


# --- asking -----------------------------------------------------------------------------------------------------------


def test_a_build_is_queued_with_a_snapshot_of_the_layer(world: World, layer: Layer, version: ImageVersion) -> None:
    row = layer_orders.build(layer, version, world.vera, "a new driver")
    assert (row.status, row.requested_by, str(row)) == (LayerStatus.QUEUED, world.vera, "nvidia for gamer-1")
    assert row.change["install"] == ["hello", "tree"]
    assert row.change["files"] == [{"path": "/etc/X11/xorg.conf", "content": "Driver\n", "mode": "0644"}]
    entry = AuditEntry.objects.get(action="layer.requested")
    assert (entry.site, entry.actor, entry.detail) == (world.clubroom, "vera", {"reason": "a new driver"})


def test_who_may_not_build_builds_no_layer(world: World, layer: Layer, version: ImageVersion) -> None:
    viewer = person("viola")
    member(viewer, world.clubroom, Role.VIEWER)
    for stranger in (world.mallory, viewer):
        with pytest.raises(Forbidden):
            layer_orders.build(layer, version, stranger)
    assert not LayerBuild.objects.exists()


def test_to_replace_what_clients_boot_takes_the_right_to_release(
    world: World, layer: Layer, version: ImageVersion
) -> None:
    make_layer_build(layer, version)
    services.release(version, world.gamer, world.otto)
    with pytest.raises(Forbidden, match="release a version"):
        layer_orders.build(layer, version, world.vera)
    assert layer_orders.build(layer, version, world.otto).status == LayerStatus.QUEUED


def test_a_layer_is_built_once_at_a_time(world: World, layer: Layer, version: ImageVersion) -> None:
    row = layer_orders.build(layer, version, world.vera)
    with pytest.raises(WrongState, match="nvidia for gamer-1 is queued already"):
        layer_orders.build(layer, version, world.vera)
    with pytest.raises(IntegrityError), transaction.atomic():
        LayerBuild.objects.create(layer=layer, version=version, change={})
    layer_orders.cancel(row, world.vera, "wrong")
    layer_orders.build(layer, version, world.vera)
    with pytest.raises(WrongState, match="cannot become cancelled"):
        layer_orders.cancel(row, world.vera)
    with pytest.raises(Forbidden):
        layer_orders.cancel(LayerBuild.objects.first() or row, world.mallory)


def test_what_cannot_be_built_is_refused_by_name(world: World, layer: Layer, version: ImageVersion) -> None:
    other = make_version(make_image(world.clubroom, "kiosk"))
    with pytest.raises(OperatorError, match="is a layer of Gamer image, not of Kiosk image"):
        layer_orders.build(layer, other, world.vera)
    queued = make_version(version.image, VersionStatus.QUEUED)
    with pytest.raises(WrongState, match="gamer-2: it is queued"):
        layer_orders.build(layer, queued, world.vera)
    storing.forget(version, world.vera)
    with pytest.raises(WrongState, match="gamer-1 was forgotten"):
        layer_orders.build(layer, version, world.vera)
    with pytest.raises(WrongState, match="has no version yet"):
        layer_orders.newest(layer)
    empty = Layer.objects.create(image=other.image, slug="none", name="None")
    with pytest.raises(OperatorError, match="install: the layer is empty"):
        layer_orders.build(empty, other, world.vera)


def test_a_site_without_room_builds_no_layer(
    world: World, layer: Layer, version: ImageVersion, settings: Settings
) -> None:
    Site.objects.filter(pk=world.clubroom.pk).update(storage_limit=1)
    big = make_layer_build(layer, version, root=Artefact("e" * 64, 3 << 20))
    layer.refresh_from_db()
    assert quota.use(Image.objects.filter(pk=layer.image_id)).bytes > 3 << 20
    with pytest.raises(OperatorError, match="No room"):
        layer_orders.build(layer, version, world.vera)
    layers.queue_all(make_version(layer.image))
    row = LayerBuild.objects.exclude(pk=big.pk).get()
    assert row.status == LayerStatus.FAILED
    assert "No room" in row.failure


@pytest.mark.parametrize("path", ["etc/x", "/proc/x", "/home/player/x", "/", "/a/../b"])
def test_a_file_that_no_layer_can_have_is_refused_when_it_is_typed(layer: Layer, path: str) -> None:
    with pytest.raises(ValidationError, match="path"):
        LayerFile(layer=layer, path=path).clean()


def test_packages_are_looked_at_when_they_are_typed(layer: Layer) -> None:
    layer.packages = "nvidia-driver Bad_Name"
    with pytest.raises(ValidationError, match="Bad_Name") as caught:
        layer.clean()
    assert list(caught.value.message_dict) == ["packages"]


# --- a new version ----------------------------------------------------------------------------------------------------


def test_a_version_that_becomes_ready_has_its_layers_built(world: World, layer: Layer, version: ImageVersion) -> None:
    row = make_version(version.image, VersionStatus.BUILDING)
    made = version.contents
    assert made is not None
    builds._finish(row, made, None, [])
    queued = LayerBuild.objects.get()
    assert (queued.version, queued.status, queued.requested_by) == (row, LayerStatus.QUEUED, None)
    assert layers.waiting(row.pk) == [queued.pk]
    assert layers.waiting(version.pk) == []
    assert AuditEntry.objects.get(action="layer.requested").actor == "builds"


def test_a_queued_layer_whose_message_was_lost_is_sent_again(layer: Layer, version: ImageVersion) -> None:
    layers.queue_all(version)
    assert layerbuilds.overdue() == []
    LayerBuild.objects.update(sent_at=timezone.now() - timedelta(minutes=1))
    assert layerbuilds.overdue() == [LayerBuild.objects.get().pk]
    assert layerbuilds.overdue() == []


# --- the worker -------------------------------------------------------------------------------------------------------


@pytest.fixture
def work(settings: Settings, tmp_path: Path) -> None:
    settings.BUILD_WORK, settings.STORE = tmp_path / "work", tmp_path / "store"


@pytest.mark.django_db(transaction=True)
def test_a_build_whose_worker_was_lost_has_failed(layer: Layer, version: ImageVersion, work: None) -> None:
    row = LayerBuild.objects.create(layer=layer, version=version, change={}, status=LayerStatus.BUILDING)
    with builds.held(f"layer-{row.pk}"):
        layerbuilds.fail_lost()
        row.refresh_from_db()
        assert row.status == LayerStatus.BUILDING
    layerbuilds.fail_lost()
    row.refresh_from_db()
    assert (row.status, "worker was lost" in row.failure) == (LayerStatus.FAILED, True)


# --- releases ---------------------------------------------------------------------------------------------------------


def test_a_version_is_not_released_to_a_class_whose_layer_is_not_ready(
    world: World, layer: Layer, version: ImageVersion
) -> None:
    with pytest.raises(WrongState, match="Gamer needs the layer NVidia's own GL, which is not built for gamer-1"):
        services.release(version, world.gamer, world.otto)
    layers.queue_all(version)
    with pytest.raises(WrongState, match="is queued for gamer-1"):
        services.release(version, world.gamer, world.otto)
    services.release(version, other_class(world), world.otto)  # which needs none
    LayerBuild.objects.all().delete()
    make_layer_build(layer, version)
    services.release(version, world.gamer, world.otto)
    assert Release.objects.filter(current=True, version=version).count() == 2


def test_there_is_no_way_back_to_a_version_whose_layer_is_gone(
    world: World, layer: Layer, version: ImageVersion
) -> None:
    first = make_layer_build(layer, version)
    second = make_version(version.image)
    make_layer_build(layer, second)
    services.release(version, world.gamer, world.otto)
    services.release(second, world.gamer, world.otto)
    first.delete()
    with pytest.raises(WrongState, match="not built for gamer-1"):
        services.roll_back(world.gamer, world.otto)


def test_two_layers_of_a_class_that_give_the_same_path_are_refused_naming_it(
    world: World, layer: Layer, version: ImageVersion
) -> None:
    other = Layer.objects.create(image=version.image, slug="i810", name="i810 with DRI", packages="hello")
    other.classes.add(world.gamer)
    make_layer_build(layer, version, "a")
    make_layer_build(other, version, "b")
    with pytest.raises(WrongState, match=f"cannot have both i810 with DRI and NVidia's own GL: each has its own {GL}"):
        services.release(version, world.gamer, world.otto)
    other.classes.set([other_class(world)])
    services.release(version, world.gamer, world.otto)
    services.release(version, other_class(world), world.otto)
    assert layers.needed(other_class(world), version) == [LayerBuild.objects.get(layer=other)]


def other_class(world: World) -> ClientClass:
    return ClientClass.objects.get_or_create(site=world.clubroom, slug="kiosk", defaults={"name": "Kiosk"})[0]


# --- the store --------------------------------------------------------------------------------------------------------


def test_the_store_keeps_the_layers_of_versions_that_are_kept(
    layer: Layer, version: ImageVersion, settings: Settings
) -> None:
    long_ago = timezone.now() - timedelta(hours=settings.STORE_GRACE + 1)
    old, new = make_layer_build(layer, version, "a"), make_layer_build(layer, version, "b")
    artefacts = [{*dict(keeping.artefacts_in(row.manifest)), row.digest} for row in (old, new)]
    claimed = keeping.Claims().files
    assert artefacts[0] | artefacts[1] <= set(claimed)  # somebody may be fetching the old one still
    LayerBuild.objects.filter(pk=old.pk).update(finished_at=long_ago - timedelta(hours=1))
    LayerBuild.objects.filter(pk=new.pk).update(finished_at=long_ago)
    claimed = keeping.Claims().files
    assert artefacts[1] <= set(claimed)
    assert not artefacts[0] & set(claimed)
    assert claimed["b0" * 32] == ["nvidia for gamer-1"]


def test_a_version_stays_while_a_layer_is_built_for_it(
    world: World, layer: Layer, version: ImageVersion, settings: Settings, tmp_path: Path
) -> None:
    row = LayerBuild.objects.create(layer=layer, version=version, change={})
    with pytest.raises(WrongState, match="the layer NVidia's own GL is built for it"):
        storing.forget(version, world.vera)
    began = timezone.now() - timedelta(days=3)
    LayerBuild.objects.filter(pk=row.pk).update(status=LayerStatus.BUILDING, started_at=began)
    settings.STORE_GRACE = 1
    assert collecting.plan(Store(tmp_path)).before == began.timestamp()  # what it puts meanwhile is young


def test_with_a_forgotten_version_go_its_layers(world: World, layer: Layer, version: ImageVersion) -> None:
    row = make_layer_build(layer, version)
    storing.forget(version, world.vera)
    assert row.digest not in keeping.Claims().files


# --- pages and the API ------------------------------------------------------------------------------------------------


def layer_form(layer: Layer, **fields: Any) -> dict[str, Any]:
    form = {"name": layer.name, "slug": layer.slug, "packages": layer.packages, "script": ""}
    return form | {"files-TOTAL_FORMS": "0", "files-INITIAL_FORMS": "0"} | fields


def test_a_volunteer_makes_a_layer_and_an_organiser_gives_it_to_a_class(world: World, version: ImageVersion) -> None:
    form = {"image": version.image_id, "name": "NVidia", "slug": "nvidia", "packages": "hello", "script": ""}
    form |= {"files-TOTAL_FORMS": "1", "files-INITIAL_FORMS": "0", "files-0-path": "/etc/x", "files-0-mode": "0644"}
    chosen = {"classes": [world.gamer.pk]}
    assert as_(world.vera).post(reverse("admin:images_layer_add"), form | chosen).status_code == 302
    layer = Layer.objects.get()
    assert (layer.files.get().path, list(layer.classes.all())) == ("/etc/x", [])  # to give it is to release
    address = reverse("admin:images_layer_change", args=[layer.pk])
    as_(world.vera).post(address, layer_form(layer) | chosen)
    assert list(layer.classes.all()) == []
    as_(world.otto).post(address, layer_form(layer) | chosen)
    assert list(layer.classes.all()) == [world.gamer]
    as_(world.vera).post(address, layer_form(layer, name="NVidia's own"))
    assert list(layer.classes.all()) == [world.gamer]
    assert (
        as_(world.vera).post(reverse("admin:images_layer_delete", args=[layer.pk]), {"post": "yes"}).status_code == 403
    )
    assert AuditEntry.objects.filter(action__startswith="layer.").count() == 3


def test_a_layer_is_given_to_no_class_of_another_site(world: World, layer: Layer) -> None:
    foreign = ClientClass.objects.create(site=world.school, slug="gamer", name="Schoolers")
    member(world.otto, world.school, Role.ORGANISER)
    address = reverse("admin:images_layer_change", args=[layer.pk])
    shown = as_(world.otto).post(address, layer_form(layer, classes=[foreign.pk])).content.decode()
    assert "Schoolers is a class of School" in shown
    assert list(layer.classes.all()) == [world.gamer]


def test_the_pages_show_builds_and_order_them(world: World, layer: Layer, version: ImageVersion) -> None:
    assert "It was not built yet" in page(world.vera, layer).content.decode()
    status, shown = order(world.vera, layer, "build", version=version.pk, reason="first")
    row = LayerBuild.objects.get()
    assert (status, "Nvidia for gamer-1 is queued" in shown, row.reason) == (200, True, "first")
    assert "is queued already" in order(world.vera, layer, "build")[1]
    assert "is cancelled" in order(world.vera, row, "cancel")[1]
    assert "is queued, from the layer as it is now" in order(world.vera, row, "again")[1]
    ready = make_layer_build(layer, version, files={GL: "1", "/usr/bin/gone": ""})
    shown = page(world.vera, ready).content.decode()
    assert "2 paths that it gives, or hides" in shown
    assert "NVidia&#x27;s own GL · Ready" in page(world.vera, version).content.decode()
    assert "\N{MINUS SIGN}/usr/bin/gone" in shown
    assert order(world.mallory, layer, "build")[0] == order(world.mallory, ready, "cancel")[0] == 404


def test_layers_in_the_api(world: World, layer: Layer, version: ImageVersion) -> None:
    said = call(world.vera, f"layers/{layer.pk}/")[1]
    assert (said["classes"], said["files"][0]["path"]) == ([world.gamer.pk], "/etc/X11/xorg.conf")
    assert (
        call(world.mallory, f"layers/{layer.pk}/")[0] == call(world.mallory, f"layers/{layer.pk}/build/", {})[0] == 404
    )
    status, row = call(world.vera, f"layers/{layer.pk}/build/", {"reason": "new driver"})
    assert (status, row["version"], row["status"]) == (202, version.pk, "queued")
    assert call(world.vera, f"layers/{layer.pk}/build/", {"version": version.pk})[0] == 409
    assert call(world.vera, f"layers/{layer.pk}/build/", {"version": 999})[0] == 400
    assert call(world.vera, f"layer-builds/?layer={layer.pk}&status=queued")[1]["results"][0]["id"] == row["id"]
    assert call(world.mallory, "layer-builds/")[1]["results"] == []
    assert call(world.vera, f"layer-builds/{row['id']}/")[1]["steps"] == []
    assert call(world.vera, f"layer-builds/{row['id']}/cancel/", {})[1]["status"] == "cancelled"
    assert call(world.vera, f"layer-builds/{row['id']}/cancel/", {})[0] == 409
