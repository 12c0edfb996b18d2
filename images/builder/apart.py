"""Builds in a process of their own, with mounts nobody else sees; their steps come back as JSON lines.

A derived version needs it for its overlay, and every build needs it without root: a tree has files of many owners, and the
process is in a user namespace with root and the range of /etc/subuid, so that the same code can make them. One JSON object
per line, in order:

    {"step": 0, "open": ["bootstrap", "Install …"]}       steps nest, numbered by how deep
    {"step": 0, "command": […]} · "output" · "exited" · "progress": [packages, of, bytes, of]
    {"step": 0, "closed": true}
    {"manifest": {…}}  or  {"error": {"type": …, "args": […]}}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from images.builder.errors import BuildError, DiskFull, RecipeError
from images.builder.manifest import Manifest
from images.builder.run import CommandFailed, isolation
from images.builder.steps import Step, Steps

_PROJECT = Path(__file__).resolve().parents[2]


def build(order: Mapping[str, Any], arguments: Sequence[str], steps: Steps) -> Manifest:
    """`result`, of an order for a version."""
    return Manifest.from_dict(result(order, arguments, steps))


def result(order: Mapping[str, Any], arguments: Sequence[str], steps: Steps) -> Mapping[str, Any]:
    """The manifest that comes of an order. Run `python -m images.builder - <arguments> --events` on an order (images/builder/__main__.py), as root.

    Raises what the build in there raised; BuildError when the host lets this user make no such namespace.
    """
    process = subprocess.Popen(
        [*_as_root(), sys.executable, "-m", "images.builder", "-", *arguments, "--events"],
        cwd=_PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process, ExitStack() as cleanup:
        cleanup.callback(process.kill)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            with process.stdin:
                json.dump(order, process.stdin)
            manifest = _replay((json.loads(line) for line in process.stdout), steps)
        except BrokenPipeError:
            manifest = None
        if manifest is None:
            raise BuildError(
                f"a build ended early: {process.stderr.read().strip() or 'it was killed'}; without root it "
                "needs the package uidmap and a range for this user in /etc/subuid and /etc/subgid"
            )
        return manifest


def on_terminal(order: Mapping[str, Any], arguments: Sequence[str]) -> int:
    """Run an order on the terminal of the caller; returns the exit code."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        json.dump(order, stream)
    argv = [*_as_root(), sys.executable, "-m", "images.builder", f"/dev/fd/{read}", *arguments]
    try:
        return subprocess.run(argv, cwd=_PROJECT, pass_fds=[read], check=False).returncode
    finally:
        os.close(read)


def sweep(parents: Sequence[Path]) -> list[Path]:
    """As `scratch.sweep`, for what builds of this module left: their files are of many owners."""
    program = "import sys; from pathlib import Path; from images.builder.scratch import sweep\n"
    program += "for parent in sys.argv[1:]: print(*map(str, sweep(Path(parent))), sep=chr(10))"
    argv = [*_as_root(), sys.executable, "-c", program, *(str(parent.resolve()) for parent in parents)]
    done = subprocess.run(argv, cwd=_PROJECT, check=True, capture_output=True, text=True)
    return [Path(line) for line in done.stdout.splitlines() if line]


def _as_root() -> list[str]:
    return isolation(os.getpid(), *([] if os.geteuid() == 0 else ["--map-root-user", "--map-auto"]))


def _replay(events: Iterator[Mapping[str, Any]], steps: Steps) -> Mapping[str, Any] | None:
    """Do to `steps` what the events tell; None when they end before their end."""
    with ExitStack() as whole:
        opened: list[tuple[ExitStack, Step]] = []
        for event in events:
            if "manifest" in event:
                manifest: Mapping[str, Any] = event["manifest"]
                return manifest
            if "error" in event:
                raise _error(**event["error"])
            if "open" in event:
                own = whole.enter_context(ExitStack())
                opened.append((own, own.enter_context(steps.step(*event["open"]))))
                continue
            own, step = opened[event["step"]]
            if "command" in event:
                step.command(event["command"])
            elif "output" in event:
                step.output(event["output"])
            elif "exited" in event:
                step.exited(event["exited"])
            elif "progress" in event:
                step.progress(*event["progress"])
            else:
                opened.pop()
                own.close()
        return None


def _error(type: str, args: list[Any]) -> BuildError:
    kinds: dict[str, Callable[..., BuildError]] = {
        "RecipeError": RecipeError,
        "DiskFull": DiskFull,
        "CommandFailed": CommandFailed,
    }
    return kinds.get(type, BuildError)(*args)


def error_event(error: BuildError) -> dict[str, Any]:
    """The event that `build` raises again as the same error."""
    match error:
        case RecipeError():
            args: list[Any] = [error.field, str(error).removeprefix(f"{error.field}: ")]
        case CommandFailed():
            args = [list(error.argv), error.exit_code, error.output, error.reason]
        case _:
            args = [str(error)]
    return {"error": {"type": type(error).__name__, "args": args}}


class Events:
    """Steps written as JSON lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._depth = 0

    def step(self, name: str, title: str) -> AbstractContextManager[Step]:
        return self._step(name, title)

    @contextmanager
    def _step(self, name: str, title: str) -> Iterator[Step]:
        number = self._depth
        self.write({"step": number, "open": [name, title]})
        self._depth += 1
        yield _EventStep(self, number)
        # Not after an error: the reader leaves its own steps by raising it.
        self._depth -= 1
        self.write({"step": number, "closed": True})

    def write(self, event: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()


class _EventStep:
    def __init__(self, events: Events, number: int) -> None:
        self._events = events
        self._number = number

    def command(self, argv: Sequence[str]) -> None:
        self._events.write({"step": self._number, "command": list(argv)})

    def output(self, text: str) -> None:
        self._events.write({"step": self._number, "output": text})

    def exited(self, exit_code: int) -> None:
        self._events.write({"step": self._number, "exited": exit_code})

    def progress(self, done: int, total: int, bytes_done: int = 0, bytes_total: int = 0) -> None:
        self._events.write({"step": self._number, "progress": [done, total, bytes_done, bytes_total]})
