"""The bench of a fleet, with a handful of clients: it measures what it says, and its swarm's verdict is the server's."""

import json
import subprocess
import sys

import pytest

from tests.bench.fleet import LIMITS
from tests.services import PROJECT

CLIENTS = 40


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("database", ["postgres", "sqlite"])
def test_all_are_cycled_and_come_back_to_a_gateway_that_was_killed(database: str) -> None:
    words = ["--clients", str(CLIENTS), "--database", database, "--idle", "2", "--rate", "40", "--delay", "0.5"]
    told = subprocess.run(
        [sys.executable, "-m", "tests.bench.fleet", *words], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr[-3000:]
    found = json.loads(told.stdout.splitlines()[-1])
    assert (found["clients"], found["commands"], found["succeeded"]) == (CLIENTS, 2 * CLIENTS, 2 * CLIENTS)
    assert [found[name] for name in ("lost", "twice", "unaudited", "enrolled", "errors")] == [0] * 5
    assert all(name in told.stdout for name in LIMITS)
    assert 0 < found["accepted_p50_s"] <= found["accepted_p99_s"] < 60
    assert 1 <= found["cold_start_s"] < 60
    assert 50 < found["gateway_rss_mb"] <= found["gateway_most_mb"] + 20
