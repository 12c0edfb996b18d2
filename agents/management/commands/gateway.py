import socket
from typing import TYPE_CHECKING, Any

import uvicorn
from django.core.management.base import BaseCommand, CommandParser

if TYPE_CHECKING:
    from agents.gateway.app import Gateway


class Server(uvicorn.Server):
    """Ends the parked polls before uvicorn waits for its connections: they would make it wait for ever."""

    def __init__(self, config: uvicorn.Config, gateway: "Gateway") -> None:
        super().__init__(config)
        self._gateway = gateway

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gateway.close()
        await super().shutdown(sockets)


class Command(BaseCommand):
    help = "Serves clients: boot scripts and plans, artefacts, and the daemons' long polls."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=int, default=8001)

    def handle(self, *args: Any, **options: Any) -> None:
        from agents.gateway.app import Gateway

        gateway = Gateway()
        config = uvicorn.Config(
            gateway,
            host=options["host"],
            port=options["port"],
            loop="uvloop",
            http="httptools",
            ws="none",
            access_log=False,
            log_level="warning",
            log_config=None,  # it logs as all of us (fleet.logs)
            timeout_keep_alive=75,  # longer than a hold: the daemon keeps one connection
            timeout_graceful_shutdown=5,
            backlog=4096,
            server_header=False,
        )
        Server(config, gateway).run()
