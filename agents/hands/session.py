"""The user's session on this client: hold the login, kill all that is the user's, sweep up, see the next login.

The moment the last session dies systemd starts the next getty by itself, and the user's next manager (user@.service), so
that nobody need wait for them later. The getty is held in its cgroup, which is frozen; the manager by a file that its
unit waits to see gone. Should the daemon die meanwhile the hold stays, so nobody is ever logged in to a home that
was not restored.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from contextlib import suppress

from .hardware import read
from .home import attributes
from .overlay import detach, mounts

CGROUP = "/sys/fs/cgroup"
HOLD = CGROUP + "/system.slice/system-getty.slice/cgroup.freeze"
HELD = "/run/fleet/held"
SESSIONS = "/run/systemd/sessions"
KILL_S, LOGIN_S = 5.0, 30.0
OWNS_NOTHING = 2**32 - 2  # the highest uid there is
# Where every user may write, and so leave something for the next one; {uid} is the user's.
PLACES = (
    "/tmp /var/tmp /dev/shm /dev/mqueue /run/lock /run/screen /run/user/{uid} /var/mail /var/spool/cron "  # noqa: S108
    "/var/spool/cron/crontabs /var/spool/cron/atjobs"
)


class Stuck(Exception):
    """The session cannot be ended or begun; the text says why."""


class Session:
    def __init__(self, user: str, uid: int) -> None:
        self.user, self.uid = user, uid
        self.slice = f"{CGROUP}/user.slice/user-{uid}.slice"
        self.trash: list[str] = []

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

    def sweep(self) -> None:
        """Remove what the user left outside the home. Directories only move aside: `empty_trash` is for later."""
        for point, options in mounts():
            if f"user_id={self.uid}," in options:  # FUSE, whose server is dead now
                detach(point)
        for place in PLACES.format(uid=self.uid).split():
            self.clear(place)
        for kind in ("shm", "msg", "sem"):
            remove_ipc(kind, self.uid)
        with suppress(FileNotFoundError):
            os.unlink(f"/var/lib/systemd/linger/{self.user}")

    def clear(self, place: str) -> None:
        try:
            found = [(entry, entry.stat(follow_symlinks=False)) for entry in os.scandir(place)]
        except OSError:
            return
        if os.stat(place).st_uid == self.uid:  # /run/user/…, which stays
            os.chmod(place, 0o700)
            for name in attributes(place):
                os.removexattr(place, name)
        aside = f"{place}/.fleet-{os.urandom(8).hex()}"
        for entry, facts in found:
            directory = entry.is_dir(follow_symlinks=False)
            if facts.st_uid != self.uid:
                if directory:
                    self.clear(entry.path)
            elif not directory:
                os.unlink(entry.path)
            else:
                if aside not in self.trash:
                    os.mkdir(aside, 0o700)
                    self.trash.append(aside)
                os.rename(entry.path, f"{aside}/{entry.name}")

    def empty_trash(self) -> None:
        if self.trash:
            subprocess.run(["nice", "rm", "-rf", "--one-file-system", *self.trash], check=False)
        self.trash = []

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
            with suppress(FileNotFoundError):  # processes come and go
                for session in os.listdir(SESSIONS):
                    pids = self.members(f"{self.slice}/session-{session}.scope")
                    begun = any(os.stat(f"/proc/{pid}").st_uid == self.uid for pid in pids)
                    if begun and session in self.logins().keys() - before.keys():
                        return session
        raise Stuck(f"{self.user} was not logged in again within {LOGIN_S:.0f} s.")

    def touched(self) -> dict[str, int]:
        """When each session's terminal was last read from (atime), as w(1) tells an idle user; ns since 1970."""
        times = {}
        for session, tty in self.logins().items():
            try:
                times[session] = os.stat(f"/dev/{tty}").st_atime_ns if tty else 0
            except OSError:
                times[session] = 0
        return times


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


def remove_ipc(kind: str, uid: int) -> None:
    """Remove the System V objects (shm, msg or sem) that `uid` owns or made."""
    control = getattr(ctypes.CDLL(None), kind + "ctl")
    rows = [line.split() for line in read(f"/proc/sysvipc/{kind}").splitlines()]
    for row in rows[1:]:
        fields = dict(zip(rows[0], row))  # noqa: B905 - strict= needs 3.10
        if str(uid) in (fields["uid"], fields["cuid"]):
            number = int(row[1])
            control(number, 0, 0) if kind != "sem" else control(number, 0, 0, 0)  # IPC_RMID is 0
