"""The units of deploy/ run what the Procfile runs, and no process has a key that is not its own."""

import configparser
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from fleet.processes import read_procfile
from tests.services import PROJECT

pytestmark = pytest.mark.once
SCHEDULE: dict[str, Any] = settings.CELERY_BEAT_SCHEDULE
UNITS = sorted(PROJECT.glob("deploy/*.service"))
SERVERS = [unit for unit in UNITS if unit.stem != "fleet-audit"]


class Anything(dict[str, str]):
    """Stands for the environment of a Procfile."""

    def __missing__(self, name: str) -> str:
        return name


def unit_of(path: object) -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=False)
    # configparser keeps the last of several lines of a name: Environment= may come more than once.
    text = re.sub(r"(?m)^Environment=(FLEET_\w+)=", r"\1=", (PROJECT / str(path)).read_text())
    parser.read_string(text)
    return parser["Service"]


PROCFILE = read_procfile(PROJECT / "Procfile", Anything())


def test_each_process_of_the_procfile_has_a_unit() -> None:
    assert {unit.stem for unit in SERVERS} == {f"fleet-{name}" for name in PROCFILE if name != "redis"}


@pytest.mark.parametrize("unit", SERVERS, ids=lambda unit: unit.stem)
def test_a_unit_runs_what_the_procfile_runs(unit: object) -> None:
    section = unit_of(unit)
    there = [word.rpartition("/")[2] for word in shlex.split(section["ExecStart"])]
    here = [
        word
        for word in PROCFILE[str(getattr(unit, "stem", "")).removeprefix("fleet-")]
        if not re.match(r"[A-Z_]+=", word)  # of its environment
    ]
    here = here[1:] if here[0] == "env" else here
    # The program and what it is told to do; ports, names and verbosity differ.
    assert there[:3] == here[:3]
    for option in ("--queues", "--pool", "--concurrency"):
        assert (option in there) == (option in here)
        if option in here:
            assert there[there.index(option) + 1] == here[here.index(option) + 1]
    assert (Path(sys.executable).parent / there[0]).exists()


@pytest.mark.parametrize(
    ("key", "owner"), [("FLEET_COMMAND_KEY", "sender"), ("FLEET_SESSION_KEY", "gateway"), ("FLEET_IMAGE_KEY", "builds")]
)
def test_a_key_is_given_to_its_owner_alone(key: str, owner: str) -> None:
    assert [unit.stem for unit in UNITS if key.lower() in unit_of(unit)] == [f"fleet-{owner}"]
    assert [name for name, argv in PROCFILE.items() if any(word.startswith(f"{key}=") for word in argv)] == [owner]
    users = [unit_of(unit)["User"] for unit in UNITS]
    runs_as = "root" if owner == "builds" else f"fleet-{owner}"
    assert users.count(runs_as) == 1, "nobody else runs as the user that may read it"


def test_every_queue_has_a_worker() -> None:
    queues = {settings.CELERY_TASK_DEFAULT_QUEUE}
    queues |= {route["queue"] for route in settings.CELERY_TASK_ROUTES.values()}
    queues |= {queue for beat in SCHEDULE.values() if (queue := beat["options"].get("queue"))}
    served = {argv[argv.index("--queues") + 1] for argv in PROCFILE.values() if "--queues" in argv}
    assert served == queues
