"""Our boot in each kind of root, fetched in each way: what a class's choice costs."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.bench import ours
from tests.bench.report import progress, table
from tests.initrd.gateway import Version
from tests.lab.nfs import Share

KINDS = ("symlink", "bind", "overlay")
FETCHES = ("http", "lazy", "nfs")
WIRE = 125e6  # bytes per second of a gigabit network, which the virtual one is not: it costs no time
LAZY_BYTES, NFS_ROOT_MIB, SLOWEST = 45e6, 12, 1.2  # the goals

Figures = dict[str, float]


def measure(version: Version, runs: int, cache: Path) -> dict[str, Figures]:
    """Medians by "kind/fetch"; prints the table."""
    result: dict[str, Figures] = {}
    with (
        tempfile.TemporaryDirectory(prefix="share-", dir=cache) as work,
        Share(version.root.parent, Path(work), bind="") as share,
    ):
        for kind in KINDS:
            for fetch in FETCHES:
                name = f"{kind}/{fetch}"
                served = replace(version, kind=kind, fetch=fetch, share=share.url(version.root.name))
                log = cache / "log" / f"{kind}-{fetch}.log"
                measured = [ours.boot(served, name, log, "wait") for _ in range(runs)]
                received = statistics.median(
                    one.bytes - version.kernel.stat().st_size - one.initrd_bytes for one in measured
                )
                busy = statistics.median(one.busy_s for one in measured)
                result[name] = {
                    "busy_s": round(busy, 2),
                    "wire_s": round(busy + received / WIRE, 2),
                    "login_s": round(statistics.median(one.login_s for one in measured), 2),
                    "bytes": round(statistics.median(one.bytes for one in measured)),
                    "root_mib": round(statistics.median(one.files_kib for one in measured) / 1024, 1),
                }
                progress(f"{name}: {result[name]}")
    fastest = min(figures["wire_s"] for figures in result.values())
    header = ["", "busy s", "at 1 Gbit/s", f"of fastest (goal {SLOWEST})", "login s", "MB", "root MiB"]
    rows = [
        [
            name,
            f"{figures['busy_s']:.2f}",
            f"{figures['wire_s']:.2f}",
            f"{figures['wire_s'] / fastest:.2f}",
            f"{figures['login_s']:.2f}",
            f"{figures['bytes'] / 1e6:.1f}",
            f"{figures['root_mib']:.1f}",
        ]
        for name, figures in result.items()
    ]
    print(
        f"Kinds of root by way of fetching, median of {runs}; MB until login, kernel and initrd included; at 1 Gbit/s: busy"
    )
    print(
        f"seconds and what comes over the wire; root: all files in memory but the home. Goals: lazy {LAZY_BYTES / 1e6:.0f} MB,"
    )
    print(f"symlink/nfs {NFS_ROOT_MIB} MiB.")
    print(table(header, rows) + "\n")
    return result
