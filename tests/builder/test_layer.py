"""Driver layers over a real version: what is in one, that the version is not touched, and what none may do."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from images.builder import layer
from images.builder.change import Change
from images.builder.director import Context, derive
from images.builder.director import layer as build_layer
from images.builder.errors import RecipeError
from images.builder.layer import LayerManifest
from images.builder.manifest import Manifest
from images.builder.recipe import RecipeFile
from images.builder.store import Artefact, Store
from tests.builder.images import CACHE, DAEMON, SMALL, Silent, built_image

GL = "/usr/lib/x86_64-linux-gnu/libGL.so.1"


@pytest.fixture(scope="module")
def place() -> Iterator[Context]:
    """A store of the tests' own with the version in it; its unpacked tree serves all of them."""
    _, store = built_image()
    top = CACHE / "layers"
    shutil.rmtree(top, ignore_errors=True)
    shutil.copytree(store.root, top / "store", copy_function=os.link)
    yield Context(top / "work", Store(top / "store"), DAEMON)
    shutil.rmtree(top)


@pytest.fixture(scope="module")
def version() -> Manifest:
    return built_image()[0]


@pytest.mark.build
@pytest.mark.slow
@pytest.mark.root
def test_a_layer_has_what_packages_files_and_script_make_different_and_nothing_else(
    place: Context, version: Manifest
) -> None:
    script = f"""
        printf nvidia >{GL}
        mkdir /opt/gl && cp /lib/x86_64-linux-gnu/libz.so.1 /opt/gl/libown.so.1
        echo /opt/gl >/etc/ld.so.conf.d/own.conf && ldconfig
    """
    files = (RecipeFile("/etc/X11/xorg.conf.d/20-nvidia.conf", "Driver\n"), RecipeFile("/etc/motd", "A layer.\n"))
    change = layer.wanted(SMALL, install=("hello",), files=files, script=script)
    before, steps = sorted(place.store.artefacts(), key=str), Silent()
    made = build_layer(version.digest, SMALL, change, place, steps)
    assert LayerManifest.load(place.store, made.digest) == made
    assert Manifest.load(place.store, version.digest) == version
    assert len(list(place.store.artefacts())) == len(before) + 3  # root, plan, manifest
    assert [package.name for package in made.packages] == ["hello"]
    assert {GL, "/usr/bin/hello", "/etc/motd", "/etc/ld.so.cache", "/opt/gl/libown.so.1"} <= set(made.files)
    assert not [
        path for path in made.files if path.startswith(("/var/lib/dpkg", "/var/lib/apt", "/var/cache", "/boot"))
    ]
    assert made.root.bytes < 2 << 20
    # /etc is copied on clients: those files are in the plan; /usr is not, its are only in the squashfs.
    root = place.work / "look"
    subprocess.run(["unsquashfs", "-q", "-n", "-d", root, place.store.require(made.root)], check=True)
    assert (root / "etc/motd").read_text() == "A layer.\n"
    assert (root / f".{GL}").read_text() == "nvidia"
    with place.store.require(made.plan).open("rb") as plan:
        names = subprocess.run(["busybox", "cpio", "-t"], stdin=plan, capture_output=True, check=True, text=True).stdout
    assert names.split()[0] == ".gone"
    assert {"etc/motd", "etc/ld.so.cache", "etc/X11/xorg.conf.d/20-nvidia.conf"} <= set(names.split())
    assert "etc/passwd" not in names.split()
    assert not [name for name in names.split() if name.startswith("usr/")]
    assert steps.names == ["open", "packages", "configure", "script", "finish", "compare", "plan", "pack", "store"]
    again = build_layer(version.digest, SMALL, change, place, Silent())
    assert again.digest == made.digest


@pytest.mark.build
@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize(
    ("values", "field", "reason"),
    [
        ({"install": ("no-such-package",)}, "install", "no-such-package"),
        ({"script": "true"}, "layer", "it is empty: the version has all of that already"),
        ({"script": "echo >/boot/vmlinuz-9"}, "layer", "changes the kernel (/boot/vmlinuz-9)"),
        ({"script": "mkdir -p /lib/modules/9/extra"}, "layer", "changes the kernel (/usr/lib/modules/9)"),
        ({"script": "rm -r /lib/modules/*/kernel/fs"}, "layer", "changes the kernel"),
        ({"script": "echo >/home/player/.config"}, "layer", "/home/player/.config is in the home of the user"),
        ({"script": "usermod -d /srv player"}, "layer", "changes the account of player"),
        ({"script": "rm /usr/bin/tmux"}, "script", "it removes /usr/bin/tmux of the version"),
        ({"script": "exit 3"}, "hooks", "'script' failed"),
    ],
)
def test_what_no_layer_may_do_is_refused_by_name_and_leaves_nothing(
    place: Context, version: Manifest, values: dict[str, object], field: str, reason: str
) -> None:
    before = sorted(place.store.artefacts(), key=str)
    with pytest.raises(RecipeError) as refused:
        build_layer(version.digest, SMALL, layer.wanted(SMALL, **values), place, Silent())
    assert (refused.value.field, reason in str(refused.value)) == (field, True), refused.value
    assert sorted(place.store.artefacts(), key=str) == before
    assert list(place.work.glob("scratch-*")) == []


@pytest.mark.build
@pytest.mark.slow
@pytest.mark.root
def test_a_file_may_be_diverted_as_packages_do_it(place: Context, version: Manifest) -> None:
    """As glx-diversions does it: dpkg moves the version's file away, another takes its place."""
    script = "dpkg-divert --local --rename --divert /usr/bin/tmux.base --add /usr/bin/tmux && ln -s hello /usr/bin/tmux"
    made = build_layer(version.digest, SMALL, Change.of(SMALL, install=("hello",), script=script), place, Silent())
    assert {"/usr/bin/tmux", "/usr/bin/tmux.base"} <= set(made.files)


@pytest.mark.build
@pytest.mark.slow
@pytest.mark.root
def test_a_layer_over_a_derived_version_has_nothing_of_what_that_changed(place: Context, version: Manifest) -> None:
    derived = derive(
        version.digest, SMALL, Change.of(SMALL, script="echo 1 >/etc/derived; rm /etc/motd"), place, Silent()
    )
    change = layer.wanted(SMALL, files=(RecipeFile("/etc/layer", "2\n"),))
    steps = Silent()
    made = build_layer(derived.digest, SMALL, change, place, steps)
    assert (made.base, list(made.files)) == (derived.digest, ["/etc/layer"])
    assert ":" in next(word for command in steps.steps[0].commands for word in command if "lowerdir=" in word)
    assert made.digest != build_layer(version.digest, SMALL, change, place, Silent()).digest


def manifest(**values: object) -> LayerManifest:
    some = Artefact("a" * 64, 4096)
    common = {"base": "b" * 64, "change": {}, "root": some, "root_hash": "c" * 128, "root_blocks": 1, "plan": some}
    more = {"packages": (), "volatile": {}, "files": {}, "real": (), "unpacked_bytes": 0, "epoch": 0}
    return LayerManifest(**{**common, **more, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other", "path"),
    [
        ({"files": {GL: "1"}}, {"files": {GL: "2"}}, GL),
        ({"files": {GL: "1"}}, {"files": {GL: "1", "/a": "2"}}, ""),
        ({"files": {GL: "1"}}, {"files": {GL: ""}}, GL),
        ({"files": {"/opt/x": "1"}}, {"files": {"/opt/x/y": "1"}}, "/opt/x/y"),
        ({"files": {"/opt/x": "1"}}, {"files": {"/opt/xy": "1"}}, ""),
        ({"real": ("/opt",), "files": {"/opt/a": "1"}}, {"files": {"/opt/b": "1"}}, "/opt/b"),
    ],
)
def test_two_layers_that_say_different_things_of_a_path_clash_there(
    one: dict[str, object], other: dict[str, object], path: str
) -> None:
    first, second = manifest(**one), manifest(**other)
    assert layer.clash(first, second) == layer.clash(second, first) == path


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "install"),
        ({"remove": ("tmux",)}, "layer"),
        ({"install": ("Bad Name",)}, "install"),
        ({"files": (RecipeFile("/home/player/x", ""),)}, "files"),
    ],
)
def test_what_cannot_be_a_layer_is_refused_while_it_is_typed(values: dict[str, object], field: str) -> None:
    with pytest.raises(RecipeError) as refused:
        layer.wanted(SMALL, **values)
    assert refused.value.field == field


def test_a_layer_can_be_written_and_read() -> None:
    made = manifest(files={GL: "1"}, real=("/opt",))
    assert LayerManifest.from_dict(made.to_dict()) == made
