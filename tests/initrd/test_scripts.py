"""The scripts of the initrd, as far as they can be judged without booting."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from fleet.signify import signify, signify_keys
from fleet.signing import Signer, make_keys
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


LAYER = f"{'a' * 64},1,{'b' * 128},1,{'c' * 64},1"


def test_the_layers_of_a_plan_are_read_and_their_bytes_counted(plan_text: str) -> None:
    layers = f"kind=overlay+layers\nlayers={LAYER} {LAYER.replace(',1,', ',20,')}\n"
    assert checked(plan_text + layers, '"$make_root $layers_bytes"') == "mkroot-overlay 23"
    assert checked(plan_text, '"$make_root $layers_bytes"') == "mkroot 0"


@pytest.fixture
def plan_text(tmp_path: Path) -> str:
    for name in ("root", "plan", "home"):
        (tmp_path / name).write_text(name)
    kernel, initrd, root, plan, home = (tmp_path / name for name in ("kernel", "initrd", "root", "plan", "home"))
    return Version(kernel, initrd, root, plan, home, Verity("ab" * 64, 1)).boot_plan()


def checked(plan: str, say: str = "fine") -> str:
    """What plan.sh makes of a boot plan: "fine" or another word, or the trouble it would report."""
    script = f"""
        fail() {{ echo "$1 $2: $3"; exit; }}
        . {SCRIPTS}/plan.sh
        . {SCRIPTS}/share.sh
        read_plan && check_plan
        echo {say}
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
        "layers=" + "a" * 64,
        f"layers={LAYER}",  # and a kind of root that says so; an initrd that knows no layers knows no such kind
        f"kind=symlink+layers\nlayers={LAYER} *",
        f"kind=symlink+layers\nlayers={LAYER},1",
        f"kind=symlink+layers\nlayers={LAYER.replace(',1,', ',a,')}",
        f"kind=symlink+layers\nlayers={LAYER} {LAYER[1:]}",
        "kind=symlink+layers",
    ],
)
def test_a_value_that_could_do_harm_is_trouble_not_a_path(plan_text: str, bad: str) -> None:
    assert checked(f"{plan_text}{bad}\n").startswith("plan other: The server's boot plan is not one")


def test_nothing_in_a_plan_is_run(plan_text: str, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    lines = [f"{key}=$(touch {evil})`touch {evil}`;touch {evil}" for key in ("version", "class", "reason")]
    checked(plan_text + "\n".join(lines))
    assert not evil.exists()


BOOT = "3f2b8c1e-0000-4000-8000-000000000001"


class Signed:
    """A plan that came, the keys on the command line, and what `signed` of plan.sh makes of them."""

    def __init__(self, place: Path) -> None:
        self.place = place
        make_keys(place)
        self.signer = Signer.load(f"{place}/session.key", "session")
        self.keys = signify_keys(place, "session")

    def answer(self, plan: str) -> str:
        return f"{plan}signature={signify(self.signer, plan.encode())}\n"

    def __call__(self, answer: str) -> bool:
        (self.place / "signed").write_text(answer)
        script = (SCRIPTS / "plan.sh").read_text().replace("/run/fleet/", f"{self.place}/")
        script += f"\nkeys={self.keys} boot_id={BOOT}; signed"
        return subprocess.run(["busybox", "sh", "-c", script], check=False, timeout=10).returncode == 0


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    return Signed(tmp_path)


def test_a_plan_is_obeyed_that_a_key_of_the_command_line_signed(signed: Signed, plan_text: str, tmp_path: Path) -> None:
    assert signed(signed.answer(f"{plan_text}boot={BOOT}\n"))
    assert (tmp_path / "plan").read_text() == f"{plan_text}boot={BOOT}\n"
    make_keys(tmp_path / "other")
    signed.keys = f"{signify_keys(tmp_path / 'other', 'session')},{signed.keys}"  # while keys rotate
    assert signed(signed.answer(f"{plan_text}boot={BOOT}\n"))


def test_what_nobody_signed_or_was_changed_is_not_obeyed(signed: Signed, plan_text: str, tmp_path: Path) -> None:
    plan = f"{plan_text}boot={BOOT}\n"
    good = signed.answer(plan)
    assert not signed(plan)
    assert not signed("")
    assert not signed(good.replace("user=player", "user=root"))
    assert not signed(good.replace("protocol=1\n", ""))
    assert not signed(f"{good}user=root\n")
    assert not signed(good + good)
    assert not signed(plan + "signature=\n")
    assert not signed(plan + "signature=" + "A" * 100 + "\n")
    make_keys(tmp_path / "other")
    signed.keys = signify_keys(tmp_path / "other", "session")
    assert not signed(good)


def test_a_plan_for_another_boot_is_not_obeyed(signed: Signed, plan_text: str) -> None:
    other = BOOT.replace("3f", "4f")
    assert not signed(signed.answer(f"{plan_text}boot={other}\n"))
    assert not signed(signed.answer(plan_text))
    assert not signed(signed.answer(f"{plan_text}reason=boot={BOOT}\n"))
