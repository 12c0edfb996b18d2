"""From a finished tree to a version in the store: what a build and a derived version have in common."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from images.builder import initrd, rootplan, squashfs
from images.builder.change import Change
from images.builder.chroot import inside
from images.builder.chroot.family import Package
from images.builder.errors import BuildError, RecipeError
from images.builder.manifest import PARTS, Manifest
from images.builder.recipe import Recipe
from images.builder.ruling import MIB, TOTAL_BYTES
from images.builder.run import Runner
from images.builder.sitefiles import SiteFile
from images.builder.store import Store
from images.builder.tree import listing
from images.builder.verity import seal

OpenStep = Callable[[str, str], AbstractContextManager[Runner]]
SITE_FILES = "site-files"
_INITRDS = 8  # kept for builds to come; 7 MB each


@dataclass(frozen=True, slots=True)
class Packed:
    """What is to be packed: the tree of a recipe with its packages; no time in the version is later than `epoch` (s).

    Its files may have `most_bytes` in all (0: no limit), those that the volatile rules copy `copied_bytes`.

    A derived version names its parent (digest) and what was changed.
    """

    tree: Path
    recipe: Recipe
    packages: tuple[Package, ...]
    epoch: int
    most_bytes: int = 0
    copied_bytes: int = TOTAL_BYTES
    parent: str = ""
    change: Change | None = None
    site_files: Mapping[str, SiteFile] = field(default_factory=dict)


def pack(packed: Packed, ready: Path, store: Store, daemon: Path, cache: Path, step: OpenStep) -> Manifest:
    """Put the version into the store, by way of the directory `ready` on its file system. `cache` keeps initrds.

    `ready` has the site's files in it already, in the directory SITE_FILES.
    The tree has lost its kernel and the home of the user afterwards.
    """
    tree, recipe, epoch = packed.tree, packed.recipe, packed.epoch
    home = tree.with_name("home")
    release = _take_kernel(tree, ready / "kernel")
    with step("list", "List what is in the root") as run:
        _take_home(tree / "home" / recipe.user, home, run)
        entries = listing(tree)
        unpacked = sum(entry.size for entry in entries)
        if 0 < packed.most_bytes < unpacked:
            has, may = (f"{size / MIB:.0f} MiB" for size in (unpacked, packed.most_bytes))
            raise BuildError(
                f"the root has {has} of files, the image may have {may}: leave something out, or raise its limit"
            )
    with step("root", "Pack the read-only root") as packed_by:
        # The slowest of what is left; the others fit beside it.
        packing = packed_by.start(squashfs.command(tree, ready / "root", epoch))
        with packing:
            with step("plan", "Compute the root plan from the volatile rules"):
                plan = rootplan.plan(
                    entries, recipe.volatile, [f"/home/{recipe.user}"], total_bytes=packed.copied_bytes
                )
                rootplan.archive(plan, tree, ready / "plan", epoch)
            with step("home", "Pack the home template") as run:
                home_digest = run(
                    [sys.executable, str(daemon.with_name("hands") / "home.py"), "digest", str(home)]
                ).strip()
                squashfs.pack(home, ready / "home", run, epoch)
            with step("initrd", f"Pack the initrd for kernel {release}") as run:
                _initrd(tree, release, daemon, ready / "initrd", cache, run)
            packing.finish(squashfs.Bar(packed_by.step, unpacked))
        verity = seal(ready / "root")
    with step("store", "Put the version into the store"):
        artefacts = {part: store.put(ready / part) for part in PARTS}
        for path in sorted((ready / SITE_FILES).iterdir()):
            store.put(path)
        manifest = Manifest(
            **artefacts,
            root_hash=verity.root_hash,
            root_blocks=verity.blocks,
            home_digest=home_digest,
            kernel_release=release,
            packages=packed.packages,
            volatile=plan.summary(),
            unpacked_bytes=unpacked,
            epoch=epoch,
            parent=packed.parent,
            change=packed.change.to_dict() if packed.change else None,
            site_files=packed.site_files,
        )
        (ready / "manifest").write_bytes(manifest.to_json())
        store.put(ready / "manifest")
    return manifest


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


def _take_home(home: Path, output: Path, run: Runner) -> None:
    """Move the home out of the tree; an empty directory, owner and mode the same, stays as mount point."""
    if not home.is_dir() or home.is_symlink():
        raise BuildError(f"/home/{home.name} is no directory any more: a hook moved the home of the user")
    status = home.stat()
    run(["mv", "--no-target-directory", str(home), str(output)])  # the tree may be another file system
    home.mkdir()
    os.chown(home, status.st_uid, status.st_gid)
    home.chmod(stat.S_IMODE(status.st_mode))


def _initrd(tree: Path, release: str, daemon: Path, output: Path, cache: Path, run: Runner) -> None:
    """Most versions have the kernel of the one before: its initrd is the same, byte for byte."""
    cache.mkdir(parents=True, exist_ok=True)
    known = cache / initrd.fingerprint(tree, release, daemon, run)
    if known.is_file():
        os.utime(known)
        shutil.copyfile(known, output)
        run.step.output("Nothing of it has changed: taken from the last build.\n")
        return
    initrd.build(tree, release, daemon, output, run)
    fresh = known.with_name(f"{known.name}.{os.getpid()}")
    shutil.copyfile(output, fresh)
    fresh.replace(known)
    for old in sorted(cache.iterdir(), key=lambda path: -path.stat().st_mtime)[_INITRDS:]:
        old.unlink(missing_ok=True)
