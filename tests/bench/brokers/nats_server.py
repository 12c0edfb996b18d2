"""nats-server, and who publishes there: with replies, it subscribes to an inbox and counts them, which is NATS' way to know who has it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.brokers import nats
from tests.bench.brokers.gathering import TEXT, Said, System
from tests.bench.brokers.mosquitto import listens
from tests.services import free_port, start, wait_for

INBOX = b"_INBOX.bench"
PATIENCE_S = 300.0


@contextmanager
def nats_server(directory: Path, replies: int = 0) -> Iterator[System]:
    """``replies``: how many are awaited of each message; 0: none is asked for."""
    port = free_port()
    service = start(["/usr/sbin/nats-server", "-a", "127.0.0.1", "-p", str(port)], directory / "nats.log")
    try:
        wait_for(lambda: listens(port), "the NATS server listens")
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as publisher:
            publisher.sendall(nats.HELLO + b"SUB " + INBOX + b" 1\r\nPING\r\n")
            _until_pong(publisher)

            def say() -> Said:
                inbox = b" " + INBOX if replies else b""
                said = Said(time.monotonic())
                publisher.sendall(b"PUB %s%s %d\r\n%s\r\n" % (nats.SUBJECT, inbox, len(TEXT), TEXT.encode()))
                rest = b""
                while len(said.answered) < replies:
                    rest += publisher.recv(1 << 16)
                    at = time.monotonic()
                    while rest and (used := nats.split(rest)[1]):
                        said.answered += [at] if rest.startswith(b"MSG") else []
                        rest = rest[used:]
                return said

            name = "NATS with replies" if replies else "NATS"
            yield System(name, nats.__name__, {"port": port}, lambda: [service.pid], say)
    finally:
        service.stop()


def _until_pong(publisher: socket.socket) -> None:
    said = b""
    while not said.endswith(b"PONG\r\n"):
        said += publisher.recv(1 << 16)
