"""A cycle in a virtual PC with an image of ours: all that a user can leave is gone, whatever happens meanwhile.

One boot serves all tests; each begins and ends with the user logged in to a home as its template has it.
"""

from collections.abc import Iterator

import pytest

from agents.daemon import protocol
from tests.builder.images import built_image
from tests.daemon.machine import RECIPE, Machine, machine

pytestmark = [pytest.mark.lab, pytest.mark.build, pytest.mark.slow, pytest.mark.root]
# All of a home by other means than the daemon's: names, types, modes, owners, targets, contents and attributes.
LOOK = r"""
cd /home/player && find . -printf '%p %y %m %U %G %l\n' | sort && find . -type f -print0 | sort -z | xargs -0 sha256sum
python3 -c 'import os
for folder, folders, files in sorted(os.walk(".")):
    for path in sorted(os.path.join(folder, name) for name in [".", *folders, *files]):
        for name in os.listxattr(path, follow_symlinks=False):
            print(path, name, os.getxattr(path, name, follow_symlinks=False))'
"""
COUNT = r"""cd /run/fleet/home/upper/upper && find . ! -type d ! -type c | wc -l
find . -type f -printf '%s\n' | awk '{bytes += $1} END {print bytes + 0}'"""
# In the daemon's place, once: a daemon that dies as soon as a phase of a cycle has ended.
DIES = """[Service]
ExecStart=
ExecStart=/usr/bin/python3 -E -s -S /run/dies.py
"""
DYING = """
import os, signal
from agent.daemon import agent
from agent.hands import cycle
real = cycle.Cycle.phase
def phase(self, name):
    real(self, name)
    if name == %r and not os.path.exists("/run/died"):
        with open("/run/died", "w") as file:
            print("held" if os.path.exists("/run/fleet/held") else "let go", file=file)
        os.kill(os.getpid(), signal.SIGKILL)
cycle.Cycle.phase = phase
agent.main()
"""

WHY = "journalctl -b -o short-monotonic --no-pager | tail -60; loginctl list-sessions; systemctl list-jobs; ps axf -o pid,user,stat,args"


@pytest.fixture(scope="module")
def pc() -> Iterator[Machine]:
    with machine(*built_image(RECIPE)) as booted:
        yield booted


@pytest.fixture(scope="module")
def fresh(pc: Machine) -> str:
    """The home as the boot left it."""
    return pc.pc.sh(LOOK)


def order(pc: Machine, **changes: object) -> protocol.Command:
    """Send a cycle; `changes` are other arguments."""
    command = pc.gateway.command(protocol.CYCLE, {**pc.home, **changes})
    pc.gateway.send(pc.gateway.wrap(command))
    return command


def programs(pc: Machine) -> list[str]:
    """Command lines of the user's processes."""
    return sorted(pc.pc.sh("ps -u player -o args=").splitlines())


def pids(pc: Machine) -> set[str]:
    return set(pc.pc.sh("ps -u player -o pid=").split())


@pytest.mark.parametrize("time", ["the first time", "and again"])
def test_nothing_of_a_stubborn_user_outlives_a_cycle(pc: Machine, fresh: str, time: str) -> None:
    assert pc.pc.sh(LOOK) == fresh
    usual, before, polls = programs(pc), pc.sessions(), len(pc.gateway.polls)
    pc.pc.enter("stubborn")
    pc.pc.sh(
        "until [ -e /tmp/stubborn ]; do sleep 0.2; done", 120
    )  # forks by the dozen, in a PC without an accelerator
    pc.pc.sh("cd /home/player; mkdir mounted && mount -t tmpfs other mounted && echo more >mounted/more; cd /")
    pc.wait_for_state(protocol.IN_USE, polls)
    assert pc.pc.sh(LOOK) != fresh
    files, size = map(int, pc.pc.sh(COUNT).split())
    running = pids(pc)
    assert len(running) > 20, "the forks do not run"

    report = pc.wait_for_report(order(pc))

    assert report["state"] == protocol.SUCCEEDED, report
    assert pc.pc.sh(LOOK) == fresh
    assert programs(pc) == usual
    assert not pids(pc) & running
    assert pc.pc.sh("grep -e /mounted -e saves /proc/mounts; ls /tmp/stubborn 2>/dev/null; true") == ""
    result = report["result"]
    assert result["after"] == result["expected"] == pc.home["home_digest"] != result["before"] != ""
    assert (result["files"], result["bytes"]) == (files, size)
    assert files >= 6
    assert size > 3_000_000
    assert result["killed"] >= 20
    phases = result["phases_ms"]
    assert list(phases) == ["kill", "total", "restore", "verify", "unmount", "login"]
    assert sum(phases.values()) - 2 * phases["total"] in range(-5, 6), "the phases are not the whole"
    after = pc.sessions()
    assert result["session"] in after
    assert not after & before
    pc.wait_for_state(protocol.READY, polls)


def test_a_command_that_comes_twice_is_answered_from_memory(pc: Machine) -> None:
    command = order(pc)
    first = pc.wait_for_report(command)
    before, told = pc.sessions(), len(pc.gateway.reports)
    pc.gateway.send(pc.gateway.wrap(command))
    pc.gateway.wait(lambda: len(pc.gateway.reports) > told)
    assert pc.gateway.reports[told:] == [first]
    assert pc.sessions() == before


@pytest.mark.parametrize(
    ("wrong", "reason"), [({"home_digest": "0" * 64}, "digest"), ({"home": "f" * 64}, "/store/ffff")]
)
def test_a_cycle_to_a_home_that_there_is_not_fails_and_leaves_the_user_alone(
    pc: Machine, wrong: dict[str, object], reason: str
) -> None:
    before, running = pc.sessions(), pids(pc)
    pc.pc.sh("echo mine | setpriv --reuid player --regid player --clear-groups tee /home/player/mine")
    command = order(pc, **wrong)
    report = pc.wait_for_report(command)
    assert report["state"] == protocol.FAILED
    assert reason in report["reason"]
    assert report["result"]["after"] == ""
    assert pc.pc.sh("cat /home/player/mine") == "mine\n"
    assert (pc.sessions(), pids(pc)) == (before, running)
    assert pc.wait_for_report(order(pc))["state"] == protocol.SUCCEEDED


def change_unit(pc: Machine, drop_in: str) -> None:
    """Run the daemon by another unit from now on; '' is the unit as it was."""
    sessions = pc.gateway.sessions
    place = "/run/systemd/system/fleet-agent.service.d"
    pc.pc.sh(f"rm -rf {place}; mkdir {place}; cat >{place}/test.conf <<'END'\n{drop_in}\nEND\nsystemctl daemon-reload")
    pc.pc.sh("systemctl restart fleet-agent")
    pc.gateway.wait(lambda: pc.gateway.sessions > sessions, 60)


@pytest.mark.parametrize("phase", ["kill", "restore", "verify", "unmount", "login"])
def test_a_daemon_killed_in_the_middle_finishes_the_cycle_and_tells_of_it(pc: Machine, fresh: str, phase: str) -> None:
    pc.pc.sh(
        f"rm -f /run/died; cat >/run/dies.py <<'END'\nimport sys\nsys.path.insert(0, '/run/fleet')\n{DYING % phase}\nEND"
    )
    change_unit(pc, DIES)
    before, sessions = pc.sessions(), pc.gateway.sessions
    pc.pc.sh("echo mine | setpriv --reuid player --regid player --clear-groups tee /home/player/mine")
    command = order(pc)
    report = pc.wait_for_report(command)
    assert pc.pc.sh("cat /run/died") == ("let go\n" if phase == "login" else "held\n")
    assert pc.gateway.sessions == sessions + 1
    assert report["state"] == protocol.SUCCEEDED, f"{report}\n{pc.pc.sh(WHY)}"
    assert report["result"]["after"] == pc.home["home_digest"]
    # What the killed daemon threw away is not known; what it did not come to throw away is.
    gone = phase in ("unmount", "login")
    assert report["result"]["files"] == (None if gone else 1)
    assert pc.pc.sh(LOOK) == fresh
    assert not pc.sessions() & before
    assert report["result"]["session"] in pc.sessions()
    change_unit(pc, "")
    again = pc.wait_for_report(order(pc))
    assert again["state"] == protocol.SUCCEEDED
    assert again["result"]["files"] == 0


def test_a_daemon_that_hangs_is_started_anew(pc: Machine) -> None:
    change_unit(pc, "[Service]\nWatchdogSec=12")
    sessions = pc.gateway.sessions
    pc.pc.sh("sleep 20")
    assert pc.gateway.sessions == sessions, "it gives no sign of life"
    pc.pc.sh("kill -STOP $(systemctl show -P MainPID fleet-agent)")
    pc.gateway.wait(lambda: pc.gateway.sessions > sessions, 60)
    change_unit(pc, "")


def test_the_user_holds_the_pc_and_is_warned_on_the_console(pc: Machine, fresh: str) -> None:
    user = (
        "cd /; setpriv --reuid player --regid player --clear-groups"  # the home that the console stood in may be gone
    )
    assert pc.pc.sh(f"{user} sh -c '. /etc/profile; fleet-hold \"match running\" 90m'").startswith(
        "Held for 90 minutes"
    )
    assert pc.wait_for_report(order(pc))["reason"] == "held"
    message = pc.gateway.command(protocol.MESSAGE, {"text": "The final begins.", "seconds": 5})
    pc.gateway.send(pc.gateway.wrap(message))
    assert pc.wait_for_report(message)["result"] == {"shown": "tty1"}
    command = order(pc, warn_s=6, text="We close.", more=1, force=True)
    pc.wait_for_report(command, protocol.ACCEPTED)
    screen = pc.pc.sh("sleep 2; cat /dev/vcs1")
    assert "The final begins." in screen
    assert "We close. This session ends" in screen
    report = pc.wait_for_report(command)
    assert report["state"] == protocol.SUCCEEDED
    assert pc.pc.sh(LOOK) == fresh
    assert pc.pc.sh(f"{user} /run/fleet/bin/fleet-hold").startswith("Nothing is held")
