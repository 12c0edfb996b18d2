"""Builds a driver layer: a version's tree is opened, changed, and only the difference is packed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from images.builder import difference, rootplan, squashfs
from images.builder.change import Change
from images.builder.chroot import furnish, inside
from images.builder.difference import Difference
from images.builder.errors import BuildError, RecipeError
from images.builder.families import FAMILIES
from images.builder.layer import LayerManifest
from images.builder.manifest import Manifest
from images.builder.packing import OpenStep
from images.builder.recipe import Hook, Recipe
from images.builder.rootplan import RootPlan
from images.builder.ruling import TOTAL_BYTES
from images.builder.run import Runner
from images.builder.store import Store
from images.builder.tree import Entry, listing
from images.builder.trees import Trees, merged, stacked
from images.builder.verity import seal

# Only package managers read them, and none runs on a client. Two layers of one class would never go together with them.
DATABASES = ("/var/lib/apt", "/var/lib/dnf", "/var/lib/dpkg", "/var/lib/rpm", "/usr/lib/sysimage/rpm")
CACHES = ("/var/cache", "/var/log", "/root/.cache")  # their directories stay: programs want to write there
_MODULES = re.compile(r"(?:/usr)?/lib/modules/([^/]+)(?:/(kernel|vmlinuz)\b)?")


def build(
    base: Manifest,
    recipe: Recipe,
    change: Change,
    store: Store,
    trees: Trees,
    places: tuple[Path, Path],
    step: OpenStep,
    copied_bytes: int = TOTAL_BYTES,
) -> LayerManifest:
    """Build the layer that `change` makes over `base`, a version of `recipe`; it is in the store when this returns.

    `places` are two directories to work in, the second on the file system of the store. With the layer, the volatile rules of the
    version may copy `copied_bytes` in all (0: no limit).
    Mounts in the caller's own namespace. Raises RecipeError for what no layer may do.
    """
    work, ready = places
    family, tree, upper, stage = FAMILIES[recipe.family], work / "tree", work / "upper", work / "layer"
    with ExitStack() as opened:
        with step("open", f"Open the root of {base.digest[:12]}") as run:
            below = opened.enter_context(trees.layers(base.root, store, run))
            before = opened.enter_context(_shown(below, work / "before", run))
            for directory in (tree, upper):
                directory.mkdir()
            noted = upper if opened.enter_context(merged(below, upper, tree, run)) else None
            account = _account(tree, recipe.user)
        if change.install:
            with step("packages", f"Packages: {' '.join(change.install)}") as run:
                family.change(recipe, tree, replace(change, files=(), script=""), work / "apt", run)
        if change.files:
            with step("configure", f"Put {' '.join(file.path for file in change.files)}"):
                for file in change.files:
                    inside.write(tree, file.path, file.content, file.mode)
        if change.script:
            replaced = difference.compare(before, tree, noted, _left_out).removed
            with step("script", "Run the script") as run:
                furnish.hook(Hook("script", change.script), tree, run)
        with step("finish", "Make it a diskless client's") as run:
            known = set(base.packages)
            packages = tuple(package for package in family.packages(tree, run) if package not in known)
            family.finish(tree, base.epoch)
        with step("compare", "Find what differs from the version"):
            found = difference.compare(before, tree, noted, _left_out)
            _refuse(found, base, recipe)
            if account != _account(tree, recipe.user):
                raise RecipeError("layer", f"it changes the account of {recipe.user}, which is the version's own")
            if change.script and (torn := sorted(set(found.removed) - set(replaced))):
                raise RecipeError("script", f"it removes {torn[0]} of the version; a package may replace it, or a file")
        with step("plan", "Compute how the root plan differs"):
            plan, real = change_plan(before, tree, recipe, found, ready / "plan", base.epoch, copied_bytes)
        with step("pack", f"Pack {len(found.changed)} changed and {len(found.removed)} hidden paths") as run:
            difference.stage(found, tree, stage, run)
            squashfs.pack(stage, ready / "root", run, base.epoch, sum(one.size for one in found.changed))
            files = difference.fingerprints(found, tree)
    verity = seal(ready / "root")
    with step("store", "Put the layer into the store"):
        manifest = LayerManifest(
            base=base.digest,
            change=change.to_dict(),
            root=store.put(ready / "root"),
            root_hash=verity.root_hash,
            root_blocks=verity.blocks,
            plan=store.put(ready / "plan"),
            packages=packages,
            volatile=plan.summary(),
            files=files,
            real=real,
            unpacked_bytes=sum(one.size for one in found.changed),
            epoch=base.epoch,
        )
        (ready / "manifest").write_bytes(manifest.to_json())
        store.put(ready / "manifest")
    return manifest


@contextmanager
def _shown(layers: list[Path], place: Path, run: Runner) -> Iterator[Path]:
    """A directory that shows `layers` (topmost first) as they are. Mounts in the caller's own namespace, where `run` would not."""
    if len(layers) == 1:
        yield layers[0]
        return
    place.mkdir()
    mount = ["mount", "-t", "overlay", "-o", ",".join(["ro", *stacked(layers)]), "overlay", str(place)]
    run.step.command(mount)
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    run.step.exited(done.returncode)
    if done.returncode:
        raise BuildError(f"the kernel cannot put {len(layers)} layers over each other: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _left_out(one: Entry) -> bool:
    return _below(one.path, DATABASES) or (one.kind != "d" and _below(one.path, CACHES))


def _below(path: str, tops: tuple[str, ...]) -> bool:
    return any(path == top or path.startswith(f"{top}/") for top in tops)


def _refuse(found: Difference, base: Manifest, recipe: Recipe) -> None:
    """Raise RecipeError for a layer that is none, or reaches for what a version has once for all its clients."""
    if not found:
        raise RecipeError("layer", "it is empty: the version has all of that already")
    home = f"/home/{recipe.user}"
    for path in (*(one.path for one in found.changed), *found.removed):
        module = _MODULES.match(path)
        if path.startswith("/boot/vmlinuz") or (module and (module[1] != base.kernel_release or module[2])):
            raise RecipeError(
                "layer", f"it changes the kernel ({path}); all clients of a version boot {base.kernel_release}"
            )
        if path == home or path.startswith(f"{home}/"):
            raise RecipeError("layer", f"{path} is in the home of the user: put it into a home template")


def _account(tree: Path, user: str) -> list[str]:
    """The user's line of /etc/passwd: who it is and where the home is."""
    lines = inside.locate(tree, "/etc/passwd").read_text(errors="replace").splitlines()
    return [line for line in lines if line.startswith(f"{user}:")]


def change_plan(
    before: Path,
    after: Path,
    recipe: Recipe,
    found: Difference,
    output: Path,
    epoch: int,
    copied_bytes: int = TOTAL_BYTES,
) -> tuple[RootPlan, tuple[str, ...]]:
    """Write to `output` what clients with the layer unpack over the root plan of the version (images/initrd/unpack).

    Returns it, and the directories that were one link into the share and have to be many now.
    """
    home = [f"/home/{recipe.user}"]
    # The version is as it is: only what the layer makes of it is judged.
    old, new = (
        _kinds(rootplan.plan(listing(tree), recipe.volatile, home, total_bytes=most))
        for tree, most in ((before, 0), (after, copied_bytes))
    )
    touched = {one.path for one in found.changed}
    wanted: dict[str, list[Entry]] = {"directory": [], "copy": [], "link": []}
    for path, (kind, one) in new.items():
        known = path in old and old[path][0] == kind and replace(old[path][1], inode=0) == replace(one, inode=0)
        if not _left_out(one) and not (known and not (kind == "copy" and path in touched)):
            wanted[kind].append(one)
    gone: list[str] = []
    for path, (kind, one) in sorted(old.items()):
        stays = path in new and new[path][0] == kind
        if not stays and not _left_out(one) and not (gone and path.startswith(f"{gone[-1]}/")):
            gone.append(path)
    change = RootPlan(tuple(wanted["directory"]), tuple(wanted["copy"]), tuple(wanted["link"]))
    rootplan.archive(change, after, output, epoch, gone)
    return change, tuple(one.path for one in change.directories if old.get(one.path, ("",))[0] == "link")


def _kinds(plan: RootPlan) -> dict[str, tuple[str, Entry]]:
    """Path → what the plan makes of it, in the plan's order."""
    named = (("directory", plan.directories), ("copy", plan.copies), ("link", plan.links))
    return {one.path: (kind, one) for kind, part in named for one in part}
