"""The server of the benches: the Procfile's own processes on a database of their own, with one class that has a released version.

This process is the web process then: it orders, and reads what came of it. Nothing of the server is simulated; only the version was never
built, so no real PC could boot it. ``web`` and ``builds`` are left out: nobody looks at the board, and nothing is built.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import django

from fleet.box import box_environment
from fleet.processes import read_procfile
from tests import postgres
from tests.services import PROJECT, Service, free_port, start, wait_for

DATABASES = ("postgres", "sqlite")
PARTS = ("redis", "gateway", "sender", "work", "clock")  # in the order of their start
QUEUES = {"sender": "sender", "work": "default"}


@dataclass
class Server:
    """The running server. ``pids`` has its processes by their names in the Procfile, and ``postgres``, the parent of all of that."""

    directory: Path
    environment: dict[str, str]
    cluster: postgres.Cluster | None = None
    running: dict[str, Service] = field(default_factory=dict)

    @property
    def gateway_url(self) -> str:
        return self.environment["FLEET_GATEWAY_URL"]

    @property
    def pids(self) -> dict[str, int]:
        found = {part: service.pid for part, service in self.running.items()}
        return found | ({"postgres": self.cluster.service.pid} if self.cluster else {})

    def start(self, part: str) -> None:
        """Start it, for the first time or again, and wait until it serves."""
        argv = read_procfile(PROJECT / "Procfile", self.environment)[part]
        self.running[part] = start(argv, self.directory / f"{part}.log", self.environment)
        wait_for(lambda: self._serves(part), f"{part} serves", 60)

    def kill(self, part: str) -> None:
        """kill -9."""
        self.running[part].kill()

    def stop(self) -> None:
        for service in reversed(self.running.values()):
            service.stop()

    def _serves(self, part: str) -> bool:
        service = self.running[part]
        if service.process.poll() is not None:
            raise RuntimeError(f"{part} ended:\n{service.log[-3000:]}")
        if part == "redis":
            return (self.directory / "redis.sock").exists()
        if part == "gateway":
            try:
                with urlopen(f"{self.gateway_url}/boot/v1/start.ipxe", timeout=5) as answer:
                    return bool(answer.status == 200)
            except (URLError, OSError):
                return False
        return part == "clock" or _works(QUEUES[part])


def _works(queue: str) -> bool:
    """Whether the queue's worker has carried something out. It gets something to carry out each time that we ask."""
    from fleet import alive
    from fleet.tasks import say_alive

    say_alive.apply_async(args=(queue,), queue=queue, expires=5)
    return alive.listen().parts[queue].silent_s is not None


@contextmanager
def server(database: str = "postgres", **settings: object) -> Iterator[Server]:
    """Have a server, once in a process; ``settings`` as in ``poll_hold=60`` become FLEET_POLL_HOLD of all of it.

    From here on this process has Django and the server's rows: those of ``tests.world.make_world``, whose class ``gamer`` is what a
    swarm's clients are found to be. PostgreSQL is told to keep what it commits, unlike in tests.
    """
    with ExitStack() as things:
        directory = Path(things.enter_context(tempfile.TemporaryDirectory(prefix="fleet-bench-")))
        cluster = things.enter_context(postgres.running(postgres.DURABLE)) if database == "postgres" else None
        url = cluster.url if cluster else f"sqlite:///{directory / 'fleet.sqlite3'}"
        os.environ |= {"FLEET_DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "fleet.settings"}
        os.environ |= {f"FLEET_{name.upper()}": str(value) for name, value in settings.items()}
        environment = box_environment(directory, gateway_port=free_port())
        os.environ |= environment
        django.setup()
        _prepare(directory)
        one = Server(directory, environment, cluster)
        things.callback(_leave)
        things.callback(one.stop)
        for part in PARTS:
            one.start(part)
        yield one


def _prepare(directory: Path) -> None:
    from django.conf import settings
    from django.core.management import call_command

    from fleet.signing import make_keys

    call_command("migrate", verbosity=0)
    make_keys(directory / "keys")
    settings.IMAGE_KEY = str(directory / "keys" / "image.key")  # for the version; nobody else is told

    from tests.agents.boots import make_release
    from tests.world import make_world

    make_release(make_world().gamer)


def _leave() -> None:
    from django.db import connections

    connections.close_all()


def main() -> None:
    """``python -m tests.bench.servers [sqlite]``: have one until Ctrl-C, to look at."""
    with server(*sys.argv[1:2]) as one:
        print(one.gateway_url, one.pids, one.directory)
        sys.stdin.read()


if __name__ == "__main__":
    main()
