"""Processes that end with the one who started them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class LabError(Exception):
    """The lab cannot do what was asked for; the text says what is missing or what happened."""


def need(program: str, package: str) -> None:
    """Refuse to go on without `program`, naming the Debian package that has it."""
    if shutil.which(program) is None:
        raise LabError(f"{program} is not installed: apt-get install {package}")


class Keeper:
    """Starts processes from one thread that lives as long as the lab.

    The kernel sends the parent-death signal when the *thread* that started a process ends, so a PC booted
    from a short-lived thread would die with that thread.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lab-keeper")

    def start(self, argv: Sequence[str], log: Path, keep_open: Sequence[int] = ()) -> subprocess.Popen[bytes]:
        """Start `argv`; its output goes to `log`; SIGKILL reaches it when this process is gone."""
        return self._thread.submit(self._start, argv, log, keep_open).result()

    def close(self) -> None:
        self._thread.shutdown()

    @staticmethod
    def _start(argv: Sequence[str], log: Path, keep_open: Sequence[int]) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=keep_open,
                start_new_session=True,  # Ctrl-C is the lab's to handle
            )


def end(process: subprocess.Popen[bytes], patience_s: float = 5.0) -> None:
    """Ask it to end, then make it; returns when it is gone."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
