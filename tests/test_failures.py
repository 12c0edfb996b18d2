"""The end of `make test`: what failed is told again, a few are tried again alone, and nothing else is forgiven."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.failures import DIRECTORY

PROJECT = Path(__file__).resolve().parents[1]
ONCE = """
from pathlib import Path
def test_of_a_loaded_machine():
    mark = Path(__file__).with_suffix(".mark")
    first = not mark.exists()
    mark.touch()
    assert not first, "too slow beside the other lane"
"""
BROKEN = "def test_of_broken_code():\n    assert 1 == 2, 'never'\n"

pytestmark = [pytest.mark.slow, pytest.mark.once]


def ran(code: str, directory: Path) -> int:
    """A lane with one test file; its exit code."""
    (directory / "failures").mkdir()
    (directory / "test_one.py").write_text(code)
    environment = {**os.environ, DIRECTORY: str(directory / "failures"), "PYTHONPATH": str(PROJECT)}
    argv = [sys.executable, "-m", "pytest", "-p", "tests.failures", "-c", os.devnull, f"--rootdir={directory}"]
    argv += ["test_one.py"]
    return subprocess.run(argv, cwd=directory, env=environment, capture_output=True, check=False).returncode


def judged(directory: Path, runs: int = 1) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "tests.failures", str(directory / "failures"), "2", str(runs)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTEST_ADDOPTS": f"-c {os.devnull}"}
    return subprocess.run(argv, cwd=directory, env=environment, capture_output=True, text=True, check=False)


def test_what_fails_beside_another_lane_and_passes_alone_is_named_and_forgiven(tmp_path: Path) -> None:
    assert ran(ONCE, tmp_path) == 1
    verdict = judged(tmp_path)
    assert verdict.returncode == 0, verdict.stdout
    assert "too slow beside the other lane" in verdict.stdout
    assert "passed alone: test_one.py::test_of_a_loaded_machine" in verdict.stdout


def test_what_fails_again_has_failed(tmp_path: Path) -> None:
    ran(BROKEN, tmp_path)
    verdict = judged(tmp_path)
    assert verdict.returncode == 2
    assert verdict.stdout.endswith("FAILED: test_one.py::test_of_broken_code\n")


@pytest.mark.parametrize(("tests", "runs"), [(4, 1), (0, 1), (1, 2)], ids=["many", "no test", "a lane that was killed"])
def test_more_than_a_test_or_two_is_not_tried_again(tmp_path: Path, tests: int, runs: int) -> None:
    kept = tmp_path / "failures"
    kept.mkdir()
    (kept / "7.ended").touch()
    for number in range(tests):
        failure = {"test": f"test_{number}.py", "postgres": False, "text": "said why"}
        (kept / f"{number}.json").write_text(json.dumps(failure))
    verdict = judged(tmp_path, runs)
    assert verdict.returncode == 2
    assert verdict.stdout.count("said why") == verdict.stdout.count("FAILED: ") == tests
    assert "Once more" not in verdict.stdout
    assert ("1 of 2 runs came to their end" in verdict.stdout) == (runs == 2)
