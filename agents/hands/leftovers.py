"""What a user leaves outside the home: files, System V objects, mounts of FUSE, and services that linger."""

from __future__ import annotations

import ctypes
import os
import subprocess
from contextlib import suppress

from .hardware import read
from .home import attributes
from .overlay import detach, mounts

# Where every user may write, and so leave something for the next one; {uid} is the user's.
PLACES = (
    "/tmp /var/tmp /dev/shm /dev/mqueue /run/lock /run/screen /run/user/{uid} /var/mail /var/spool/cron "  # noqa: S108
    "/var/spool/cron/crontabs /var/spool/cron/atjobs"
)


class Leftovers:
    def __init__(self, user: str, uid: int) -> None:
        self.user, self.uid = user, uid
        self.trash: list[str] = []

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


def remove_ipc(kind: str, uid: int) -> None:
    """Remove the System V objects (shm, msg or sem) that `uid` owns or made."""
    control = getattr(ctypes.CDLL(None), kind + "ctl")
    rows = [line.split() for line in read(f"/proc/sysvipc/{kind}").splitlines()]
    for row in rows[1:]:
        fields = dict(zip(rows[0], row))  # noqa: B905 - strict= needs 3.10
        if str(uid) in (fields["uid"], fields["cuid"]):
            number = int(row[1])
            control(number, 0, 0) if kind != "sem" else control(number, 0, 0, 0)  # IPC_RMID is 0
