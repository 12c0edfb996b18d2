"""``make bench-build``: our build beside plain mmdebstrap and mksquashfs of the same packages, in turns, in one run.

The plain side gets the same sources, kernel, packages and compression. What ours does beyond it (root plan, initrd, home
template, store, digests) is in its time; so is what it saves (no initramfs generator, no documents unpacked, no fsync by dpkg).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from images.builder.chroot.debian import BASE, KERNELS
from images.builder.chroot.sources import sources
from images.builder.director import Context, build
from images.builder.recipe import Recipe
from images.builder.squashfs import LEVEL
from images.builder.store import Store
from tests.bench.report import finish, progress
from tests.builder.images import DAEMON, PROJECT, SMALL

LIMIT = 1.15


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

    def progress(self, done: int, total: int) -> None: ...


def ours(recipe: Recipe, scratch: Path) -> float:
    """Seconds from the recipe to a version that is complete in an empty store."""
    began = time.monotonic()
    build(recipe, Context(scratch / "work", Store(scratch / "store"), DAEMON), Told())
    return time.monotonic() - began


def plain(recipe: Recipe, scratch: Path) -> float:
    """Seconds of ``mmdebstrap`` into a directory and ``mksquashfs`` of it."""
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
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-build", description=__doc__)
    parser.add_argument("--runs", type=int, default=1, help="builds of each side (default 1)")
    runs = parser.parse_args().runs
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    (PROJECT / "var").mkdir(exist_ok=True)
    for run in range(runs):
        for name, side in (("plain", plain), ("ours", ours)):
            progress(f"{name}, run {run + 1} of {runs}")
            with tempfile.TemporaryDirectory(dir=PROJECT / "var", prefix="bench-build-") as scratch:
                times[name].append(side(SMALL, Path(scratch)))
            progress(f"{name}: {times[name][-1]:.1f} s")
    ours_s, plain_s = (round(statistics.median(times[name]), 1) for name in ("ours", "plain"))
    rows = [("ours", ours_s, f"{ours_s / plain_s:.2f}"), ("mmdebstrap + mksquashfs", plain_s, "1.00")]
    rows.append(("limit", round(LIMIT * plain_s, 1), f"{LIMIT:.2f}"))
    finish(("build", "seconds", "ratio"), rows, {"ours_s": ours_s, "plain_s": plain_s})


if __name__ == "__main__":
    main()
