"""What is shown reaches the screens there are, waits for none of them, and is nothing but text when it gets there."""

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agents.daemon import protocol
from agents.hands import notify, screen
from tests.daemon.gateway import Gateway
from tests.daemon.namespace import UID, Namespace
from tests.daemon.running import Daemon, Terminal, wait_until

root = pytest.mark.root


def message(gateway: Gateway, text: str) -> protocol.Command:
    command = gateway.command(protocol.MESSAGE, {"text": text, "seconds": 30})
    gateway.send(gateway.wrap(command))
    return command


@root
def test_a_message_stands_on_the_users_terminal_and_the_server_hears_where(
    gateway: Gateway, daemon: Daemon, terminal: Terminal
) -> None:
    command = message(gateway, "The final begins – come in!")  # noqa: RUF001 - people write such
    report = gateway.wait(lambda: gateway.told(command.command, protocol.SUCCEEDED, protocol.FAILED))
    assert (report["state"], report["result"]) == (protocol.SUCCEEDED, {"shown": terminal.name})
    assert "*** The final begins – come in!" in terminal.text  # noqa: RUF001


@root
def test_all_windows_of_the_user_show_it_and_those_of_others_do_not(
    gateway: Gateway, daemon: Daemon, terminal: Terminal
) -> None:
    second, other = Terminal(), Terminal()
    try:
        os.chown(f"/dev/{other.name}", UID + 1, -1)
        command = message(gateway, "Hello.")
        report = gateway.wait(lambda: gateway.told(command.command, protocol.SUCCEEDED))
        assert report["result"]["shown"] == ", ".join(sorted([terminal.name, second.name]))
        assert "Hello." in second.text
        assert other.text == ""
    finally:
        second.close()
        other.close()


@root
def test_where_there_is_no_screen_the_command_fails_and_says_so(gateway: Gateway, daemon: Daemon) -> None:
    daemon.start("mount", "-t", "tmpfs", "none", "/dev").wait(10)
    command = message(gateway, "Hello.")
    report = gateway.wait(lambda: gateway.told(command.command, protocol.SUCCEEDED, protocol.FAILED))
    assert (report["state"], report["reason"]) == (protocol.FAILED, "There is no screen that shows text.")


@root
def test_a_terminal_that_does_not_expect_utf_8_gets_no_bytes_of_it() -> None:
    old = Terminal(utf8=False)
    try:
        assert screen.write(old.name, "ěě[2J")  # ě is c4 9b, and 9b a control sequence's begin
        assert old.text.strip() == "\a*** ??[2J"
    finally:
        old.close()


@root
def test_a_terminal_that_takes_nothing_is_not_waited_for(terminal: Terminal) -> None:
    writer = os.open(f"/dev/{terminal.name}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        with suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
    finally:
        os.close(writer)
    assert screen.write(terminal.name, "Hello.") is False


@pytest.mark.parametrize("name", ["nowhere", "null", "../etc/passwd", "pts", ""])
def test_what_is_no_terminal_is_not_written_to(name: str) -> None:
    assert screen.write(name, "Hello.") is False


@root
def test_a_console_that_shows_a_picture_does_not_count(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode, text in ((bytes([1, 0, 0, 0]), False), (bytes(4), True)):
        monkeypatch.setattr(fcntl, "ioctl", lambda fd, request, buffer, mode=mode: mode)
        assert screen.write(terminal.name, "Hello.") is text
        assert ("Hello." in terminal.text) is text


def test_a_note_is_text_and_no_markup() -> None:
    for command in notify.commands('<a href="x">&</a> -- --help', "1000", "0"):
        assert '&lt;a href="x"&gt;&amp;&lt;/a&gt; -- --help' in command


class Desktop(Namespace):
    """A user with a session bus, and on it what shows notes: real programs, the bus of the distribution."""

    def begin(self) -> None:
        self.python(f"os.makedirs('/run/user/{UID}'); os.chown('/run/user/{UID}', {UID}, {UID})")
        passwd = Path("/etc/passwd").read_text() + f"player:x:{UID}:{UID}::/home/player:/bin/sh\n"
        self.write("/run/passwd", passwd)
        self.start("mount", "--bind", "/run/passwd", "/etc/passwd").wait(10)
        self.write("/run/bus.conf", BUS)
        self.user("dbus-daemon", "--config-file=/run/bus.conf", "--nofork")
        wait_until(self.path(f"/run/user/{UID}/bus").exists)
        self.write("/run/shows.py", Path(__file__).with_name("desktop.py").read_text())

    def user(self, *command: str) -> "subprocess.Popen[str]":
        return self.start("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", *command)

    def show_notes(self, *answers: str) -> None:
        """Start the program that shows notes."""
        self.user("/usr/bin/python3", "/run/shows.py", f"/run/user/{UID}/bus", f"/run/user/{UID}/notes", *answers)
        wait_until(self.path(f"/run/user/{UID}/notes").exists)

    def notes(self) -> list[str]:
        return self.path(f"/run/user/{UID}/notes").read_text().splitlines()


BUS = f"""<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path=/run/user/{UID}/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
</busconfig>
"""


@pytest.fixture
def desktop() -> Iterator[Desktop]:
    with Desktop() as desktop:
        desktop.begin()
        yield desktop


SHOW = f"""
from agent.hands.screen import Screen
screen = Screen({UID})
def show(text): return [screen.show(text, 7, []), screen.note]
"""


@root
@pytest.mark.slow
def test_a_desktop_shows_a_note_and_the_next_takes_its_place(desktop: Desktop) -> None:
    desktop.show_notes()
    shown = desktop.python(SHOW + "result = [show('Bring <b>water</b> & towels'), show('second')]")
    assert shown == [["desktop", "1"], ["desktop", "2"]]
    assert desktop.notes() == [
        "Stateless Fleet|0|Bring &lt;b&gt;water&lt;/b&gt; &amp; towels|7000",
        "Stateless Fleet|1|second|7000",
    ]


@root
@pytest.mark.slow
def test_a_bus_on_which_nothing_shows_notes_is_no_desktop(desktop: Desktop) -> None:
    assert desktop.python(SHOW + "result = screen.notify('Hello.', 7)") is False


@root
@pytest.mark.slow
def test_a_desktop_that_never_answers_is_not_waited_for(desktop: Desktop) -> None:
    desktop.show_notes("never")
    code = "import agent.hands.screen\nagent.hands.screen.DESKTOP_S = 1\n"
    start = time.monotonic()
    assert desktop.python(SHOW + code + "result = screen.notify('Hello.', 7)") is False
    assert time.monotonic() - start < 15  # busctl alone would wait 25 s
    assert desktop.notes() != []


@root
def test_a_bus_that_is_known_to_the_users_programs_alone_is_found(desktop: Desktop) -> None:
    code = f"""
subprocess.Popen(["sleep", "60"], env={{"DBUS_SESSION_BUS_ADDRESS": "unix:path=/tmp/elsewhere"}}, user={UID},
                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
os.unlink("/run/user/{UID}/bus")
ask = "import sys; sys.path.insert(0, '/run/fleet'); from agent.hands import notify; print(notify.bus())"
result = subprocess.run([sys.executable, "-c", ask], user={UID}, stdout=subprocess.PIPE, text=True).stdout.strip()
"""
    assert desktop.python(code) == "unix:path=/tmp/elsewhere"


def test_as_a_program_it_says_how_it_is_used(capfd: pytest.CaptureFixture[str]) -> None:
    assert notify.main([]) == 2
    assert "<text>" in capfd.readouterr().err
