"""``make bench-cycle``: from the order to the new session, with a full home and with an empty one, in turns.

One virtual PC under software emulation, booted from a real image. An order counts from the moment at which the gateway
has it for the PC's poll; the new session is there when the daemon, which saw a process of the user in a session that
logind had not had before, says so to the gateway. Both are moments of this host's clock. Nothing else should run on
the host: the PC has two processors, and so needs two.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agents.daemon import protocol
from tests.bench.report import finish, progress
from tests.builder.images import built_image
from tests.daemon.machine import RECIPE, Machine, machine

FILES, BYTES = 10_000, 500_000_000
LIMIT_S, LIMIT_RATIO = 1.5, 1.2
MEMORY_MIB = 2048  # half of it for a home, and the one before is being counted meanwhile
CYCLE_S = 300  # counting 500 MB is the longest part by far, and nobody waits for it
# In the guest, as its user: small files in a hundred directories, some of them deeper, and ten big files for the rest.
FILL = f"""
import os, random
random.seed(20040)
block, left = random.randbytes(1 << 20), {BYTES}
for number in range({FILES}):
    folder = f"/home/player/saves/{{number % 100}}" + ("/deep/er" if number % 100 > 79 else "")
    os.makedirs(folder, exist_ok=True)
    big = {FILES} - number
    size = -(-left // big) if big <= 10 else random.randrange(8192)
    left -= size
    with open(f"{{folder}}/{{number}}", "wb") as file:
        while size:
            at = random.randrange(4096)
            size -= file.write(block[at:at + size])
"""
# Till the guest has done what it puts off until after its boot: two seconds of which nine tenths are idle.
CALM = """
idle() { awk '/^cpu / {print $5}' /proc/stat; }
until before=$(idle); sleep 2; [ $(($(idle) - before)) -gt 360 ]; do :; done
"""


@dataclass(frozen=True)
class Measured:
    """Seconds from order to new session, and the parts of it in milliseconds."""

    seconds: float
    phases_ms: Mapping[str, int]


def cycle(booted: Machine) -> Measured:
    """Order one cycle; returns when the PC has also counted what it threw away. AssertionError if it failed."""
    gateway, before, polls = booted.gateway, booted.sessions(), len(booted.gateway.polls)
    command = gateway.command(protocol.CYCLE, booted.home)
    envelope = gateway.wrap(command)
    arrived = len(gateway.reports)
    ordered = time.monotonic()
    gateway.send(envelope)
    booted.wait_for_report(command, protocol.ACCEPTED)
    accepted = time.monotonic()
    ready = booted.wait_for_state(protocol.READY, polls)  # its first poll since then
    report = booted.wait_for_report(command, seconds=CYCLE_S)
    result = report["result"]
    assert report["state"] == protocol.SUCCEEDED, report
    assert result["session"] in booted.sessions() - before, f"{result['session']} is no new session"
    assert len(gateway.reports) == arrived + 2, "the daemon reports more than acceptance and end"
    phases = {"accept": round((accepted - ordered) * 1000), **result["phases_ms"]}
    whole = round((ready - ordered) * 1000)
    phases["tell"] = whole - phases["accept"] - phases.pop("total")
    return Measured(whole / 1000, phases)


def full(booted: Machine) -> Measured:
    """A cycle of a home with 10,000 files and 500 MB; AssertionError if that is not what was thrown away."""
    booted.pc.sh(f"setpriv --reuid player --regid player --clear-groups python3 - <<'END'{FILL}END", 300)
    measured = cycle(booted)
    result = booted.gateway.reports[-1]["result"]
    assert (result["files"], result["bytes"]) == (FILES, BYTES), result
    return measured


def medians(cycles: Sequence[Measured]) -> tuple[float, dict[str, int]]:
    phases = {name: round(statistics.median(one.phases_ms[name] for one in cycles)) for name in cycles[0].phases_ms}
    return round(statistics.median(one.seconds for one in cycles), 3), phases


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-cycle", description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="cycles of each kind (default 7)")
    runs = parser.parse_args().runs
    progress("the image is built, unless it is in the cache")
    version = built_image(RECIPE)
    progress("the PC boots")
    homes: dict[str, list[Measured]] = {"full": [], "empty": []}
    with machine(*version, MEMORY_MIB) as booted:
        booted.pc.sh(CALM, 120)
        for run in range(runs):
            for name, measure in (("full", full), ("empty", cycle)):
                homes[name].append(measure(booted))
                progress(f"{name}, {run + 1} of {runs}: {homes[name][-1].seconds:.2f} s")
    (seconds, phases), (empty, empty_phases) = medians(homes["full"]), medians(homes["empty"])
    rows: list[list[object]] = [
        ["10,000 files, 500 MB", f"{seconds:.2f}", f"{seconds / empty:.2f}", *phases.values()],
        ["empty", f"{empty:.2f}", "1.00", *empty_phases.values()],
        ["limit", f"{LIMIT_S:.2f}", f"{LIMIT_RATIO:.2f}", *[""] * len(phases)],
    ]
    print(f"Order to new session, median of {runs} each; phases in milliseconds.")
    finish(
        ["home", "seconds", "of empty", *phases],
        rows,
        {"median_s": seconds, "empty_median_s": empty, "phases_ms": phases},
    )


if __name__ == "__main__":
    main()
