"""The private PostgreSQL ends with its command, however that ends."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.services import PROJECT, wait_for

pytestmark = pytest.mark.slow
VENDOR = "from django.db import connection; print(connection.vendor)"


@pytest.fixture
def place() -> Iterator[Path]:
    """Where temporary files go. Not pytest's own directory: the server's user must reach it."""
    with tempfile.TemporaryDirectory(prefix="fleet-place-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@contextmanager
def begin(place: Path, script: str) -> "Iterator[subprocess.Popen[str]]":
    """``script`` on a PostgreSQL below ``place``, in a process group of its own as a terminal starts it."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.postgres", "--", "sh", "-c", script],
        cwd=PROJECT,
        env={**os.environ, "TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as runner:
        yield runner


def listens(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", urlsplit(url).port or 0)) == 0


def test_a_command_has_a_database_and_its_exit_code_is_ours(place: Path) -> None:
    with begin(place, f"{sys.executable} manage.py shell -v 0 -c '{VENDOR}'; exit 7") as runner:
        printed, _ = runner.communicate(timeout=60)
    assert (printed, runner.returncode) == ("postgresql\n", 7)
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    "how", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name
)
def test_nothing_runs_on_when_it_is_ended(place: Path, how: signal.Signals) -> None:
    with begin(place, "echo $FLEET_DATABASE_URL; echo $$; exec sleep 100") as runner:
        assert runner.stdout is not None
        url, command = runner.stdout.readline().strip(), int(runner.stdout.readline())
        assert listens(url)
        if how == signal.SIGINT:
            os.killpg(runner.pid, how)  # a terminal tells the whole group
        else:
            os.kill(runner.pid, how)
        assert runner.wait(30) != 0
    wait_for(lambda: not listens(url), "the server is gone")
    wait_for(lambda: not Path(f"/proc/{command}").exists(), "its command is gone")
    if how == signal.SIGKILL:  # nobody is left to remove its directory, but the server was let down gently
        wait_for(lambda: not list(place.glob("*/data/postmaster.pid")), "its lock is gone")
    else:
        assert not list(place.iterdir())
