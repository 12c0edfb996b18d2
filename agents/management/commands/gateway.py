import asyncio
import resource
import signal
from typing import Any

import uvloop
from django.core.management.base import BaseCommand, CommandParser

from fleet import garbage

GRACE_S = 5.0  # for those who are being answered when we are told to end


class Command(BaseCommand):
    help = "Serves clients: boot scripts and plans, artefacts, and the daemons' long polls."
    # They would import all pages of the web process, which checks itself: 20 MB that no client needs.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=int, default=8001)

    def handle(self, *args: Any, **options: Any) -> None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each connection is an open file
        uvloop.run(_serve(options["host"], options["port"]))


async def _serve(host: str, port: int) -> None:
    from agents.gateway.app import Gateway
    from agents.gateway.server import Server

    gateway = Gateway()
    server = Server(gateway.handle, gateway.streams, gateway.lost)
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    garbage.settle()
    gateway.open()
    await server.listen(host, port)
    tidying = asyncio.create_task(server.tidy())
    await told.wait()
    gateway.close()
    await server.close(GRACE_S)
    tidying.cancel()
    await gateway.end()
