"""One message to all connected clients: ours beside mosquitto (QoS 1), NATS and Salt, all in one run on this host.

``python -m tests.bench.fanout [--clients N] [--rounds N] [--only NAME …] [--database sqlite]``. Each system has its turn alone, with as many
simulated clients, all in one process of the same kind (``tests/bench/brokers/audience.py``). After a round that nobody counts, the
figures are medians of the rounds; every client must get every message once, or there is no result.

*delivered*: from the message being handed over until a client has it. *known*: until it is known that it has. That is the return in
the master's cache of jobs with Salt, the acceptance in the database with ours, a reply at the publisher with NATS; MQTT has no such thing.
What is handed over is a publication with the brokers, a job with Salt, and with ours a campaign of the whole site, at the commit of its
rows. The brokers keep nothing on disk. PostgreSQL does: for each client a command, its signature and how it ended, and an entry in the audit log
before anything is signed. ``ours_vs_fastest`` compares the delivery to 99 % of the clients with that of the fastest broker (NATS
with replies counts as one), ``ours_vs_salt`` with that of Salt; ``known_vs_salt`` compares what is known.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from tests.bench.brokers.gathering import Round, System, at, gathered
from tests.bench.brokers.mosquitto import mosquitto
from tests.bench.brokers.nats_server import nats_server
from tests.bench.brokers.ours import ours
from tests.bench.brokers.salt_master import salt_master
from tests.bench.report import finish, progress

BROKERS = ("mosquitto", "nats", "nats-replies")
NAMES = (*BROKERS, "salt", "ours")
SHARES = {"p50": 0.5, "p99": 0.99, "last": 1.0}


def measure(make: Callable[[], AbstractContextManager[System]], clients: int, rounds: int) -> list[Round]:
    with make() as system:
        progress(f"{system.name}: {clients} clients join")
        with gathered(system, clients) as gathering:
            progress(f"{system.name}: {rounds} rounds, and one before them")
            return [gathering.round() for _ in range(rounds + 1)][1:]


def figures(rounds: list[Round]) -> dict[str, float]:
    """Medians: seconds until so many had it, until it was known of so many, and of processors."""
    found = {}
    for name, share in SHARES.items():
        found[f"delivered_{name}_s"] = statistics.median(at(one.received, share) for one in rounds)
        if all(one.answered for one in rounds):
            found[f"known_{name}_s"] = statistics.median(at(one.answered, share) for one in rounds)
    found["server_cpu_s"] = statistics.median(one.server_cpu_s for one in rounds)
    found["clients_cpu_s"] = statistics.median(one.clients_cpu_s for one in rounds)
    return {name: round(value, 3) for name, value in found.items()}


def ratios(found: dict[str, dict[str, float]]) -> dict[str, float]:
    if "ours" not in found:
        return {}
    mine, result = found["ours"], dict[str, float]()
    if brokers := [found[name]["delivered_p99_s"] for name in BROKERS if name in found]:
        result["ours_vs_fastest"] = round(mine["delivered_p99_s"] / min(brokers), 2)
    if "salt" in found:
        result["ours_vs_salt"] = round(mine["delivered_p99_s"] / found["salt"]["delivered_p99_s"], 2)
        result["known_vs_salt"] = round(mine["known_p99_s"] / found["salt"]["known_p99_s"], 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fanout", description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="leave the others out")
    parser.add_argument("--database", choices=("postgres", "sqlite"), default="postgres", help="of ours")
    chosen = parser.parse_args()
    load, found = os.getloadavg()[0], dict[str, dict[str, float]]()
    with tempfile.TemporaryDirectory(prefix="fleet-fanout-") as scratch:
        systems: dict[str, Callable[[Path], AbstractContextManager[System]]] = {
            "mosquitto": mosquitto,
            "nats": nats_server,
            "nats-replies": partial(nats_server, replies=chosen.clients),
            "salt": salt_master,
            "ours": lambda _: ours(chosen.clients, chosen.database),
        }
        for name in NAMES:
            if name in chosen.only:
                place = Path(scratch) / name
                place.mkdir()
                found[name] = figures(measure(partial(systems[name], place), chosen.clients, chosen.rounds))
                progress(f"{name}: {found[name]}")
    columns = [f"{what}_{name}_s" for what in ("delivered", "known") for name in SHARES] + [
        "server_cpu_s",
        "clients_cpu_s",
    ]
    rows = [
        [name, *(f"{one[column]:.3f}" if column in one else "" for column in columns)] for name, one in found.items()
    ]
    print(
        f"One message to {chosen.clients} clients, seconds, median of {chosen.rounds}; load of the host before: {load:.1f}."
    )
    header = ["", *(column.removesuffix("_s").replace("_", " ") for column in columns)]
    finish(header, rows, {"clients": chosen.clients, "load": round(load, 1), **ratios(found), **found})


if __name__ == "__main__":
    main()
