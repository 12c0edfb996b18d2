"""Unpacked roots of versions, kept so that a derived version begins where its parent ended instead of unpacking it.

Below `work/trees` a directory per root, named by the SHA-256 of its squashfs; what is in one never changes:

    <sha256>/tree               the whole root, or
    <sha256>/upper, parent      what a derived version changed (an upper directory of overlayfs) of the root named in `parent`

They are a cache: any may go while nobody works with it, the store has it all.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from images.builder.errors import BuildError
from images.builder.run import Runner
from images.builder.scratch import scratch
from images.builder.store import Artefact, Store

KEPT = 3  # roots used last; a whole one takes what its files take, a derived one what it changed
DEEPEST = 8  # layers before a root is unpacked whole again; the kernel's limit is 500, a reader's patience is less
_NAME = re.compile(r"[0-9a-f]{64}")


class Trees:
    """The trees below `work`."""

    def __init__(self, work: Path) -> None:
        self._top = work / "trees"
        self._work = work

    def keep(self, root: Artefact, tree: Path, epoch: int) -> None:
        """Take over the whole tree that `root` was packed from; it is gone from where it was."""
        _set_back(tree, epoch)
        self._add(root, {"tree": tree})

    def keep_change(self, root: Artefact, upper: Path, parent: Artefact, epoch: int) -> None:
        """Take over the upper directory in which `root` differs from `parent`; only while not too many lie over each other."""
        layers = self._layers(parent.sha256)
        if not layers or len(layers) >= DEEPEST:
            return
        _set_back(upper, epoch)
        with scratch(self._work) as place:
            (place / "parent").write_text(parent.sha256)
            self._add(root, {"upper": upper, "parent": place / "parent"})

    @contextmanager
    def layers(self, root: Artefact, store: Store, run: Runner) -> Iterator[list[Path]]:
        """The directories that make up `root`, topmost first; it is unpacked when it is not here. They stay while this is open."""
        with ExitStack() as held:
            if not self._layers(root.sha256):
                with scratch(self._work) as place:
                    unpack(store.require(root), place / "tree", run)
                    self._add(root, {"tree": place / "tree"})
            self._top.mkdir(exist_ok=True)
            with self._locked():
                found = self._layers(root.sha256)
                for layer in found:
                    held.callback(os.close, _lock(layer.parent, fcntl.LOCK_SH))
                    os.utime(layer.parent)
            if not found:
                raise BuildError(
                    f"{self._top}: the tree of {root.sha256[:12]} was removed while it was looked for; build again"
                )
            yield found

    def prune(self, kept: int = KEPT) -> list[str]:
        """Remove all but the `kept` trees used last, what those lie on, and what somebody works with. Returns the names."""
        if not self._top.is_dir():
            return []
        removed = []
        with self._locked():
            names = sorted(
                (path.name for path in self._top.iterdir() if _NAME.fullmatch(path.name)),
                key=lambda name: -(self._top / name).stat().st_mtime,
            )
            needed = {layer.parent.name for name in names[:kept] for layer in self._layers(name)}
            for name in names:
                if name in needed:
                    continue
                try:
                    lock = _lock(self._top / name, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                shutil.rmtree(self._top / name)
                os.close(lock)
                removed.append(name)
        return removed

    def _layers(self, sha256: str) -> list[Path]:
        """Topmost first, nothing if one is missing."""
        found: list[Path] = []
        while True:
            place = self._top / sha256
            if (place / "tree").is_dir():
                return [*found, place / "tree"]
            if not (place / "upper").is_dir():
                return []
            found.append(place / "upper")
            sha256 = (place / "parent").read_text()

    def _add(self, root: Artefact, parts: dict[str, Path]) -> None:
        """All parts at once, by a rename; a tree that is here already stays as it is."""
        self._top.mkdir(parents=True, exist_ok=True)
        with scratch(self._work) as place:
            new = place / "new"
            new.mkdir()
            for name, path in parts.items():
                path.rename(new / name)
            try:
                new.rename(self._top / root.sha256)
            except OSError:
                if not (self._top / root.sha256).is_dir():
                    raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One looks for a tree or prunes at a time."""
        lock = _lock(self._top, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(lock)


@contextmanager
def merged(layers: list[Path], upper: Path, tree: Path, run: Runner) -> Iterator[bool]:
    """`tree` shows `layers` (topmost first), and what is changed in it lands in `upper`; all three directories exist.

    Yields False where the kernel has no overlay of this file system: then `tree` holds a copy (by reflinks, where the file
    system has them), and `upper` stays empty. Mounts in the caller's own namespace, which is to be one nobody else uses.
    """
    work = upper.with_name(f"{upper.name}-work")
    work.mkdir(exist_ok=True)
    options = [*stacked(layers), f"upperdir={upper}", f"workdir={work}"]
    mount = ["mount", "-t", "overlay", "-o", ",".join(options), "overlay", str(tree)]
    run.step.command(mount)
    done = subprocess.run(mount, capture_output=True, text=True)
    run.step.exited(done.returncode)
    if done.returncode == 0:
        try:
            yield True
        finally:
            subprocess.run(["umount", "--lazy", str(tree)], check=True)
        return
    if any(tree.iterdir()):  # copied when it was opened before
        yield False
        return
    run.step.output(f"{done.stderr.strip()}: copying instead\n")
    if len(layers) > 1:
        raise BuildError(f"the kernel cannot put {len(layers)} layers over each other any more: {done.stderr.strip()}")
    run(["cp", "--archive", "--reflink=auto", f"{layers[0]}/.", str(tree)])
    yield False


def stacked(layers: list[Path]) -> list[str]:
    """Options of mount(8) for an overlay of `layers` (topmost first), whose notes are where this process may read and write them."""
    in_namespace = os.geteuid() != 0 or _in_user_namespace()
    return [f"lowerdir={':'.join(map(str, layers))}", *(["userxattr"] if in_namespace else [])]


def unpack(squashfs: Path, target: Path, run: Runner, *, over: bool = False) -> None:
    """Make the directory `target` from a squashfs: a new one, or `over` one that is there."""
    run(["unsquashfs", "-quiet", "-no-progress", *(["-force"] if over else []), "-dest", str(target), str(squashfs)])


def _set_back(tree: Path, epoch: int) -> None:
    """Give what is younger than `epoch` (s) that time, as in the squashfs: a tree is the same, unpacked or kept."""
    for top, directories, files in os.walk(tree):
        for path in (top, *(f"{top}/{name}" for name in (*directories, *files))):
            if os.lstat(path).st_mtime > epoch:
                os.utime(path, (epoch, epoch), follow_symlinks=False)


def _lock(directory: Path, operation: int) -> int:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, operation)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _in_user_namespace() -> bool:
    """Whether root is not the host's root: the first line of the map is not all of it (user_namespaces(7))."""
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]
