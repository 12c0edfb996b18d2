"""``manage.py up``: one terminal for all of it, and nothing left of it afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fleet.exceptions import SiteError
from fleet.processes import Processes, printer, read_procfile
from tests.services import PROJECT, Service, free_port, start, wait_for

pytestmark = pytest.mark.once
TRAP = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(99)"


class Heard(list[tuple[str, str]]):
    """What was said, as ``(who, line)``."""

    def __call__(self, name: str, line: str) -> None:
        self.append((name, line))

    def lines(self, name: str) -> list[str]:
        return [line for who, line in self if who == name]


@contextmanager
def running(commands: dict[str, list[str]]) -> Iterator[tuple[Processes, Heard]]:
    heard = Heard()
    processes = Processes(commands, dict(os.environ), heard)
    processes.start()
    try:
        yield processes, heard
    finally:
        processes.stop()


def alive(pid: int) -> bool:
    """True while ``pid`` runs; a zombie, whose parent has not looked yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_procfile_is_filled_in_and_a_forgotten_variable_is_named(tmp_path: Path) -> None:
    procfile = tmp_path / "Procfile"
    procfile.write_text('# redis\nredis: redis-server --save "" $DATA/x\n\nweb: a "b c"\n')
    assert read_procfile(procfile, {"DATA": "/d"}) == {
        "redis": ["redis-server", "--save", "", "/d/x"],
        "web": ["a", "b c"],
    }
    with pytest.raises(KeyError, match="DATA"):
        read_procfile(procfile, {})


def test_what_is_not_installed_is_named_with_what_to_do() -> None:
    processes = Processes({"redis": ["no-such-server"]}, dict(os.environ), Heard())
    with pytest.raises(SiteError, match=r"redis cannot be started: no-such-server: No such file .*scripts/setup run"):
        processes.start()


@pytest.mark.slow
def test_what_falls_is_started_again_and_what_falls_often_waits() -> None:
    with running({"steady": ["sleep", "99"], "weak": ["sh", "-c", "echo here; exit 3"]}) as (processes, heard):
        steady = processes.pids()["steady"]
        begun = time.monotonic()
        again = ["here", "ended with 3; starting it again"]

        def third() -> bool:
            processes.watch()
            return heard.lines("weak")[:5] == [*again, *again, "here"]

        wait_for(third, "it was started twice more", 30)
        assert time.monotonic() - begun > 1.9  # at once, then after 2 s
        assert processes.pids()["steady"] == steady
        os.kill(steady, signal.SIGKILL)
        wait_for(lambda: not alive(steady), "it fell")
        processes.watch()
        assert processes.pids()["steady"] not in (0, steady)
        assert "ended with -9; starting it again" in heard.lines("steady")


@pytest.mark.slow
def test_who_is_deaf_to_the_end_is_ended_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.processes._GRACE_S", 1.0)
    script = f'{sys.executable} -c "{TRAP}" & trap "" TERM; echo $!; wait'
    with running({"deaf": ["sh", "-c", script]}) as (processes, heard):
        wait_for(lambda: "deaf" in heard.lines("deaf"), "the child is deaf")
        family = [processes.pids()["deaf"], int(heard.lines("deaf")[0])]
        assert all(map(alive, family))
    wait_for(lambda: not any(map(alive, family)), "the family is gone")


def test_quiet_shows_what_tells_of_trouble(capsys: pytest.CaptureFixture[str]) -> None:
    say = printer(["web", "clock"], quiet=True)
    say("web", "GET /")
    say("clock", "ERROR no Redis")
    assert capsys.readouterr().out == "clock | ERROR no Redis\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("box")


@contextmanager
def box(data: Path) -> Iterator[tuple[Service, str]]:
    """A server on ``data`` and its URL."""
    web, gateway = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
    argv = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), sys.executable, "manage.py", "up"]
    options = ["--data", str(data), "--web-port", str(web), "--gateway-port", str(gateway)]
    service = start([*argv, *options], data / "log")
    try:
        url = f"http://127.0.0.1:{web}"
        wait_for(lambda: f"runs at {url}" in ended(service).log, "the server begins", 120)
        yield service, url
    finally:
        service.stop(30)


def ended(service: Service) -> Service:
    """``service``, if it still runs; else the test fails with what it said."""
    assert service.process.poll() is None, service.log
    return service


def family(pid: int) -> set[int]:
    """``pid`` and all that it started, and those in their turn."""
    found = {pid}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found |= family(int(child))
    return found


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def health(url: str) -> dict[str, object]:
    """What /healthz says, however it says it; nothing while nobody answers."""
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=5) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        with error:
            return dict(json.load(error))
    except OSError:
        return {}


@pytest.mark.slow
def test_all_comes_up_comes_back_and_ends_with_ctrl_c(data: Path) -> None:
    with box(data) as (service, url):
        wait_for(lambda: health(url).get("status") == "well", f"all is well:\n{ended(service).log}", 120)
        second = subprocess.run(
            [sys.executable, "manage.py", "up", "--data", str(data)],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (second.returncode, second.stderr) == (
            1,
            f"CommandError: A server runs on {data} already. End that one, or give this one a place of its own with --data.\n",
        )
        [web] = [pid for pid in family(service.pid) if "fleet.asgi:application" in command_of(pid)]
        os.kill(web, signal.SIGKILL)
        wait_for(lambda: not alive(web), "the web process fell")
        wait_for(lambda: health(url).get("status") == "well", "the web process came back", 60)
        everybody = family(service.pid)
        assert len(everybody) >= 8, [command_of(pid) for pid in everybody]
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(30) == 0, service.log
        assert not [pid for pid in everybody if alive(pid)]
        assert not health(url)
    assert "Traceback" not in service.log, service.log


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda how: how.name)
def test_nothing_is_left_however_it_is_ended(data: Path, how: signal.Signals) -> None:
    with box(data) as (service, _):
        wait_for(lambda: len(family(service.pid)) >= 8, "all processes run", 60)
        everybody = family(service.pid)
        service.process.send_signal(how)
        service.process.wait(30)
        wait_for(lambda: not [pid for pid in everybody if alive(pid)], "all are gone")
