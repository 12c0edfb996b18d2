"""Pending upgrades: who has them looked up, and what people see of them."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client as Browser
from django.utils import timezone
from rest_framework.test import APIClient

from fleet.exceptions import Forbidden, WrongState
from images import services, upgrades
from images.models import ImageVersion, VersionStatus
from tests.images.versions import make_image, make_version
from tests.world import World

FOUND: dict[str, Any] = {
    "packages": [
        {"name": "tmux", "installed": "3.0", "available": "3.1", "security": False},
        {"name": "libssl3", "installed": "3.0.1", "available": "3.0.2", "security": True},
    ],
    "security": 1,
}


def looked_at(version: ImageVersion, age: timedelta) -> None:
    at = (timezone.now() - age).isoformat(timespec="seconds")
    ImageVersion.objects.filter(pk=version.pk).update(upgrades={"at": at, **FOUND})


def test_versions_that_classes_boot_are_due_once_a_day(world: World) -> None:
    image = make_image(world.clubroom)
    old, booted = make_version(image), make_version(image)
    services.release(booted, world.gamer, world.otto)
    assert upgrades.due() == [booted.pk]
    looked_at(booted, timedelta(hours=1))
    assert upgrades.due() == []
    looked_at(booted, timedelta(hours=21))
    assert upgrades.due() == [booted.pk]
    looked_at(old, timedelta(days=9))
    assert upgrades.due() == [booted.pk]


def test_only_who_builds_has_a_ready_version_looked_at(world: World) -> None:
    version = make_version(make_image(world.clubroom))
    services.look_for_upgrades(version, world.vera)
    with pytest.raises(Forbidden):
        services.look_for_upgrades(version, world.mallory)
    with pytest.raises(WrongState):
        services.look_for_upgrades(make_version(version.image, VersionStatus.FAILED), world.vera)


def test_what_cannot_be_looked_up_is_told_and_what_was_known_stays(world: World, settings: Any, tmp_path: Any) -> None:
    settings.STORE, settings.BUILD_WORK = tmp_path / "store", tmp_path / "work"  # without the artefacts of the version
    version = make_version(make_image(world.clubroom))
    looked_at(version, timedelta(days=2))
    upgrades.look(version.pk)
    version.refresh_from_db()
    assert version.upgrades is not None
    assert "missing" in version.upgrades["failure"]
    assert (version.upgrades["packages"], version.upgrades["security"]) == (FOUND["packages"], 1)


def test_people_see_what_is_pending_and_order_a_version_with_it(world: World, client: Browser) -> None:
    version = make_version(make_image(world.clubroom))
    looked_at(version, timedelta(hours=1))
    client.force_login(world.vera)
    page = client.get(f"/admin/images/imageversion/{version.pk}/change/").content
    assert b"2 pending, 1 of them security" in page
    assert b"New version with all of them" in page
    url = f"/admin/images/imageversion/{version.pk}/order"
    assert b"looks for upgrades" in client.post(f"{url}/upgrades/", follow=True).content
    client.post(f"{url}/derive/", {"upgrade": "on", "reason": "upgrades"})
    assert str(ImageVersion.objects.get(number=2).changes) == "upgrade all"


def test_the_bill_of_materials_is_a_file_for_whoever_sees_the_version(world: World, client: Browser) -> None:
    version = make_version(make_image(world.clubroom))
    waiting = make_version(version.image, VersionStatus.QUEUED)
    client.force_login(world.vera)
    answer = client.get(f"/admin/images/imageversion/{version.pk}/sbom/")
    assert answer["Content-Disposition"] == 'attachment; filename="gamer-1.cdx.json"'
    assert [part["name"] for part in answer.json()["components"]][:2] == ["bash", "tmux"]
    assert client.get(f"/admin/images/imageversion/{waiting.pk}/sbom/").status_code == 404
    api = APIClient()
    api.force_authenticate(world.vera)
    assert api.get(f"/api/v1/versions/{version.pk}/sbom/").json() == answer.json()
    assert api.get(f"/api/v1/versions/{waiting.pk}/sbom/").status_code == 409
    assert api.post(f"/api/v1/versions/{version.pk}/upgrades/").status_code == 202
    api.force_authenticate(world.mallory)
    assert api.get(f"/api/v1/versions/{version.pk}/sbom/").status_code == 404
    assert api.post(f"/api/v1/versions/{version.pk}/upgrades/").status_code == 404
    client.force_login(world.mallory)
    assert client.get(f"/admin/images/imageversion/{version.pk}/sbom/").status_code == 404
