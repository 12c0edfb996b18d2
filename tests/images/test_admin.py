from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from images.models import BuildStep, Image, ImageVersion, Release, VersionStatus
from tests.images.versions import make_image, make_version
from tests.world import World, make_client, person


def as_(user: User) -> Client:
    client = Client(enforce_csrf_checks=False)
    client.force_login(user)
    return client


def order(user: User, row: Any, name: str, **fields: Any) -> tuple[int, str]:
    """Press a button: the status of the answer and the page it leads to."""
    address = reverse(f"admin:images_{row._meta.model_name}_order", args=[row.pk, name])
    answer = as_(user).post(address, fields, follow=True)
    return answer.status_code, answer.content.decode()


def page(user: User, row: Any) -> Any:
    return as_(user).get(reverse(f"admin:images_{row._meta.model_name}_change", args=[row.pk]))


def recipe_form(**fields: Any) -> dict[str, Any]:
    """What the form of an image posts, without files and hooks unless told."""
    form = {"name": "Game", "slug": "game", "family": "debian", "suite": "bookworm", "components": "main"}
    form |= {
        "most_minutes": "120",
        "most_mib": "16384",
        "user": "player",
        "uid": "1000",
        "packages": "",
        "volatile": "",
        "mirror": "",
        "site": "",
    }
    for part in ("recipe_files", "recipe_hooks"):
        form |= {f"{part}-TOTAL_FORMS": "0", f"{part}-INITIAL_FORMS": "0"}
    return form | fields


def test_a_volunteer_writes_a_recipe_and_builds_it(world: World) -> None:
    form = recipe_form(site=world.clubroom.pk, packages="tmux")
    form |= {"recipe_files-TOTAL_FORMS": "1", "recipe_files-0-path": "/etc/motd", "recipe_files-0-mode": "0644"}
    assert as_(world.vera).post(reverse("admin:images_image_add"), form).status_code == 302
    image = Image.objects.get()
    assert image.recipe_files.get().path == "/etc/motd"
    assert "Build a version" in page(world.vera, image).content.decode()
    status, shown = order(world.vera, image, "build", reason="first")
    assert status == 200
    assert "Game-1 is queued" in shown
    assert ImageVersion.objects.get().reason == "first"
    assert "is queued already" in order(world.vera, image, "build")[1]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"site": ""}, "This field is required"),
        ({"packages": "Bad_Name"}, "is not the name of a Debian package"),
        ({"volatile": "copy etc"}, "is not absolute"),
        ({"family": "rpm", "suite": "42"}, "the server has no rpm repository of its own"),
        (
            {"family": "rpm", "suite": "42", "packages": "@core", "mirror": "file:///srv"},
            "is not the name of an rpm package",
        ),
        ({"family": "beos"}, "Select a valid choice"),
    ],
)
def test_what_cannot_be_built_is_refused_in_the_form(world: World, fields: dict[str, str], said: str) -> None:
    form = recipe_form(site=world.clubroom.pk) | fields
    answer = as_(world.vera).post(reverse("admin:images_image_add"), form)
    assert said in answer.content.decode()
    assert not Image.objects.exists()


def test_nobody_puts_an_image_at_a_site_that_is_not_theirs(world: World) -> None:
    as_(world.mallory).post(reverse("admin:images_image_add"), recipe_form(site=world.clubroom.pk))
    assert not Image.objects.exists()


def test_another_sites_pages_and_orders_are_as_if_they_were_not_there(world: World) -> None:
    image = make_image(world.clubroom)
    version = make_version(image, VersionStatus.BUILDING)
    for row, name in ((image, "build"), (version, "cancel"), (version, "release")):
        assert order(world.mallory, row, name)[0] == 404
        assert page(world.mallory, row).status_code == 302
    live = reverse("admin:images_imageversion_live", args=[version.pk])
    assert as_(world.mallory).get(live).status_code == 404
    assert as_(person("nobody")).get(live).status_code == 404
    assert Client().get(live).status_code == 302
    for model in ("image", "imageversion", "release", "hometemplate"):
        shown = as_(world.mallory).get(reverse(f"admin:images_{model}_changelist")).content.decode()
        assert "gamer" not in shown.lower(), model


def test_shared_images_are_seen_but_not_changed_by_members(world: World) -> None:
    image = make_image(None, "shared")
    assert "Build a version" not in page(world.vera, image).content.decode()
    assert "You may not" in order(world.vera, image, "build")[1]
    address = reverse("admin:images_image_change", args=[image.pk])
    assert as_(world.vera).post(address, recipe_form(slug="mine", site=world.clubroom.pk)).status_code == 403
    image.refresh_from_db()
    assert image.slug == "shared"


def test_orders_are_posts_with_a_csrf_token(world: World) -> None:
    image = make_image(world.clubroom)
    address = reverse("admin:images_image_order", args=[image.pk, "build"])
    assert as_(world.vera).get(address).status_code == 405
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(world.vera)
    assert strict.post(address).status_code == 403
    assert order(world.vera, image, "no-such-order")[0] == 404
    assert not ImageVersion.objects.exists()


def test_the_page_of_a_version_shows_its_steps_and_follows_them(world: World) -> None:
    version = make_version(make_image(world.clubroom), VersionStatus.BUILDING)
    for number, name in enumerate(("bootstrap", "configure"), 1):
        BuildStep.objects.create(
            version=version,
            number=number,
            name=name,
            title=name,
            command="mmdebstrap <x>",
            done=3,
            total=9,
            bytes_total=2_000_000,
        )
    shown = page(world.vera, version).content.decode()
    assert "mmdebstrap &lt;x&gt;" in shown
    assert "Cancel the build" in shown
    live = reverse("admin:images_imageversion_live", args=[version.pk])
    fragment = as_(world.vera).get(live, {"after": "1"}).content.decode()
    assert 'id="step-2"' in fragment
    assert '<progress max="1" value="0.167"></progress> 3 of 9 packages, 0.0 of 2.0 MB</label>' in fragment
    assert 'id="step-1"' not in fragment
    assert 'data-under-way="yes"' in fragment
    assert 'id="step-1"' in as_(world.vera).get(live, {"after": "²" * 9}).content.decode()
    assert "is cancelled" in order(world.vera, version, "cancel")[1]
    assert 'data-under-way=""' in as_(world.vera).get(live).content.decode()
    assert "is queued, from the recipe of gamer-1" in order(world.vera, version, "retry")[1]


def test_an_organiser_releases_a_version_and_rolls_back(world: World) -> None:
    image = make_image(world.clubroom)
    first, second = make_version(image), make_version(image)
    shown = page(world.otto, first).content.decode()
    assert "Club room: Gamer" in shown
    assert first.digest in shown
    assert "tmux" in shown
    assert "Release to" not in page(world.vera, first).content.decode()
    assert "You may not release" in order(world.vera, first, "release", client_class=world.gamer.pk)[1]
    assert "No class was chosen" in order(world.otto, first, "release", client_class="²")[1]
    for version in (first, second):
        assert "from its next boot on" in order(world.otto, version, "release", client_class=world.gamer.pk)[1]
    current = Release.objects.get(current=True)
    assert "You may not release" in order(world.vera, current, "roll-back")[1]
    assert "boots gamer-1 again" in order(world.otto, current, "roll-back")[1]
    picked = {"action": "roll_back", "_selected_action": [current.pk]}
    listed = as_(world.otto).post(reverse("admin:images_release_changelist"), picked, follow=True).content.decode()
    assert "no earlier release" in listed
    assert Release.objects.get(current=True).version == first


def test_versions_and_releases_are_neither_added_nor_changed_nor_deleted_by_hand(world: World) -> None:
    version = make_version(make_image(world.clubroom))
    world.otto.is_superuser = True
    world.otto.save()
    for model in ("imageversion", "release", "hometemplate"):
        assert as_(world.otto).get(reverse(f"admin:images_{model}_add")).status_code == 403
    for name in ("change", "delete"):
        address = reverse(f"admin:images_imageversion_{name}", args=[version.pk])
        assert as_(world.otto).post(address, {"post": "yes"}).status_code == 403


def test_a_version_is_tried_on_some_pcs_and_promoted(world: World) -> None:
    image = make_image(world.clubroom)
    version = make_version(image)
    make_client(world.clubroom, client_class=world.gamer)
    fields = {"client_class": world.gamer.pk, "clients": "a1", "reason": "see"}
    status, text = order(world.otto, version, "canary", **fields | {"clients": "A1, B7"})
    assert (status, "Gamer has no client B7." in text) == (200, True)
    for wrong in ({"share": "many"}, {"share": "101"}, {"ready_within_s": "1"}, {"most_bad": "-1"}):
        assert "is a whole number from" in order(world.otto, version, "canary", **fields | wrong)[1]
    assert not Release.objects.exists()
    assert "At their next boot these get gamer-1: A1 (pc-01)." in order(world.otto, version, "canary", **fields)[1]
    canary = Release.objects.get()
    shown = page(world.otto, canary).content.decode()
    assert "Canary on" in shown
    assert "No PC has booted it yet." in shown
    assert "Promote to all of Gamer" in shown
    assert "Promote to all" not in page(world.vera, canary).content.decode()
    assert "All clients of Gamer boot gamer-1" in order(world.otto, canary, "promote")[1]
    assert "is no canary of Gamer any more: promoted" in order(world.otto, canary, "withdraw")[1]


def test_two_versions_stand_beside_each_other(world: World) -> None:
    image = make_image(world.clubroom)
    old = make_version(image)
    assert old.manifest is not None
    new = make_version(image, manifest=old.manifest | {"packages": [["bash", "5.3", "amd64"]]})
    address = reverse("admin:images_imageversion_compare", args=[new.pk, old.pk])
    assert address in page(world.vera, new).content.decode()
    text = as_(world.vera).get(address).content.decode()
    assert "5.3" in text
    assert "tmux" in text
    assert "They could not be compared" not in text
    other = as_(world.vera).get(f"{address}?files").content.decode()
    assert "0 changed" in other or "They could not be compared" in other
    assert as_(world.mallory).get(address).status_code == 404
    failed = make_version(image, VersionStatus.FAILED)
    assert (
        as_(world.vera).get(reverse("admin:images_imageversion_compare", args=[new.pk, failed.pk])).status_code == 404
    )
