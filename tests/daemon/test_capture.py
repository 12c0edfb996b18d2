"""A home on its way to the gateway: what is in the stream, what is not, and what becomes of one that breaks off."""

import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from agents.daemon import protocol
from agents.hands import home
from agents.hands.pack import BLOCK, Packer
from images.builder import template
from tests.daemon.gateway import Gateway
from tests.daemon.namespace import UID
from tests.daemon.running import AGENT, Daemon

MIB = 1 << 20
# One of everything that may lie in a home: what a template can have, and what is left out.
HOME = f"""
import socket
os.chdir("/home/player")
os.makedirs(".config/game")
for name, mode in ((".profile", 0o640), (".config/game/run", 0o750), ("café", 0o600)):
    with open(name, "w") as file: file.write(name * 3)
    os.chmod(name, mode)
os.chmod(".config", 0o700)
os.symlink("/etc/passwd", "link")
os.mkfifo("pipe")
socket.socket(socket.AF_UNIX).bind("socket")
os.mkdir("mounted")
subprocess.run(["mount", "-t", "tmpfs", "another", "mounted"], check=True)
for path, names, files in os.walk("."):
    for name in [".", *names, *files]:
        os.chown(os.path.join(path, name), {UID}, {UID}, follow_symlinks=False)
with open("mounted/film", "w") as file: file.write("not of the home")
with open("of-root", "w") as file: file.write("not the user's")
os.chmod("of-root", 0o600)
"""


def capture(gateway: Gateway, most: int = 100 * MIB) -> protocol.Command:
    command = gateway.command(protocol.CAPTURE, {"most_bytes": most})
    gateway.send(gateway.wrap(command))
    return command


def end_of(gateway: Gateway, command: protocol.Command) -> dict[str, Any]:
    ends = (protocol.SUCCEEDED, protocol.FAILED, protocol.REFUSED)
    return dict(gateway.wait(lambda: gateway.told(command.command, *ends), 60))


@pytest.mark.root
def test_a_home_arrives_as_it_is_without_what_no_template_may_have(
    gateway: Gateway, daemon: Daemon, tmp_path: Path
) -> None:
    daemon.python(HOME)
    command = capture(gateway)
    report = end_of(gateway, command)
    [(path, body)] = gateway.uploads
    assert path == f"/agent/v1/capture?command={command.command}"
    said = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest(), "files": 7, "skipped": 4}
    assert (report["state"], report["result"]) == (protocol.SUCCEEDED, said)
    archive = tmp_path / "home.tar"
    archive.write_bytes(body)
    contents = template.unpack(archive, tmp_path / "home", "player")
    found = {os.fsdecode(one) for one in home.entries(os.fsencode(tmp_path / "home"))}
    assert found == {".", ".profile", ".config", ".config/game", ".config/game/run", "café", "link"}
    assert (tmp_path / "home/café").read_text() == "café" * 3
    assert (tmp_path / "home/link").readlink() == Path("/etc/passwd")
    modes = {".profile": 0o640, ".config": 0o700, ".config/game/run": 0o750}
    assert {name: (tmp_path / "home" / name).stat().st_mode & 0o7777 for name in modes} == modes
    assert contents.files == 6
    assert daemon.asked == ""


@pytest.mark.root
def test_a_home_that_is_too_large_is_not_sent_to_its_end(gateway: Gateway, daemon: Daemon) -> None:
    daemon.python(HOME + "with open('film', 'wb') as file: file.write(bytes(3 << 20))\nos.chmod('film', 0o644)")
    report = end_of(gateway, capture(gateway, 2 * MIB))
    assert (report["state"], report["result"]) == (protocol.FAILED, {})
    assert "larger than 2 MiB" in report["reason"]
    assert gateway.uploads == []


@pytest.mark.slow
@pytest.mark.root
def test_no_cycle_begins_meanwhile_and_a_packer_that_is_killed_fails_it(gateway: Gateway, daemon: Daemon) -> None:
    daemon.python(HOME + "with open('film', 'wb') as file: file.write(bytes(40 << 20))\nos.chmod('film', 0o644)")
    cycle: list[protocol.Command] = []

    def arrives(size: int) -> None:
        if cycle:
            return
        cycle.append(gateway.command(protocol.CYCLE, {"home": "a" * 64, "home_bytes": 1, "home_digest": "b" * 64}))
        gateway.send(gateway.wrap(cycle[0]))
        gateway.wait(lambda: gateway.told(cycle[0].command, protocol.REFUSED))
        daemon.python(f"from agent.hands.session import kill_by_uid\nkill_by_uid({UID})")

    gateway.arrives = arrives
    report = end_of(gateway, capture(gateway))
    refused = gateway.told(cycle[0].command, protocol.REFUSED)
    assert refused is not None
    assert refused["reason"] == "busy"
    assert report["state"] == protocol.FAILED
    assert "ended with -9" in report["reason"]
    assert gateway.uploads == []
    gateway.arrives = lambda size: None
    daemon.end(daemon.process)
    polls = len(gateway.polls)  # the last of the one that ended came before: only the new one polls from now on
    daemon.process = daemon.start(*AGENT)
    gateway.wait(lambda: len(gateway.polls) > polls)
    assert end_of(gateway, capture(gateway))["state"] == protocol.SUCCEEDED, (
        "and all goes on, after the daemon began anew too"
    )


@pytest.mark.slow
@pytest.mark.root
def test_a_daemon_killed_in_the_middle_sends_it_all_anew(gateway: Gateway, daemon: Daemon) -> None:
    daemon.python(HOME + "with open('film', 'wb') as file: file.write(bytes(40 << 20))\nos.chmod('film', 0o644)")
    killed: list[int] = []

    def arrives(size: int) -> None:
        if not killed:
            killed.append(size)
            daemon.end(daemon.process)

    gateway.arrives = arrives
    command = capture(gateway)
    gateway.wait(lambda: killed)
    daemon.process = daemon.start(*AGENT)
    report = end_of(gateway, command)
    [(_, body)] = gateway.uploads
    assert (report["state"], report["result"]["bytes"]) == (protocol.SUCCEEDED, len(body))


@pytest.mark.root
def test_what_the_server_says_against_it_is_reported(gateway: Gateway, daemon: Daemon) -> None:
    daemon.python(HOME)
    said = b'{"detail": "There is no room."}'
    head = f"HTTP/1.1 507 Insufficient Storage\r\nContent-Length: {len(said)}\r\n\r\n".encode()
    gateway.fault = lambda method, path: head + said if method == "PUT" else None
    report = end_of(gateway, capture(gateway))
    assert (report["state"], "There is no room." in report["reason"]) == (protocol.FAILED, True)


@pytest.mark.root
def test_a_home_that_is_not_the_users_is_not_captured(gateway: Gateway, daemon: Daemon) -> None:
    report = end_of(gateway, capture(gateway))
    assert (report["state"], "not the user's" in report["reason"]) == (protocol.FAILED, True)
    assert gateway.uploads == []


class Watched(io.BytesIO):
    """A stream during whose first write somebody cuts a file short and removes another."""

    def __init__(self, shrinks: Path, goes: Path) -> None:
        super().__init__()
        self.shrinks, self.goes = shrinks, goes

    def write(self, data: Any) -> int:
        if self.goes.exists():
            os.truncate(self.shrinks, 100_000)
            self.goes.unlink()
        return super().write(data)


def test_files_that_shrink_or_vanish_while_they_are_packed_leave_the_stream_whole(tmp_path: Path) -> None:
    for name, size in (("a", 3 * BLOCK), ("b", 10), ("c", 10)):
        (tmp_path / name).write_bytes(b"x" * size)
    stream = Watched(tmp_path / "a", tmp_path / "b")
    packer = Packer(str(tmp_path), stream)
    packer.run()
    assert (packer.files, packer.skipped) == (3, 1)
    stream.seek(0)
    with tarfile.open(fileobj=stream) as tar:
        contents = {info.name: file.read() for info in tar if (file := tar.extractfile(info))}
    assert contents.keys() == {"a", "c"}
    assert len(contents["a"]) == 3 * BLOCK
    assert contents["a"].rstrip(b"\0") == b"x" * len(contents["a"].rstrip(b"\0")) != b""
    assert contents["a"].endswith(b"\0")
