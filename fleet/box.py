"""One box on one machine: settings nobody had to choose, for ``make run``, ``make demo`` and tests of the whole."""

import fcntl
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet.exceptions import OperatorError

BASE_DIR = Path(__file__).resolve().parent.parent


def free_port(wanted: int, host: str = "127.0.0.1") -> int:
    """``wanted`` if it is free, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError(f"No free port on {host}.")


def box_environment(
    data: Path, *, gateway_url: str = "", web_port: int = 8000, gateway_port: int = 8001
) -> dict[str, str]:
    """The environment of all processes of a box that keeps everything below ``data``.

    What is set already wins, so a database or an address can be chosen. The secret key is made once and kept.
    """
    data.mkdir(parents=True, exist_ok=True)
    key = data / "secret-key"
    if not key.is_file():
        key.touch(mode=0o600)
        key.write_text(secrets.token_urlsafe(50))
    web, gateway = free_port(web_port), free_port(gateway_port)
    redis_socket = data / "redis.sock"
    env = {
        "FLEET_DATA": str(data),
        "FLEET_SECRET_KEY": key.read_text(),
        "FLEET_REDIS_URL": f"unix://{redis_socket}",
        "FLEET_PUBLIC_URL": f"http://127.0.0.1:{web}",
        "FLEET_GATEWAY_URL": gateway_url or f"http://127.0.0.1:{gateway}",
        "WEB_HOST": "127.0.0.1",
        "WEB_PORT": str(web),
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(gateway),
    }
    system = os.environ.get("PATH", "/usr/bin:/bin")
    path = f"{Path(sys.executable).parent}:{system}:/usr/sbin:/sbin"
    return {**env, **os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "DJANGO_SETTINGS_MODULE": "fleet.settings"}


@contextmanager
def sole_use(data: Path) -> Iterator[None]:
    """While it lasts no other box runs on ``data``: two would take each other's Redis away. The kernel ends it with us."""
    with (data / "box.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OperatorError(
                f"A server runs on {data} already.",
                hint="End that one, or give this one a place of its own with --data.",
            ) from None
        yield
