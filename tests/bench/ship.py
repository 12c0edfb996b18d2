"""What it takes to bring a version with one small package more to a store that has the version before it.

Real artefacts: a built image, its root unpacked, a Debian package installed into it with dpkg, plan and root packed anew as a build
packs them. The file that ``manage.py store export --have`` writes is measured and taken in by the other store.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from images.builder import parcel, rootplan, squashfs
from images.builder.manifest import Manifest
from images.builder.run import Runner
from images.builder.store import Store
from images.builder.tree import listing
from images.builder.verity import seal
from tests.bench.report import finish, progress
from tests.builder.images import PROJECT, SMALL, Silent, built_image

PACKAGE = "tree"  # one program, its manual and its entries in dpkg's database
LIMIT = 0.04


@dataclass(frozen=True)
class Shipping:
    """Bytes of the file and of the version; seconds to write the file, and to take it in."""

    bytes: int
    whole_bytes: int
    export_s: float
    import_s: float

    @property
    def ratio(self) -> float:
        return self.bytes / self.whole_bytes


def derived(parent: Manifest, store: Store, scratch: Path) -> Manifest:
    """A version of ``parent`` with PACKAGE installed, put into ``store``."""
    tree = scratch / "tree"
    _run("unsquashfs", "-quiet", "-no-progress", "-dest", str(tree), str(store.require(parent.root)))
    _run("apt-get", "-o", "APT::Sandbox::User=root", "download", PACKAGE, cwd=scratch)
    (package,) = scratch.glob("*.deb")
    _run("dpkg", f"--root={tree}", "--force-script-chrootless", "--install", str(package))
    for left in ("lock", "lock-frontend", "status-old", "triggers/Lock"):
        (tree / "var/lib/dpkg" / left).unlink(missing_ok=True)
    (tree / "var/log/dpkg.log").unlink(missing_ok=True)
    epoch = int(max(path.lstat().st_mtime for path in (tree / "usr/share/doc").iterdir() if path.name != PACKAGE))
    with Silent().step("root", "Pack the root") as step, store.scratch() as ready:
        squashfs.pack(tree, ready / "root", Runner(step), epoch)
        verity = seal(ready / "root")
        plan = rootplan.plan(listing(tree), SMALL.volatile, [f"/home/{SMALL.user}"])
        rootplan.archive(plan, tree, ready / "plan", epoch)
        root, archive = store.put(ready / "root"), store.put(ready / "plan")
        manifest = replace(
            parent,
            root=root,
            plan=archive,
            root_hash=verity.root_hash,
            root_blocks=verity.blocks,
            volatile=plan.summary(),
        )
        (ready / "manifest").write_bytes(manifest.to_json())
        store.put(ready / "manifest")
    return manifest


def _run(*argv: str, cwd: Path | None = None) -> None:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)} ended with {done.returncode}: {done.stderr}"


def _copy(store: Store, manifest: Manifest, to: Store) -> None:
    for sha256 in (manifest.digest, *(artefact.sha256 for artefact in manifest.artefacts().values())):
        with to.scratch() as ready:
            shutil.copyfile(store.path(sha256), ready / "copy")
            to.put(ready / "copy")


def ship(scratch: Path) -> Shipping:
    """Ship a derived version from one store to another that has its parent; it must arrive whole."""
    parent, built = built_image()
    ours, theirs = Store(scratch / "ours"), Store(scratch / "theirs")
    for store in (ours, theirs):
        _copy(built, parent, store)
    manifest = derived(parent, ours, scratch)
    contents = tuple(manifest.artefacts().values())
    base = tuple(artefact.sha256 for artefact in parent.artefacts().values())
    label = parcel.Label("derived", manifest.digest, SMALL.to_dict(), contents, base)
    began = time.monotonic()
    shipped = parcel.export(label, ours, scratch / "file", progress)
    written = time.monotonic()
    with (scratch / "file").open("rb") as file:
        parcel.unpack(file, theirs, lambda label, manifest: None, progress)
    Manifest.load(theirs, manifest.digest)
    return Shipping(shipped.bytes, shipped.whole_bytes, written - began, time.monotonic() - written)


def main() -> None:
    (PROJECT / "var").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PROJECT / "var", prefix="bench-ship-") as scratch:
        done = ship(Path(scratch))
    rows = [
        ("shipped", done.bytes, f"{done.ratio:.4f}"),
        ("the whole version", done.whole_bytes, "1.0000"),
        ("limit", round(LIMIT * done.whole_bytes), f"{LIMIT:.4f}"),
    ]
    times = {"export_s": round(done.export_s, 1), "import_s": round(done.import_s, 1)}
    finish(
        ("ship", "bytes", "ratio"), rows, {"shipped_ratio": round(done.ratio, 4), "shipped_bytes": done.bytes, **times}
    )


if __name__ == "__main__":
    main()
