"""What failed in the lanes of ``make test``, told once more at the end, and tried once more alone.

The lanes share two processors, and a virtual PC without hardware acceleration needs one for itself: a test of real machines may
fail of its neighbour. So ``python -m tests.failures`` runs the few that failed again, one by one with nothing beside them. What
fails again has failed; what passes is named all the same, because a test that needs quiet is worth mending.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DIRECTORY = "FLEET_TEST_FAILURES"
FEW = 3  # more than that is no accident
_TEXT = 1500  # characters of each failure that are told again: what went wrong stands at the end


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        keep(report.nodeid, report.longreprtext)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        keep(report.nodeid, report.longreprtext)


def pytest_sessionfinish(exitstatus: int) -> None:
    """Leave word that a run went through to its end, whatever its tests said."""
    if (directory := os.environ.get(DIRECTORY)) and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        (Path(directory) / f"{os.getpid()}.ended").touch()


def keep(test: str, text: str) -> None:
    """One file for each and written at once: a run that is killed has kept what it saw."""
    if directory := os.environ.get(DIRECTORY):
        name = "".join(letter if letter.isalnum() else "-" for letter in test)[-150:]
        postgres = os.environ.get("FLEET_DATABASE_URL", "").startswith("postgres")
        failure = {"test": test, "postgres": postgres, "text": text}
        (Path(directory) / f"{name}-{os.getpid()}.json").write_text(json.dumps(failure))


def again(test: str, postgres: bool) -> bool:
    """Whether it passes alone, on the database it failed on."""
    argv = [sys.executable, "-u", "-m", "pytest", "-v", test]
    if postgres:
        argv = [sys.executable, "-m", "tests.postgres", "--", *argv]
    return subprocess.run(argv, env={**os.environ, DIRECTORY: ""}, check=False).returncode == 0


def main(directory: Path, lanes: int, runs: int) -> int:
    """Exit code of the whole, for `lanes`, that of the lanes: not 0. Forgives nothing unless all `runs` came to their end."""
    failures = [json.loads(file.read_text()) for file in sorted(directory.glob("*.json"))]
    for failure in failures:
        print(f"\n--- {failure['test']}\n{failure['text'][-_TEXT:]}", flush=True)
    tests = sorted({(str(failure["test"]), bool(failure["postgres"])) for failure in failures})
    ended = len(list(directory.glob("*.ended")))
    if ended < runs:
        print(f"\n{ended} of {runs} runs came to their end.")
    if ended < runs or not 0 < len(tests) <= FEW:
        results = dict.fromkeys(tests, False)
    else:
        print(f"\nOnce more, one by one with nothing beside them: {len(tests)}.", flush=True)
        results = {test: again(*test) for test in tests}
    for (test, postgres), passed in results.items():
        where = " on PostgreSQL" if postgres else ""
        print(f"{'FAILED beside the other lane, passed alone' if passed else 'FAILED'}: {test}{where}")
    return 0 if results and all(results.values()) else lanes


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), lanes=int(sys.argv[2]), runs=int(sys.argv[3])))
