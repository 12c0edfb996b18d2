"""What a client is told of the driver layers that its class needs."""

from pathlib import Path

import pytest

from fleet.models import Client
from images import services
from images.layer_models import Layer, LayerBuild, LayerStatus
from images.models import ImageVersion
from tests.agents.boots import plan_of
from tests.images.versions import make_image, make_layer_build, make_version
from tests.world import World, make_client


@pytest.fixture
def version(world: World) -> ImageVersion:
    return make_version(make_image(world.clubroom))


@pytest.fixture
def layer(world: World, version: ImageVersion) -> Layer:
    """Needed by the gamers."""
    row = Layer.objects.create(image=version.image, slug="nvidia", name="NVidia's own GL", packages="hello")
    row.classes.add(world.gamer)
    return row


@pytest.fixture
def client(world: World, layer: Layer, version: ImageVersion, keys: Path) -> Client:
    make_layer_build(layer, version)
    services.release(version, world.gamer, world.otto)
    return make_client(world.clubroom)


def test_a_client_is_told_of_the_layers_of_its_class(client: Client) -> None:
    said = plan_of(client)
    assert (said["action"], said["kind"]) == ("boot", "symlink+layers")
    root, plan = "a0" * 32, "a1" * 32
    assert said["layers"] == f"{root},1000,{'cd' * 64},1,{plan},1000"


def test_it_boots_the_build_that_became_ready_last(client: Client, layer: Layer, version: ImageVersion) -> None:
    make_layer_build(layer, version, "b")
    LayerBuild.objects.create(layer=layer, version=version, change={}, status=LayerStatus.FAILED)
    assert plan_of(client)["layers"].startswith("b0" * 32)


def test_a_client_of_a_class_without_layers_is_told_of_none(client: Client, layer: Layer) -> None:
    layer.classes.clear()
    said = plan_of(client)
    assert (said["kind"], "layers" in said) == ("symlink", False)


def test_a_client_never_boots_without_a_layer_that_its_class_needs(
    client: Client, layer: Layer, version: ImageVersion
) -> None:
    """The class was given the layer after the release; until it is built its clients wait, and say why."""
    LayerBuild.objects.all().delete()
    said = plan_of(client)
    assert said["action"] == "wait"
    assert said["reason"].startswith("Gamer needs the layer NVidia's own GL".replace("'", " "))
    client.refresh_from_db()
    assert "which is not built for gamer-1" in client.trouble
    make_layer_build(layer, version)
    assert plan_of(client)["action"] == "boot"
    client.refresh_from_db()
    assert client.trouble == ""
