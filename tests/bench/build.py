"""``make bench-build``: our builds beside the plain tools on the same packages, in turns, in one run.

Full: mmdebstrap and mksquashfs with the same sources, kernel, packages and compression. Derived, with one small package more:
apt-get update, apt-get install and mksquashfs in a chroot that lies ready. What ours does beyond it (root plan, initrd, home
template, store, digests, isolation) is in its time; so is what it saves (no initramfs generator, no documents unpacked, no fsync by
dpkg). Unchanged: the time to find out that a recipe would give again what it gave. Shipped: the bytes that bring the derived version to a store that has its parent (tests/bench/ship.py).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from images.builder.change import Change
from images.builder.chroot.debian import BASE, KERNELS
from images.builder.chroot.sources import sources
from images.builder.director import Context, build, derive, provenance
from images.builder.recipe import Recipe
from images.builder.squashfs import LEVEL
from images.builder.store import Store
from tests.bench.report import finish, progress
from tests.bench.ship import LIMIT as SHIP_LIMIT
from tests.bench.ship import ship
from tests.builder.images import DAEMON, PROJECT, SMALL

LIMIT = 1.15
DERIVED_LIMIT, DERIVED_SHARE = 1.3, 0.25
ONE_MORE = "hello"
ENVIRONMENT = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}


class Told:
    """Steps told on stderr."""

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[Told]:
        began = time.monotonic()
        yield self
        progress(f"  {title}: {time.monotonic() - began:.1f} s")

    def command(self, argv: Sequence[str]) -> None: ...

    def output(self, text: str) -> None: ...

    def exited(self, exit_code: int) -> None: ...

    def progress(self, done: int, total: int, bytes_done: int = 0, bytes_total: int = 0) -> None: ...


def ours(recipe: Recipe, scratch: Path) -> tuple[float, float, float]:
    """Seconds from the recipe to a version complete in an empty store; to one derived from it; to see that nothing has changed."""
    context = Context(scratch / "work", Store(scratch / "store"), DAEMON)
    began = time.monotonic()
    manifest = build(recipe, context, Told())
    built = time.monotonic()
    derive(manifest.digest, recipe, Change.of(recipe, install=(ONE_MORE,)), context, Told())
    derived = time.monotonic()
    if not provenance(recipe, context):
        raise SystemExit("The archives cannot be read.")
    return built - began, derived - built, time.monotonic() - derived


def plain(recipe: Recipe, scratch: Path) -> tuple[float, float]:
    """Seconds of ``mmdebstrap`` into a directory and ``mksquashfs`` of it; of apt-get in it and mksquashfs again."""
    architecture = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout
    listed = scratch / "debian.sources"
    listed.write_text("\n".join(map(str, sources(recipe))))
    wanted = ",".join(dict.fromkeys((KERNELS[architecture.strip()], *BASE, *recipe.packages)))
    bootstrap = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", f"--include={wanted}"]
    pack = ["mksquashfs", str(scratch / "tree"), str(scratch / "root.squashfs")]
    pack += ["-comp", "zstd", "-Xcompression-level", str(LEVEL), "-no-progress", "-quiet"]
    began = time.monotonic()
    subprocess.run([*bootstrap, recipe.suite, str(scratch / "tree"), str(listed)], check=True, capture_output=True)
    subprocess.run(pack, check=True, capture_output=True)
    built = time.monotonic()
    (scratch / "root.squashfs").unlink()
    tree = str(scratch / "tree")
    shutil.copyfile("/etc/resolv.conf", f"{tree}/etc/resolv.conf")
    shutil.rmtree(f"{tree}/var/lib/apt/lists")
    began_again = time.monotonic()
    for words in (["update"], ["install", "--yes", "--no-install-recommends", ONE_MORE]):
        subprocess.run(["chroot", tree, "apt-get", *words], check=True, capture_output=True, env=ENVIRONMENT)
    subprocess.run(pack, check=True, capture_output=True)
    return built - began, time.monotonic() - began_again


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-build", description=__doc__)
    parser.add_argument("--runs", type=int, default=1, help="builds of each side (default 1)")
    runs = parser.parse_args().runs
    times: dict[str, list[tuple[float, ...]]] = {"ours": [], "plain": []}
    (PROJECT / "var").mkdir(exist_ok=True)
    for run in range(runs):
        for name, side in (("plain", plain), ("ours", ours)):
            progress(f"{name}, run {run + 1} of {runs}")
            with tempfile.TemporaryDirectory(dir=PROJECT / "var", prefix="bench-build-") as scratch:
                times[name].append(side(SMALL, Path(scratch)))
            progress(f"{name}: {', '.join(f'{seconds:.1f} s' for seconds in times[name][-1])}")
    full, derived, unchanged = (round(statistics.median(column), 1) for column in zip(*times["ours"], strict=True))
    plain_full, bare = (round(statistics.median(column), 1) for column in zip(*times["plain"], strict=True))
    rows = [
        ("full build", full, "mmdebstrap + mksquashfs", plain_full, f"{full / plain_full:.2f}", LIMIT),
        ("derived version", derived, "apt-get + mksquashfs", bare, f"{derived / bare:.2f}", DERIVED_LIMIT),
        ("derived version", derived, "full build", full, f"{derived / full:.2f}", DERIVED_SHARE),
        ("unchanged recipe", unchanged, "", "", "", ""),
    ]
    with tempfile.TemporaryDirectory(dir=PROJECT / "var", prefix="bench-ship-") as scratch:
        shipped = ship(Path(scratch)).ratio
    rows.append(("shipped bytes", "", "of the version", "", f"{shipped:.3f}", SHIP_LIMIT))
    result = {"ours_s": full, "plain_s": plain_full, "full_s": full, "derived_s": derived, "bare_s": bare}
    finish(
        ("", "seconds", "beside", "seconds", "ratio", "limit"),
        rows,
        {**result, "unchanged_s": unchanged, "shipped_ratio": round(shipped, 4)},
    )


if __name__ == "__main__":
    main()
