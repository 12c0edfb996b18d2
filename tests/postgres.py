"""``python -m tests.postgres -- COMMAND …``: run a command on a PostgreSQL of its own, which ends with it.

The cluster lives in a temporary directory and listens on a free port of the loopback. It gives up safety for speed: nothing of it is
meant to survive.
"""

import argparse
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.services import free_port, start, wait_for

OWNER = "postgres"  # initdb refuses to run as root; Debian's package makes this user
DURABLE = ("max_connections=200", "listen_addresses=127.0.0.1")  # for benches, which must not win by forgetting
FAST = (*DURABLE, "fsync=off", "synchronous_commit=off", "full_page_writes=off")


def binaries() -> Path:
    """Where Debian keeps the newest server's programs; exits with what to install where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        sys.exit("There is no PostgreSQL here: apt-get install postgresql")
    return found[-1].parent


class Cluster:
    """A PostgreSQL server as one runs it, which can be killed and started again. ``url`` is its FLEET_DATABASE_URL."""

    def __init__(self, directory: Path, settings: Sequence[str]) -> None:
        self._programs, root = binaries(), os.geteuid() == 0
        user = pwd.getpwnam(OWNER) if root else pwd.getpwuid(os.geteuid())
        # The kernel forgets the death signal when a process becomes somebody else, so it is set together with that. INT is
        # PostgreSQL's fast shutdown.
        become = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"] if root else []
        dies = ["setpriv", *become, "--pdeathsig", "INT", "--"]
        shutil.chown(directory, user.pw_uid, user.pw_gid)
        data = str(directory / "data")
        initdb = [str(self._programs / "initdb"), "-D", data, "-A", "trust", "-U", "fleet", "-E", "UTF8"]
        subprocess.run(
            [*dies, *initdb, "--locale=C.UTF-8", "--no-sync"], check=True, stdout=subprocess.DEVNULL, cwd=directory
        )
        self._port, self._log = free_port(), directory / "log"
        options = [word for option in (*settings, f"port={self._port}") for word in ("-c", option)]
        self._argv = [*dies, str(self._programs / "postgres"), "-D", data, "-k", str(directory), *options]
        self.url = f"postgres://fleet:fleet@127.0.0.1:{self._port}/postgres"
        self.start()

    def start(self) -> None:
        self.service = start(self._argv, self._log)
        ready = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        wait_for(lambda: subprocess.run(ready, check=False).returncode == 0, "PostgreSQL answers", 30)

    @property
    def pids(self) -> list[int]:
        """All its processes, the first of them first."""
        first = self.service.pid
        children = Path(f"/proc/{first}/task/{first}/children")
        return [first, *(map(int, children.read_text().split()) if children.exists() else [])]

    def kill(self) -> None:
        """kill -9 of all of them at once: what was not on the way to the disk by then is gone."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.service.kill()

    def stop(self) -> None:
        self.service.process.send_signal(signal.SIGINT)  # "fast shutdown": it does not wait for clients
        self.service.stop(30)


@contextmanager
def running(settings: Sequence[str] = FAST) -> Iterator[Cluster]:
    """A fresh cluster."""
    directory = Path(tempfile.mkdtemp(prefix="fleet-postgres-"))
    try:
        one = Cluster(directory, settings)
        try:
            yield one
        finally:
            one.stop()
    finally:
        shutil.rmtree(directory)


@contextmanager
def cluster(settings: Sequence[str] = FAST) -> Iterator[str]:
    """A fresh cluster; yields its FLEET_DATABASE_URL."""
    with running(settings) as one:
        yield one.url


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.postgres", description=__doc__)
    parser.add_argument("command", nargs="+")
    command = parser.parse_args().command
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with cluster() as url:
        return run(command, {**os.environ, "FLEET_DATABASE_URL": url})


def run(command: list[str], environment: dict[str, str]) -> int:
    """The exit code of ``command``, which gets the time to tidy up when we are told to end."""
    # The terminal's Ctrl-C tells the command, too. An exception here could come between its death and our reading of
    # its exit code, which would be lost.
    signal.signal(signal.SIGINT, lambda *_: None)
    child = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", "--", *command], env=environment)
    try:
        code = child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
