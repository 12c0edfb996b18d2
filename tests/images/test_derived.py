"""Asking for a derived version: who may, from what, and what the recipe learns of it."""

import io
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from django.test import Client as Browser
from rest_framework.test import APIClient

from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import AuditEntry
from images import builds, services
from images.builder.change import Change
from images.models import ImageFile, ImageVersion, VersionStatus
from tests.builder.images import SMALL, built_image
from tests.images.versions import make_image, make_version
from tests.world import World, make_world

CHANGE: dict[str, Any] = {
    "install": ["hello", "tmux"],
    "remove": ["nano"],
    "files": [{"path": "/etc/motd", "content": "Hi\n"}],
    "script": "true",
}


def test_a_derived_version_is_queued_beside_its_parent(world: World) -> None:
    parent = make_version(make_image(world.clubroom, packages="nano"))
    derived = services.request_derived(parent, CHANGE, world.vera, "hello wanted")
    assert (str(derived), derived.status, derived.parent, derived.recipe) == (
        "gamer-2",
        "queued",
        parent,
        parent.recipe,
    )
    assert str(derived.changes) == "remove nano · install hello tmux · put /etc/motd · run a script"
    entry = AuditEntry.objects.get(action="version.requested")
    assert (entry.site, entry.actor, entry.detail["of"]) == (world.clubroom, "vera", "gamer-1")
    assert entry.detail["change"] == str(derived.changes)
    parent.image.refresh_from_db()
    assert parent.image.packages == "nano"
    with pytest.raises(WrongState, match="gamer-2 is queued already"):
        services.request_derived(parent, CHANGE, world.vera)
    assert str(services.request_derived(parent, {"upgrade": True}, world.vera)) == "gamer-3"


def test_the_recipe_learns_the_change_when_it_is_told_to(world: World) -> None:
    image = make_image(world.clubroom, packages="nano\ntmux")
    ImageFile.objects.create(image=image, path="/etc/motd", content="Old\n")
    services.request_derived(make_version(image), CHANGE, world.vera, keep=True)
    image.refresh_from_db()
    recipe = image.recipe()
    assert recipe.packages == ("tmux", "hello")
    assert [(file.path, file.content) for file in recipe.files] == [("/etc/motd", "Hi\n")]
    assert [hook.script for hook in recipe.hooks] == ["true"]


@pytest.mark.parametrize("status", [VersionStatus.QUEUED, VersionStatus.FAILED, VersionStatus.CANCELLED])
def test_only_a_ready_version_has_children(world: World, status: VersionStatus) -> None:
    parent = make_version(make_image(world.clubroom), status)
    with pytest.raises(WrongState, match="Nothing can be derived from gamer-1"):
        services.request_derived(parent, CHANGE, world.vera)


def test_nobody_changes_the_images_of_a_site_that_is_not_theirs(world: World) -> None:
    parent = make_version(make_image(world.clubroom))
    with pytest.raises(Forbidden):
        services.request_derived(parent, CHANGE, world.mallory, keep=True)
    assert ImageVersion.objects.count() == 1
    parent.image.refresh_from_db()
    assert parent.image.packages == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "the change is empty"),
        ({"install": ["no such"]}, "install: "),
        ({"files": [{"path": "motd", "content": ""}]}, "files: "),
        ({"packages": ["tmux"]}, "packages: unknown"),
    ],
)
def test_a_change_that_cannot_be_is_refused_and_the_recipe_learns_nothing(
    world: World, change: dict[str, Any], said: str
) -> None:
    parent = make_version(make_image(world.clubroom))
    with pytest.raises(OperatorError, match=said):
        services.request_derived(parent, change, world.vera, keep=True)
    assert ImageVersion.objects.count() == 1


def test_the_database_knows_no_change_without_a_parent(world: World) -> None:
    image = make_image(world.clubroom)
    with pytest.raises(IntegrityError), transaction.atomic():
        make_version(image, VersionStatus.QUEUED, change=CHANGE)


def test_a_derived_version_that_failed_is_tried_again_but_not_one_made_by_hand(world: World) -> None:
    parent = make_version(make_image(world.clubroom))
    change = Change.from_dict(SMALL, CHANGE).to_dict()
    failed = make_version(parent.image, VersionStatus.FAILED, parent=parent, change=change)
    again = services.retry(failed, world.vera)
    assert (again.parent, again.change) == (parent, change)
    by_hand = make_version(parent.image, VersionStatus.FAILED, parent=parent, change=Change(by_hand=True).to_dict())
    with pytest.raises(WrongState, match="made in a maintenance shell"):
        services.retry(by_hand, world.vera)


def test_a_version_made_by_hand_is_left_to_whoever_made_it(world: World) -> None:
    parent = make_version(make_image(world.clubroom))
    version = services.request_derived(parent, {"by_hand": True}, world.vera)
    ImageVersion.objects.filter(pk=version.pk).update(sent_at=version.sent_at - 2 * builds.SEND_AGAIN)
    assert builds.overdue() == []
    assert builds.run(version.pk) == []
    version.refresh_from_db()
    assert version.status == VersionStatus.QUEUED


def test_the_admin_s_form_asks_for_what_was_typed(world: World, client: Browser) -> None:
    parent = make_version(make_image(world.clubroom))
    client.force_login(world.vera)
    page = f"/admin/images/imageversion/{parent.pk}"
    assert b"New version from gamer-1" in client.get(f"{page}/change/").content
    typed = {"install": " hello\ttmux ", "upgrade": "on", "path": "/etc/motd", "content": "a\r\nb\r\n", "reason": "why"}
    answer = client.post(f"{page}/order/derive/", typed, follow=True)
    derived = ImageVersion.objects.get(number=2)
    assert str(derived.changes) == "upgrade all · install hello tmux · put /etc/motd"
    assert derived.change is not None
    assert derived.change["files"] == [{"path": "/etc/motd", "content": "a\nb\n", "mode": "0644"}]
    assert b"Derived from" in answer.content
    refused = client.post(f"{page}/order/derive/", {"install": "-x"}, follow=True)
    assert b"cannot be changed so" in refused.content
    assert ImageVersion.objects.count() == 2


def test_the_api_derives_and_names_what_is_wrong(world: World) -> None:
    parent = make_version(make_image(world.clubroom))
    api = APIClient()
    api.force_authenticate(world.vera)
    url = f"/api/v1/versions/{parent.pk}/derive/"
    answer = api.post(url, {**CHANGE, "reason": "why"}, format="json")
    assert (answer.status_code, answer.json()["parent"]) == (202, parent.pk)
    assert answer.json()["change"]["install"] == ["hello", "tmux"]
    assert api.post(url, {"install": "tmux"}, format="json").status_code == 400
    assert api.post(url, {}, format="json").status_code == 409 or api.post(url, {}, format="json").status_code == 400
    api.force_authenticate(world.mallory)
    assert api.post(url, CHANGE, format="json").status_code == 404


@pytest.mark.slow
@pytest.mark.build
@pytest.mark.root
def test_a_shell_makes_a_version_or_throws_away_what_was_done(
    transactional_db: None, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, store = built_image()
    settings.STORE, settings.BUILD_WORK = store.root, tmp_path / "work"
    image = make_image(make_world().clubroom)
    fields: dict[str, Any] = {"manifest": manifest.to_dict(), "digest": manifest.digest, "recipe": SMALL.to_dict()}
    make_version(image, VersionStatus.READY, **fields)
    with pytest.raises(CommandError, match="You may not edit recipes"):
        call_command("image", "shell", "gamer", "--as", "mallory")
    # The shell reads its commands from standard input; here there is none, so it ends at once.
    monkeypatch.setattr("sys.stdin", io.StringIO())
    output = io.StringIO()
    call_command("image", "shell", "gamer", "--as", "vera", "--keep", "no", stdout=output)
    assert "0 files differ from gamer-1" in output.getvalue()
    assert output.getvalue().endswith("Thrown away.\n")
    assert ImageVersion.objects.count() == 1
    call_command("image", "shell", "gamer-1", "--as", "vera", "--keep", "yes", stdout=output)
    made = ImageVersion.objects.get(number=2)
    assert (made.status, made.parent is not None, str(made.changes)) == (VersionStatus.READY, True, "changed by hand")
    assert list((tmp_path / "work").glob("scratch-*")) == []
