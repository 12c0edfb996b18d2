"""The scripts of the initrd, as far as they can be judged without booting."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from images.builder.initrd import APPLETS, SCRIPTS
from images.builder.verity import Verity
from tests.initrd.gateway import Version

SHELL = [path for path in sorted(SCRIPTS.iterdir()) if path.suffix == ".sh" or path.read_bytes()[:2] == b"#!"]
# Of the shell itself in busybox's ash, so no link is needed.
BUILTINS = {"[", "echo", "exec", "exit", "kill", "printf", "read", "test", "true", "trap", "wait"}
# A command stands at the start of a line or after one of these.
COMMAND = r"(?:^|[;&|({!]|\$\()\s*(?:(?:if|until|while|then|else|do|exec|!)\s+)*([a-z0-9_]+)\b"


def code(script: Path) -> list[str]:
    """Lines that are neither blank nor a comment."""
    lines = (line.strip() for line in script.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run(["shellcheck", "-x", *map(str, SHELL)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_mkroot_has_fewer_than_twenty_lines_as_in_2004() -> None:
    assert len(code(SCRIPTS / "mkroot")) < 20


def test_each_applet_the_scripts_call_has_a_link_and_none_is_there_for_nothing() -> None:
    known = set(subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split())
    called: set[str] = set()
    for script in SHELL:
        text = "\n".join(re.sub(r'"[^"$]*"', '""', line) for line in code(script))
        called |= {word for word in re.findall(COMMAND, text, re.MULTILINE) if word in known - {"busybox"}}
    assert called - BUILTINS <= set(APPLETS)
    assert called >= set(APPLETS) - {"sh", "kill"}


@pytest.fixture
def plan_text(tmp_path: Path) -> str:
    for name in ("root", "plan", "home"):
        (tmp_path / name).write_text(name)
    kernel, initrd, root, plan, home = (tmp_path / name for name in ("kernel", "initrd", "root", "plan", "home"))
    return Version(kernel, initrd, root, plan, home, Verity("ab" * 64, 1)).boot_plan()


def checked(plan: str) -> str:
    """What plan.sh makes of a boot plan: "fine", or the trouble it would report."""
    script = f"""
        fail() {{ echo "$1 $2: $3"; exit; }}
        . {SCRIPTS}/plan.sh
        . {SCRIPTS}/share.sh
        read_plan && check_plan
        echo "fine"
    """
    done = subprocess.run(["busybox", "sh", "-c", script], input=plan, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.strip()


def test_a_good_plan_is_read_whatever_else_is_in_it(plan_text: str) -> None:
    assert checked(plan_text + "colour=green\n\nno equals sign\n") == "fine"
    assert checked(plan_text.rstrip("\n")) == "fine"  # the last line without its end


@pytest.mark.parametrize(
    "bad",
    [
        "protocol=2",
        "root=" + "g" * 64,
        "root=" + "a" * 63,
        "plan=../../../../etc/shadow",
        "home=",
        "root_bytes=",
        "root_bytes=-5",
        "home_bytes=many",
        "plan_bytes=$(reboot)",
        "tmpfs_percent=50%,uid=0",
        "home_percent=",
        "name=-seat",
        "name=seat 7",
        "name=seat/7",
        "name=",
        "user=",
        "user=../root",
        "user=Player",
        "user=a/b",
    ],
)
def test_a_value_that_could_do_harm_is_trouble_not_a_path(plan_text: str, bad: str) -> None:
    assert checked(f"{plan_text}{bad}\n").startswith("plan other: The server's boot plan is not one")


def test_nothing_in_a_plan_is_run(plan_text: str, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    lines = [f"{key}=$(touch {evil})`touch {evil}`;touch {evil}" for key in ("version", "class", "reason")]
    checked(plan_text + "\n".join(lines))
    assert not evil.exists()
