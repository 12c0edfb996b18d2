"""The kernel's own restart and power-off, where systemd does not get there."""

import signal
import subprocess

import pytest

from tests.daemon.namespace import Namespace

pytestmark = pytest.mark.root
SYSTEMCTL = '#!/bin/sh\necho "$@" >>/run/asked\necho {answer}\nexit {code}\n'


# In a PID namespace reboot(2) ends its first process, by another signal for each command: reboot(2), "Behavior inside
# PID namespaces".
@pytest.mark.parametrize(("verb", "sign"), [("restart", signal.SIGHUP), ("poweroff", signal.SIGINT)])
def test_the_kernel_is_told_the_right_thing_when_systemd_fails(verb: str, sign: int) -> None:
    with Namespace() as place:
        place.write("/run/bin/systemctl", SYSTEMCTL.format(answer="", code=1), 0o755)
        gone = f"import os; from agent.hands import power; assert os.getpid() != 1; power.go({verb!r})"
        started = place.start("/usr/bin/python3", "-c", gone, stderr=subprocess.PIPE)
        assert place.holder.wait(10) in (128 + sign, -sign)
        started.wait(10)


@pytest.mark.parametrize(("answer", "down"), [("stopping", True), ("running", False), ("degraded", False)])
def test_only_a_system_that_stops_is_going_down(answer: str, down: bool) -> None:
    with Namespace() as place:
        place.write("/run/bin/systemctl", SYSTEMCTL.format(answer=answer, code=int(not down)), 0o755)
        assert place.python("from agent.hands import power; result = power.going_down()") is down
        assert place.path("/run/asked").read_text() == "is-system-running\n"
