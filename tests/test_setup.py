"""scripts/setup tells what it needs and, where it may not install that, the line to run."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import PROJECT

NOBODY = 65534


@pytest.fixture
def checkout() -> Iterator[Path]:
    """The scripts alone, readable by anybody, with packages on the list that Debian does not have."""
    with tempfile.TemporaryDirectory(prefix="fleet-setup-") as directory:
        place = Path(directory)
        place.chmod(0o755)
        shutil.copytree(PROJECT / "scripts", place / "scripts")
        (place / "scripts/packages").write_text(
            "# group, package, why\n"
            "run    base-files    is on every Debian\n"
            "run    no-such-server    the broker\n"
            "run    no-such-tool    packs the root\n"
            "lab    no-such-emulator    virtual PCs\n"
        )
        yield place


def setup(checkout: Path, *groups: str) -> "subprocess.CompletedProcess[str]":
    """Run as somebody who is not root."""
    become = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []
    argv = ["setpriv", *become, "--", str(checkout / "scripts/setup"), *groups]
    return subprocess.run(argv, cwd="/", capture_output=True, text=True, check=False)


def test_without_root_it_prints_the_line_to_run_and_stops(checkout: Path) -> None:
    asked = setup(checkout, "run")
    assert asked.stderr == ""
    assert asked.stdout.splitlines() == [
        "Debian packages to install:",
        "  no-such-server     the broker",
        "  no-such-tool       packs the root",
        "",
        "This needs root. Run this line, then try again:",
        "  sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends no-such-server no-such-tool'",
    ]
    assert asked.returncode == 1
    assert not (checkout / ".venv").exists()


def test_it_asks_for_the_groups_it_was_told_alone(checkout: Path) -> None:
    assert "no-such-emulator" not in setup(checkout, "run", "test").stdout
    assert "install -y --no-install-recommends no-such-emulator'" in setup(checkout, "lab").stdout


def test_each_package_has_a_known_group_and_a_reason() -> None:
    for line in (PROJECT / "scripts/packages").read_text().splitlines():
        if not line.startswith("#"):
            group, _, why = line.split(maxsplit=2)
            assert group in {"run", "lab", "test", "bench"}, line
            assert len(why) > 8, line
