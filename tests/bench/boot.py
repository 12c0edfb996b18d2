"""From kernel start to login prompt: our boot beside Debian's live-boot, LTSP and dracut livenet.

`python -m tests.bench.boot [--runs N] [--only NAME …] [--kinds]`, as root. All four systems have the same packages and the
same measuring getty, start in the same virtual PC, and get the same console. Beside
that our own boot in each kind of root, fetched in each way (tests/bench/kinds.py). Trees are kept in var/cache/bench.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.bench import guest, kinds, ours
from tests.bench.peers import dracut, live_boot, ltsp, tree
from tests.bench.report import finish, progress

CACHE = Path(__file__).resolve().parents[2] / "var/cache/bench"
NAMES = ("ours", "live-boot", "ltsp", "dracut")
GOAL = 0.4  # of the best peer's busy time
_INSIDE = "--inside-namespace"
# A network with nothing but its own loopback, a /run of its own (rpcbind's socket is there), and processes
# that all die with the bench.
_NAMESPACE = 'mount -t tmpfs tmpfs /run && ip link set lo up && exec "$@"'  # /run: of this mount namespace only


class _Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """The bench prints progress of its own."""


@contextmanager
def http_server(directory: Path) -> Iterator[int]:
    """Serve the directory on a free port of the loopback; yields the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(directory)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def boot_over_http(
    system: tree.System, append: Callable[[int], str], name: str, scratch: Path, log: Path
) -> guest.Measured:
    """Boot a peer whose initrd fetches its root from us."""
    files = tree.built(system, CACHE)
    (scratch / system.name).symlink_to(files)
    with http_server(scratch) as port:
        return guest.boot(name, guest.Boot(files / "kernel", files / "initrd", append(port)), log)


def boot_ltsp(name: str, scratch: Path, log: Path) -> guest.Measured:
    """Boot LTSP, whose image stays on an NFS server."""
    files = tree.built(ltsp.SYSTEM, CACHE)
    images = scratch / "srv/images"
    images.mkdir(parents=True)
    os.link(files / "root.squashfs", images / "root.img")
    with ltsp.nfs_server(scratch / "srv", scratch):
        return guest.boot(name, guest.Boot(files / "kernel", files / "initrd", ltsp.append()), log)


PEERS: dict[str, Callable[[str, Path, Path], guest.Measured]] = {
    "live-boot": partial(boot_over_http, live_boot.SYSTEM, live_boot.append),
    "ltsp": boot_ltsp,
    "dracut": partial(boot_over_http, dracut.SYSTEM, dracut.append),
}


def prepare(names: list[str]) -> Path | None:
    """Build what is not in the cache; the only part that needs the package archive. Returns our version."""
    systems = {"live-boot": live_boot.SYSTEM, "ltsp": ltsp.SYSTEM, "dracut": dracut.SYSTEM}
    for name in names:
        if name in systems:
            tree.built(systems[name], CACHE)
    # Last, and handed on: somebody may be editing its sources while the others are built and booted.
    return ours.built(CACHE) if "ours" in names else None


def measure(names: list[str], runs: int, version: Path, result: dict[str, object]) -> None:
    """Boot each in turn, one at a time; print medians, the table and, with `result` in it, the JSON line."""
    medians: dict[str, dict[str, float]] = {}
    boots = {"ours": lambda name, _, log: ours.boot(ours.artefacts(CACHE, version), name, log), **PEERS}
    for name in names:
        measured = []
        for run in range(1, runs + 1):
            progress(f"{name}: boot {run} of {runs}")
            with tempfile.TemporaryDirectory(prefix="boot-", dir=CACHE) as scratch:
                measured.append(boots[name](name, Path(scratch), CACHE / "log" / f"{name}.log"))
            progress(f"{name}: {measured[-1].busy_s:.2f} s busy, login prompt at {measured[-1].login_s:.2f} s")
        medians[name] = {
            "busy_s": round(statistics.median(one.busy_s for one in measured), 2),
            "login_s": round(statistics.median(one.login_s for one in measured), 2),
            "bytes": round(statistics.median(one.bytes for one in measured)),
            "initrd_bytes": measured[0].initrd_bytes,
            "ram_mib": round(statistics.median(one.ram_mib for one in measured), 1),
        }
    peers = [figures["busy_s"] for name, figures in medians.items() if name != "ours"]
    rows = [
        [
            name,
            f"{figures['busy_s']:.2f}",
            f"{figures['busy_s'] / min(peers):.2f}" if peers else "",
            f"{figures['login_s']:.2f}",
            f"{figures['bytes'] / 1e6:.1f}",
            f"{figures['initrd_bytes'] / 1e6:.1f}",
            f"{figures['ram_mib']:.0f}",
        ]
        for name, figures in medians.items()
    ]
    print(f"Kernel start to login prompt, median of {runs}; guest seconds at 1 ns per instruction.")
    finish(["", "busy s", f"of best (goal {GOAL})", "login s", "MB", "initrd MB", "RAM MiB"], rows, medians | result)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.boot", description=__doc__)
    parser.add_argument("--runs", type=int, default=1, help="boots of each (default: 1)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="leave the others out")
    parser.add_argument("--kinds", action="store_true", help="only the kinds of root and the ways to fetch it")
    parser.add_argument(_INSIDE, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("bench-boot builds chroots and serves NFS: run it as root.", file=sys.stderr)
        return 1
    if arguments.inside_namespace:
        version = arguments.inside_namespace
        result: dict[str, object] = {}
        if "ours" in arguments.only:
            result["kinds"] = kinds.measure(ours.artefacts(CACHE, version), arguments.runs, CACHE)
        if arguments.kinds:
            print(json.dumps(result))
        else:
            measure(arguments.only, arguments.runs, version, result)
        return 0
    version = prepare(["ours"] if arguments.kinds else arguments.only)
    again = [sys.executable, "-m", "tests.bench.boot", *sys.argv[1:], _INSIDE, str(version)]
    isolated = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return subprocess.call([*isolated, "sh", "-ec", _NAMESPACE, "sh", *again])


if __name__ == "__main__":
    sys.exit(main())
