"""Runs a command in a tree as root of a user namespace of its own: `enter.py [--network] TREE COMMAND…`.

What runs in there is code of packages and hooks. It gets mount, PID, IPC and UTS namespaces, and unless the step needs one no
network; of the host it can kill, mount or load nothing, and its root is not the host's. Owners stay as they are: every
user of the host has the same number in there (user_namespaces(7)), so that files made in the tree belong to whom they should.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_CLONE_NEWUSER = 0x10000000  # linux/sched.h
_PR_SET_PDEATHSIG = 1
_INSIDE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts"]


def main(arguments: list[str]) -> int:
    network = arguments[:1] == ["--network"]
    tree, *command = arguments[network:]
    libc = ctypes.CDLL(None, use_errno=True)
    mapped, told = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if libc.unshare(_CLONE_NEWUSER):
            os._exit(_refuse(os.strerror(ctypes.get_errno())))
        os.write(told[1], b".")
        os.close(mapped[1])
        if not os.read(mapped[0], 1):
            os._exit(1)
        script = str(Path(__file__).with_name("enter.sh"))
        options = [] if network else ["--net"]
        inside = [*_INSIDE, *options, "sh", script, "network" if network else "", tree, *command]
        os.execvp(inside[0], inside)  # noqa: S606 - there is no shell to be fooled
    os.close(told[1])
    if os.read(told[0], 1):
        for name in ("uid_map", "gid_map"):
            ranges = (line.split() for line in Path(f"/proc/self/{name}").read_text().splitlines())
            Path(f"/proc/{child}/{name}").write_text("".join(f"{first} {first} {n}\n" for first, _, n in ranges))
        os.write(mapped[1], b".")
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) & 0xFF


def _refuse(why: str) -> int:
    print(
        f"enter.py: this host gives no user namespace ({why}); see kernel settings user.max_user_namespaces",
        file=sys.stderr,
    )
    return 125


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
