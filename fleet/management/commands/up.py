"""``manage.py up``: everything a server needs in one terminal."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from fleet.box import BASE_DIR, box_environment, sole_use
from fleet.exceptions import FleetError
from fleet.processes import Processes, printer, read_procfile


class Command(BaseCommand):
    help = "Runs the processes of the Procfile: a private Redis, web, gateway, workers and the clock. Ctrl-C ends them."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--data", type=Path, default=BASE_DIR / "var", help="where all is kept (default: var)")
        parser.add_argument("--web-port", type=int, default=8000)
        parser.add_argument("--gateway-port", type=int, default=8001)
        parser.add_argument("--quiet", action="store_true", help="show only what tells of trouble")

    def handle(self, *args: Any, **options: Any) -> None:
        env = box_environment(
            options["data"].resolve(), web_port=options["web_port"], gateway_port=options["gateway_port"]
        )
        # Ctrl-C, a closed terminal and systemd all mean the same; Ctrl-C also where a script that is deaf to it started us.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        try:
            with sole_use(Path(env["FLEET_DATA"])):
                prepare(env)
                self._run(env, options["quiet"])
        except FleetError as error:
            raise CommandError(str(error)) from None
        except KeyboardInterrupt:
            self.stdout.write("Ended.")

    def _run(self, env: dict[str, str], quiet: bool) -> None:
        commands = read_procfile(BASE_DIR / "Procfile", env)
        processes = Processes(commands, env, printer(list(commands), quiet))
        try:
            processes.start()
            self.stdout.write(f"\n  Stateless Fleet runs at {env['FLEET_PUBLIC_URL']}")
            self.stdout.write(f"  Clients boot from       {env['FLEET_GATEWAY_URL']}/boot/v1/start.ipxe")
            self.stdout.write(
                "  A first login: .venv/bin/python manage.py createsuperuser   (Ctrl-C ends everything)\n\n"
            )
            self.stdout.flush()
            while True:
                time.sleep(1)
                processes.watch()
        finally:
            self.stdout.write("\nEnding …")
            processes.stop()


def prepare(env: dict[str, str]) -> None:
    """Database and keys, each in a process that has the box's settings."""
    for command in (["migrate", "--verbosity", "0"], ["keys"]):
        subprocess.run([sys.executable, "manage.py", *command], env=env, cwd=BASE_DIR, check=True)
