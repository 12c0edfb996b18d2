"""mosquitto, which keeps nothing on disk here, and a publisher with QoS 1."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.brokers import mqtt
from tests.bench.brokers.gathering import TEXT, Said, System
from tests.services import free_port, start, wait_for

_CONFIG = """
listener {port} 127.0.0.1
allow_anonymous true
persistence false
max_connections -1
"""


@contextmanager
def mosquitto(directory: Path) -> Iterator[System]:
    port = free_port()
    config = directory / "mosquitto.conf"
    config.write_text(_CONFIG.format(port=port))
    service = start(["/usr/sbin/mosquitto", "-c", str(config)], directory / "mosquitto.log")
    try:
        wait_for(lambda: listens(port), "mosquitto listens")
        with socket.create_connection(("127.0.0.1", port)) as publisher:
            publisher.sendall(mqtt.hello("publisher"))
            assert publisher.recv(4)[0] == mqtt.CONNACK

            def say() -> Said:
                at = time.monotonic()
                publisher.sendall(mqtt.publish(TEXT.encode()))
                assert publisher.recv(4)[0] == mqtt.PUBACK
                return Said(at)

            yield System("mosquitto, QoS 1", mqtt.__name__, {"port": port}, lambda: [service.pid], say)
    finally:
        service.stop()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
