"""What it takes to bring a version with one small package more to a store that has the version before it.

Real artefacts: a built image, and a version derived from it. The file that ``manage.py store export --have`` writes is measured and taken in by the other store.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from images.builder import parcel
from images.builder.change import Change
from images.builder.director import Context, derive
from images.builder.manifest import Manifest
from images.builder.store import Store
from tests.bench.report import finish, progress
from tests.builder.images import DAEMON, PROJECT, SMALL, Silent, built_image

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


def _copy(store: Store, manifest: Manifest, to: Store) -> None:
    for sha256 in (manifest.digest, *(artefact.sha256 for artefact in manifest.everything())):
        with to.scratch() as ready:
            shutil.copyfile(store.path(sha256), ready / "copy")
            to.put(ready / "copy")


def ship(scratch: Path) -> Shipping:
    """Ship a derived version from one store to another that has its parent; it must arrive whole."""
    parent, built = built_image()
    scratch.mkdir(exist_ok=True)
    ours, theirs = Store(scratch / "ours"), Store(scratch / "theirs")
    for store in (ours, theirs):
        _copy(built, parent, store)
    change = Change.of(SMALL, install=(PACKAGE,))
    manifest = derive(parent.digest, SMALL, change, Context(scratch / "work", ours, DAEMON), Silent())
    contents = tuple(dict.fromkeys(manifest.everything()))
    base = tuple(dict.fromkeys(artefact.sha256 for artefact in parent.everything()))
    label = parcel.Label("derived", manifest.digest, SMALL.to_dict(), contents, base, signature="")
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
