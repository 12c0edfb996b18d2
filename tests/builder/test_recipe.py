"""What a recipe takes and refuses."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from images.builder.errors import RecipeError
from images.builder.recipe import Hook, Recipe, RecipeFile
from images.builder.volatile import Rule, Verb, parse_rules

FULL = Recipe(
    name="gamer",
    suite="bookworm",
    components=("main", "contrib"),
    packages=("tmux", "libstdc++6", "bash=5.2.15-2+b9", "wine:i386"),
    files=(RecipeFile("/etc/motd", "Grüß Gott\n", 0o600),),
    hooks=(Hook("fetch the game", "echo ok\n"),),
    volatile=parse_rules("copy /etc\nshare /etc/ssl/*\nempty /tmp"),
    user="player-1",
    uid=1234,
    home_files=(RecipeFile(".config/x", "y"),),
    mirror="http://mirror.example/debian",
)


def test_a_recipe_survives_its_json() -> None:
    assert Recipe.from_dict(json.loads(json.dumps(FULL.to_dict()))) == FULL


def test_the_digest_is_of_the_content_and_not_of_the_order_of_keys() -> None:
    shuffled = dict(reversed(list(FULL.to_dict().items())))
    assert Recipe.from_dict(shuffled).digest == FULL.digest
    assert Recipe.from_dict({**FULL.to_dict(), "uid": 1235}).digest != FULL.digest


def test_what_is_left_out_has_defaults_that_keep_a_debian_system_writable_where_it_writes() -> None:
    recipe = Recipe.from_dict({"name": "plain", "suite": "bookworm"})
    assert Rule(Verb.COPY, "/etc") in recipe.volatile
    assert recipe.user == "player"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Gamer"),
        ("name", "-x"),
        ("suite", "book worm"),
        ("suite", "../x"),
        ("family", "beos"),
        ("components", []),
        ("components", ["main; rm"]),
        ("packages", ["Tmux"]),
        ("packages", ["--allow-unauthenticated"]),
        ("packages", ["a,b"]),
        ("packages", "tmux"),
        ("packages", [7]),
        ("files", [{"path": "etc/motd", "content": ""}]),
        ("files", [{"path": "/etc/../motd", "content": ""}]),
        ("files", [{"path": "/etc//motd", "content": ""}]),
        ("files", [{"path": "/", "content": ""}]),
        ("files", [{"path": "/run/x", "content": ""}]),
        ("files", [{"path": "/home/player/x", "content": ""}]),
        ("files", [{"path": "/etc/x\n", "content": ""}]),
        ("files", [{"path": "/etc/x", "content": "", "mode": "0999"}]),
        ("files", [{"path": "/etc/x", "content": "", "mode": "77777"}]),
        ("files", [{"path": "/etc/x"}]),
        ("files", [{"path": "/etc/x", "content": "1"}, {"path": "/etc/x", "content": "2"}]),
        ("home_files", [{"path": "/etc/x", "content": ""}]),
        ("home_files", [{"path": "../x", "content": ""}]),
        ("hooks", [{"name": "", "script": "true"}]),
        ("hooks", [{"name": "x\n", "script": "true"}]),
        ("hooks", ["true"]),
        ("volatile", ["move /etc"]),
        ("volatile", ["copy etc"]),
        ("volatile", ["copy /etc/../root"]),
        ("volatile", ["copy"]),
        ("volatile", ["copy /proc/x"]),
        ("user", "root user"),
        ("user", "Player"),
        ("user", "a" * 33),
        ("uid", 0),
        ("uid", 999),
        ("uid", 65534),
        ("uid", True),
        ("mirror", "deb http://x"),
        ("mirror", "ftp://x"),
    ],
)
def test_what_cannot_be_built_is_refused_by_the_name_of_its_field(field: str, value: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict({"name": "plain", "suite": "bookworm", field: value})
    assert caught.value.field == field


RPM = {
    "name": "plain",
    "family": "rpm",
    "suite": "42",
    "mirror": "https://mirror.example/fedora/$releasever/$basearch/os",
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suite", "4 2"),
        ("suite", "../42"),
        ("suite", ""),
        ("components", ["main", "contrib"]),
        ("packages", ["--nogpgcheck"]),
        ("packages", ["*"]),
        ("packages", ["@core"]),
        ("packages", ["/usr/bin/tmux"]),
        ("packages", ["a b"]),
        ("packages", ["tmux\n"]),
        ("mirror", ""),
        ("mirror", " "),
        ("mirror", "https://mirror.example/ ftp://mirror.example/"),
        ("mirror", "copy:/srv/packages"),
        ("mirror", "https://mirror.example/\x01"),
        ("mirror", "https://mirror.example/[other]"),
    ],
)
def test_what_dnf_would_not_take_is_refused_by_the_name_of_its_field(field: str, value: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict({**RPM, field: value})
    assert caught.value.field == field
    assert not re.search("Debian|apt|deb ", str(caught.value))


def test_names_versions_and_several_repositories_of_rpm_packages_are_taken() -> None:
    packages = (
        "tmux",
        "libstdc++",
        "glibc.i686",
        "python3.12",
        "NetworkManager-wifi",
        "vim-2:9.1.083-1.fc42",
        "xorg-x11_1~rc1^2",
    )
    two = f"{RPM['mirror']} file:///srv/ours"
    recipe = Recipe.from_dict({**RPM, "packages": list(packages), "mirror": two})
    assert (recipe.packages, recipe.mirror) == (packages, two)


def test_volatile_rules_that_a_recipe_leaves_out_are_its_family_s() -> None:
    assert Rule(Verb.SHARE, "/var/lib/rpm") in Recipe.from_dict(RPM).volatile
    assert Rule(Verb.SHARE, "/var/lib/dpkg") in Recipe(name="plain", suite="noble", family="ubuntu").volatile
    own = Recipe.from_dict({**RPM, "volatile": ["copy /etc"]})
    assert own.volatile == (Rule(Verb.COPY, "/etc"),)
    assert Recipe.from_dict(own.to_dict()) == own


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(RecipeError, match="package"):
        Recipe.from_dict({"name": "plain", "suite": "bookworm", "package": ["tmux"]})


def test_a_suite_is_required() -> None:
    with pytest.raises(RecipeError, match="suite: missing"):
        Recipe.from_dict({"name": "plain"})


def test_comments_and_blank_lines_are_no_rules() -> None:
    assert parse_rules("# why\n\n  copy   /etc  \n") == (Rule(Verb.COPY, "/etc"),)
