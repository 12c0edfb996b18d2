"""A PC without systemd, and without logind: a real init of another kind (busybox's) logs the user in again and again."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agents.daemon import protocol
from agents.hands import home
from agents.hands.session import terminal
from tests.daemon.gateway import Gateway
from tests.daemon.namespace import UID, Namespace
from tests.daemon.running import Daemon, wait_until
from tests.daemon.test_overlay import template

root = pytest.mark.root
# As getty and login: a terminal of the user's, and on it a program that leaves something in the home. It waits for nobody.
LOGIN = f"""
import os
master, slave = os.openpty()
name = os.ttyname(slave)
child = os.fork()
if child == 0:
    os.setsid()
    os.close(os.open(name, os.O_RDWR))  # and so it is the controlling one
    os.chdir("/")
    os.setresgid({UID}, {UID}, {UID})
    os.setresuid({UID}, {UID}, {UID})
    os.execv("/bin/sh", ["sh", "-c", "echo $$ >>/home/player/came; exec sleep 600"])
os.waitpid(child, 0)
"""
BUSYBOX = """
rm -r /run/systemd
umount /sys/fs/cgroup
mkdir -p /run/etc/upper /run/etc/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work etc /etc
echo '::respawn:/usr/bin/python3 /run/login.py' >/etc/inittab
echo ready >/run/ready
exec busybox init
"""


class Pc(Daemon):
    first = BUSYBOX

    def log_in(self) -> None:
        """Have the init log the user in from now on."""
        self.write("/run/login.py", LOGIN)


@pytest.fixture
def pc() -> Iterator[Pc]:
    with Pc() as pc:
        yield pc


def look(pc: Namespace, code: str) -> Any:
    return pc.python(f"from agent.hands import session\nuser = session.of('player', {UID})\n{code}")


@root
@pytest.mark.slow
def test_a_cycle_gives_the_user_a_new_home_and_a_new_login(gateway: Gateway, pc: Pc, tmp_path: Path) -> None:
    tree = template(tmp_path, 11)
    digest = home.tree_digest(str(tree))
    pc.squashfs(tree, "/run/fleet/home.squashfs")
    file = pc.path("/run/fleet/home.squashfs")
    sha256 = home.file_digest(str(file))
    args = {"home": sha256, "home_bytes": file.stat().st_size, "home_digest": digest}
    pc.path("/home/player").chmod(0o777)
    pc.log_in()
    pc.begin(gateway, home=sha256)
    gateway.wait(lambda: [state for _, state in gateway.polls if state == protocol.READY])
    before = look(pc, "result = user.logins()")
    for _ in range(2):
        command = gateway.command(protocol.CYCLE, args)
        gateway.send(gateway.wrap(command))
        told = partial(gateway.told, command.command, protocol.SUCCEEDED, protocol.FAILED)
        report = gateway.wait(told, 60)
        assert report["state"] == protocol.SUCCEEDED, report
        assert report["result"]["after"] == digest
        wait_until(pc.path("/home/player/came").exists)
        [session] = look(pc, "result = user.logins()")
        assert report["result"]["session"] == session
        assert session not in before
        assert pc.path("/home/player/came").read_text().split() == [session.partition("-")[0]]
        before = [session]


@root
def test_who_came_before_the_home_was_ready_has_to_come_again(pc: Pc) -> None:
    pc.log_in()
    code = """
while not user.logins(): time.sleep(0.05)
user.hold(True)
held = os.path.exists(session.HELD)
user.kill()
while not user.logins(): time.sleep(0.05)  # this init waits for nobody
early = user.logins()
new = user.login({})
result = [held, os.path.exists(session.HELD), new in early, list(user.logins()) == [new]]
"""
    assert look(pc, code) == [True, False, False, True]


@root
def test_a_login_has_a_terminal_or_a_desktop_and_cron_and_escaped_processes_have_none(pc: Pc) -> None:
    code = f"""
def start(*command, **environment):
    return subprocess.Popen(["setpriv", "--reuid={UID}", "--regid={UID}", "--clear-groups", *command], env=environment,
                            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid
x, wayland = start("/bin/sleep", "60", DISPLAY=":0"), start("/bin/sleep", "60", WAYLAND_DISPLAY="wayland-0")
job = start("/bin/sleep", "60", NOT_DISPLAY=":0")
while len(user.processes()) < 3 or not all(open(f"/proc/{{pid}}/comm").read() == "sleep\\n" for pid in (x, wayland, job)): time.sleep(0.01)
result = [sorted(int(login.partition("-")[0]) for login in user.logins()) == sorted([x, wayland]), set(user.logins().values())]
result[1] = list(result[1])
"""
    assert look(pc, code) == [True, [""]]


@root
def test_who_forks_without_end_dies_without_a_cgroup_too(pc: Pc) -> None:
    code = f"""
bomb = "import os\\nwhile True:\\n  try: os.fork()\\n  except OSError: pass"
limited = ["prlimit", "--nproc=150", "setpriv", "--reuid={UID}", "--regid={UID}", "--clear-groups", sys.executable, "-c", bomb]
subprocess.Popen(limited, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
while len(user.processes()) < 100: time.sleep(0.01)
killed = user.kill()
end = time.monotonic() + 20
while user.processes() and time.monotonic() < end: time.sleep(0.01)
result = [killed >= 100, sorted(user.processes())]
"""
    assert look(pc, code) == [True, []]


@root
def test_its_own_programs_restart_it_and_turn_it_off(pc: Pc) -> None:
    pc.write("/run/own/reboot", '#!/bin/sh\necho "reboot $@" >>/run/asked\n', 0o755)
    pc.write("/run/own/poweroff", '#!/bin/sh\necho "poweroff $@" >>/run/asked\n', 0o755)
    code = """
from agent.hands import power
os.environ["PATH"] = "/run/own"
power.INIT_S, power.force = 0, lambda verb: None
power.go("restart")
power.go("poweroff")
result = power.going_down()
"""
    assert pc.python(code) is False
    assert pc.path("/run/asked").read_text() == "reboot \npoweroff \n"


@root
def test_more_is_left_of_a_held_login_where_the_init_waits(pc: Pc) -> None:
    """As docs/protocol.md has it for an inittab."""
    waiting = "import os, time\nwhile os.path.exists('/run/fleet/held'): time.sleep(0.05)\n"
    pc.write("/run/login.py", waiting + LOGIN)
    code = """
while not user.logins(): time.sleep(0.05)
user.hold(True)
user.kill()
time.sleep(1.5)  # its init takes a second
result = [len(user.logins())]
user.login({})
result.append(len(user.logins()))
"""
    assert look(pc, code) == [0, 1]


@pytest.mark.parametrize(
    ("device", "name"),
    [((4, 1), "tty1"), ((4, 64), "ttyS0"), ((136, 3), "pts/3"), ((137, 3), "pts/259"), ((0, 0), ""), ((5, 1), "")],
)
def test_terminals_are_known_by_their_numbers(device: tuple[int, int], name: str) -> None:
    major, minor = device
    assert terminal((minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12) == name
