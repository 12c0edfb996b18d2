"""Runs the commands of a build so that nothing of them outlives the worker.

Every command gets a mount and a PID namespace of its own. When the worker dies, even by kill -9, the kernel
kills the first process of that namespace, with it every process inside, and the mounts made there vanish with
the namespace: there is nothing to clean up, so no clean-up can be missed.
"""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from images.builder.errors import BuildError
from images.builder.steps import Step

KEPT_BYTES = 64 * 1024
LONGEST_LINE = 4096
HOUR_S = 3600.0

# The worker's own environment stays out of a build, or it would not be repeatable; only the way to the mirror
# is the host's business.
_PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/",  # no dot files of anybody; without root, /root cannot even be read
    "DEBIAN_FRONTEND": "noninteractive",
}

# PR_SET_PDEATHSIG does not fire for a parent that died before it was set: the shell looks once more.
_STILL_MINE = '[ "$PPID" = "$0" ] && exec "$@"'


class CommandFailed(BuildError):
    """A command ended badly; `line` can be pasted into a shell, `output` is the last 64 KiB it wrote."""

    def __init__(self, argv: Sequence[str], exit_code: int, output: str, reason: str = "") -> None:
        self.argv = tuple(argv)
        self.exit_code = exit_code
        self.output = output
        self.reason = reason
        self.line = shlex.join(argv)
        last = next((line for line in reversed(output.splitlines()) if line.strip()), "it wrote nothing")
        what = reason or (f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}")
        super().__init__(f"{self.line}\nended with {what}: {last}")


class Runner:
    """Runs commands for one step: `output = run(["depmod", "-b", tree, release])`."""

    def __init__(self, step: Step, environment: Mapping[str, str] | None = None) -> None:
        """`environment` is added to a small fixed one (PATH, LC_ALL, HOME, the host's proxies)."""
        self.step = step
        self._environment = {
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            **_ENVIRONMENT,
            **(environment or {}),
        }

    def __call__(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        limit_s: float = HOUR_S,
        watch: Callable[[str], object] | None = None,
    ) -> str:
        """Run `argv` to its end and return its output (stdout and stderr together, the last 64 KiB).

        `watch` sees each line as it comes (`Running.finish`). Raises CommandFailed on another exit code than 0, after `limit_s`
        seconds, or when the program does not exist.
        """
        with self.start(argv, cwd=cwd, limit_s=limit_s) as running:
            return running.finish(watch)

    def start(self, argv: Sequence[str | Path], *, cwd: Path | None = None, limit_s: float = HOUR_S) -> Running:
        """Start `argv` and return at once; use as a context, `finish()` waits. For commands of little output:
        nobody reads it in between.
        """
        words = [os.fspath(word) for word in argv]
        self.step.command(words)
        if shutil.which(words[0], path=self._environment["PATH"]) is None:
            raise CommandFailed(words, 127, "", f"no program {words[0]}: install the package that has it")
        return Running(words, self.step, self._environment, cwd, limit_s)


class Running:
    """A command under way; leaving its context kills what is left of it."""

    def __init__(
        self, argv: list[str], step: Step, environment: Mapping[str, str], cwd: Path | None, limit_s: float
    ) -> None:
        self._argv = argv
        self._step = step
        self._limit_s = limit_s
        self._deadline = time.monotonic() + limit_s
        self._kept: deque[str] = deque()
        self._kept_bytes = 0
        self._process = subprocess.Popen(
            [*isolation(os.getpid()), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=environment,
            start_new_session=True,
        )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def finish(self, watch: Callable[[str], object] | None = None) -> str:
        """Wait for the end, handing each line to `watch` and to the step; returns the output kept.

        A line for which `watch` returns True is for the moment only, as a progress bar is: nobody else sees it.
        """
        for line in self._lines():
            if watch and watch(line) is True:
                continue
            self._keep(line)
            self._step.output(line)
        exit_code = self._process.wait()
        self._step.exited(exit_code)
        output = "".join(self._kept)
        if exit_code:
            raise CommandFailed(self._argv, exit_code, output)
        return output

    def _lines(self) -> Iterator[str]:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, self._deadline - time.monotonic())):
                    self._process.kill()
                    self._step.exited(-9)
                    reason = f"no end within {self._limit_s:g} s"
                    raise CommandFailed(self._argv, -9, "".join(self._kept), reason)
                chunk = os.read(pipe, 65536)
                if not chunk:
                    break
                # A progress bar rewrites its line with \r; each rewrite is a line to us.
                *whole, rest = (rest + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
                for line in whole:
                    yield line.decode(errors="replace") + "\n"
                while len(rest) > LONGEST_LINE:
                    yield rest[:LONGEST_LINE].decode(errors="replace") + "\n"
                    rest = rest[LONGEST_LINE:]
        if rest:
            yield rest.decode(errors="replace") + "\n"

    def _keep(self, line: str) -> None:
        self._kept.append(line)
        self._kept_bytes += len(line)
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= len(self._kept.popleft())


def isolation(parent: int, *more: str) -> list[str]:
    """The words before a command that tie its life to the process `parent`, and its mounts to its life.

    `more` are further options of unshare(1).
    """
    return [
        *("setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", _STILL_MINE, str(parent)),
        *("unshare", *more, "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"),
    ]
