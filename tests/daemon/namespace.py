"""A stretch of the machine for a daemon alone: its own processes, mounts, IPC objects and cgroups.

So it may kill by uid, mount, freeze and even call reboot(2): all of it ends at the namespace's border. Needs root.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

SOURCE = Path(__file__).resolve().parents[2] / "agents"
UID = 61234  # of no real user
# It makes the place. All that a user may write to is fresh and empty.
INIT = """
set -e
mount -t tmpfs -o mode=0755 run /run
mkdir -p /run/fleet/agent /run/fleet/bin /run/bin /run/systemd/sessions /run/systemd/system
cp -r "$1/daemon" "$1/hands" /run/fleet/agent
ln -s ../agent/hands/ask.py /run/fleet/bin/fleet-hold
for place in /tmp /var/tmp /dev/shm /home /var/mail /var/spool /var/lib; do mount -t tmpfs -o mode=1777 own $place; done
mkdir -p /home/player /var/lib/systemd/linger
mount -t cgroup2 own /sys/fs/cgroup
mkdir -p /sys/fs/cgroup/system.slice/system-getty.slice /sys/fs/cgroup/user.slice/user-$2.slice
"""
REAPER = """
echo ready >/run/ready
exec /usr/bin/python3 -c 'import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True: signal.pause()'
"""


def cgroup_root() -> Path:
    """Where this machine has its unified hierarchy."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, _ = line.split(" ", 3)
        if kind == "cgroup2":
            return Path(point)
    raise AssertionError("This machine has no cgroup2 mount; the daemon's tests need one.")


class Namespace:
    """`with Namespace() as place:` — `place.python(code)` runs there, with the daemon importable as `agent.daemon`."""

    kinds: tuple[str, ...] = ("--mount", "--pid", "--ipc", "--cgroup")
    first = REAPER  # what becomes its first process

    def __init__(self) -> None:
        assert os.geteuid() == 0, "The daemon's tests make namespaces: run them as root, or leave out -m root."
        self.cgroup = cgroup_root() / f"fleet-test-{os.getpid()}-{time.monotonic_ns()}"
        self.running: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        self.cgroup.mkdir()
        enter = f"echo $$ >{self.cgroup}/cgroup.procs; exec unshare {' '.join(self.kinds)} --fork --kill-child=KILL --mount-proc"
        script = ["sh", "-c", f'{enter} sh -c "$0" init "$@"', INIT + self.first, str(SOURCE), str(UID)]
        self.holder = subprocess.Popen(script, text=True)
        end = time.monotonic() + 10
        while not self.path("/run/ready").exists():
            assert self.holder.poll() is None, "The namespace could not be made."
            assert time.monotonic() < end, "The namespace was not made within 10 s."
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.holder.kill()
        self.holder.wait()
        for process in self.running:
            process.wait(10)
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()
        end = time.monotonic() + 10
        while self.cgroup.exists():
            (self.cgroup / "cgroup.kill").write_text("1")
            with suppress(OSError):
                for folder, _below, _files in os.walk(self.cgroup, topdown=False):
                    Path(folder).rmdir()
            assert time.monotonic() < end, f"{self.cgroup} still has processes."
            time.sleep(0.01)

    @property
    def init(self) -> int:
        """The first process, by its number outside; 0 before there is one."""
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def path(self, inside: str) -> Path:
        """A file of the namespace as seen from outside."""
        return Path(f"/proc/{self.init}/root{inside}")

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """A program in there, root, in /run/fleet, with the programs of /run/bin before all others."""
        enter = f'echo $$ >{self.cgroup}/cgroup.procs; exec nsenter --target {self.init} {" ".join(self.kinds)} --wdns=/run/fleet "$@"'
        environment = {"PATH": "/run/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        process = subprocess.Popen(["sh", "-c", enter, "sh", *command], env=environment, text=True, **options)
        self.running.append(process)
        return process

    def python(self, code: str, seconds: float = 90) -> Any:
        """Run code with the daemon's interpreter flags; what it leaves in `result`, by way of JSON."""
        prelude = "import json, os, signal, subprocess, sys, time\nresult = None\n"
        whole = prelude + textwrap.dedent(code) + "\nprint(json.dumps(result))\n"
        process = self.start(
            *("/usr/bin/python3", "-E", "-s", "-S", "-c", whole), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            out, error = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.end(process)
            raise
        assert process.returncode == 0, error
        return json.loads(out.splitlines()[-1])

    def end(self, process: subprocess.Popen[str], sign: int = signal.SIGKILL) -> None:
        """End what `start` started; nsenter is only its parent and passes no signals on."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), sign)
        process.wait(10)

    def write(self, inside: str, content: str, mode: int = 0o644) -> None:
        target = self.path(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
        target.chmod(mode)

    def squashfs(self, tree: Path, inside: str) -> None:
        """Pack `tree` as the file `inside`."""
        packed = tree.parent / f"{tree.name}.squashfs"
        subprocess.run(["mksquashfs", tree, packed, "-noappend", "-quiet", "-no-progress", "-xattrs"], check=True)
        shutil.copy(packed, self.path(inside))
