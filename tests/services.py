"""Real services for tests: Redis, Celery workers. Each ends with its context, with the test run at the latest."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import kombu.pools
import redis
from django.conf import settings
from django.db import connection

from fleet.celery import app

PROJECT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    """Look ten times a second until ``condition`` holds; fails with ``what`` was awaited."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"within {seconds:g} s it did not come about: {what}"
        time.sleep(0.1)


def database_url() -> str:
    """The present test database as FLEET_DATABASE_URL: for processes that must see the rows a test committed."""
    settings = connection.settings_dict
    if connection.vendor == "sqlite":
        assert "memory" not in str(settings["NAME"]), "a database in memory cannot be shared with another process"
        return f"sqlite:///{settings['NAME']}"
    return "postgres://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format(**settings)


@dataclass
class Service:
    """A process under test. ``log`` is what it printed; ``kill()`` is a kill -9 of it alone, not of its children."""

    process: "subprocess.Popen[bytes]"
    log_path: Path
    url: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, patience_s: float = 10.0) -> None:
        """Ask it to end, then make it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(patience_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


def start(argv: Sequence[str], log_path: Path, environment: Mapping[str, str] | None = None) -> Service:
    """Start ``argv`` in the project's directory; the kernel kills it when the test run dies."""
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *argv],
            cwd=PROJECT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return Service(process, log_path, environment=environment or {})


@contextmanager
def redis_server(port: int | None = None) -> Iterator[Service]:
    """A Redis of one's own that keeps nothing on disk; ``url`` is its FLEET_REDIS_URL.

    With ``port`` it comes back where an earlier one was, so that a test can restart Redis.
    """
    with tempfile.TemporaryDirectory(prefix="fleet-redis-") as directory:
        port = port or free_port()
        argv = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", directory]
        service = start([*argv, "--save", "", "--appendonly", "no"], Path(directory) / "log")
        service.url = f"redis://127.0.0.1:{port}/0"
        try:
            with redis.Redis.from_url(service.url) as client:
                wait_for(lambda: _answers(service, client), "Redis answers")
            yield service
        finally:
            service.stop()


def _answers(service: Service, client: redis.Redis) -> bool:
    assert service.process.poll() is None, f"redis-server ended (apt-get install redis-server):\n{service.log}"
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@contextmanager
def celery_sends_to(url: str) -> Iterator[None]:
    """Within it, what this process enqueues goes to the Redis at ``url``."""
    names = ("broker_url", "broker_read_url", "broker_write_url")
    before = {name: app.conf.get(name) for name in names}

    def use(urls: Mapping[str, str | None]) -> None:
        app.conf.update(urls)
        kombu.pools.reset()
        app._pool = app.amqp._producer_pool = None  # type: ignore[attr-defined]

    use(dict.fromkeys(names, url))
    try:
        yield
    finally:
        use(before)


@contextmanager
def celery_worker(queues: str, env: Mapping[str, str], *, concurrency: int = 1) -> Iterator[Service]:
    """A Celery worker of ``queues`` (``"builds"``, ``"default,sender"``) that is ready for work.

    It uses the present test database; ``env`` adds FLEET_REDIS_URL and what else it needs. The test must commit
    its rows (``transactional_db``).
    """
    with tempfile.TemporaryDirectory(prefix="fleet-worker-") as directory:
        argv = [sys.executable, "-m", "celery", "-A", "fleet", "worker", "--pool=prefork", "--loglevel=INFO"]
        argv += [f"--queues={queues}", f"--concurrency={concurrency}", "--without-gossip", "--without-mingle"]
        argv += [f"--hostname={queues.replace(',', '-')}-{os.getpid()}@localhost"]
        # What a worker that is killed leaves of its temporary files goes with the directory.
        environment = {"FLEET_DATABASE_URL": database_url(), "TMPDIR": directory}
        if queues == "builds":
            environment |= {"FLEET_IMAGE_KEY": settings.IMAGE_KEY, "FLEET_PUBLIC_KEYS": str(settings.PUBLIC_KEYS)}
        if "sender" in queues:
            environment["FLEET_SENDER_BOOK"] = str(Path(directory) / "book.sqlite3")
        environment |= env
        service = start(argv, Path(directory) / "log", environment)
        try:
            wait_for(lambda: _is_ready(service), "the Celery worker is ready", 60)
            yield service
        finally:
            service.stop()


def _is_ready(service: Service) -> bool:
    assert service.process.poll() is None, f"the Celery worker ended:\n{service.log}"
    return " ready." in service.log
