"""A day without a server that is of use, in accelerated time: the daemon is as large in its last hour as in its first."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from agents.daemon import protocol
from agents.daemon.memory import KEPT, Memory
from tests.daemon.gateway import Gateway, Key
from tests.daemon.running import AGENT, Daemon, wait_until
from tests.daemon.test_protocol import COMMAND

HOURS = 24
# The daemon's own main(), whose every wait is over at once and makes the clocks that much later. What it then weighs is noted by
# the hour: [hour, bytes that Python has allocated, resident KiB, errors met, reports unsent].
DAY = f"""
import gc, json, os, select, sys, threading, time, tracemalloc
from agent.daemon import agent, link
link.PATIENCE_S = 0.2  # a socket's time cannot be accelerated
skipped, lock = [0.0], threading.Lock()
real = time.monotonic, time.clock_gettime, time.time, select.select
def skip(seconds):
    os.sched_yield()
    with lock: skipped[0] += seconds
def wait(r, w, x, timeout=None):
    found = real[3](r, w, x, min(timeout, 0.005))
    if not any(found): skip(timeout)
    return found
time.monotonic = lambda: real[0]() + skipped[0]
time.clock_gettime = lambda clock: real[1](clock) + skipped[0]
time.time = lambda: real[2]() + skipped[0]
time.sleep, select.select = skip, wait
began, hours, tries = time.monotonic(), [], [0]
class Observed(agent.Agent):
    def deliver(self):
        self.weigh()
        super().deliver()
    def open_session(self):
        tries[0] += 1
        self.weigh()
        super().open_session()
    def weigh(self):
        hour = int((time.monotonic() - began) / 3600)
        if not hours or hour > hours[-1][0]:
            gc.collect()
            resident = int(open("/proc/self/status").read().partition("VmRSS:")[2].split()[0])
            hours.append([hour, tracemalloc.get_traced_memory()[0], resident, tries[0], len(self.memory.unsent)])
        if hour >= {HOURS}:
            with open("/run/hours.new", "w") as file: json.dump(hours, file)
            os.rename("/run/hours.new", "/run/hours")
            os._exit(0)
agent.Agent = Observed
sys.stderr = open(os.devnull, "w")
tracemalloc.start()
agent.main()
"""
SERVERS = {
    "is gone": None,
    "fails": b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
    "is busy": b"HTTP/1.1 503 Busy\r\nRetry-After: 30\r\nContent-Length: 0\r\n\r\n",
    "breaks off": b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
    "talks rubbish": b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n[[[[]]]]",
    "knows it no more": b"HTTP/1.1 401 Who\r\nContent-Length: 0\r\n\r\n",
}


def a_day(daemon: Daemon, gateway: Gateway) -> list[list[int]]:
    """What the daemon weighs, hour by hour."""
    daemon.begin(gateway, (*AGENT[:-2], "-c", DAY))
    wait_until(daemon.path("/run/hours").exists, 170)
    hours: list[list[int]] = json.loads(daemon.path("/run/hours").read_text())
    return hours


def assert_flat(hours: list[list[int]]) -> None:
    first, last = hours[1], hours[-1]
    assert (first[0], last[0]) == (1, HOURS)
    assert last[1] - first[1] < 32 << 10, f"Python's objects grew: {hours}"
    assert last[2] - first[2] < 1024, f"the process grew: {hours}"


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("server", SERVERS)
def test_a_day_with_a_server_that(gateway: Gateway, server: str) -> None:
    answer = SERVERS[server]
    if answer is None:
        gateway.close()
    gateway.fault = lambda method, path: answer
    with Daemon() as daemon:
        hours = a_day(daemon, gateway)
    assert_flat(hours)
    assert hours[-1][3] > 600, "it did not keep trying"


@pytest.mark.root
@pytest.mark.slow
def test_a_day_of_envelopes_that_are_refused_and_of_reports_that_nobody_takes(gateway: Gateway) -> None:
    gateway.hold_s, stranger = 0.01, Key("command-2")

    def fault(method: str, path: str) -> bytes | None:
        if path == "/agent/v1/reports":
            return SERVERS["fails"] if os.urandom(1)[0] % 8 else None
        gateway.waiting = [gateway.wrap(gateway.command(protocol.RESTART), stranger) for _ in range(KEPT)]
        return None

    gateway.fault = fault
    with Daemon() as daemon:
        hours = a_day(daemon, gateway)
    assert_flat(hours)
    assert len(gateway.reports) > 1000
    assert max(hour[4] for hour in hours) <= 2 * KEPT


def test_what_is_remembered_of_commands_is_bounded(tmp_path: Path) -> None:
    memory = Memory(str(tmp_path / "commands.json"))
    for sequence in range(1000):
        changes: dict[str, Any] = {"command": str(uuid.uuid4()), "sequence": sequence}
        command = protocol.Command(**{**COMMAND.__dict__, **changes})
        memory.report(command, protocol.ACCEPTED)
        memory.report(command, protocol.FAILED, "x" * 300)
    assert len(memory.reports) == len(memory.unsent) == KEPT
    assert (tmp_path / "commands.json").stat().st_size < 64 << 10
    assert Memory.load(memory.path).unsent == memory.unsent
