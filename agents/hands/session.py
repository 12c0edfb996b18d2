"""The user's session on this client: hold the login, kill all that is the user's, see the next login.

The moment the last session dies systemd starts the next getty by itself, and the user's next manager (user@.service), so
that nobody need wait for them later. The getty is held in its cgroup, which is frozen; the manager by a file that its
unit waits to see gone. Should the daemon die meanwhile the hold stays, so nobody is ever logged in to a home that
was not restored.

Without systemd there is no such hold for every init: see Respawned.
"""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import suppress

from .hardware import read

SYSTEMD = "/run/systemd/system"
CGROUP = "/sys/fs/cgroup"
HOLD = CGROUP + "/system.slice/system-getty.slice/cgroup.freeze"
HELD = "/run/fleet/held"
SESSIONS = "/run/systemd/sessions"
KILL_S, LOGIN_S = 15.0, 30.0
OWNS_NOTHING = 2**32 - 2  # the highest uid there is


class Stuck(Exception):
    """The session cannot be ended or begun; the text says why."""


def of(user: str, uid: int) -> Session:
    """The user's sessions, by the means that this system has."""
    return Session(user, uid) if os.path.isdir(SYSTEMD) else Respawned(user, uid)


class Session:
    """By systemd: sessions of logind, the login on a virtual console by getty."""

    def __init__(self, user: str, uid: int) -> None:
        self.user, self.uid = user, uid
        self.slice = f"{CGROUP}/user.slice/user-{uid}.slice"

    def hold(self, held: bool) -> None:
        try:
            with open(HOLD, "w", encoding="ascii") as freeze, open(HELD, "w", encoding="ascii"):
                freeze.write("1" if held else "0")
            if not held:
                os.unlink(HELD)
        except OSError as error:
            raise Stuck(f"The login cannot be held: {error}. Is getty@tty1 running?") from None

    def processes(self) -> set[int]:
        """Every live process with this uid as any of its four (real, effective, saved, file system)."""
        wanted, found = b"%d" % self.uid, set()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError), open(f"/proc/{pid}/status", "rb", 0) as file:
                status = file.read(4096)  # bytes, and no more than it takes: there are hundreds
                uids = status.partition(b"\nUid:\t")[2].partition(b"\n")[0]
                if wanted in uids.split(b"\t") and b"\nState:\tZ" not in status:
                    found.add(int(pid))
        return found

    def members(self, cgroup: str) -> set[int]:
        """Processes in a cgroup and below."""
        return {int(pid) for path, _, _ in os.walk(cgroup) for pid in read(path + "/cgroup.procs").split()}

    def kill(self) -> int:
        """Kill all of the user's processes; how many there were, as far as they stood still to be counted.

        The slice dies as one (cgroup.kill, forks included). What escaped it (cron, at, a service) dies by its uid.
        """
        victims: set[int] = set()
        end = time.monotonic() + KILL_S
        while left := self.members(self.slice):
            victims |= left
            with suppress(OSError), open(self.slice + "/cgroup.kill", "w", encoding="ascii") as kill:
                kill.write("1")
            self.breathe(end, left)
        return len(victims) + self.kill_by_uid()

    def kill_by_uid(self) -> int:
        """As kill(), but only what runs as the user, by one kill(2) during which nothing can fork away."""
        victims: set[int] = set()
        end = time.monotonic() + KILL_S
        while left := self.processes():
            victims |= left
            kill_by_uid(self.uid)
            self.breathe(end, left)
        return len(victims)

    def breathe(self, end: float, left: set[int]) -> None:
        if time.monotonic() > end:
            raise Stuck(f"Processes {sorted(left)[:9]} of {self.user} outlive SIGKILL.")
        time.sleep(0.005)

    def logins(self) -> dict[str, str]:
        """Terminals of the user's sessions by id, as logind keeps them in /run."""
        found = {}
        names = os.listdir(SESSIONS) if os.path.isdir(SESSIONS) else []
        for session in filter(str.isalnum, names):  # `1.ref` beside `1` is a FIFO, and would never end
            lines = read(f"{SESSIONS}/{session}").splitlines()
            fields = dict(line.split("=", 1) for line in lines if "=" in line)
            mine = fields.get("UID") == str(self.uid) and fields.get("CLASS") == "user"
            if mine and fields.get("STATE") != "closing":
                found[session] = fields.get("TTY", "")
        return found

    def login(self, before: dict[str, str]) -> str:
        """Let the user be logged in again; the id of the new session once a process of the user runs in it."""
        end = time.monotonic() + LOGIN_S
        self.hold(False)
        while time.monotonic() < end:
            time.sleep(0.01)
            for session in self.logins().keys() - before.keys():
                with suppress(FileNotFoundError):  # processes come and go
                    if self.has_begun(session):
                        return session
        raise Stuck(f"{self.user} was not logged in again within {LOGIN_S:.0f} s.")

    def has_begun(self, session: str) -> bool:
        """Whether a process of the user runs in it, and not only login(1)."""
        pids = self.members(f"{self.slice}/session-{session}.scope")
        return any(os.stat(f"/proc/{pid}").st_uid == self.uid for pid in pids)

    def touched(self) -> dict[str, int]:
        """When each session's terminal was last read from (atime), as w(1) tells an idle user; ns since 1970."""
        times = {}
        for session, tty in self.logins().items():
            try:
                times[session] = os.stat(f"/dev/{tty}").st_atime_ns if tty else 0
            except OSError:
                times[session] = 0
        return times


class Respawned(Session):
    """By whatever starts a login anew when the last one ends: an inittab, a display manager. Nothing of systemd is needed.

    Nobody can be kept out here, so whoever comes in too early is sent away once more when the home is ready. An init that
    waits until HELD is gone spares the user that. A login is a process that leads a session and has a terminal, or a
    desktop in its environment.
    """

    def hold(self, held: bool) -> None:
        if held:
            with open(HELD, "w", encoding="ascii"):
                return
        with suppress(FileNotFoundError):
            os.unlink(HELD)

    def kill(self) -> int:
        return self.kill_by_uid()

    def kill_by_uid(self) -> int:
        """Those who come meanwhile are not waited for: there may be no moment without one."""
        victims = self.processes()
        end = time.monotonic() + KILL_S
        kill_by_uid(self.uid)
        while left := victims & self.processes():
            self.breathe(end, left)
        return len(victims)

    def logins(self) -> dict[str, str]:
        found = {}
        for pid in self.processes():
            fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()  # proc(5): from the third field on
            if len(fields) > 19 and fields[3] == str(pid):
                tty = terminal(int(fields[4]))
                if tty or re.search("(^|\0)(WAYLAND_)?DISPLAY=", read(f"/proc/{pid}/environ")):
                    found[f"{pid}-{fields[19]}"] = tty  # with its start: numbers come again
        return found

    def login(self, before: dict[str, str]) -> str:
        early = {**before, **self.logins()}
        self.kill_by_uid()
        return super().login(early)

    def has_begun(self, session: str) -> bool:
        return True  # it is found by its process


def terminal(device: int) -> str:
    """Name in /dev of a controlling terminal by its number, '' where it is none that people sit at."""
    major, minor = os.major(device), os.minor(device)
    if major == 4:
        return f"tty{minor}" if minor < 64 else f"ttyS{minor - 64}"
    return f"pts/{(major - 136) * 256 + minor}" if 136 <= major <= 143 else ""


def kill_by_uid(uid: int) -> None:
    """SIGKILL to everything of `uid`, by one kill(2) from a child with that effective uid and nothing else.

    kill(2) lets a process signal those whose real or saved uid is its real or effective one. So the child's real and
    saved uid are one that owns nothing: root's would reach all of root's processes, the user's would let the user's
    processes kill the child first.
    """
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(OWNS_NOTHING, uid, OWNS_NOTHING)
            if "\nCapEff:\t0000000000000000\n" in read("/proc/self/status"):
                os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
