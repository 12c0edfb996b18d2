"""Files that the site and an upgrade have both changed: what is found, and what somebody decides."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.test import Client as Browser
from rest_framework.test import APIClient

from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import AuditEntry
from fleet.roles import Role
from images import merge_orders, merges
from images.builder.manifest import Manifest
from images.builder.sitefiles import SiteFile
from images.builder.store import Store
from images.merge_models import FileMerge, MergeStatus
from images.models import ImageFile, ImageVersion, VersionStatus
from tests.images.versions import make_image, make_manifest, make_version
from tests.world import World, member

CONF = "/etc/tool.conf"
BASE = "speed 1\n\n\ncolour blue\n"
SITE, PACKAGE = BASE.replace("blue", "red"), BASE.replace("1", "2")


class Shelf:
    """A store, and versions whose site files are in it."""

    def __init__(self, place: Path) -> None:
        self.place, self.store = place, Store(place / "store")

    def file(self, original: bytes, site: bytes, upgraded: bool = False) -> SiteFile:
        parts = []
        for content in (original, site):
            (self.place / "part").write_bytes(content)
            parts.append(self.store.put(self.place / "part"))
        return SiteFile(parts[0], parts[1], 0o640, upgraded)

    def manifest(self, salt: str, **files: SiteFile) -> Manifest:
        return replace(make_manifest(salt), site_files={f"/etc/{name}.conf": file for name, file in files.items()})


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def found(world: World, shelf: Shelf, before: dict[str, Any], now: dict[str, Any]) -> list[FileMerge]:
    image = make_image(world.clubroom)
    make_version(image, manifest=shelf.manifest("1", **before).to_dict())
    version = make_version(image, VersionStatus.BUILDING)
    return merges.find(version, shelf.manifest("2", **now), shelf.store)


def test_a_file_whose_package_changed_is_found_and_merged(world: World, shelf: Shelf) -> None:
    old, new = shelf.file(BASE.encode(), SITE.encode()), shelf.file(PACKAGE.encode(), SITE.encode())
    [row] = found(world, shelf, {"tool": old}, {"tool": new})
    assert (row.path, row.mode, row.is_clean) == (CONF, 0o640, True)
    assert (row.base, row.site, row.package) == (BASE, SITE, PACKAGE)
    assert row.merged == "speed 2\n\n\ncolour red\n"
    (_, mine), (_, theirs) = merges.sides(row)
    assert "+colour red" in mine
    assert "+speed 2" in theirs


def test_a_file_that_only_the_site_changes_is_no_question(world: World, shelf: Shelf) -> None:
    old, new = shelf.file(BASE.encode(), SITE.encode()), shelf.file(BASE.encode(), b"quite another")
    assert found(world, shelf, {"tool": old}, {"tool": new, "fresh": new}) == []


def test_an_upgrade_of_what_nobody_noted_before_is_told_without_a_merge(world: World, shelf: Shelf) -> None:
    [row] = found(world, shelf, {}, {"tool": shelf.file(PACKAGE.encode(), SITE.encode(), upgraded=True)})
    assert (row.base, row.merged, row.is_clean) == (None, "", False)
    [(title, lines)] = merges.sides(row)
    assert title == "The package's file against yours"
    assert "+speed 2" in lines


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * (merges.MOST_BYTES + 1)])
def test_what_is_no_text_or_too_much_stays_the_site_s(world: World, shelf: Shelf, content: bytes) -> None:
    old, new = shelf.file(b"old", SITE.encode()), shelf.file(content, SITE.encode())
    assert found(world, shelf, {"tool": old}, {"tool": new}) == []


def test_manifests_without_site_files_have_the_digest_they_had(shelf: Shelf) -> None:
    manifest = make_manifest()
    assert "site_files" not in manifest.to_dict()
    with_one = shelf.manifest("", tool=shelf.file(b"a", b"b"))
    assert Manifest.from_dict(with_one.to_dict()) == with_one
    assert with_one.digest != manifest.digest


@pytest.fixture
def row(world: World) -> FileMerge:
    version = make_version(make_image(world.clubroom))
    return FileMerge.objects.create(
        version=version, path=CONF, mode=0o640, base=BASE, site=SITE, package=PACKAGE, merged="both\n", is_clean=True
    )


def test_the_site_s_file_can_stay(world: World, row: FileMerge) -> None:
    merge_orders.keep(row, world.vera)
    assert (row.status, row.decided_by) == (MergeStatus.KEPT, world.vera)
    assert AuditEntry.objects.get(action="merge.kept").detail["path"] == CONF
    assert ImageVersion.objects.count() == 1


@pytest.mark.parametrize("in_recipe", [True, False])
def test_what_is_taken_makes_a_version_and_the_recipe_learns_it_where_it_had_the_file(
    world: World, row: FileMerge, in_recipe: bool
) -> None:
    if in_recipe:
        ImageFile.objects.create(image=row.version.image, path=CONF, content=SITE)
    version = merge_orders.take(row, "both\r\nof us\r\n", world.vera)
    assert (version.parent, version.status) == (row.version, VersionStatus.QUEUED)
    assert version.change is not None
    assert version.change["files"] == [{"path": CONF, "content": "both\nof us\n", "mode": "0640"}]
    learnt = ImageFile.objects.filter(image=row.version.image).values_list("content", "mode")
    assert list(learnt) == ([("both\nof us\n", "0640")] if in_recipe else [])
    assert row.status == MergeStatus.TAKEN


def test_a_text_with_the_marks_of_a_conflict_is_not_taken(world: World, row: FileMerge) -> None:
    for mark in ("<<<<<<< yours", ">>>>>>> package"):
        with pytest.raises(OperatorError, match="marks of a conflict"):
            merge_orders.take(row, f"one\n{mark}\n", world.vera)
    row.refresh_from_db()
    assert row.status == MergeStatus.OPEN


def test_one_is_decided_once(world: World, row: FileMerge) -> None:
    merge_orders.keep(row, world.vera)
    with pytest.raises(WrongState):
        merge_orders.keep(row, world.vera)
    with pytest.raises(WrongState):
        merge_orders.take(row, "x", world.vera)
    assert ImageVersion.objects.count() == 1


@pytest.mark.parametrize("role", [Role.VIEWER, None])
def test_who_may_not_build_decides_nothing(world: World, row: FileMerge, role: Role | None) -> None:
    if role:
        member(world.mallory, world.clubroom, role)
    with pytest.raises(Forbidden):
        merge_orders.keep(row, world.mallory)
    with pytest.raises(Forbidden):
        merge_orders.take(row, "x", world.mallory)


def test_the_page_of_the_version_shows_each_side_and_takes_the_edited_text(
    world: World, row: FileMerge, client: Browser
) -> None:
    client.force_login(world.vera)
    page = client.get(f"/admin/images/imageversion/{row.version_id}/change/").text
    for part in ("Changed by you and by an upgrade", "merges without a question", "+colour red", "+speed 2", "both\n"):
        assert part in page
    answer = client.post(f"/admin/images/filemerge/{row.pk}/order/take-merged/", {"content": "mine\r\n"}, follow=True)
    assert "is queued" in answer.text
    assert ImageVersion.objects.get(parent=row.version).change["files"][0]["content"] == "mine\n"  # type: ignore[index]
    page = client.get(f"/admin/images/imageversion/{row.version_id}/change/").text
    assert "Changed by you and by an upgrade" not in page


def test_the_package_s_file_is_one_click(world: World, row: FileMerge, client: Browser) -> None:
    client.force_login(world.vera)
    client.post(f"/admin/images/filemerge/{row.pk}/order/take-package/")
    assert ImageVersion.objects.get(parent=row.version).change["files"][0]["content"] == PACKAGE  # type: ignore[index]


def test_the_api_lists_keeps_and_takes(world: World, row: FileMerge) -> None:
    api = APIClient()
    api.force_authenticate(world.vera)
    [seen] = api.get("/api/v1/merges/?status=open").json()["results"]
    assert (seen["path"], seen["base"], seen["package"]) == (CONF, BASE, PACKAGE)
    assert api.post(f"/api/v1/merges/{row.pk}/take/", {}, format="json").status_code == 400
    answer = api.post(f"/api/v1/merges/{row.pk}/take/", {"content": " both\n"}, format="json")
    assert answer.status_code == 202
    assert ImageVersion.objects.get(pk=answer.json()["id"]).change["files"][0]["content"] == " both\n"  # type: ignore[index]
    assert api.post(f"/api/v1/merges/{row.pk}/keep/").status_code == 409
    api.force_authenticate(world.mallory)
    assert api.post(f"/api/v1/merges/{row.pk}/keep/").status_code == 404
