"""A session ends whatever its processes do, nothing of the user stays behind, and only a real login counts as one.

Real processes of a scratch uid in namespaces of their own.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon.namespace import UID, Namespace

pytestmark = pytest.mark.root
# `user(code)` runs Python as the user; it returns when the code has called ready().
SESSION = f"""
import ctypes
from agent.hands.leftovers import Leftovers
from agent.hands.session import CGROUP, HELD, HOLD, SESSIONS, Session, Stuck, kill_by_uid
UID = {UID}
session = Session("player", UID)
leftovers = Leftovers("player", UID)
ROOT = CGROUP + "/system.slice"
def user(code, cgroup=session.slice, uid=(UID, UID, UID), limit=None):
    got, put = os.pipe()
    def become():
        import resource
        os.makedirs(cgroup, exist_ok=True)
        with open(cgroup + "/cgroup.procs", "w") as procs: procs.write(str(os.getpid()))
        if limit: resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
        os.setgroups([])
        os.setresuid(*uid)
    code = f"import ctypes, os, signal, sys, time\\ndef ready(): os.write({{put}}, b'r')\\n" + code
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # or the test would wait for it
    child = subprocess.Popen([sys.executable, "-c", code], preexec_fn=become, pass_fds=[put], **quiet)
    os.close(put)
    assert os.read(got, 1) == b"r", "the user's process did not start"
    os.close(got)
    return child.pid
def alive(pid):
    try:
        with open(f"/proc/{{pid}}/status") as status: return "\\nState:\\tZ" not in status.read()
    except OSError:
        return False
"""
SLEEP = "ready(); time.sleep(600)"
TOUGH = "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN); "
GONE = "while os.getppid() != 1: time.sleep(0.001)\n"  # its parent: or that would count as a process of the user's
DAEMON = f"if os.fork(): os._exit(0)\n{GONE}os.setsid()\nif os.fork(): os._exit(0)\n{GONE}{SLEEP}"
BOMB = """
ready()
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
# It kills whatever it may, as fast as it can: what is to kill it must not be among that.
KILLER = """
ready()
while True:
    try:
        os.kill(-1, signal.SIGKILL)
    except OSError:
        pass
"""


@pytest.fixture
def place() -> Iterator[Namespace]:
    with Namespace() as place:
        yield place


def run(place: Namespace, code: str) -> Any:
    return place.python(SESSION + code)


ELSEWHERE = f"cgroup=ROOT + '/cron.service', uid=({UID}, {UID}, {UID})"


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (TOUGH + SLEEP, ""),
        (DAEMON, ""),
        (DAEMON, ELSEWHERE),
        (SLEEP, "cgroup=session.slice + '/session-1.scope/below'"),
        ("ready(); os.kill(os.getpid(), signal.SIGSTOP)", ELSEWHERE),
        (BOMB, "limit=150"),
        (BOMB, ELSEWHERE + ", limit=150"),
        (KILLER, ELSEWHERE),
        (SLEEP, f"cgroup=ROOT + '/other.service', uid=({UID}, 0, 0)"),  # a set-user-id program
        (f"os.setresuid(0, 0, {UID}); " + SLEEP, "cgroup=ROOT + '/other.service', uid=(0, 0, 0)"),
    ],
    ids=[
        "deaf to SIGTERM and SIGHUP",
        "left its session by setsid",
        "left its session and its cgroup",
        "in a cgroup below",
        "stopped",
        "forks without end",
        "forks without end in another cgroup",
        "kills all it can",
        "runs a set-user-id program",
        "keeps the uid as its saved one",
    ],
)
def test_no_process_of_the_user_survives(place: Namespace, code: str, how: str) -> None:
    result = run(
        place,
        f"""
user({code!r}, {how})
time.sleep(0.2)
start = time.monotonic()
killed = session.kill()
result = [killed, sorted(session.processes() | session.members(session.slice)), time.monotonic() - start]
""",
    )
    killed, left, seconds = result
    assert killed >= 1
    assert left == []
    assert seconds < 30


def test_a_process_that_froze_its_own_cgroup_dies_too(place: Namespace) -> None:
    code = f"""
pid = user({SLEEP!r}, cgroup=session.slice + "/app")
with open(session.slice + "/app/cgroup.freeze", "w") as freeze: freeze.write("1")
session.kill()
result = alive(pid)
"""
    assert run(place, code) is False


def test_others_live_on(place: Namespace) -> None:
    code = f"""
victim = user({SLEEP!r})
others = [user({SLEEP!r}, cgroup=ROOT + "/a.service", uid=(uid, uid, uid)) for uid in (0, UID + 1, UID - 1)]
killed = session.kill()
time.sleep(0.1)
result = [killed, alive(victim), [alive(pid) for pid in others]]
"""
    assert run(place, code) == [1, False, [True] * 3]


def test_what_root_runs_in_the_users_slice_dies_with_it(place: Namespace) -> None:
    # login(1) is such: as long as it lives the getty is not started anew.
    assert run(place, f"user({SLEEP!r}, uid=(0, 0, 0))\nresult = session.kill()") == 1


def test_nobody_there_is_nobody_killed(place: Namespace) -> None:
    assert run(place, "result = session.kill()") == 0


def test_a_held_login_waits_until_it_is_let_go_even_if_it_starts_later(place: Namespace) -> None:
    code = """
getty = os.path.dirname(HOLD)
session.hold(True)
got, put = os.pipe()
child = os.fork()
if child == 0:
    os.makedirs(getty + "/getty@tty1.service")
    with open(getty + "/getty@tty1.service/cgroup.procs", "w") as procs: procs.write(str(os.getpid()))
    os.write(put, b"x")
    os._exit(0)
import select
before = [bool(select.select([got], [], [], 0.3)[0]), os.path.exists(HELD)]
session.hold(False)
result = [*before, bool(select.select([got], [], [], 3)[0]), os.path.exists(HELD)]
"""
    assert run(place, code) == [False, True, True, False]


def test_without_a_getty_there_is_no_hold_and_the_reason_says_so(place: Namespace) -> None:
    code = """
os.rmdir(os.path.dirname(HOLD))
try:
    session.hold(True)
except Stuck as error:
    result = str(error)
"""
    assert "Is getty@tty1 running?" in run(place, code)


def test_only_what_is_the_users_is_swept_away(place: Namespace) -> None:
    code = """
os.makedirs("/var/spool/cron/crontabs"); os.makedirs(f"/run/user/{UID}"); os.makedirs("/tmp/.X11-unix")
mine = ["/tmp/file", "/var/tmp/file", "/dev/shm/sem.x", "/var/spool/cron/crontabs/player", "/var/mail/player",
        f"/run/user/{UID}/bus", "/tmp/.X11-unix/X0", "/tmp/tree/deep/file"]
others = ["/tmp/theirs", "/var/mail/other", "/tmp/.X11-unix/X1"]
for path in mine + others:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, "w").close()
for path in mine + ["/tmp/tree", "/tmp/tree/deep"]: os.chown(path, UID, UID)
os.symlink("/etc/passwd", "/tmp/link"); os.lchown("/tmp/link", UID, UID)
open("/var/lib/systemd/linger/player", "w").close()
open("/var/lib/systemd/linger/other", "w").close()
leftovers.sweep()
seen = [path for path in mine + ["/tmp/link", "/tmp/tree", "/var/lib/systemd/linger/player"] if os.path.lexists(path)]
kept = [path for path in others + ["/var/lib/systemd/linger/other", "/etc/passwd"] if not os.path.exists(path)]
modes = [oct(os.stat(path).st_mode & 0o777) for path in leftovers.trash]
leftovers.empty_trash()
owned = subprocess.run(["find", "/tmp", "/var/tmp", "/dev/shm", "/var/spool", "/run", "-uid", str(UID)],
                       capture_output=True, text=True).stdout
result = [seen, kept, modes, owned, leftovers.trash]
"""
    assert run(place, code) == [[], [], ["0o700"], "", []]


def test_the_runtime_directory_is_as_if_it_were_new(place: Namespace) -> None:
    code = """
runtime = f"/run/user/{UID}"
os.makedirs(runtime); os.chown(runtime, UID, UID); os.chmod(runtime, 0o1777)
os.setxattr(runtime, "trusted.mine", b"x")
os.mkdir(runtime + "/theirs")
leftovers.sweep()
result = [oct(os.stat(runtime).st_mode & 0o7777), os.listxattr(runtime), os.listdir(runtime)]
"""
    assert run(place, code) == ["0o700", [], ["theirs"]]


def test_what_runs_as_the_user_elsewhere_dies_while_root_prepares_the_next_session(place: Namespace) -> None:
    code = f"""
root = user({SLEEP!r}, uid=(0, 0, 0))  # in the user's slice, as the gate of user@.service
escaped = user({DAEMON!r}, cgroup=ROOT + "/cron.service")
result = [session.kill_by_uid(), alive(root)]
"""
    assert run(place, code) == [1, True]


def test_its_system_v_memory_queues_and_semaphores_are_removed_and_others_stay(place: Namespace) -> None:
    code = """
libc = ctypes.CDLL(None)
def make():
    assert min(libc.shmget(0, 4096, 0o600), libc.msgget(0, 0o600), libc.semget(0, 1, 0o600)) >= 0
def count():
    return [len(open(f"/proc/sysvipc/{kind}").readlines()) - 1 for kind in ("shm", "msg", "sem")]
make()
child = os.fork()
if child == 0:
    os.setresuid(UID, UID, UID)
    make()
    os._exit(0)
os.waitpid(child, 0)
before = count()
leftovers.sweep()
result = [before, count()]
"""
    assert run(place, code) == [[2, 2, 2], [1, 1, 1]]


LOGIN = "UID={uid}\nUSER=player\nACTIVE=1\nSTATE={state}\nCLASS={kind}\nTTY=tty1\n"


def test_only_live_sessions_of_the_user_are_logins(place: Namespace) -> None:
    sessions = {
        "1": LOGIN.format(uid=UID, state="closing", kind="user"),
        "2": LOGIN.format(uid=UID, state="active", kind="user"),
        "3": LOGIN.format(uid=0, state="active", kind="user"),
        "c1": LOGIN.format(uid=UID, state="online", kind="greeter"),
        "4": "",
    }
    for name, content in sessions.items():
        place.write(f"/run/systemd/sessions/{name}", content)
    # logind keeps a FIFO open beside each session; who opens one to read waits for ever.
    code = "os.mkfifo(SESSIONS + '/2.ref')\nresult = session.logins()"
    assert place.python(SESSION + code, seconds=30) == {"2": "tty1"}


def test_a_session_counts_as_new_once_a_process_of_the_user_runs_in_it(place: Namespace) -> None:
    for name in ("1", "2"):
        place.write(f"/run/systemd/sessions/{name}", LOGIN.format(uid=UID, state="active", kind="user"))
    code = f"""
import agent.hands.session
before = {{"1": "tty1"}}
user({SLEEP!r}, cgroup=session.slice + "/session-1.scope")
user({SLEEP!r}, cgroup=session.slice + "/session-2.scope", uid=(0, 0, 0))  # login(1), before the shell
agent.hands.session.LOGIN_S = 0.3
try:
    early = session.login(before)
except Stuck as error:
    early = str(error)
user({SLEEP!r}, cgroup=session.slice + "/session-2.scope")
result = [early, session.login(before)]
"""
    early, session = run(place, code)
    assert "not logged in again" in early
    assert session == "2"


def test_a_terminal_is_touched_when_somebody_types(place: Namespace) -> None:
    master, slave = os.openpty()
    try:
        tty = os.ttyname(slave).removeprefix("/dev/")
        place.write("/run/systemd/sessions/7", LOGIN.replace("tty1", tty).format(uid=UID, state="active", kind="user"))
        os.utime(slave, (1, 1))
        before = run(place, "result = session.touched()")
        os.write(master, b"ls\n")
        os.read(slave, 10)
        after = run(place, "result = session.touched()")
    finally:
        os.close(master)
        os.close(slave)
    assert before["7"] == 10**9
    assert after["7"] > before["7"]
