"""salt-master of a release from PyPI, with its default transport (ZeroMQ) and settings, and Salt's own client that publishes a job.

It is installed into an environment of its own below var/, which is kept. All that differs from a master's defaults is where it keeps
things, that it accepts new minions' keys, and its ports.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.brokers.gathering import TEXT, Said, System
from tests.bench.brokers.mosquitto import listens
from tests.bench.report import progress
from tests.services import PROJECT, free_port, start, wait_for

PACKAGES = ("salt==3008.4", "uvloop==0.23.0")
PLACE = PROJECT / "var/cache/bench/salt"

_KEYS = "import sys, salt.crypt; salt.crypt.write_keys(sys.argv[1], 'minion', 2048)"
# Salt's client takes a second to load, which nobody waits for who has a shell of it open.
_PUBLISHER = """
import json, sys, time
import salt.client
client = salt.client.LocalClient(sys.argv[1])
print("ready", flush=True)
for _ in sys.stdin:
    at = time.monotonic()
    job = client.run_job("*", "test.echo", [sys.argv[2]], listen=False)
    print(json.dumps({"at": at, "minions": len(job.get("minions", ()))}), flush=True)
"""


def installed() -> Path:
    """The Python that has Salt."""
    python = PLACE / "bin/python"
    stamp = PLACE / "-".join(PACKAGES).replace("==", "-")
    if not stamp.exists():
        progress(f"Installing {' and '.join(PACKAGES)} into {PLACE.relative_to(PROJECT)}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(PLACE)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
        subprocess.run(pip, check=True)
        stamp.touch()
    return python


@contextmanager
def salt_master(directory: Path) -> Iterator[System]:
    python = installed()
    ports = {"publish_port": free_port(), "ret_port": free_port()}
    config = directory / "master"
    settings = {"interface": "127.0.0.1", "root_dir": str(directory), "auto_accept": True, "user": "root", **ports}
    config.write_text(json.dumps({**settings, "log_file": str(directory / "log")}))  # JSON is YAML
    subprocess.run([str(python), "-c", _KEYS, str(directory)], check=True)
    master = [str(python), str(python.with_name("salt-master")), "--config-dir", str(directory)]
    service = start(master, directory / "master.log")
    try:
        wait_for(lambda: all(map(listens, ports.values())), "the Salt master listens", 120)
        argv = [str(python), "-c", _PUBLISHER, str(config), TEXT]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as publisher:
            assert publisher.stdin
            assert publisher.stdout
            publisher.stdout.readline()

            def say() -> Said:
                print("say it", file=publisher.stdin, flush=True)
                assert publisher.stdout
                return Said(json.loads(publisher.stdout.readline())["at"])

            place = {**ports, "keys": str(directory)}
            name = f"{PACKAGES[0].replace('==', ' ')}"
            yield System(name, "tests.bench.brokers.minion", place, lambda: [service.pid], say, python=str(python))
            publisher.terminate()
    finally:
        service.stop()
