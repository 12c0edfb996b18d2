"""What a layer is made of: the difference of two trees, laid over the first again by the kernel's own overlay."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from images.builder import difference, rootplan
from images.builder.difference import Difference
from images.builder.errors import RecipeError
from images.builder.layering import change_plan
from images.builder.recipe import Recipe
from images.builder.run import Runner
from images.builder.tree import Entry, listing
from images.builder.volatile import parse_rules
from tests.builder.images import PROJECT, Recorded

pytestmark = pytest.mark.root

RULES = parse_rules("copy /etc\ncopy /opt/*/state")


def nothing(_: Entry) -> bool:
    return False


@contextmanager
def overlay(tree: Path, *lower: Path, upper: Path | None = None) -> Iterator[Path]:
    tree.mkdir(exist_ok=True)
    options = f"lowerdir={':'.join(map(str, lower))}"
    if upper:
        work = upper.with_name("overlay-work")
        for directory in (upper, work):
            directory.mkdir()
        options += f",upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", tree], check=True)
    try:
        yield tree
    finally:
        subprocess.run(["umount", tree], check=True)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tree = tmp_path / "base"
    for name in ("etc/old", "usr/lib/gl", "opt/game", "home/player"):
        (tree / name).mkdir(parents=True)
    for name in (
        "etc/motd",
        "etc/hosts",
        "etc/old/one",
        "usr/lib/libGL.so.1",
        "usr/lib/libc.so.6",
        "usr/lib/gl/a",
        "usr/lib/gl/b",
    ):
        (tree / name).write_text(f"base {name}\n")
    (tree / "opt/game/start").write_text("go\n")
    return tree


def change(tree: Path) -> None:
    """What packages do: replace, remove, add, link, turn a file into a directory and a directory into another."""
    (tree / "usr/lib/libGL.so.1").unlink()
    (tree / "usr/lib/libGL.so.1").symlink_to("nv/libGL.so.1")
    (tree / "usr/lib/nv").mkdir()
    (tree / "usr/lib/nv/libGL.so.1").write_text("nvidia\n")
    os.link(tree / "usr/lib/nv/libGL.so.1", tree / "usr/lib/nv/hard")
    shutil.copy("/bin/true", tree / "usr/lib/nv/capable")
    subprocess.run(["setcap", "cap_net_raw+ep", tree / "usr/lib/nv/capable"], check=True)
    shutil.rmtree(tree / "usr/lib/gl")
    (tree / "usr/lib/gl").mkdir(mode=0o750)
    (tree / "usr/lib/gl/b").write_text("another b\n")
    (tree / "etc/hosts").write_text("BASE etc/hosts\n")  # nothing but its bytes tells
    (tree / "etc/motd").unlink()
    (tree / "etc/motd").mkdir()
    (tree / "etc/motd/now").write_text("a directory\n")
    shutil.rmtree(tree / "etc/old")
    (tree / "opt/game/state").mkdir()
    (tree / "opt/game/state/score").write_text("7\n")
    os.utime(tree / "usr/lib/libc.so.6", (1, 1))  # a time alone is no difference


def contents(tree: Path) -> list[tuple[object, ...]]:
    def content(one: Entry) -> bytes:
        return Path(f"{tree}{one.path}").read_bytes() if one.kind == "f" else b""

    return [
        (one.path, one.kind, one.mode, one.uid, one.target, one.capable, bool(one.inode), content(one))
        for one in listing(tree)
    ]


@pytest.mark.parametrize("noted", [True, False], ids=["by the overlay", "by reading all"])
def test_the_difference_laid_over_the_first_tree_gives_the_second(base: Path, tmp_path: Path, noted: bool) -> None:
    upper = tmp_path / "upper"
    with overlay(tmp_path / "tree", base, upper=upper) as tree:
        change(tree)
        found = difference.compare(base, tree, upper if noted else None, nothing)
        difference.stage(found, tree, tmp_path / "layer", Runner(Recorded("stage", "")))
        wanted = contents(tree)
    assert found.removed == ("/etc/old", "/usr/lib/gl/a")
    assert "/usr/lib/libc.so.6" not in {one.path for one in found.changed}
    packed = tmp_path / "layer.squashfs"
    subprocess.run(["mksquashfs", tmp_path / "layer", packed, "-quiet", "-no-progress", "-xattrs"], check=True)
    (tmp_path / "mounted").mkdir()
    subprocess.run(["mount", "-o", "loop,ro", packed, tmp_path / "mounted"], check=True)
    try:
        with overlay(tmp_path / "seen", tmp_path / "mounted", base) as seen:
            assert contents(seen) == wanted
    finally:
        subprocess.run(["umount", tmp_path / "mounted"], check=True)
    assert not (tmp_path / "layer/usr/lib/libc.so.6").exists()
    assert stat.S_ISCHR((tmp_path / "layer/usr/lib/gl/a").lstat().st_mode)


def test_what_is_left_out_is_neither_changed_nor_removed(base: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(base, tree)
    (tree / "etc/motd").write_text("other\n")
    (tree / "etc/old/one").unlink()
    assert difference.compare(base, tree, None, lambda one: one.path.startswith("/etc")) == Difference((), ())
    assert difference.compare(base, tree, None, nothing).removed == ("/etc/old/one",)


def test_a_file_in_the_place_of_a_link_to_a_directory_is_compared_with_nothing_behind_the_link(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for name in (before / "real", after / "real", after / "link"):
        name.mkdir(parents=True)
    (before / "link").symlink_to("real")
    for path in (before / "real/same", after / "real/same", after / "link/same"):
        path.write_text("same\n")
    changed = [one.path for one in difference.compare(before, after, None, nothing).changed]
    assert changed == ["/link", "/link/same"]


def test_the_plan_of_a_layer_over_that_of_the_version_gives_the_plan_of_both(base: Path, tmp_path: Path) -> None:
    """/opt was one link into the share; with the layer a rule's glob finds something in it, so it is a directory."""
    recipe = Recipe(name="x", suite="bookworm", volatile=RULES)
    tree = tmp_path / "tree"
    shutil.copytree(base, tree, symlinks=True)
    change(tree)
    found = difference.compare(base, tree, None, nothing)
    plan, real = change_plan(base, tree, recipe, found, tmp_path / "plan.1", 0)
    assert real == ("/opt",)
    plans = [rootplan.plan(listing(one), recipe.volatile, ["/home/player"]) for one in (base, tree)]
    rootplan.archive(plans[0], base, tmp_path / "plan")
    rootplan.archive(plans[1], tree, tmp_path / "whole")
    for name in ("plan", "whole"):
        (tmp_path / f"from-{name}").mkdir()
        script = f"exec busybox sh {PROJECT}/images/initrd/unpack {tmp_path / name}"
        place = {"PATH": str(programs(tmp_path))}
        subprocess.run(["/bin/sh", "-c", script], cwd=tmp_path / f"from-{name}", check=True, env=place)
    assert contents(tmp_path / "from-plan") == contents(tmp_path / "from-whole")
    assert [one.path for one in plan.copies] == ["/etc/hosts", "/etc/motd/now", "/opt/game/state/score"]


def test_a_layer_with_which_the_rules_copy_too_much_is_refused_and_its_version_alone_is_not(
    base: Path, tmp_path: Path
) -> None:
    recipe, tree = Recipe(name="x", suite="bookworm", volatile=RULES), tmp_path / "tree"
    shutil.copytree(base, tree, symlinks=True)
    with (tree / "etc/large").open("wb") as file:
        file.truncate(2 << 20)
    found = difference.compare(base, tree, None, nothing)
    with pytest.raises(RecipeError, match=r"the rules together would copy 2\.0 MiB .*\(at most 1\.0 MiB\)"):
        change_plan(base, tree, recipe, found, tmp_path / "plan", 0, 1 << 20)
    (tree / "etc/large").rename(base / "etc/large")
    plan, _ = change_plan(base, tree, recipe, found, tmp_path / "plan", 0, 1 << 20)
    assert plan.copied_bytes == 0


def programs(place: Path) -> Path:
    """busybox's applets alone, as in the initrd."""
    directory = place / "programs"
    if not directory.is_dir():
        directory.mkdir()
        busybox = shutil.which("busybox")
        assert busybox, "install Debian's busybox-static"
        for name in ("busybox", "cpio", "rm", "sh"):
            (directory / name).symlink_to(busybox)
    return directory
