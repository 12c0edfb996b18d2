"""The order of the steps: from a recipe to a version in the store."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from images.builder import initrd, rootless, rootplan, squashfs
from images.builder.chroot import furnish, inside, trim
from images.builder.errors import BuildError, DiskFull, RecipeError
from images.builder.families import FAMILIES
from images.builder.manifest import PARTS, Manifest
from images.builder.recipe import Recipe
from images.builder.run import CommandFailed, Runner
from images.builder.scratch import scratch, sweep
from images.builder.steps import Steps
from images.builder.store import Store
from images.builder.tree import listing
from images.builder.verity import seal

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
    keep: bool = False  # leave the tree in `work` until the next sweep, for a person who replays a command

    def arguments(self) -> list[str]:
        """The same context as arguments of the command line."""
        return [
            *("--work", str(self.work.resolve()), "--store", str(self.store.root.resolve())),
            *("--daemon", str(self.daemon.resolve())),
            *([] if self.epoch is None else ["--epoch", str(self.epoch)]),
            *(["--keep"] if self.keep else []),
        ]


def build(recipe: Recipe, context: Context, steps: Steps) -> Manifest:
    """Build a version: complete in the store when this returns, not there when it raises.

    Raises RecipeError (change the recipe), DiskFull (make room), CommandFailed or another BuildError.
    Without root, the same runs in a user namespace.
    """
    if os.geteuid() != 0:
        return rootless.build(recipe, context.arguments(), steps)
    family = FAMILIES[recipe.family]
    sweep_up(context)
    with (
        _disk_full(context),
        scratch(context.work, keep=context.keep) as work,
        context.store.scratch() as ready,
    ):
        build = _Build(steps)
        tree, home, started = work / "tree", work / "home", time.time()
        with build.step(
            "bootstrap", f"Install {family.title} {recipe.suite} and {_count(recipe.packages, 'package')}"
        ) as run:
            family.bootstrap(recipe, tree, run)
        epoch = trim.youngest_shipped(tree, started) if context.epoch is None else context.epoch
        files = (*recipe.files, *recipe.home_files)
        with build.step("configure", f"Put in {_count(files, 'file')}, make user {recipe.user}") as run:
            furnish.configure(recipe, tree, run)
        for number, hook in enumerate(recipe.hooks, 1):
            with build.step(f"hook-{number}", f"Run the hook {hook.name!r}") as run:
                furnish.hook(hook, tree, run)
        with build.step("finish", "Make it a diskless client's") as run:
            packages = family.packages(tree, run)
            family.finish(tree, epoch)
            release = _take_kernel(tree, ready / "kernel")
            _take_home(tree / "home" / recipe.user, home)
            entries = listing(tree)
        with build.step("root", "Pack the read-only root") as run:
            # The slowest of what is left; the others fit beside it.
            packing = run.start(squashfs.command(tree, ready / "root", epoch))
            with packing:
                with build.step("plan", "Compute the root plan from the volatile rules"):
                    plan = rootplan.plan(entries, recipe.volatile, [f"/home/{recipe.user}"])
                    rootplan.archive(plan, tree, ready / "plan", epoch)
                with build.step("home", "Pack the home template") as run:
                    home_program = str(context.daemon / "home.py")
                    home_digest = run([sys.executable, home_program, "digest", str(home)]).strip()
                    squashfs.pack(home, ready / "home", run, epoch)
                with build.step("initrd", f"Pack the initrd for kernel {release}") as run:
                    initrd.build(tree, release, context.daemon, ready / "initrd", run)
                packing.finish()
            verity = seal(ready / "root")
        with build.step("store", "Put the version into the store"):
            artefacts = {part: context.store.put(ready / part) for part in PARTS}
            manifest = Manifest(
                **artefacts,
                root_hash=verity.root_hash,
                root_blocks=verity.blocks,
                home_digest=home_digest,
                kernel_release=release,
                packages=packages,
                volatile=plan.summary(),
                unpacked_bytes=sum(entry.size for entry in entries),
            )
            (ready / "manifest").write_bytes(manifest.to_json())
            context.store.put(ready / "manifest")
    return manifest


def sweep_up(context: Context) -> list[Path]:
    """Remove what builds that were killed left behind; builds under way are not touched. Returns it.

    A build begins with it, a worker may when it starts.
    """
    parents = (context.work, context.store.ingest)
    if os.geteuid() != 0:
        return rootless.sweep(parents)
    return [path for parent in parents for path in sweep(parent)]


@dataclass(frozen=True, slots=True)
class _Build:
    steps: Steps

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[Runner]:
        with self.steps.step(name, title) as step:
            yield Runner(step, {"SOURCE_DATE_EPOCH": "0"})  # makes programs leave today out


def _count(things: Sized, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _take_kernel(tree: Path, output: Path) -> str:
    """Move the kernel out of the tree, where clients have no use for it; returns its release.

    It is /boot/vmlinuz-RELEASE, or lies beside its modules: /lib/modules/RELEASE/vmlinuz. Some systems have both.
    """
    boot, modules = tree / "boot", inside.locate(tree, "/lib/modules")
    kernels = {path.name.removeprefix("vmlinuz-"): [path] for path in sorted(boot.glob("vmlinuz-*"))}
    for path in sorted(modules.glob("*/vmlinuz")):
        kernels.setdefault(path.parent.name, []).append(path)
    if len(kernels) != 1:
        names = ", ".join(sorted(kernels)) or "none"
        raise RecipeError("packages", f"an image has exactly one kernel, this one has {names}")
    [(release, [path, *copies])] = kernels.items()
    shutil.move(path, output)
    left = [path for path in boot.glob(f"*{release}*") if path.name.startswith(("System.map", "initr"))]
    for path in (*copies, *left):
        path.unlink()
    return release


def _take_home(home: Path, output: Path) -> None:
    """Move the home out of the tree; an empty directory, owner and mode the same, stays as mount point."""
    if not home.is_dir() or home.is_symlink():
        raise BuildError(f"/home/{home.name} is no directory any more: a hook moved the home of the user")
    status = home.stat()
    home.rename(output)
    home.mkdir()
    os.chown(home, status.st_uid, status.st_gid)
    home.chmod(stat.S_IMODE(status.st_mode))


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
        f"{place} has {shutil.disk_usage(place).free / rootplan.MIB:.0f} MiB free" for place in places if place.is_dir()
    )
    return f"the disk was full during the build ({free} now); make room and build again. {what}"
