"""The daemon itself, as a process that can break nothing, against a scripted gateway."""

from __future__ import annotations

import os
import subprocess
import termios
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from agents import speaking
from tests.daemon.gateway import Gateway
from tests.daemon.namespace import UID, Namespace

AGENT = ("/usr/bin/python3", "-E", "-s", "-S", "-m", "agent.daemon")
SYSTEMCTL = "#!/bin/sh\necho $@ >>/run/asked\nexec sleep 60\n"
IUTF8 = 0o40000


class Daemon(Namespace):
    """The daemon as its unit runs it, in a place where it can break nothing."""

    def begin(self, gateway: Gateway, argv: Sequence[str] = AGENT, **more: str) -> None:
        """`more` are other lines of the boot plan."""
        keys = {
            f"{name}_keys": speaking.format_keys({key.name: key.public})
            for name, key in (("command", gateway.command_key), ("session", gateway.session_key))
        }
        plan = {"bearer": gateway.bearer, "client": gateway.client, "session": gateway.session, "user": "player"}
        plan |= {"uid": str(UID), "home": "f" * 64, "home_percent": "50", **keys, **more}
        self.write("/run/fleet/plan", speaking.format_plan(plan))
        self.write("/run/cmdline", f"quiet fleet.server={gateway.url}\n")
        self.write("/run/bin/systemctl", SYSTEMCTL, 0o755)
        self.start("mount", "--bind", "/run/cmdline", "/proc/cmdline").wait(10)
        with self.path("/run/log").open("a") as log:
            self.process = self.start(*argv, stderr=log)

    def begin_again(self, argv: Sequence[str] = AGENT) -> None:
        """Kill it, and start it as systemd would."""
        if self.process.poll() is None:
            self.end(self.process)
        with self.path("/run/log").open("a") as log:
            self.process = self.start(*argv, stderr=log)

    def ask(self, *arguments: str, uid: int = UID) -> tuple[int, str]:
        """`fleet-hold` as the user calls it: its exit code, and what it says."""
        who = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups")
        process = self.start(
            *(*who, "/run/fleet/bin/fleet-hold", *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        said, _ = process.communicate(timeout=30)
        return process.returncode, said.strip()

    @property
    def asked(self) -> str:
        """What it asked systemd for."""
        file = self.path("/run/asked")
        return file.read_text() if file.exists() else ""

    @property
    def log(self) -> str:
        return self.path("/run/log").read_text()

    def memory_kib(self) -> int:
        child = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0]
        status = Path(f"/proc/{child}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def wait_until(happened: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"Not within {seconds} s."
        time.sleep(0.02)


class Terminal:
    """A window of the user's, and what stands in it."""

    def __init__(self, utf8: bool = True) -> None:
        self.master, self.slave = os.openpty()
        self.name = os.ttyname(self.slave).removeprefix("/dev/")
        os.chown(f"/dev/{self.name}", UID, -1)
        os.set_blocking(self.master, False)
        modes = termios.tcgetattr(self.slave)
        modes[0] = modes[0] | IUTF8 if utf8 else modes[0] & ~IUTF8
        termios.tcsetattr(self.slave, termios.TCSANOW, modes)
        self.seen = b""

    @property
    def text(self) -> str:
        with suppress(BlockingIOError):
            while got := os.read(self.master, 4096):
                self.seen += got
        return self.seen.decode()

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)
