"""``make bench-fleet CLIENTS=10000``: a whole server, and a swarm of so many clients, from their cold start to a gateway that is killed.

Everything is on this host: the Procfile's processes, PostgreSQL as one would run it (it keeps what it commits) or SQLite, Redis, and the
swarm, whose clients speak as real ones do (of the signatures they check a fiftieth: see VERIFY). Nothing else should run.

cold start
    All are switched on, ``--rate`` of them a second, and ask for script, plan and session. ``cold_start_s`` is from the first one's being
    switched on to the last one's being connected, ``errors`` what any of them saw go wrong.
idle
    A minute of nothing but polls: the gateway's share of one processor, and its memory (``gateway_most_mb``: the most until the end).
cycle
    One order to all. ``order_s`` is what ordering takes until it is committed, with a command for each. ``accepted_p50_s`` and
    ``accepted_p99_s`` are from that commit to the client's knowing that its acceptance is durable, ``recorded_s`` from the last client's
    being done to the last one's knowing that its report, and with it the restore's row, is. ``stolen_pct`` is the share of the processors
    that a virtual host's neighbours had meanwhile: all of it is processor time, and so these times grow by as much.
kill
    One more order to all, and the gateway is killed in its middle. ``reconnect_s`` is from its being started again to all of them polling.

``lost``, ``twice`` and ``unaudited`` are the swarm's verdict on both orders; ``enrolled`` counts clients that are new, or booted again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from tests.bench.report import finish, progress
from tests.bench.servers import DATABASES, Server, server
from tests.bench.usage import cpu_s, processors_s, resident_mb
from tests.services import PROJECT

TOKEN = "a-token-for-the-metrics-of-a-bench"
PATIENCE_S = 600.0
VERIFY = 0.02  # of the signatures: ten thousand PCs have ten thousand processors for it, the swarm shares two with the server
LIMITS = {
    "gateway_rss_mb": 200,
    "idle_cpu_pct": 10,
    "accepted_p99_s": 3,
    "recorded_s": 10,
    "reconnect_s": 60,
    "cold_start_s": 90,
    "lost": 0,
    "twice": 0,
    "unaudited": 0,
    "enrolled": 0,
    "errors": 0,
}


class Fleet:
    """A server and its swarm."""

    def __init__(self, one: Server, swarm: subprocess.Popen[str], clients: int) -> None:
        self.server, self.swarm, self.clients = one, swarm, clients
        self.most_mb = 0.0

    def polling(self) -> int:
        """How many wait for commands at the gateway; 0 where it does not answer."""
        asked = Request(f"{self.server.gateway_url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        try:
            with urlopen(asked, timeout=10) as answer:
                lines = answer.read().decode().splitlines()
        except (URLError, OSError):
            return 0
        return next(int(float(line.split()[1])) for line in lines if line.startswith("fleet_parked_polls "))

    def wait(self, condition: Callable[[], object], what: str, pause_s: float = 0.2) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            if self.swarm.poll() is not None:
                raise SystemExit("The swarm has ended.")
            if time.monotonic() > end:
                raise SystemExit(f"It was waited {PATIENCE_S:.0f} s in vain until {what}.")
            with_gateway = self.server.pids.get("gateway")
            self.most_mb = max(self.most_mb, resident_mb(with_gateway) if with_gateway else 0.0)
            time.sleep(pause_s)

    def said(self) -> dict[str, Any]:
        """What the swarm saw until now."""
        self.swarm.send_signal(signal.SIGUSR1)
        return self._last_words()

    def end(self) -> dict[str, Any]:
        """The swarm's verdict."""
        self.swarm.send_signal(signal.SIGTERM)
        return self._last_words()

    def _last_words(self) -> dict[str, Any]:
        assert self.swarm.stdout
        return next(dict(json.loads(line)) for line in self.swarm.stdout if line.startswith("{"))

    def usage(self) -> dict[str, float]:
        return {name: cpu_s(pid) for name, pid in {**self.server.pids, "swarm": self.swarm.pid}.items()}

    def told(self, before: dict[str, float]) -> str:
        """Processor time since then, of each process."""
        return ", ".join(f"{name} {now - before.get(name, 0.0):.2f}" for name, now in self.usage().items())


@contextmanager
def fleet(clients: int, database: str, rate: float, delay: float) -> Iterator[Fleet]:
    with server(database, metrics_token=TOKEN) as one:
        log = (one.directory / "swarm.log").open("w")
        words = ["--clients", clients, "--site", "clubroom", "--seconds", 3600, "--rate", rate, "--delay", delay]
        words += ["--verify", VERIFY]
        swarm = subprocess.Popen(
            [sys.executable, "manage.py", "swarm", *map(str, words), "--gateway", one.gateway_url],
            cwd=PROJECT,
            env=one.environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            yield Fleet(one, swarm, clients)
        finally:
            swarm.kill()
            swarm.wait()
            log.close()


def order() -> tuple[float, float]:
    """All are to be cycled, by a campaign; when that was committed (``time.time``), and how long after it was ordered."""
    from django.contrib.auth.models import User

    from agents import campaigns
    from agents.models import Verb
    from agents.selecting import Selection
    from fleet.models import Site

    site, vera = Site.objects.get(slug="clubroom"), User.objects.get(username="vera")
    campaign = campaigns.plan(site, vera, verb=Verb.CYCLE, reason="the hall is to be clean", selection=Selection())
    campaigns.start(campaign, vera)
    committed = time.time()
    return committed, committed - campaign.order.ordered_at.timestamp()


def ended() -> bool:
    from agents.models import Campaign, Command

    return not Command.objects.open().exists() and not Campaign.objects.filter(ended_at=None).exists()


def ready(clients: int) -> bool:
    from fleet.models import Client, ClientState

    return Client.objects.filter(state=ClientState.READY).count() == clients


def boots() -> int:
    from agents.models import BootSession

    return BootSession.objects.count()


def measure(one: Fleet, idle_s: float) -> dict[str, Any]:
    found: dict[str, Any] = {"clients": one.clients}
    before = one.usage()
    one.wait(lambda: one.polling() == one.clients, "all are connected", 1)
    progress(f"all are connected; processor seconds: {one.told(before)}")
    one.wait(lambda: ready(one.clients), "all are ready", 1)

    one.wait(lambda: _calm(one), "the server is calm", 1)
    before, began = one.usage(), time.monotonic()
    time.sleep(idle_s)
    found["gateway_rss_mb"] = round(resident_mb(one.server.pids["gateway"]))
    spent, gateway = time.monotonic() - began, one.server.pids["gateway"]
    found["idle_cpu_pct"] = round(100 * (cpu_s(gateway) - before["gateway"]) / spent, 1)
    progress(f"idle for {spent:.0f} s; processor seconds: {one.told(before)}")

    before, (ran, stolen) = one.usage(), processors_s()
    committed, order_s = order()
    progress(f"a cycle is ordered for all; the order took {order_s:.2f} s")
    one.wait(ended, "all are cycled")
    progress(f"all cycles have ended {time.time() - committed:.1f} s after that; processor seconds: {one.told(before)}")
    now, gone = processors_s()
    found["stolen_pct"] = round(100 * (gone - stolen) / (now - ran), 1)
    found["order_s"] = round(order_s, 2)
    first = one.said()
    for name in ("accepted_p50_s", "accepted_p99_s"):
        found[name] = round(first[name] - order_s, 3)  # from the commit
    found["recorded_s"] = first["recorded_s"]
    found["errors"] = sum(first["troubles"].values())
    found["cold_start_s"] = first["cold_start_s"]
    one.wait(lambda: ready(one.clients), "all are ready again")
    one.wait(lambda: one.polling() == one.clients, "all poll again", 1)
    found["gateway_most_mb"] = round(one.most_mb)

    had, before = boots(), one.usage()
    order()
    time.sleep(1)
    one.server.kill("gateway")
    progress("a cycle is ordered for all, and the gateway is killed")
    one.server.start("gateway")
    restarted = time.time()
    one.wait(ended, "all have ended")
    one.wait(lambda: ready(one.clients), "all are ready again")
    one.wait(lambda: one.polling() == one.clients, "all poll again")
    progress(f"all are back and have ended {time.time() - restarted:.1f} s after its restart")
    verdict = one.end()
    found["reconnect_s"] = round(verdict["joined_at"] - restarted, 1)
    found["enrolled"] = boots() - had
    found |= {name: verdict[name] for name in ("lost", "twice", "unaudited", "commands", "succeeded", "troubles")}
    return found


def _calm(one: Fleet) -> bool:
    """What followed the boots is over: for a second the server did next to nothing."""
    before = sum(one.usage().values())
    time.sleep(1)
    return sum(one.usage().values()) - before < 0.35


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-fleet", description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--database", choices=DATABASES, default="postgres")
    parser.add_argument("--rate", type=float, default=200, help="how many are switched on a second")
    parser.add_argument("--delay", type=float, default=2, metavar="S", help="the most that a cycle takes")
    parser.add_argument("--idle", type=float, default=60, metavar="S", help="how long nothing happens")
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    with fleet(chosen.clients, chosen.database, chosen.rate, chosen.delay) as one:
        found = measure(one, chosen.idle)
    rows = [[name, found[name], limit, "" if found[name] <= limit else "above"] for name, limit in LIMITS.items()]
    print(
        f"{chosen.clients} clients on {chosen.database}; load of the host before: {load:.1f}. What clients saw: {found['troubles']}"
    )
    finish(["", "measured", "limit", ""], rows, {**found, "database": chosen.database, "load": round(load, 1)})


if __name__ == "__main__":
    main()
