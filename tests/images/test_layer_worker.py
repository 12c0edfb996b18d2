"""What a worker makes of a queued layer: the real builder, over a real version."""

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from pytest_django.fixtures import Settings

from fleet.models import AuditEntry
from images import keeping, layer_orders, layerbuilds, layers
from images.builder.layer import LayerManifest
from images.builder.store import Store
from images.layer_models import Layer, LayerBuild, LayerFile, LayerStatus
from images.models import HomeTemplate, ImageVersion
from tests.builder.images import CACHE, SMALL, built_image
from tests.images.versions import make_image, make_version
from tests.services import wait_for
from tests.world import World, make_world

pytestmark = [pytest.mark.build, pytest.mark.slow, pytest.mark.root, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def place(settings: Settings) -> Path:
    """A store with a real version, and a place to work on the same file system."""
    _, store = built_image()
    top = CACHE / "layer-worker"
    shutil.rmtree(top, ignore_errors=True)
    shutil.copytree(store.root, top / "store", copy_function=os.link)
    settings.BUILD_WORK, settings.STORE = top / "work", top / "store"
    return top


def queued(world: World, layer: Layer, version: ImageVersion) -> LayerBuild:
    return layer_orders.build(layer, version, world.vera, "tonight")


def test_a_layer_is_built_cancelled_refused_and_taken_from_before(place: Path, transactional_db: None) -> None:
    world, manifest = make_world(), built_image()[0]
    image = make_image(world.clubroom, packages="tmux")
    facts: dict[str, Any] = {"manifest": manifest.to_dict(), "digest": manifest.digest, "recipe": SMALL.to_dict()}
    version = make_version(image, **facts)
    HomeTemplate.objects.all().delete()
    layer = Layer.objects.create(image=image, slug="driver", name="Driver", script="sleep 60")
    cancelled = queued(world, layer, version)

    others = {one.sha256 for one in Store(place / "store").artefacts()}  # what other tests made of the same image
    asked: list[float] = []

    def cancel() -> None:
        wait_for(lambda: cancelled.steps.filter(name="script").exists(), "the script's step", 120)
        asked.append(time.monotonic())
        layer_orders.cancel(LayerBuild.objects.get(pk=cancelled.pk), world.vera)
        connection.close()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    layerbuilds.run(cancelled.pk)
    canceller.join()
    cancelled.refresh_from_db()
    assert (cancelled.status, cancelled.failure) == (LayerStatus.CANCELLED, "")
    assert time.monotonic() - asked[0] < 50, "the script sleeps for a minute"

    layer.script = "rm /usr/bin/tmux"
    layer.save()
    refused = queued(world, layer, version)
    layerbuilds.run(refused.pk)
    refused.refresh_from_db()
    assert refused.status == LayerStatus.FAILED
    assert "script: it removes /usr/bin/tmux of the version" in refused.failure
    assert [step.name for step in refused.steps.filter(failed=True)] == ["compare"]

    layer.script = ""
    layer.save()
    LayerFile.objects.create(layer=layer, path="/etc/X11/xorg.conf", content="Driver\r\n")
    layer.classes.add(world.gamer)
    row = queued(world, layer, version)
    layerbuilds.run(row.pk)
    layerbuilds.run(row.pk)  # its message came twice
    row.refresh_from_db()
    assert (row.status, row.failure) == (LayerStatus.READY, "")
    store = Store(place / "store")
    made = LayerManifest.load(store, row.digest)
    assert (made.base, list(made.files)) == (version.digest, ["/etc/X11/xorg.conf"])
    assert layers.needed(world.gamer, version) == [row]
    assert {one.sha256 for one in store.artefacts()} - others <= {*keeping.Claims().files}
    assert [step.name for step in row.steps.all()][-2:] == ["pack", "store"]

    again = make_version(image, **facts)  # a build that gave the same bytes
    HomeTemplate.objects.all().delete()
    layers.queue_all(again)
    [waiting] = layers.waiting(again.pk)
    layerbuilds.run(waiting)
    same = LayerBuild.objects.get(pk=waiting)
    assert (same.status, same.digest, same.steps.count()) == (LayerStatus.READY, row.digest, 0)
    actions = AuditEntry.objects.filter(action__startswith="layer.").order_by("pk").values_list("action", flat=True)
    assert list(actions) == [
        *("layer.requested", "layer.cancelled", "layer.requested", "layer.failed", "layer.requested", "layer.ready"),
        *("layer.requested", "layer.ready"),
    ]
    shutil.rmtree(place)
