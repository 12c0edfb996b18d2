"""The root of a version opened for changes; the version itself is not touched."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from contextlib import ExitStack
from pathlib import Path

from images.builder import apart
from images.builder.chroot import inside
from images.builder.errors import BuildError
from images.builder.manifest import Manifest
from images.builder.recipe import Recipe
from images.builder.run import Runner
from images.builder.store import Store
from images.builder.trees import Trees, merged, unpack


def open_root(
    opened: ExitStack, parent: Manifest, recipe: Recipe, store: Store, trees: Trees, place: Path, run: Runner
) -> bool:
    """Have `place/tree` show the root of `parent` with its kernel and home, as long as `opened` is.

    What is changed in it lands in `place/upper`, if the kernel has overlays (then this returns True), else in the tree itself.
    A place that was opened before shows what was changed then.
    """
    tree, upper = place / "tree", place / "upper"
    layers = opened.enter_context(trees.layers(parent.root, store, run))
    fresh = not upper.exists()
    for directory in (tree, upper):
        directory.mkdir(exist_ok=True)
    layered = opened.enter_context(merged(layers, upper, tree, run))
    if fresh:
        kernel = tree / "boot" / f"vmlinuz-{parent.kernel_release}"
        if not kernel.parent.is_dir():  # of a family that keeps it beside its modules
            kernel = inside.locate(tree, f"/lib/modules/{parent.kernel_release}") / "vmlinuz"
        shutil.copyfile(store.require(parent.kernel), kernel)
        home = tree / "home" / recipe.user
        unpack(store.require(parent.home), home, run, over=True)
    return layered


def shell(place: Path, parent: Manifest, recipe: Recipe, store: Store, trees: Trees, run: Runner) -> None:
    """A root shell in the version's tree, on the terminal of the caller, until it is left; with network, without services."""
    with ExitStack() as opened:
        open_root(opened, parent, recipe, store, trees, place, run)
        tree = place / "tree"
        program = "/bin/bash" if (tree / "bin/bash").exists() else "/bin/sh"
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "TERM": os.environ.get("TERM", "linux"),
            "LC_ALL": "C.UTF-8",
        }
        with inside.no_services(tree):
            subprocess.run([*inside.entering(tree, network=True), program], env=environment, check=False)


def open_shell(place: Path, parent: str, recipe: Recipe, arguments: list[str]) -> None:
    """Run `shell` in a process of its own, whose mounts nobody else sees. Raises BuildError when it could not be opened."""
    order = {"shell": str(place), "parent": parent, "recipe": recipe.to_dict()}
    done = apart.on_terminal(order, arguments)
    if done:
        raise BuildError(
            f"the maintenance shell could not be opened (exit code {done}); what went wrong is printed above"
        )


def changed(place: Path) -> list[str]:
    """Paths that differ from the parent's, removed ones with a minus before them; what `open_root` put there left out."""
    upper = place / "upper"
    found = []
    for top, directories, files in os.walk(upper):
        for name in [*files, *(name for name in directories if (Path(top) / name).is_symlink())]:
            path = f"{top}/{name}"
            status = os.lstat(path)
            removed = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0  # overlayfs's whiteout
            shown = path[len(str(upper)) :]
            ours = ("/boot/vmlinuz-", "/home/", "/var/cache/apt/", "/var/lib/apt/lists/", "/var/log/")
            if not shown.startswith(ours) and not shown.endswith("/vmlinuz"):
                found.append(f"-{shown}" if removed else shown)
    return sorted(found)
