import asyncio
import json
import resource
import signal
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import uvloop
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection

from agents.swarm.client import Player, mac_of
from agents.swarm.ledger import PREFIX, Ledger
from agents.swarm.nature import Nature
from fleet import garbage
from fleet.models import Admission, Client, Site
from images.models import Release

RATES = ("fail", "duplicate", "drop", "reboot")
SHARES = (*RATES, "verify")


class Command(BaseCommand):
    help = (
        "Plays thousands of clients of a site, to size it before an event: they boot, connect, obey orders and misbehave at the rates "
        "given. Prints what they saw, at the end or on Ctrl-C; as its last line one JSON object. Exit code 1 when a command was lost or "
        "carried out twice, or a restore has no row. SIGUSR1 has it print that of all until then, and go on. Only for a server without real clients: theirs is the same database."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--clients", type=int, default=100)
        parser.add_argument("--site", required=True, help="its slug")
        parser.add_argument("--gateway", default=settings.GATEWAY_URL, help="default: FLEET_GATEWAY_URL")
        parser.add_argument("--seconds", type=float, default=60, help="how long they live once all are connected")
        parser.add_argument("--commands", type=int, default=0, help="end earlier, when so many have ended; 0: never")
        parser.add_argument("--rate", type=float, default=500, help="how many are switched on a second")
        parser.add_argument("--seed", type=int, default=1)
        for rate in RATES:
            parser.add_argument(f"--{rate}", type=float, default=0.0, metavar="SHARE", help="0 to 1")
        parser.add_argument(
            "--delay", type=float, default=0.5, metavar="S", help="the most that a cycle takes; the least is half of it"
        )
        parser.add_argument(
            "--verify",
            type=float,
            default=1.0,
            metavar="SHARE",
            help="of the signatures that are checked: real PCs have a processor each for it, these share one",
        )
        parser.add_argument("--skew", type=float, default=0.0, metavar="S", help="the most that a clock is off")

    def handle(self, *args: Any, **options: Any) -> None:
        if not 0 < options["clients"] <= 50_000:
            raise CommandError("--clients is 1 to 50000.")
        site = Site.objects.filter(slug=options["site"]).first()
        if site is None:
            raise CommandError(f"There is no site {options['site']!r}.")
        try:
            rates = {share: options[share] for share in SHARES}
            nature = Nature(**rates, delay_s=options["delay"], skew_s=options["skew"])
        except ValueError as error:
            raise CommandError(str(error)) from error
        room_for(options["clients"] + 200)
        ledger = Ledger()
        clients = enrol(site, options["clients"])
        kernel = kernel_of(site)
        uvloop.run(self._play(clients, site, kernel, nature, ledger, options))
        connection.close()  # it may be older than the database, which was killed meanwhile
        found = self._tell(ledger)
        if found["lost"] or found["twice"] or found["unaudited"]:
            sys.exit(1)

    async def _play(
        self, number: int, site: Site, kernel: str, nature: Nature, ledger: Ledger, options: dict[str, Any]
    ) -> None:
        parts = urlsplit(options["gateway"])
        address = (parts.hostname or "127.0.0.1", parts.port or 80)
        lives: list[asyncio.Task[None]] = []
        enough = asyncio.Event()
        loop = asyncio.get_running_loop()
        for end in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(end, enough.set)
        loop.add_signal_handler(signal.SIGUSR1, lambda: loop.run_in_executor(None, self._tell, ledger))
        began = time.monotonic()
        try:
            for at in range(number):
                client = Player(at, site.slug, address, kernel, nature, options["seed"], ledger)
                lives.append(asyncio.create_task(client.live()))
                await asyncio.sleep(max(0.0, began + (at + 1) / options["rate"] - time.monotonic()))
                if at % 500 == 499:
                    self.stderr.write(f"{at + 1} switched on, {ledger.connected} connected")
            while ledger.connected < number and time.monotonic() - began < 600 and not enough.is_set():  # noqa: ASYNC110 - a count
                await asyncio.sleep(0.1)
            ledger.cold_start_s = time.monotonic() - began
            self.stderr.write(f"{ledger.connected} of {number} connected after {ledger.cold_start_s:.1f} s")
            garbage.settle()
            until = time.monotonic() + options["seconds"]
            told = time.monotonic()
            while time.monotonic() < until and not enough.is_set() and not 0 < options["commands"] <= ledger.settled:
                await asyncio.sleep(0.1)
                if time.monotonic() > told + 5:
                    told = time.monotonic()
                    self.stderr.write(f"{ledger.connected} connected, {ledger.settled} commands have ended")
        finally:
            for life in lives:
                life.cancel()
            await asyncio.gather(*lives, return_exceptions=True)

    def _tell(self, ledger: Ledger) -> dict[str, float | int]:
        found = ledger.verdict()
        for why, times in ledger.troubles.most_common(12):
            self.stdout.write(f"  {times:7}  {why}")
        for name, value in found.items():
            self.stdout.write(f"{name:16} {value}")
        moments = {"cold_start_s": round(ledger.cold_start_s, 1), "joined_at": round(ledger.joined_at, 1)}
        self.stdout.write(json.dumps({**found, **moments, "boots": ledger.boots, "troubles": dict(ledger.troubles)}))
        self.stdout.flush()
        return found


def enrol(site: Site, number: int) -> int:
    """Have that many clients of the swarm in service; those of a swarm before are the same."""
    known = set(Client.objects.filter(mac__startswith=PREFIX).values_list("mac", flat=True))
    wanted = {mac_of(at): f"swarm-{at:05}" for at in range(number)}
    Client.objects.bulk_create(
        (
            Client(site=site, mac=mac, name=name, admission=Admission.IN_SERVICE)
            for mac, name in wanted.items()
            if mac not in known
        ),
        batch_size=500,
    )
    return number


def kernel_of(site: Site) -> str:
    """The kernel that the site's clients boot, which the swarm says it has loaded. Raises CommandError where none is released."""
    release = Release.objects.filter(current=True, client_class__site=site).select_related("version").first()
    if release is None or release.version.manifest is None:
        raise CommandError(f"No version is released at {site}: a swarm boots what real clients would.")
    return str(release.version.manifest["kernel_release"])


def room_for(descriptors: int) -> None:
    """Raise this process's limit of open files. Raises CommandError when the system does not allow so many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < descriptors:
        raise CommandError(f"{descriptors} open files are needed, the limit is {hard}: raise it (ulimit -n).")
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
