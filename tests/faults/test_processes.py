"""The real processes, on their real databases: each is killed and frozen in the middle of campaigns, and the network storms."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.bench.servers import PARTS
from tests.services import PROJECT

pytestmark = pytest.mark.slow


class Stage:
    """A rehearsal (``tests.faults.rehearsal``) that goes on."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._heard()

    def after(self, fault: str) -> dict[str, Any]:
        """What is found when ``fault`` is over and all that was ordered has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{fault}\n")
        self._process.stdin.flush()
        return self._heard()

    def _heard(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the rehearsal broke off: see what it printed"
        return dict(json.loads(line))


@contextmanager
def stage(database: str, clients: int) -> Iterator[Stage]:
    argv = [sys.executable, "-m", "tests.faults.rehearsal", "--database", database, "--clients", str(clients)]
    with subprocess.Popen(argv, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Stage(process)
        finally:
            process.communicate(timeout=60)  # the end of its orders is that of the server


def hold(database: str, clients: int, *faults: str) -> None:
    """No command is lost or carried out twice, and no restore is without its row, whatever befalls."""
    with stage(database, clients) as rehearsal:
        for fault in faults:
            found = rehearsal.after(fault)
            wrong = {
                name: found[name] for name in ("lost", "unsealed", "unaudited", "unended", "faults") if found[name]
            }
            assert not wrong, (fault, found)
            assert found["noted"] >= found["signed"] > 0
        seen = rehearsal.after("end")
    assert (seen["lost"], seen["twice"], seen["unaudited"]) == (0, 0, 0), seen
    assert seen["succeeded"] > clients * len(faults)


def test_on_postgresql_each_part_may_be_killed_or_stand_still_and_the_network_storm() -> None:
    parts = (*PARTS, "postgres")
    hold("postgres", 100, *(f"kill {part}" for part in parts), f"freeze 30 {' '.join(parts)}", "storm 15")


def test_on_sqlite_who_writes_may_be_killed_or_stand_still() -> None:
    hold("sqlite", 40, "kill gateway", "kill sender", "kill work", "freeze 15 gateway sender work", "storm 10")
