import uuid
from typing import Any

import pytest
from rest_framework.test import APIClient

from fleet.models import Membership
from fleet.roles import Role
from images import services
from images.models import BuildStep, ImageFile, ImageVersion, Release, VersionStatus
from tests.api import call
from tests.images.versions import make_image, make_version
from tests.world import World, make_client


def test_a_member_reads_the_sites_images_and_a_stranger_none(world: World) -> None:
    image = make_image(world.clubroom, packages="tmux")
    ImageFile.objects.create(image=image, path="/etc/motd", content="Hello")
    version = make_version(image)
    BuildStep.objects.create(version=version, number=1, name="bootstrap", title="Install", output="Reading…")
    release = services.release(version, world.gamer, world.otto)
    for path in ("images", "versions", "releases", "home-templates"):
        assert len(call(world.vera, f"{path}/")[1]["results"]) == 1, path
        assert call(world.mallory, f"{path}/")[1]["results"] == [], path
    for path in (f"images/{image.pk}", f"versions/{version.pk}", f"releases/{release.pk}"):
        assert call(world.vera, f"{path}/")[0] == 200
        assert call(world.mallory, f"{path}/")[0] == 404
    detail = call(world.vera, f"versions/{version.pk}/")[1]
    assert (detail["name"], detail["steps"][0]["output"]) == ("gamer-1", "Reading…")
    assert detail["sizes"]["root"] == 1000
    assert call(world.vera, f"images/{image.pk}/")[1]["files"] == [
        {"path": "/etc/motd", "mode": "0644", "content": "Hello"}
    ]


def test_a_stranger_must_log_in(world: World) -> None:
    assert APIClient().get("/api/v1/images/").status_code == 401


def test_shared_images_are_read_by_all_and_built_by_none_but_superusers(world: World) -> None:
    image = make_image(None, "shared")
    assert call(world.mallory, f"images/{image.pk}/")[0] == 200
    assert call(world.mallory, f"images/{image.pk}/build/", {})[0] == 403
    world.mallory.is_superuser = True
    world.mallory.save()
    assert call(world.mallory, f"images/{image.pk}/build/", {})[0] == 202


def test_a_build_is_ordered_cancelled_and_tried_again(world: World) -> None:
    image = make_image(world.clubroom)
    status, version = call(world.vera, f"images/{image.pk}/build/", {"reason": "new game"})
    assert (status, version["status"], version["reason"]) == (202, "queued", "new game")
    status, problem = call(world.vera, f"images/{image.pk}/build/", {})
    assert (status, problem["title"]) == (409, "Conflict")
    assert "gamer-1 is queued already" in problem["detail"]
    assert call(world.mallory, f"versions/{version['id']}/cancel/", {})[0] == 404
    assert call(world.vera, f"versions/{version['id']}/retry/", {})[0] == 409
    assert call(world.vera, f"versions/{version['id']}/cancel/", {})[1]["status"] == "cancelled"
    assert call(world.vera, f"versions/{version['id']}/cancel/", {})[0] == 409
    assert call(world.vera, f"versions/{version['id']}/retry/", {})[1]["name"] == "gamer-2"


def test_a_viewer_may_not_order_a_build(world: World) -> None:
    Membership.objects.filter(user=world.vera).update(role=Role.VIEWER)
    status, problem = call(world.vera, f"images/{make_image(world.clubroom).pk}/build/", {})
    assert (status, problem["hint"]) == (403, "Ask somebody with a higher role at its site.")
    assert not ImageVersion.objects.exists()


def test_a_recipe_that_cannot_be_built_answers_400_naming_the_field(world: World) -> None:
    image = make_image(world.clubroom, packages="No_Such")
    status, problem = call(world.vera, f"images/{image.pk}/build/", {})
    assert status == 400
    assert "packages: 'No_Such'" in problem["detail"]


def test_a_version_is_released_and_rolled_back(world: World) -> None:
    image = make_image(world.clubroom)
    first, second = make_version(image), make_version(image)
    body = {"client_class": world.gamer.pk, "reason": "tonight"}
    assert call(world.otto, f"versions/{first.pk}/release/", body)[0] == 201
    assert call(world.vera, f"versions/{second.pk}/release/", body)[0] == 403
    assert call(world.mallory, f"versions/{second.pk}/release/", body)[0] == 404
    status, release = call(world.otto, f"versions/{second.pk}/release/", body)
    assert (status, release["current"], release["reason"]) == (201, True, "tonight")
    assert call(world.otto, f"versions/{second.pk}/release/", body)[0] == 409
    assert call(world.vera, f"releases/{release['id']}/roll-back/", {})[0] == 403
    status, back = call(world.otto, f"releases/{release['id']}/roll-back/", {})
    assert (status, back["version"]) == (201, first.pk)
    assert call(world.otto, f"releases/{release['id']}/roll-back/", {})[0] == 409
    assert Release.objects.get(current=True).pk == back["id"]


@pytest.mark.parametrize("body", [{}, {"client_class": "gamer"}, {"client_class": 10**30}, {"client_class": -1}])
def test_a_release_to_no_class_answers_400(world: World, body: dict[str, Any]) -> None:
    version = make_version(make_image(world.clubroom))
    status, problem = call(world.otto, f"versions/{version.pk}/release/", body)
    assert status == 400
    assert "client_class" in problem["errors"]


def test_a_class_of_another_site_is_as_if_it_were_not_there(world: World) -> None:
    version = make_version(make_image(None, "shared"))
    status, _ = call(world.mallory, f"versions/{version.pk}/release/", {"client_class": world.gamer.pk})
    assert status == 400
    assert not Release.objects.exists()


def test_a_version_under_way_is_not_released(world: World) -> None:
    version = make_version(make_image(world.clubroom), VersionStatus.BUILDING)
    status, problem = call(world.otto, f"versions/{version.pk}/release/", {"client_class": world.gamer.pk})
    assert (status, problem["detail"]) == (409, "gamer-1 cannot be released: it is building.")


def test_a_canary_is_started_promoted_and_withdrawn(world: World) -> None:
    image = make_image(world.clubroom)
    services.release(make_version(image), world.gamer, world.otto)
    client = make_client(world.clubroom, client_class=world.gamer)
    version = make_version(image)
    order = {"client_class": world.gamer.pk, "clients": [str(client.pk)], "reason": "see"}
    assert call(world.vera, f"versions/{version.pk}/canary/", order)[0] == 403
    assert call(world.otto, f"versions/{version.pk}/canary/", order | {"clients": [str(uuid.uuid4())]})[0] == 400
    assert call(world.otto, f"versions/{version.pk}/canary/", order | {"share": 101})[0] == 400
    status, canary = call(world.otto, f"versions/{version.pk}/canary/", order)
    assert (status, canary["canary"], canary["current"], canary["clients"]) == (201, True, False, [str(client.pk)])
    assert call(world.otto, f"versions/{version.pk}/canary/", order)[0] == 409
    assert call(world.vera, f"releases/{canary['id']}/promote/", {})[0] == 403
    assert call(world.mallory, f"releases/{canary['id']}/promote/", {})[0] == 404
    status, new = call(world.otto, f"releases/{canary['id']}/promote/", {"reason": "well"})
    assert (status, new["current"], new["version"]) == (201, True, version.pk)
    assert call(world.otto, f"releases/{canary['id']}/withdraw/", {})[0] == 409
    another = make_version(image)
    canary = call(world.otto, f"versions/{another.pk}/canary/", order | {"share": 50})[1]
    status, ended = call(world.otto, f"releases/{canary['id']}/withdraw/", {"reason": "flickers"})
    assert (status, ended["outcome"]) == (200, "withdrawn")


def test_two_versions_are_compared(world: World) -> None:
    image = make_image(world.clubroom)
    old = make_version(image)
    assert old.manifest is not None
    packages = [["bash", "5.3", "amd64"], ["nano", "7.2", "amd64"]]
    new = make_version(image, manifest=old.manifest | {"packages": packages, "unpacked_bytes": 6000})
    status, found = call(world.vera, f"versions/{new.pk}/compare/?other={old.pk}")
    assert status == 200
    assert found["packages"] == [
        {"name": "bash", "old": "5.2", "new": "5.3"},
        {"name": "nano", "old": "", "new": "7.2"},
        {"name": "tmux", "old": "3.3a", "new": ""},
    ]
    assert ["unpacked", 5000, 6000, 1000] in found["sizes"]
    assert (found["kernel"], found["same_home"]) == (None, True)
    for other in ("", "x", "999999", str(make_version(make_image(world.school, "theirs")).pk)):
        assert call(world.vera, f"versions/{new.pk}/compare/?other={other}")[0] == 400
    failed = make_version(image, VersionStatus.FAILED)
    assert call(world.vera, f"versions/{new.pk}/compare/?other={failed.pk}")[0] == 409
    another = make_version(image)
    status, problem = call(world.vera, f"versions/{another.pk}/compare/?other={old.pk}&files=yes")
    assert (status, "is not in the store" in problem["detail"]) == (409, True)
