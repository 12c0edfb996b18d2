"""Runs the processes of a Procfile in one terminal: started in order, restarted when they fall, ended together.

Our own because no Procfile runner in Python had a release within the last year. A child gets a parent-death signal, so
nothing stays behind even when this process is killed with SIGKILL.
"""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from fleet.exceptions import SiteError

_PR_SET_PDEATHSIG = 1  # prctl(2)
_COLOURS = (36, 32, 35, 33, 34, 31, 96)
_GRACE_S = 10.0
_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def read_procfile(path: Path, variables: Mapping[str, str]) -> dict[str, list[str]]:
    """Name to argument list, ``$NAME`` filled in from ``variables``. KeyError names a variable that is not given."""
    processes = {}
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, command = line.partition(":")
            processes[name.strip()] = [Template(word).substitute(variables) for word in shlex.split(command)]
    return processes


@dataclass
class Process:
    name: str
    argv: list[str]
    popen: subprocess.Popen[bytes] | None = None
    reader: threading.Thread | None = None
    falls: list[float] = field(default_factory=list)


class Processes:
    """The running processes. ``say`` gets each line they print, with the name of who printed it."""

    def __init__(
        self, commands: Mapping[str, list[str]], env: Mapping[str, str], say: Callable[[str, str], None]
    ) -> None:
        self._all = [Process(name, argv) for name, argv in commands.items()]
        self._env = dict(env)
        self._say = say
        self._ending = threading.Event()

    def start(self) -> None:
        for process in self._all:
            self._start(process)

    def _start(self, process: Process) -> None:
        try:
            process.popen = subprocess.Popen(
                process.argv,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to pass on, in order
                preexec_fn=_die_with_parent,  # prctl alone: takes no lock a thread may hold
            )
        except OSError as error:
            raise SiteError(
                f"{process.name} cannot be started: {process.argv[0]}: {error.strerror}.",
                hint="`scripts/setup run` installs what is missing.",
            ) from error
        process.reader = threading.Thread(target=self._read, args=(process, process.popen), daemon=True)
        process.reader.start()

    def _read(self, process: Process, popen: subprocess.Popen[bytes]) -> None:
        assert popen.stdout is not None
        with popen.stdout:
            for line in popen.stdout:
                self._say(process.name, line.decode(errors="replace").rstrip())

    def watch(self) -> None:
        """Restart what has fallen, with a growing pause; call it about once a second."""
        for process in self._all:
            if process.popen is None or process.popen.poll() is None or self._ending.is_set():
                continue
            now = time.monotonic()
            process.falls = [fall for fall in process.falls if now - fall < 60]
            if process.falls and now - process.falls[-1] < min(2 ** len(process.falls), 30):
                continue
            process.falls.append(now)
            if process.reader is not None:  # its last words first; a child of its own may hold the pipe for ever
                process.reader.join(1)
            self._say(process.name, f"ended with {process.popen.returncode}; starting it again")
            self._start(process)

    def stop(self) -> None:
        """TERM to all in reverse order of their start, KILL to what is left after ten seconds."""
        self._ending.set()
        running = [p for p in reversed(self._all) if p.popen is not None and p.popen.poll() is None]
        for process in running:
            assert process.popen is not None
            process.popen.terminate()
        deadline = time.monotonic() + _GRACE_S
        for process in running:
            assert process.popen is not None
            try:
                process.popen.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.popen.pid, signal.SIGKILL)
                process.popen.wait()

    def pids(self) -> dict[str, int]:
        return {p.name: p.popen.pid for p in self._all if p.popen is not None and p.popen.poll() is None}


def printer(names: list[str], quiet: bool = False) -> Callable[[str, str], None]:
    """Prints ``name | line``, coloured on a terminal. ``quiet`` shows only what tells of trouble."""
    width = max(len(name) for name in names)
    colour = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
    tty = sys.stdout.isatty()

    def say(name: str, line: str) -> None:
        if quiet and not any(word in line for word in ("ERROR", "CRITICAL", "Traceback", "ended with")):
            return
        head = f"{name:<{width}} |"
        print(f"\033[{colour[name]}m{head}\033[0m {line}" if tty else f"{head} {line}", flush=True)

    return say
