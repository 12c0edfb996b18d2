"""The order of the steps: from a recipe to a version in the store."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from images.builder import apart, initrd, layering, maintenance, squashfs
from images.builder.change import Change
from images.builder.chroot import furnish, inside, trim
from images.builder.chroot.family import Upgrade
from images.builder.errors import DiskFull
from images.builder.families import FAMILIES
from images.builder.layer import LayerManifest
from images.builder.manifest import Manifest
from images.builder.packing import SITE_FILES, Packed, pack
from images.builder.recipe import Hook, Recipe
from images.builder.ruling import MIB, TOTAL_BYTES
from images.builder.run import CommandFailed, Runner
from images.builder.scratch import scratch, sweep
from images.builder.sitefiles import Watch
from images.builder.steps import Steps
from images.builder.store import Store
from images.builder.trees import Trees

_FULL = (
    "No space left on device", "Disk quota exceeded", "don't have enough free space",
    "more space needed on the", "more space on the",
)  # fmt: skip
_NEARLY_NOTHING = 1 << 20  # bytes; what programs that hide the reason leave free on a full disk


@dataclass(frozen=True, slots=True)
class Context:
    """Where a build happens."""

    work: Path  # scratch space; wants about four times the size of the unpacked packages
    store: Store
    daemon: Path  # the directory agents/daemon, packed into the initrd
    epoch: int | None = None  # no time in a version is later (s); None: the youngest file of a package
    most_bytes: int = 0  # that the files of a root may have, unpacked; 0: no limit
    copied_bytes: int = TOTAL_BYTES  # that the volatile rules may copy in all; 0: no limit
    keep: bool = False  # leave the tree in `work` until the next sweep, for a person who replays a command

    @property
    def initrds(self) -> Path:
        """Where initrds are kept for versions with the same kernel."""
        return self.work / "initrds"

    def arguments(self) -> list[str]:
        """The same context as arguments of the command line."""
        return [
            *("--work", str(self.work.resolve()), "--store", str(self.store.root.resolve())),
            *("--daemon", str(self.daemon.resolve())),
            *([] if self.epoch is None else ["--epoch", str(self.epoch)]),
            *(["--most-bytes", str(self.most_bytes)] if self.most_bytes else []),
            *("--copied-bytes", str(self.copied_bytes)),
            *(["--keep"] if self.keep else []),
        ]


def build(recipe: Recipe, context: Context, steps: Steps) -> Manifest:
    """Build a version: complete in the store when this returns, not there when it raises.

    Raises RecipeError (change the recipe), DiskFull (make room), CommandFailed or another BuildError.
    Without root, the same runs in a user namespace.
    """
    if os.geteuid() != 0:
        return apart.build({"recipe": recipe.to_dict()}, context.arguments(), steps)
    family = FAMILIES[recipe.family]
    sweep_up(context)
    with (
        _disk_full(context),
        scratch(context.work, keep=context.keep) as work,
        context.store.scratch() as ready,
    ):
        build = _Build(steps, work)
        tree, started = work / "tree", time.time()
        with build.step(
            "bootstrap", f"Install {family.title} {recipe.suite} and {_count(recipe.packages, 'package')}"
        ) as run:
            family.bootstrap(recipe, tree, run)
            watch = Watch(tree, context.store)
            watch.packages_are_done([*family.settings(tree), *(file.path for file in recipe.files)])
        epoch = trim.youngest_shipped(tree, started) if context.epoch is None else context.epoch
        files = (*recipe.files, *recipe.home_files)
        with build.step("configure", f"Put in {_count(files, 'file')}, make user {recipe.user}") as run:
            furnish.configure(recipe, tree, run)
        for number, hook in enumerate(recipe.hooks, 1):
            with build.step(f"hook-{number}", f"Run the hook {hook.name!r}") as run:
                furnish.hook(hook, tree, run)
        with build.step("finish", "Make it a diskless client's") as run:
            packages = family.packages(tree, run)
            site_files = watch.changed(ready / SITE_FILES)
            family.finish(tree, epoch)
        limits = (context.most_bytes, context.copied_bytes)
        packed = Packed(tree, recipe, packages, epoch, *limits, site_files=site_files)
        manifest = pack(packed, ready, context.store, context.daemon, context.initrds, build.step)
        Trees(context.work).keep(manifest.root, tree, epoch)
    Trees(context.work).prune()
    return manifest


def provenance(recipe: Recipe, context: Context) -> str:
    """Names what a build of `recipe` would be made from now: the recipe, its archives, and the builder with initrd and daemon.

    SHA-256 (hex); the same provenance, the same version. "" when the archives cannot be read.
    """
    snapshot = FAMILIES[recipe.family].snapshot(recipe)
    if not snapshot:
        return ""
    digest = hashlib.sha256(f"{recipe.digest} {snapshot}".encode())
    for top in (Path(__file__).parent, initrd.SCRIPTS, *initrd.with_hands(context.daemon)):
        for path in sorted(top.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"\0{path.relative_to(top)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def pending(manifest: Manifest, recipe: Recipe, context: Context, steps: Steps) -> tuple[Upgrade, ...]:
    """The packages of a version for which its archives have newer ones by now, by the family's own reckoning."""
    family = FAMILIES[recipe.family]
    with scratch(context.work) as work, _Build(steps, work).step("upgrades", "Look for upgrades") as run:
        tree = work / "tree"
        root = context.store.require(manifest.root)
        run(["unsquashfs", "-quiet", "-no-progress", "-no-xattrs", "-dest", str(tree), str(root), *family.database])
        return family.pending(recipe, tree, context.work / "apt", run)


def derive(
    parent: str, recipe: Recipe, change: Change, context: Context, steps: Steps, place: Path | None = None
) -> Manifest:
    """Make a version of the version with the digest `parent`, which was built from `recipe` and is not touched.

    `place` is where somebody opened the parent's root before and changed it (a maintenance shell); it is used up.
    All of it runs in a process of its own, with mounts of its own; raises as `build` does.
    """
    sweep_up(context)
    order = {"parent": parent, "recipe": recipe.to_dict(), "change": change.to_dict()}
    return apart.build({**order, "place": str(place) if place else None}, context.arguments(), steps)


def derive_here(
    parent: Manifest, recipe: Recipe, change: Change, context: Context, steps: Steps, place: Path | None = None
) -> Manifest:
    """What `derive` runs in that process."""
    family = FAMILIES[recipe.family]
    with (
        _disk_full(context),
        scratch(context.work, keep=context.keep) as work,
        context.store.scratch() as ready,
    ):
        work = place or work
        build = _Build(steps, work)
        trees, tree, upper, started = Trees(context.work), work / "tree", work / "upper", time.time()
        with ExitStack() as opened:
            with build.step("open", f"Open the root of {parent.digest[:12]}") as run:
                layered = maintenance.open_root(opened, parent, recipe, context.store, trees, work, run)
                watch, settings = Watch(tree, context.store, parent.site_files), family.settings(tree)
                for path in settings.intersection(maintenance.changed(work) if place else ()):
                    # Somebody changed it in there: what the package had is in the parent.
                    watch.expect(path, squashfs.content(context.store.require(parent.root), path))
            if change.install or change.remove or change.upgrade:
                with build.step("packages", f"Packages: {change}") as run:
                    family.change(recipe, tree, change, context.work / "apt", run)
                    settings = family.settings(tree)
            watch.packages_are_done([*settings, *(file.path for file in change.files)])
            if change.files:
                with build.step("configure", f"Put in {_count(change.files, 'file')}"):
                    for file in change.files:
                        inside.write(tree, file.path, file.content, file.mode)
            if change.script:
                with build.step("script", "Run the script") as run:
                    furnish.hook(Hook("script", change.script), tree, run)
            with build.step("finish", "Make it a diskless client's") as run:
                packages = family.packages(tree, run)
                shipped = trim.youngest_shipped(upper if layered else tree, started)
                epoch = max(parent.epoch, shipped) if context.epoch is None else context.epoch
                site_files = watch.changed(ready / SITE_FILES)
                family.finish(tree, epoch)
            limits = (context.most_bytes, context.copied_bytes)
            packed = Packed(tree, recipe, packages, epoch, *limits, parent.digest, change, site_files)
            manifest = pack(packed, ready, context.store, context.daemon, context.initrds, build.step)
        if layered:
            trees.keep_change(manifest.root, upper, parent.root, epoch)
        else:
            trees.keep(manifest.root, tree, epoch)
    trees.prune()
    return manifest


def layer(base: str, recipe: Recipe, change: Change, context: Context, steps: Steps) -> LayerManifest:
    """Build the driver layer that `change` makes over the version with the digest `base`, built from `recipe`; as `derive` runs."""
    sweep_up(context)
    order = {"base": base, "recipe": recipe.to_dict(), "layer": change.to_dict()}
    return LayerManifest.from_dict(apart.result(order, context.arguments(), steps))


def layer_here(base: Manifest, recipe: Recipe, change: Change, context: Context, steps: Steps) -> LayerManifest:
    """What `layer` runs in that process."""
    trees = Trees(context.work)
    with (
        _disk_full(context),
        scratch(context.work, keep=context.keep) as work,
        context.store.scratch() as ready,
    ):
        step, most = _Build(steps, work).step, context.copied_bytes
        made = layering.build(base, recipe, change, context.store, trees, (work, ready), step, most)
    trees.prune()
    return made


def sweep_up(context: Context) -> list[Path]:
    """Remove what builds that were killed left behind; builds under way are not touched. Returns it.

    A build begins with it, a worker may when it starts.
    """
    parents = (context.work, context.store.ingest)
    if os.geteuid() != 0:
        return apart.sweep(parents)
    return [path for parent in parents for path in sweep(parent)]


@dataclass(frozen=True, slots=True)
class _Build:
    steps: Steps
    work: Path

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[Runner]:
        with self.steps.step(name, title) as step:
            # The first makes programs leave today out. What one that is killed leaves of its own is swept up with the rest.
            yield Runner(step, {"SOURCE_DATE_EPOCH": "0", "TMPDIR": str(self.work)})


def _count(things: Sized, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


@contextmanager
def _disk_full(context: Context) -> Iterator[None]:
    """Tell a full disk from other failures; programs say it in their output, or not at all."""
    places = (context.work, context.store.root)
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(_no_space(places, str(error))) from error
    except CommandFailed as error:
        nearly = any(place.is_dir() and shutil.disk_usage(place).free < _NEARLY_NOTHING for place in places)
        if not nearly and not any(words in error.output for words in _FULL):
            raise
        raise DiskFull(_no_space(places, str(error))) from error


def _no_space(places: tuple[Path, ...], what: str) -> str:
    free = ", ".join(
        f"{place} has {shutil.disk_usage(place).free / MIB:.0f} MiB free" for place in places if place.is_dir()
    )
    return f"the disk was full during the build ({free} now); make room and build again. {what}"
