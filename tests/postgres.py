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
from contextlib import contextmanager
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


@contextmanager
def cluster(settings: Sequence[str] = FAST) -> Iterator[str]:
    """A fresh cluster; yields its FLEET_DATABASE_URL."""
    programs, root = binaries(), os.geteuid() == 0
    user = pwd.getpwnam(OWNER) if root else pwd.getpwuid(os.geteuid())
    # The kernel forgets the death signal when a process becomes somebody else, so it is set together with that. INT is
    # PostgreSQL's fast shutdown.
    become = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"] if root else []
    dies = ["setpriv", *become, "--pdeathsig", "INT", "--"]
    directory = Path(tempfile.mkdtemp(prefix="fleet-postgres-"))
    try:
        shutil.chown(directory, user.pw_uid, user.pw_gid)
        initdb = [str(programs / "initdb"), "-D", str(directory / "data"), "-A", "trust", "-U", "fleet", "-E", "UTF8"]
        subprocess.run(
            [*dies, *initdb, "--locale=C.UTF-8", "--no-sync"], check=True, stdout=subprocess.DEVNULL, cwd=directory
        )
        port = free_port()
        options = [word for option in (*settings, f"port={port}") for word in ("-c", option)]
        server = [str(programs / "postgres"), "-D", str(directory / "data"), "-k", str(directory), *options]
        service = start([*dies, *server], Path(f"{directory}.log"))
        try:
            ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
            wait_for(lambda: subprocess.run(ready, check=False).returncode == 0, "PostgreSQL answers", 30)
            yield f"postgres://fleet:fleet@127.0.0.1:{port}/postgres"
        finally:
            service.process.send_signal(signal.SIGINT)  # "fast shutdown": it does not wait for clients
            service.stop(30)
    finally:
        shutil.rmtree(directory)
        Path(f"{directory}.log").unlink(missing_ok=True)


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
