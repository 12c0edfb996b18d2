"""Which of the host's apt sources an image is built from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from images.builder.chroot.sources import UBUNTU, Archive, Source, sources
from images.builder.errors import BuildError
from images.builder.recipe import Recipe, RecipeFile

RECIPE = Recipe(name="plain", suite="bookworm")
KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"

DEB822 = f"""\
# Debian itself
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports trixie
Components: main contrib
Signed-By: {KEY}

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: {KEY}
"""


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_deb822_sources_are_cut_to_the_suite_and_the_components(apt: Path) -> None:
    (apt / "sources.list.d/debian.sources").write_text(DEB822)
    assert sources(RECIPE, apt) == [
        Source(("http://mirror.example/debian",), ("bookworm", "bookworm-updates"), ("main",), KEY),
        Source(("http://mirror.example/debian-security",), ("bookworm-security",), ("main",), KEY),
    ]


def test_one_line_sources_are_read_too(apt: Path) -> None:
    line = f"deb [arch=amd64 signed-by={KEY}] http://mirror.example/debian bookworm main  # why\n"
    (apt / "sources.list").write_text(f"# old\n{line}deb-src http://mirror.example/debian bookworm main\n")
    assert sources(RECIPE, apt) == [Source(("http://mirror.example/debian",), ("bookworm",), ("main",), KEY)]


def test_a_third_party_s_source_stays_out(apt: Path) -> None:
    (apt / "sources.list.d/debian.sources").write_text(DEB822)
    (apt / "sources.list.d/other.sources").write_text(
        "Types: deb\nURIs: http://other.example/debian\nSuites: bookworm\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/other.gpg\n"
    )
    (apt / "sources.list.d/another.list").write_text("deb http://another.example/apt bookworm main\n")
    (apt / "sources.list.d/off.sources").write_text(
        DEB822.replace("mirror.example", "off.example").replace("Types:", "Enabled: no\nTypes:")
    )
    assert {uri for source in sources(RECIPE, apt) for uri in source.uris} == {
        "http://mirror.example/debian",
        "http://mirror.example/debian-security",
    }


def test_a_file_of_mirrors_is_replaced_by_its_lines(apt: Path) -> None:
    (apt / "mirrors.list").write_text("http://mirror.example/debian\n")
    text = DEB822.replace("http://mirror.example/debian\n", f"mirror+file://{apt}/mirrors.list\n", 1)
    (apt / "sources.list.d/debian.sources").write_text(text)
    assert sources(RECIPE, apt)[0].uris == ("http://mirror.example/debian",)


def test_a_mirror_of_the_recipe_is_the_only_source(apt: Path) -> None:
    recipe = Recipe(name="plain", suite="sid", components=("main", "contrib"), mirror="http://m.example/debian")
    found = sources(recipe, apt)
    assert [str(source) for source in found] == [
        "Types: deb\nURIs: http://m.example/debian\nSuites: sid\nComponents: main contrib\n"
    ]


def test_a_suite_or_component_the_host_does_not_know_is_an_error_with_a_way_out(apt: Path) -> None:
    (apt / "sources.list.d/debian.sources").write_text(DEB822)
    with pytest.raises(BuildError, match=r"no Debian archive of sid .* give the recipe a mirror"):
        sources(Recipe(name="plain", suite="sid"), apt)
    with pytest.raises(BuildError, match="no component non-free of bookworm"):
        sources(Recipe(name="plain", suite="bookworm", components=("main", "non-free")), apt)


NOBLE = Recipe(name="plain", suite="noble", family="ubuntu", components=("main", "universe"))
POCKETS = "Suites: noble noble-updates noble-security\nComponents: main universe\n"


@pytest.fixture
def ubuntu(tmp_path: Path) -> Archive:
    """Ubuntu's archive on a host that has its keyring."""
    keyring = tmp_path / "ubuntu-archive-keyring.gpg"
    keyring.write_bytes(b"keys")
    return replace(UBUNTU, keyring=keyring)


def test_ubuntu_on_a_debian_host_comes_from_its_own_mirror_with_its_updates(apt: Path, ubuntu: Archive) -> None:
    (apt / "sources.list.d/debian.sources").write_text(DEB822)
    assert [str(source) for source in sources(NOBLE, apt, ubuntu)] == [
        f"Types: deb\nURIs: http://archive.ubuntu.com/ubuntu\n{POCKETS}Signed-By: {ubuntu.keyring}\n"
    ]
    [own] = sources(replace(NOBLE, mirror="http://mirror.example/ubuntu"), apt, ubuntu)
    assert str(own) == f"Types: deb\nURIs: http://mirror.example/ubuntu\n{POCKETS}Signed-By: {ubuntu.keyring}\n"


def test_ubuntu_on_an_ubuntu_host_comes_from_the_host_s_sources(apt: Path, ubuntu: Archive) -> None:
    (apt / "sources.list.d/ubuntu.sources").write_text(
        "Types: deb\nURIs: http://near.example/ubuntu\nSuites: noble noble-updates noble-backports\n"
        f"Components: main restricted universe\nSigned-By: {ubuntu.keyring}\n\n"
        "Types: deb\nURIs: http://other.example/ppa/ubuntu\nSuites: noble\nComponents: main\n"
        "Signed-By: /etc/apt/keyrings/ppa.gpg\n"
    )
    [source] = sources(NOBLE, apt, ubuntu)
    assert source.uris == ("http://near.example/ubuntu",)
    assert source.suites == ("noble", "noble-updates")


def test_without_ubuntu_s_key_the_error_says_where_to_get_or_put_it(apt: Path) -> None:
    nowhere = replace(UBUNTU, keyring=apt / "ubuntu-archive-keyring.gpg")
    with pytest.raises(
        BuildError, match=r"install the package ubuntu-keyring .* the file /etc/apt/keyrings/ubuntu.asc"
    ):
        sources(NOBLE, apt, nowhere)
    key = RecipeFile("/etc/apt/keyrings/ubuntu.asc", "-----BEGIN\n\nabc\n-----END\n")
    [source] = sources(replace(NOBLE, files=(key,)), apt, nowhere)
    assert str(source).endswith("Signed-By: \n -----BEGIN\n .\n abc\n -----END\n")
