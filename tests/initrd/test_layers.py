"""Driver layers on running PCs: two sets of libraries at the same paths, each PC sees its own, on every kind of root."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from images.builder import difference, rootplan
from images.builder.layering import change_plan
from images.builder.recipe import Recipe
from images.builder.run import Runner
from images.builder.tree import listing
from images.builder.verity import seal
from images.builder.volatile import DEBIAN, parse_rules
from tests.builder.images import Recorded
from tests.initrd.conftest import boot
from tests.initrd.gateway import Form, Gateway, Layer, Version, sha256
from tests.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.build, pytest.mark.root]

RECIPE = Recipe(name="x", suite="bookworm", volatile=(*DEBIAN, *parse_rules("copy /opt/*/state")))
GL = "usr/lib/gl/libGL.so.1"
SHOW = f"""#!/bin/busybox sh
exec >/dev/console 2>&1
echo 1 >/proc/sys/kernel/printk
for file in /{GL} /etc/ld.so.cache /etc/X11/* /opt/*/state; do echo "SEES $file: $(/bin/busybox cat "$file")"; done
echo "SEES /usr/lib/gl:" $(cd /usr/lib/gl && echo *)
echo changed >/etc/ld.so.cache && echo CAN WRITE ETC
echo changed >/opt/nvidia/state && echo CAN WRITE OPT
echo changed >/.ro/{GL} || echo CANNOT WRITE THE SHARE
/bin/busybox stat -c 'LEFT %n' /.gone /usr/lib/gl/.gone
while read -r _ at type options _; do
    case $at in / | /.ro) echo "MOUNT $at $type ${{options%%,*}}" ;; esac
done </proc/mounts
echo THAT IS ALL
/bin/busybox stty onlcr </dev/console # waits until all that was said is sent
/bin/busybox poweroff -f
"""
# What a PC says of itself, by its adapter. QEMU's cirrus is PCI 1013:00b8, its ati 1002:5046.
LOOKS = {
    "cirrus": [
        "libGL.so.1: i810 with DRI",
        "/usr/lib/gl: dri libGL.so.1 swrast.so",
        "ld.so.cache: i810",
        "/etc/X11/*: ",
    ],
    "ati": [
        *("libGL.so.1: nvidia's own", "/usr/lib/gl: libGL.so.1", "ld.so.cache: base", "/etc/X11/xorg.conf: nvidia"),
        "/opt/nvidia/state: new",
    ],
}
IDS = {"cirrus": "1013:00b8", "ati": "1002:5046"}
TYPES = {"symlink": "tmpfs", "bind": "tmpfs", "overlay": "overlay"}


def i810(tree: Path) -> None:
    (tree / GL).write_text("i810 with DRI\n")
    (tree / "usr/lib/gl/dri").write_text("a driver\n")
    (tree / "etc/ld.so.cache").write_text("i810\n")


def nvidia(tree: Path) -> None:
    """Hides a file of the version, and has one that a rule makes writable where nothing was before."""
    (tree / GL).write_text("nvidia's own\n")
    (tree / "usr/lib/gl/swrast.so").unlink()
    (tree / "etc/X11").mkdir()
    (tree / "etc/X11/xorg.conf").write_text("nvidia\n")
    (tree / "opt/nvidia").mkdir()
    (tree / "opt/nvidia/state").write_text("new\n")


@dataclass
class Two:
    """A version, and its layer by the adapter it is for."""

    version: Version
    layers: dict[str, Layer]


@pytest.fixture(scope="module")
def two(image: Version, small: Version, tmp_path_factory: pytest.TempPathFactory) -> Two:
    work = tmp_path_factory.mktemp("layers")
    tree = work / "tree"
    shutil.copytree(small.root.parent / "tree", tree, symlinks=True)
    for name in ("usr/lib/gl", "opt/game"):
        (tree / name).mkdir(parents=True)
    for name, content in ((GL, "base\n"), ("usr/lib/gl/swrast.so", "base\n"), ("etc/ld.so.cache", "base\n")):
        (tree / name).write_text(content)
    (tree / "sbin/init").write_text(SHOW)
    rootplan.archive(rootplan.plan(listing(tree), RECIPE.volatile, ["/home/player"]), tree, work / "plan")
    squash(tree, work / "root")
    version = Version(image.kernel, image.initrd, work / "root", work / "plan", small.home, seal(work / "root"))
    return Two(version, {"cirrus": made(tree, work / "i810", i810), "ati": made(tree, work / "nvidia", nvidia)})


def made(base: Path, place: Path, change: Callable[[Path], None]) -> Layer:
    """As layering.build does it, on a tree that no package manager made."""
    place.mkdir()
    shutil.copytree(base, place / "tree", symlinks=True)
    change(place / "tree")
    found = difference.compare(base, place / "tree", None, lambda _: False)
    change_plan(base, place / "tree", RECIPE, found, place / "plan", 0)
    difference.stage(found, place / "tree", place / "stage", Runner(Recorded("stage", "")))
    squash(place / "stage", place / "root")
    return Layer(place / "root", place / "plan", seal(place / "root"))


def squash(tree: Path, output: Path) -> None:
    subprocess.run(["mksquashfs", tree, output, "-quiet", "-no-progress", "-noappend"], check=True, capture_output=True)


@pytest.mark.parametrize("kind", TYPES)
def test_each_of_two_pcs_sees_the_libraries_of_its_own_adapter(two: Two, kind: str) -> None:
    """At the same time, at one server that knows their classes by their adapters."""
    versions = {IDS[gpu]: replace(two.version, kind=kind, layers=(layer,)) for gpu, layer in two.layers.items()}

    def plan(asked: Form) -> str:
        return next(version.boot_plan() for adapter, version in versions.items() if adapter in asked["pci"])

    with Gateway(two.version, [plan]) as gateway, Lab(gateway.port, network="user") as lab:
        gateway.files |= {sha256(path): path for layer in two.layers.values() for path in (layer.root, layer.plan)}
        pcs = {gpu: lab.pc(f"pc-{gpu}", gpu=(gpu,), memory_mib=512) for gpu in LOOKS}
        for pc in pcs.values():
            boot(gateway, pc)
        seen = {}
        for gpu, pc in pcs.items():
            pc.wait_for("THAT IS ALL", 180)
            pc.wait_off(30)
            seen[gpu] = pc.console.text
    assert gateway.troubles == []
    for gpu, text in seen.items():
        mounts = (f"MOUNT / {TYPES[kind]} rw", "MOUNT /.ro overlay ro")
        for line in (*LOOKS[gpu], "CAN WRITE ETC", "CANNOT WRITE THE SHARE", *mounts):
            assert line in text, (gpu, line)
        assert "LEFT" not in text
    assert [gpu for gpu, text in seen.items() if "CAN WRITE OPT" in text] == ["ati"]


def test_a_layer_that_is_damaged_is_refused_and_reported(two: Two) -> None:
    version = replace(two.version, layers=(two.layers["ati"],))
    with Gateway(version) as gateway, Lab(gateway.port, network="user") as lab:
        pc = lab.pc(memory_mib=512)
        gateway.spoil[version.layers[0].line().partition(",")[0]] = ["middle"] * 2
        boot(gateway, pc)
        trouble = gateway.wait_for_trouble()
        assert (trouble["stage"], trouble["error"]) == ("verify", "digest-mismatch")
        assert "Layer 1 of gamer-7 is damaged" in trouble["detail"]
