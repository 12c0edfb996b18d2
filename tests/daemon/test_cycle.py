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
# Kills the daemon the moment there is another home than the one there was: it is restored, but nobody is logged in.
KILL = """python3 - <<'END'
import os, signal, subprocess, time
daemon = int(subprocess.check_output(["systemctl", "show", "-P", "MainPID", "fleet-agent"]))
def homes():
    with open("/proc/self/mountinfo") as lines:
        return [line.split()[0] for line in lines if " /home/player " in line]
old = homes()
if os.fork() == 0:
    os.setsid()
    while homes() in (old, []):
        time.sleep(0.001)
    os.kill(daemon, signal.SIGKILL)
    with open("/tmp/killed", "w") as file:
        print("held" if os.path.exists("/run/fleet/held") else "too late", file=file)
END"""

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


def test_a_daemon_killed_in_the_middle_finishes_the_cycle_and_tells_of_it(pc: Machine, fresh: str) -> None:
    before, sessions = pc.sessions(), pc.gateway.sessions
    pc.pc.sh("echo mine | setpriv --reuid player --regid player --clear-groups tee /home/player/mine")
    pc.pc.sh(KILL)
    command = order(pc)
    report = pc.wait_for_report(command)
    assert pc.pc.sh("cat /tmp/killed; rm /tmp/killed") == "held\n"
    assert pc.gateway.sessions == sessions + 1
    assert report["state"] == protocol.SUCCEEDED, f"{report}\n{pc.pc.sh(WHY)}"
    assert report["result"]["after"] == pc.home["home_digest"]
    assert report["result"]["files"] is None, "what the killed daemon threw away is not known"
    assert pc.pc.sh(LOOK) == fresh
    assert not pc.sessions() & before
    assert report["result"]["session"] in pc.sessions()
    again = pc.wait_for_report(order(pc))
    assert again["state"] == protocol.SUCCEEDED
    assert again["result"]["files"] == 0
