"""What volatile rules would copy is told while they are typed and refused when it is too much, by a root that really lies packed."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.test import Client as Browser
from django.urls import reverse

from fleet.roles import Role
from images import weighing
from images.builder.errors import RecipeError
from images.builder.rootplan import plan
from images.builder.ruling import LIMIT_BYTES, MIB, Image, Weight, refuse_heavy, weigh
from images.builder.store import Store
from images.builder.tree import Entry, listing
from images.builder.volatile import DEBIAN, Verb, parse_rules
from images.models import Image as Recipe
from images.models import Storage, VersionStatus
from tests.images.stored import paths, store, stored_version
from tests.images.test_admin import as_, recipe_form
from tests.images.versions import make_image
from tests.world import World, member, person

__all__ = ["store"]

LARGE = LIMIT_BYTES + MIB


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A packed root with games of 65 MiB each, which are holes."""
    tree = tmp_path / "tree"
    for path, size in {
        "etc/motd": 12,
        "etc/default/x": 30,
        "opt/one": LARGE,
        "srv/a": 33 * MIB,
        "var/b": 1000,
    }.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        with (tree / path).open("wb") as file:
            file.truncate(size)
    (tree / "etc/alternatives").symlink_to("/var/b")
    (tree / "home/player").mkdir(parents=True)
    packed = tmp_path / "root"
    subprocess.run(["mksquashfs", tree, packed, "-quiet", "-no-progress", "-all-root"], check=True)
    return packed


@pytest.fixture
def image(world: World, store: Store, root: Path) -> Recipe:
    """An image with one ready version that has the root."""
    image = make_image(world.clubroom)
    stored_version(image, store, root=root.read_bytes())
    return image


def asked(user: User, image: Recipe, text: str) -> Any:
    return as_(user).post(reverse("admin:images_image_weigh", args=[image.pk]), {"volatile": text})


def viewer(world: World) -> User:
    seer = person("seer")
    member(seer, world.clubroom, Role.VIEWER)
    return seer


def saved(user: User, image: Recipe, text: str) -> str:
    """The page after the form was sent with these rules."""
    form = recipe_form(site=image.site_id, name=image.name, slug=image.slug, volatile=text)
    return as_(user).post(reverse("admin:images_image_change", args=[image.pk]), form, follow=True).content.decode()


def test_each_line_is_told_with_its_files_and_bytes(world: World, image: Recipe) -> None:
    answer = asked(
        world.vera, image, "# what changes\ncopy /etc\nshare /etc/default\r\ncopy /var/b/x\ncopy\n\nempty /opt"
    ).json()
    told = [(row["line"], row["rule"], row["files"], row["bytes"], row["problem"]) for row in answer["rules"]]
    assert told == [
        (2, "copy /etc", 1, 12, ""),
        (3, "share /etc/default", 0, 0, ""),
        (4, "copy /var/b/x", 0, 0, "'copy /var/b/x': /var/b is not a directory in the image"),
        (5, "copy", 0, 0, "'copy': '' is not absolute; start it with /"),
        (7, "empty /opt", 0, 0, ""),
    ]
    assert (answer["version"], answer["files"], answer["bytes"], answer["refusal"]) == ("gamer-1", 1, 12, "")
    assert answer["said"] == "1 file, 12\N{NO-BREAK SPACE}bytes"


def test_without_rules_those_of_the_family_are_told(world: World, image: Recipe) -> None:
    answer = asked(world.vera, image, "").json()
    assert [row["rule"] for row in answer["rules"]] == [str(rule) for rule in DEBIAN]
    assert (answer["files"], answer["bytes"]) == (3, 1042)


def test_a_version_weighs_as_its_build_would(root: Path, tmp_path: Path, image: Recipe) -> None:
    rules = parse_rules("copy /\nshare /opt\ncopy /e*\nshare /srv\nempty /var")
    found = weighing.weigh(image, rules)
    built = plan(listing(tmp_path / "tree"), rules, ["/home/player"])
    assert found is not None
    assert found.bytes == built.copied_bytes == 42


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "copy /etc\ncopy /opt",
            "'copy /opt' would copy 65 MiB into the memory of every client as gamer-1 has it (at most 64 MiB)",
        ),
        ("copy /*", "'copy /*' would copy 98 MiB"),
        ("copy /\nshare /opt\nshare /srv\ncopy /opt/*", "'copy /opt/*' would copy 65 MiB"),
        ("copy /etc\nshare /etc", "'share /etc' contradicts 'copy /etc'"),
    ],
)
def test_what_copies_too_much_is_told_while_typed_and_refused_when_saved(
    world: World, image: Recipe, text: str, said: str
) -> None:
    assert said in asked(world.vera, image, text).json()["refusal"]
    assert said in saved(world.vera, image, text).replace("&#x27;", "'")
    image.refresh_from_db()
    assert image.volatile == ""


def test_rules_that_are_too_much_together_are_refused_with_the_largest(
    world: World, image: Recipe, settings: Any
) -> None:
    settings.VOLATILE_MIB = 16
    shown = saved(world.vera, image, "copy /etc\ncopy /srv").replace("&#x27;", "'")
    assert (
        "the rules together would copy 33 MiB into the memory of every client as gamer-1 has it (at most 16 MiB)"
        in shown
    )
    assert "most of it 'copy /srv' 33 MiB" in shown
    settings.VOLATILE_MIB = 34
    assert "The volatile rules copy 2 files, 33.0" in saved(world.vera, image, "copy /srv\ncopy /etc/motd")


def test_at_the_limit_is_not_over_it() -> None:
    [rule] = parse_rules("copy /etc")
    refuse_heavy([Weight(rule, bytes=LIMIT_BYTES)], total_bytes=LIMIT_BYTES)
    for most, total in ((LIMIT_BYTES, 0), (0, LIMIT_BYTES)):
        with pytest.raises(RecipeError, match="would copy 64 MiB"):
            refuse_heavy([Weight(rule, bytes=LIMIT_BYTES + 1)], most, total)
    refuse_heavy([Weight(rule, bytes=1 << 50)], 0, 0)


def test_a_build_refuses_the_sum_too() -> None:
    tree = [Entry(f"/{name}", "f", size=30 * MIB) for name in "abc"]
    with pytest.raises(RecipeError, match=r"the rules together would copy 90 MiB .*\(at most 89 MiB\)"):
        plan(tree, parse_rules("copy /a\ncopy /b\ncopy /c"), total_bytes=89 * MIB)
    assert plan(tree, parse_rules("copy /*"), limit_bytes=0, total_bytes=90 * MIB).copied_bytes == 90 * MIB


def test_a_rule_for_a_path_in_another_s_takes_its_weight_from_it() -> None:
    image = Image([Entry("/a", "d"), Entry("/a/b", "d"), Entry("/a/b/c", "f", size=5), Entry("/a/d", "f", size=2)])
    rules = parse_rules("copy /a\ncopy /a/b\ncopy /none")
    assert [(weight.files, weight.bytes) for weight in weigh(image, rules)] == [(1, 2), (1, 5), (0, 0)]


def test_saved_rules_are_told_with_what_they_cost(world: World, image: Recipe) -> None:
    shown = saved(world.vera, image, "copy /etc\ncopy /var")
    assert "copy 3 files, 1.0\N{NO-BREAK SPACE}KB into the memory of every client, as gamer-1 has it" in shown
    assert "(copy /etc: 2 files, 42\N{NO-BREAK SPACE}bytes; copy /var: 1 file, 1000\N{NO-BREAK SPACE}bytes)" in shown
    assert "into the memory" not in saved(world.vera, image, "copy /etc\ncopy /var"), "nothing of them changed"


@pytest.mark.parametrize("fault", ["none", "building", "archived", "missing", "rubbish"])
def test_without_a_readable_version_the_build_is_left_to_refuse(
    world: World, image: Recipe, store: Store, fault: str
) -> None:
    version = image.versions.get()
    root = paths(store, version)["root"]
    if fault == "none":
        image = make_image(world.clubroom, "fresh")
    elif fault == "building":
        image = make_image(world.clubroom, "fresh")
        image.versions.create(number=1, recipe={}, status=VersionStatus.BUILDING)
    elif fault == "archived":
        image.versions.update(storage=Storage.CHUNKS)
    elif fault == "missing":
        root.unlink()
    else:
        size = root.stat().st_size
        root.chmod(0o644)
        root.write_bytes(b"x" * size)
    answer = asked(world.vera, image, "copy /opt").json()
    assert (answer["version"], answer["said"], answer["refusal"]) == ("", "", "")
    assert "was changed successfully" in saved(world.vera, image, "copy /opt")


def test_only_who_may_change_the_image_is_told(world: World, image: Recipe) -> None:
    assert asked(world.mallory, image, "copy /").status_code == 404
    assert asked(viewer(world), image, "copy /").status_code == 403
    assert as_(world.vera).get(reverse("admin:images_image_weigh", args=[image.pk])).status_code == 405
    strict = Browser(enforce_csrf_checks=True)
    strict.force_login(world.vera)
    assert strict.post(reverse("admin:images_image_weigh", args=[image.pk]), {"volatile": ""}).status_code == 403


def test_too_many_rules_are_neither_weighed_nor_saved(world: World, image: Recipe) -> None:
    text = "\n".join(f"{Verb.SHARE} /{number}" for number in range(501))
    answer = asked(world.vera, image, text).json()
    assert (answer["version"], answer["refusal"]) == ("", "501 rules are too many (at most 500); use globs")
    image.volatile = text
    with pytest.raises(ValidationError, match="501 rules are too many"):
        image.full_clean()


def test_the_page_has_the_script_for_who_may_change_it_only(world: World, image: Recipe) -> None:
    address = reverse("admin:images_image_change", args=[image.pk])
    assert "images/rules.js" in as_(world.vera).get(address).content.decode()
    assert "images/rules.js" not in as_(viewer(world)).get(address).content.decode()
    assert "images/rules.js" not in as_(world.vera).get(reverse("admin:images_image_add")).content.decode()
