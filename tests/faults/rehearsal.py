"""``python -m tests.faults.rehearsal``: a real server, a swarm, campaign after campaign, and a part of the server that is killed or frozen.

It prints ``{}`` when all are connected, then reads orders from its standard input, a line each, and answers each with a line of JSON: what
must be 0, or empty, once the fault is over and what was ordered has ended.

    kill gateway            kill -9, and start it again
    freeze 30 gateway redis SIGSTOP for 30 s, the next a third of that later
    storm 20                so many seconds of a network that loses, repeats and delays
    end                     the swarm's own verdict
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.bench.servers import DATABASES, Server, server
from tests.faults.proxy import STORM, Proxy, Weather
from tests.services import PROJECT, wait_for

SETTLES_S = 240.0  # what was ordered has ended by then, on a busy machine too
DELAY_S = 2.0  # the most that a cycle takes


class Rehearsal:
    def __init__(self, one: Server, clients: int) -> None:
        self._server, self._clients = one, clients
        self._proxy = Proxy(int(one.environment["GATEWAY_PORT"]))
        self._log = (one.directory / "swarm.log").open("w")
        words = ["--clients", str(clients), "--site", "clubroom", "--seconds", "3600", "--delay", str(DELAY_S)]
        self._swarm = subprocess.Popen(
            [sys.executable, "manage.py", "swarm", *words, "--gateway", self._proxy.url],
            cwd=PROJECT,
            env=one.environment,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._await(self._all_are_there, "the swarm is connected")

    # --- what happens

    def obey(self, line: str) -> dict[str, Any]:
        what, *words = line.split()
        if what == "end":
            return self.end()
        with self._campaigns():
            if what == "kill":
                self._kill(words[0])
            elif what == "freeze":
                self._freeze(float(words[0]), words[1:])
            elif what == "storm":
                self._proxy.weather = STORM
                time.sleep(float(words[0]))
                self._proxy.weather = Weather()
        self._await(self._all_has_ended, "what was ordered has ended")
        self._await(self._all_are_there, "all are connected again")
        return self.verdict()

    def end(self) -> dict[str, Any]:
        self._swarm.send_signal(signal.SIGINT)
        said, _ = self._swarm.communicate(timeout=60)
        assert said, self._told
        return dict(json.loads(said.splitlines()[-1]))

    @property
    def _told(self) -> str:
        """What the swarm printed on its standard error."""
        return (self._server.directory / "swarm.log").read_text()

    def close(self) -> None:
        self._swarm.kill()
        self._swarm.wait()
        self._log.close()

    def _kill(self, part: str) -> None:
        killed = self._server.cluster if part == "postgres" else None
        if killed is not None:
            killed.kill()
            killed.start()
        else:
            self._server.kill(part)
            self._server.start(part)

    def _freeze(self, seconds: float, parts: Sequence[str]) -> None:
        """Each for so long, one after the other, so that always three of them stand still."""
        begins = {part: number * seconds / 3 for number, part in enumerate(parts)}
        began = time.monotonic()
        for at, part, what in sorted(
            [(at, part, signal.SIGSTOP) for part, at in begins.items()]
            + [(at + seconds, part, signal.SIGCONT) for part, at in begins.items()]
        ):
            time.sleep(max(0.0, began + at - time.monotonic()))
            for pid in self._pids(part):
                os.kill(pid, what)

    def _pids(self, part: str) -> list[int]:
        cluster = self._server.cluster
        return cluster.pids if part == "postgres" and cluster else [self._server.pids[part]]

    @contextmanager
    def _campaigns(self) -> Iterator[None]:
        """One after the other meanwhile: each of all clients, two of three cycle them. There is one in its middle when this begins."""
        enough = threading.Event()
        people = threading.Thread(target=_order, args=(enough,))
        people.start()
        try:
            self._await(lambda: _accepted() >= self._clients // 10, "a campaign is under way")
            yield
            time.sleep(DELAY_S)
        finally:
            enough.set()
            people.join()

    # --- what is seen

    def _await(self, condition: Callable[[], object], what: str) -> None:
        from django.db import DatabaseError, connection

        def holds() -> object:
            assert self._swarm.poll() is None, self._told
            try:
                return condition()
            except DatabaseError:
                connection.close()
                return False

        try:
            wait_for(holds, what, SETTLES_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._how_it_stands()}") from None

    def _all_are_there(self) -> bool:
        from agents.models import BootSession, SessionStatus
        from fleet.models import Client, ClientState

        there = BootSession.objects.filter(status=SessionStatus.OPEN).count()
        shown = Client.objects.filter(state__in=[ClientState.READY, ClientState.IN_USE]).count()
        return there == shown == self._clients

    def _all_has_ended(self) -> bool:
        from agents.models import Campaign, Command

        open_ones = Command.objects.filter(status__in=Command.OPEN)
        return not open_ones.exists() and not Campaign.objects.filter(ended_at=None).exists()

    def _how_it_stands(self) -> str:
        from collections import Counter

        from agents.models import BootSession, Campaign, Command
        from fleet.models import Client

        tables = {
            "sessions": BootSession.objects.values_list("status", flat=True),
            "clients": Client.objects.values_list("state", flat=True),
            "commands": Command.objects.values_list("verb", "status", "reason"),
            "campaigns": Campaign.objects.values_list("status", "ended_at", "outcome"),
        }
        return "\n".join(f"{name}: {Counter(rows.order_by())}" for name, rows in tables.items())

    def verdict(self) -> dict[str, Any]:
        """Of all that was ordered until now. Each must be 0 but for ``commands``, how they ended (``ends``), and ``noted`` beyond ``signed``."""
        import sqlite3
        from collections import Counter

        from agents.models import Command, CommandStatus, HomeRestore, Target, Verb
        from fleet import audit
        from fleet.models import AuditEntry

        commands = Command.objects.all()
        audited = Counter[str]()
        for entry in AuditEntry.objects.filter(action="commands.signed").iterator():
            audited.update(told["command"] for told in entry.detail["commands"])
        sent = commands.exclude(sent_at=None).values_list("pk", flat=True)
        restored = commands.filter(verb=Verb.CYCLE, status=CommandStatus.SUCCEEDED)
        with sqlite3.connect(self._server.directory / "sender" / "book.sqlite3") as book:
            noted = book.execute("SELECT SUM(number) FROM signed").fetchone()[0]
        return {
            "commands": commands.count(),
            "ends": dict(Counter(commands.values_list("status", flat=True))),
            "lost": commands.filter(status__in=[*Command.OPEN, CommandStatus.LOST]).count(),
            "unsealed": restored.filter(restore=None).count(),
            "restores": HomeRestore.objects.count(),
            "unaudited": sum(str(key) not in audited for key in sent),
            "unended": Target.objects.filter(status__in=Target.OPEN).count(),
            "faults": [str(fault) for fault in audit.verify()],
            "signed": sum(audited.values()),
            "noted": noted,
        }


def _order(enough: threading.Event) -> None:
    """What somebody does who wants the hall clean again and again."""
    from django.contrib.auth.models import User
    from django.db import DatabaseError, connection

    from agents import campaigns
    from agents.models import Campaign, Verb
    from agents.selecting import Selection
    from fleet.models import Site

    number = 0
    while not enough.wait(0.2):
        try:
            if Campaign.objects.filter(ended_at=None).exists():
                continue
            number += 1
            verb = Verb.RESTART if number % 3 == 0 else Verb.CYCLE
            site, vera = Site.objects.get(slug="clubroom"), User.objects.get(username="vera")
            campaign = campaigns.plan(site, vera, verb=verb, reason="a rehearsal", selection=Selection())
            campaigns.start(campaign, vera)
        except DatabaseError:
            connection.close()
    connection.close()


def _accepted() -> int:
    from agents.models import Command, CommandStatus

    return Command.objects.filter(status=CommandStatus.ACCEPTED).count()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=DATABASES, default="postgres")
    parser.add_argument("--clients", type=int, default=200)
    options = parser.parse_args()
    with server(options.database) as one:
        print(one.directory, file=sys.stderr)
        rehearsal = Rehearsal(one, options.clients)
        try:
            print(json.dumps({"directory": str(one.directory), "processes": one.pids}), flush=True)
            for line in sys.stdin:
                began = time.monotonic()
                print(json.dumps(rehearsal.obey(line)), flush=True)
                print(f"{line.strip()}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        finally:
            rehearsal.close()


if __name__ == "__main__":
    main()
