"""A build of the family ubuntu by real mmdebstrap, from an archive that has Ubuntu's shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from images.builder.change import Change
from images.builder.chroot.debian import UBUNTU
from images.builder.director import Context, build
from images.builder.recipe import Recipe, RecipeFile
from images.builder.run import Runner
from images.builder.store import Store
from tests.builder import debs
from tests.builder.images import DAEMON, Recorded, Silent
from tests.builder.rpms import run
from tests.builder.signer import Signer

pytestmark = [pytest.mark.build, pytest.mark.slow, pytest.mark.root, pytest.mark.once]


def test_an_image_is_built_and_changed_from_all_pockets_with_the_key_of_the_recipe(tmp_path: Path) -> None:
    with Signer("archive@example.org") as signer:
        debs.archive(tmp_path / "archive", signer)
    recipe = Recipe(
        name="ubuntu",
        suite=debs.SUITE,
        family="ubuntu",
        components=("main", "universe"),
        mirror=f"copy:{tmp_path}/archive",
        files=(RecipeFile("/etc/apt/keyrings/ubuntu.asc", signer.public),),
    )
    store, steps = Store(tmp_path / "store"), Silent()
    manifest = build(recipe, Context(tmp_path / "work", store, DAEMON), steps)
    assert {"linux-image-generic", "kmod", "udev"} <= {package.name for package in manifest.packages}
    assert steps.steps[0].title == "Install Ubuntu noble and 0 packages"
    tree, runner = tmp_path / "tree", Runner(Recorded("change", "Change"))
    run("unsquashfs", "-quiet", "-no-progress", "-dest", tree, store.require(manifest.root))
    UBUNTU.change(recipe, tree, Change(install=("sl",)), tmp_path / "lists", runner)
    assert "sl" in {package.name for package in UBUNTU.packages(tree, runner)}
