"""What people are told of volatile files that came, went or changed with a version."""

from pathlib import Path

import pytest
from django.core.exceptions import ValidationError
from django.test import Client as Browser
from rest_framework.test import APIClient

from images import volatility
from images.builder import plandiff
from images.builder.cpio import Archive
from images.builder.families import FAMILIES
from images.builder.store import Store
from images.builder.volatile import parse_rules, refuse_rules
from images.models import Image, ImageVersion, VersionStatus
from tests.images.stored import store, stored_version
from tests.images.versions import make_image, make_version
from tests.world import World

__all__ = ["store"]


def plan(path: Path, files: dict[str, bytes], mode: int = 0o644) -> Path:
    with path.open("wb") as stream, Archive(stream) as archive:
        archive.directory(".")
        archive.symlink("usr", "/.ro/usr")
        for name, content in files.items():
            archive.file(name, content, mode)
    return path


def version_with(image: Image, store: Store, at: Path, files: dict[str, bytes], salt: str) -> ImageVersion:
    return stored_version(image, store, salt, plan=plan(at / f"plan{salt}", files).read_bytes())


def test_files_that_came_went_or_changed_are_told_with_their_memory(tmp_path: Path) -> None:
    old = plan(tmp_path / "old", {"etc/a": b"1234", "etc/b": b"x", "etc/same": b"s"})
    new = plan(tmp_path / "new", {"etc/a": b"12345", "etc/same": b"s", "var/n": b"12345678"})
    assert plandiff.difference(old, new) == {
        "added": [{"path": "/var/n", "bytes": 8}],
        "removed": [{"path": "/etc/b", "bytes": -1}],
        "changed": [{"path": "/etc/a", "bytes": 1}],
        "counts": {"added": 1, "removed": 1, "changed": 1},
        "bytes": 8,
    }


def test_a_file_whose_rights_alone_changed_has_changed(tmp_path: Path) -> None:
    old, new = plan(tmp_path / "old", {"a": b"1"}), plan(tmp_path / "new", {"a": b"1"}, 0o600)
    assert plandiff.difference(old, new)["changed"] == [{"path": "/a", "bytes": 0}]


def test_many_files_are_counted_in_full_but_not_all_listed(tmp_path: Path) -> None:
    new = plan(tmp_path / "new", {f"var/{number}": b"12" for number in range(300)})
    found = plandiff.difference(plan(tmp_path / "old", {}), new)
    assert (len(found["added"]), found["counts"]["added"], found["bytes"]) == (200, 300, 600)


@pytest.mark.parametrize("cut", [10, 115, 300])
def test_a_plan_that_is_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    whole = plan(tmp_path / "plan", {"a": b"1" * 1000})
    whole.write_bytes(whole.read_bytes()[:cut])
    with pytest.raises(ValueError, match="ends in mid-file"):
        plandiff.volatile_files(whole)


def test_a_version_is_compared_with_its_parent_or_else_the_last_ready_one(world: World) -> None:
    image = make_image(world.clubroom)
    first, second = make_version(image), make_version(image)
    make_version(image, VersionStatus.FAILED)
    full = make_version(image, VersionStatus.BUILDING)
    assert volatility.predecessor(full) == second
    full.parent = first
    assert volatility.predecessor(full) == first
    assert volatility.predecessor(first) is None


def test_a_predecessor_without_a_readable_plan_costs_the_comparison_not_the_version(
    world: World, store: Store, tmp_path: Path
) -> None:
    image = make_image(world.clubroom)
    stored_version(image, store, "noise")
    new = version_with(image, store, tmp_path, {"a": b"1"}, "new")
    assert new.contents is not None
    found = volatility.compare(new, new.contents, store)
    assert found is not None
    assert found["against"] == "gamer-1"
    assert "not a cpio archive" in found["failure"]


def test_page_and_api_show_the_difference_to_those_who_may_see_the_version(
    world: World, store: Store, tmp_path: Path
) -> None:
    image = make_image(world.clubroom)
    version_with(image, store, tmp_path, {}, "old")
    new = version_with(image, store, tmp_path, {"var/lib/<new>": b"12345"}, "new")
    assert new.contents is not None
    change = volatility.compare(new, new.contents, store)
    ImageVersion.objects.filter(pk=new.pk).update(volatile_change=change)
    browser, api, stranger = Browser(), APIClient(), APIClient()
    browser.force_login(world.vera)
    page = browser.get(f"/admin/images/imageversion/{new.pk}/change/").content.decode()
    assert "compared with gamer-1" in page
    assert "/var/lib/&lt;new&gt;" in page
    assert "1 new, 0 gone, 0 changed" in page
    api.force_authenticate(world.vera)
    assert api.get(f"/api/v1/versions/{new.pk}/").json()["volatile_change"] == change
    stranger.force_authenticate(world.mallory)
    assert stranger.get(f"/api/v1/versions/{new.pk}/").status_code == 404


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("copy /var/lib/x\nshare /var/lib/x", "'share /var/lib/x' contradicts 'copy /var/lib/x'"),
        ("copy /var/lib/*\nempty /var/lib/*", "contradicts"),
        ("copy /var/**", "neither matches a /"),
        ("copy /var/[ab", "not closed"),
        ("copy /var/[a/b]", "not closed"),
        ("copy /var/[]", "not closed"),
        ("copy /var/[!]", "not closed"),
        ("move /var", "does not start with"),
    ],
)
def test_rules_nobody_means_are_refused_by_name_while_they_are_typed(world: World, rules: str, said: str) -> None:
    image = make_image(world.clubroom)
    image.volatile = rules
    with pytest.raises(ValidationError) as caught:
        image.clean()
    assert said in caught.value.message_dict["volatile"][0]


def test_rules_that_mean_something_pass() -> None:
    refuse_rules(parse_rules("copy /var/[ab]*\ncopy /var/[!]x]\ncopy /var/[[]\ncopy /etc\ncopy /etc\nshare /etc/a"))
    for family in FAMILIES.values():
        refuse_rules(family.volatile)
