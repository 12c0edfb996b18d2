"""A daemon that is killed in the middle of a cycle, at line after line of it: the home is the old one or the template, and the
next daemon ends the cycle and tells of it, once. Real mounts, cgroups and processes; what logs the user in stands in for systemd.

All lines of a cycle take ten minutes (MOST = 999): of the phases that touch no mount a few are enough.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.daemon import protocol
from agents.hands import home
from tests.daemon.gateway import Gateway
from tests.daemon.namespace import UID
from tests.daemon.running import AGENT, Daemon, wait_until
from tests.daemon.test_overlay import template

pytestmark = [pytest.mark.root, pytest.mark.slow]
MOST = 8
PHASES = ("kill", "restore", "verify", "unmount", "login", "told")
# As getty, login and logind: a session of the user each time that the last one has ended, unless it is held in its cgroup.
GETTY = f"""
import itertools, os, time
def join(cgroup):
    os.makedirs("/sys/fs/cgroup/" + cgroup, exist_ok=True)
    with open(f"/sys/fs/cgroup/{{cgroup}}/cgroup.procs", "w") as procs: procs.write(str(os.getpid()))
join("system.slice/system-getty.slice/getty@tty1.service")
for number in itertools.count(1):
    child = os.fork()
    if child == 0:
        with open(f"/run/systemd/sessions/{{number}}", "w") as session:
            session.write("UID={UID}\\nUSER=player\\nSTATE=active\\nCLASS=user\\nTTY=\\n")
        join(f"user.slice/user-{UID}.slice/session-{{number}}.scope")
        os.setresuid({UID}, {UID}, {UID})
        os.chdir("/home/player")
        os.execvp("sleep", ["sleep", "600"])
    os.waitpid(child, 0)
    os.unlink(f"/run/systemd/sessions/{{number}}")
"""
# The daemon, which notes each line of a cycle with its phase, or dies at one: when it has come to it `nth` times.
TRACED = """
import json, os, signal, sys, threading
from agent.daemon import agent
from agent.hands import cycle
MODULES = ("cycle", "overlay", "session", "leftovers", "home")
lines, phase, count = [], ["kill"], [0]
real = cycle.Cycle.phase
def noted(self, name):
    real(self, name)
    phase[0] = PHASES[PHASES.index(name) + 1]
cycle.Cycle.phase = noted
def trace(frame, event, argument):
    module = os.path.basename(frame.f_code.co_filename)[:-3]
    ours = frame.f_code.co_filename.startswith("/run/fleet/agent/") and (
        module in MODULES or frame.f_code.co_name in ("work", "report"))
    if not ours: return None
    if event == "line":
        line = [phase[0], module, frame.f_lineno]
        if KILL is None:
            if line not in lines: lines.append(line)
        elif line == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
    return trace
work = agent.Agent.work
def traced(self, command):
    sys.settrace(trace)
    try:
        work(self, command)
    finally:
        sys.settrace(None)
        with open("/run/lines.new", "w") as file: json.dump(lines, file)
        os.rename("/run/lines.new", "/run/lines")
agent.Agent.work = traced
agent.main()
"""


class Pc(Daemon):
    """A PC whose user is logged in to a home as its template has it."""

    def furnish(self, gateway: Gateway, folder: Path) -> None:
        tree = template(folder, 11)
        self.digest = home.tree_digest(str(tree))
        self.squashfs(tree, "/run/fleet/home.squashfs")
        file = self.path("/run/fleet/home.squashfs")
        self.home = home.file_digest(str(file))
        self.args = {"home": self.home, "home_bytes": file.stat().st_size, "home_digest": self.digest}
        self.write("/run/getty.py", GETTY)
        self.gateway, self.getty = gateway, self.start("/usr/bin/python3", "/run/getty.py")
        self.begin(gateway, home=self.home)
        gateway.wait(lambda: gateway.polls)
        assert self.ended(self.cycle())["state"] == protocol.SUCCEEDED

    def cycle(self) -> protocol.Command:
        command = self.gateway.command(protocol.CYCLE, self.args)
        self.gateway.send(self.gateway.wrap(command))
        return command

    def ended(self, command: protocol.Command) -> dict[str, Any]:
        states = (protocol.SUCCEEDED, protocol.FAILED, protocol.REFUSED)
        return dict(self.gateway.wait(lambda: self.gateway.told(command.command, *states)))

    def begin_traced(self, line: list[Any] | None) -> None:
        polls = len(self.gateway.polls)
        self.begin_again((*AGENT[:-2], "-c", f"PHASES, KILL = {PHASES!r}, {line!r}\n{TRACED}"))
        self.gateway.wait(lambda: len(self.gateway.polls) > polls)

    def look(self) -> dict[str, Any]:
        """The home as it is, and who is there."""
        return dict(self.python(LOOK))


LOOK = """
from agent.hands import home
from agent.hands.overlay import mounts
from agent.hands.session import HELD, Session
SESSION = Session("player", UID)
result = {
    "mounted": os.path.ismount("/home/player"),
    "digest": home.tree_digest("/home/player"),
    "held": os.path.exists(HELD),
    "logins": sorted(SESSION.logins()),
    "user": sorted(SESSION.processes()),
    "mounts": sorted(point for point, _ in mounts() if point.startswith(("/run/fleet/home", "/home/player"))),
}
""".replace("UID", str(UID))


@pytest.fixture(scope="module")
def pc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pc]:
    gateway = Gateway()
    with Pc() as pc:
        pc.furnish(gateway, tmp_path_factory.mktemp("template"))
        yield pc
    gateway.close()


@pytest.fixture(scope="module")
def lines(pc: Pc) -> list[list[Any]]:
    """Each line of a cycle, with its phase, in the order in which they come."""
    pc.begin_traced(None)
    assert pc.ended(pc.cycle())["state"] == protocol.SUCCEEDED
    wait_until(pc.path("/run/lines").exists)
    found: list[list[Any]] = json.loads(pc.path("/run/lines").read_text())
    assert {phase for phase, *_ in found} == set(PHASES)
    return found


@pytest.mark.parametrize("phase", PHASES)
def test_whoever_is_killed_at_any_line_left_a_whole_home_and_has_a_successor_who_ends_it(
    pc: Pc, lines: list[list[Any]], phase: str
) -> None:
    mine = [line for line in lines if line[0] == phase]
    if phase not in ("restore", "unmount"):
        mine = mine[:: -(-len(mine) // MOST)]
    assert mine
    before = pc.look()
    for line in mine:
        pc.write("/home/player/mine", "saved")
        soiled = pc.look()["digest"]
        pc.begin_traced(line)
        command = pc.cycle()
        wait_until(lambda: pc.process.poll() is not None)
        left = pc.look()
        # Between two system calls there is no home, and nobody who could miss it.
        whole = left["digest"] in (soiled, pc.digest) if left["mounted"] else left["held"] and not left["user"]
        assert whole, f"{line} left {left}"
        told = pc.gateway.told(command.command, protocol.SUCCEEDED, protocol.FAILED)
        pc.begin_again()
        report = pc.ended(command)
        assert report["state"] == protocol.SUCCEEDED, f"{line}: {report}"
        assert report["result"]["after"] == pc.digest
        assert told is None or told == report
        after = pc.look()
        assert (after["digest"], after["held"], after["mounts"]) == (pc.digest, False, before["mounts"]), line
        assert len(after["logins"]) == 1
        assert report["result"]["session"] in after["logins"], f"{line}: somebody was sent away once more"
        assert not set(after["user"]) & set(before["user"])
        before = after
