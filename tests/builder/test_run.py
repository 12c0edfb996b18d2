"""Commands of a build: their output, their end, and that nothing of them outlives the worker."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from images.builder.run import KEPT_BYTES, CommandFailed, Runner
from tests.builder.images import PROJECT, Recorded

pytestmark = pytest.mark.root


@pytest.fixture
def step() -> Recorded:
    return Recorded("test", "A test")


@pytest.fixture
def run(step: Recorded) -> Runner:
    return Runner(step)


def test_output_streams_line_by_line_and_is_returned(run: Runner, step: Recorded) -> None:
    output = run(["sh", "-c", "echo one; echo two >&2; printf three"])
    assert output == "one\ntwo\nthree\n"
    assert step.lines == ["one\n", "two\n", "three\n"]
    assert step.commands == [("sh", "-c", "echo one; echo two >&2; printf three")]
    assert step.exit_codes == [0]


def test_a_failure_has_the_exit_code_the_output_and_a_line_that_can_be_pasted(run: Runner) -> None:
    argv = ["sh", "-c", "echo 'it broke'; exit 3"]
    with pytest.raises(CommandFailed, match="it broke") as caught:
        run(argv)
    assert (caught.value.exit_code, caught.value.output) == (3, "it broke\n")
    replay = subprocess.run(caught.value.line, shell=True, capture_output=True, text=True)  # noqa: S602
    assert (replay.returncode, replay.stdout) == (3, "it broke\n")
    assert shlex.split(caught.value.line) == argv


def test_a_program_that_does_not_exist_is_named(run: Runner) -> None:
    with pytest.raises(CommandFailed, match="no program no-such-thing"):
        run(["no-such-thing"])


def test_much_output_is_streamed_whole_and_kept_in_part(run: Runner, step: Recorded) -> None:
    kept = run(["sh", "-c", "yes 0123456789 | head -n 20000; echo the end"])
    assert len(step.lines) == 20001
    assert len(kept) <= KEPT_BYTES
    assert kept.endswith("the end\n")


def test_a_line_that_the_watcher_takes_is_seen_by_nobody_else(run: Runner, step: Recorded) -> None:
    seen: list[str] = []

    def watch(line: str) -> bool:
        seen.append(line)
        return "%" in line

    kept = run(["sh", "-c", "printf '\\r10%%\\r20%%\\n'; echo done"], watch=watch)
    assert seen == ["\n", "10%\n", "20%\n", "done\n"]
    assert step.lines == ["\n", "done\n"]
    assert kept == "\ndone\n"


def test_the_worker_s_environment_stays_outside(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "hidden")
    assert "hidden" not in run(["env"])


def test_a_command_that_does_not_end_is_killed_with_its_children(run: Runner) -> None:
    started = time.monotonic()
    with pytest.raises(CommandFailed, match=r"no end within 0\.3 s"):
        run(["sh", "-c", "sleep 617.25 & setsid sleep 617.25 & wait"], limit_s=0.3)
    assert time.monotonic() - started < 60
    _wait_until_gone("617.25")


def test_a_mount_made_by_a_command_is_gone_with_it(run: Runner, tmp_path: Path) -> None:
    run(["sh", "-c", f"mount -t tmpfs tmpfs {tmp_path} && touch {tmp_path}/inside && ls {tmp_path}"])
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_kill_9_of_the_worker_takes_every_process_and_mount_along(tmp_path: Path) -> None:
    script = (
        "from images.builder.run import Runner; from tests.builder.images import Recorded; "
        f"Runner(Recorded('s', 't'))(['sh', '-c', 'mount -t tmpfs tmpfs {tmp_path}; touch {tmp_path}/ready; "
        f"setsid sleep 618.75 & trap : TERM HUP; echo ready >{tmp_path.parent}/ready-618; sleep 618.75'])"
    )
    worker = subprocess.Popen([sys.executable, "-c", script], cwd=PROJECT)
    try:
        _wait_for(lambda: (tmp_path.parent / "ready-618").exists())
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    _wait_until_gone("618.75")
    mounts = [path.read_text() for path in Path("/proc").glob("[0-9]*/mountinfo") if _alive(path)]
    assert not any(f" {tmp_path} " in text for text in mounts)


def _alive(path: Path) -> bool:
    try:
        return bool(path.read_text())
    except OSError:
        return False


def _wait_until_gone(word: str) -> None:
    def gone() -> bool:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if word.encode() in words and int(path.parent.name) != os.getpid():
                return False
        return True

    _wait_for(gone)


def _wait_for(condition: object, seconds: float = 30) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)
