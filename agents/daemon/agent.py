"""The daemon's loop: one session with the gateway, one long poll at a time, commands verified, run and reported.

The loop talks and restarts the PC; a cycle runs in a thread of its own, so that the poll (which is the client's
presence) goes on. What must survive the daemon's death stands in /run/fleet/commands.json.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from . import ed25519, power, protocol
from .cycle import Cycle
from .hardware import facts, read
from .link import Answer, Away, Link, Superseded
from .overlay import Home
from .protocol import Command, Refused
from .session import Session, Stuck

FLEET = "/run/fleet"
KEPT = 32  # results of commands seen; the sequence refuses whatever is older
CLOCK_MS = 5000  # a server whose unsigned time is further off is asked for a signed one


class Agent:
    def __init__(self, plan: Mapping[str, str], server: str) -> None:
        self.plan, self.boot = plan, read("/proc/sys/kernel/random/boot_id")
        self.wake, self.waker = os.pipe()
        self.link = Link(server, plan["bearer"], self.wake)
        self.home = Home(f"/home/{plan['user']}", plan["home"], plan["home_percent"])
        self.session = Session(plan["user"], int(plan["uid"]))
        self.keys = protocol.parse_keys(plan["command_keys"])
        self.offset_ms: float | None = None  # server's time less the boot clock; None without a session
        self.hold_s, self.spread_s = 60.0, 1.0
        self.lock = threading.Lock()  # over the five below, which the cycle's thread shares
        self.sequence = 0
        self.reports: dict[str, dict[str, Any]] = {}  # the last report on each command seen
        self.unsent: dict[str, dict[str, Any]] = {}
        self.open: Command | None = None  # accepted, not yet done
        self.logins: dict[str, int] = {}  # sessions, and their terminal's atime when first seen
        self.cycling = self.running = False
        self.load()

    # What is remembered

    def load(self) -> None:
        try:
            with open(f"{FLEET}/commands.json", encoding="utf-8") as file:
                kept = json.load(file)
        except FileNotFoundError:
            return
        self.sequence, self.reports, self.logins = kept["sequence"], kept["reports"], kept["logins"]
        self.unsent = {key: self.reports[key] for key in kept["unsent"]}
        self.open = Command(**kept["open"]) if kept["open"] else None
        if self.open:
            self.unsent[self.open.command] = self.reports[self.open.command]  # accept again, then do it

    def save(self) -> None:
        """Write everything down, at once or not at all. The caller holds the lock."""
        self.reports = dict(list(self.reports.items())[-KEPT:])
        self.unsent = dict(list(self.unsent.items())[-KEPT:])
        kept = {
            "sequence": self.sequence,
            "reports": self.reports,
            "unsent": [key for key in self.unsent if key in self.reports],
            "open": asdict(self.open) if self.open else None,
            "logins": self.logins,
        }
        with open(f"{FLEET}/commands.json.new", "w", encoding="utf-8") as file:
            json.dump(kept, file)
        os.replace(f"{FLEET}/commands.json.new", f"{FLEET}/commands.json")

    def report(self, command: Command, state: str, reason: str = "", result: Mapping[str, Any] = {}) -> None:
        """Remember how a command stands, and have it told."""
        with self.lock:
            report = protocol.report(command.command, state, self.now_ms(), reason, result)
            self.reports[command.command] = self.unsent[command.command] = report
            self.open = command if state == protocol.ACCEPTED else None
            self.sequence = max(self.sequence, command.sequence)
            self.save()
        os.write(self.waker, b".")

    def now_ms(self) -> int:
        """The server's time, by the client's clock that neither stops in sleep nor jumps."""
        return round(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000 + (self.offset_ms or 0))

    def state(self) -> str:
        if self.cycling:
            return protocol.CYCLING
        touched = self.session.touched()
        logins = {session: self.logins.get(session, atime) for session, atime in touched.items()}
        if logins != self.logins:
            with self.lock:
                self.logins = logins
                self.save()
        if not touched:
            return protocol.BOOTING
        return protocol.READY if touched == logins else protocol.IN_USE

    # What is said

    def call(self, method: str, path: str, body: object = None) -> Answer:
        answer = self.link.call(method, "/agent/v1/" + path, body)
        if answer is None:
            raise Away("the wait was ended")
        return answer

    def open_session(self) -> None:
        """Say who this is, and believe the answer only with a signature over this very question."""
        nonce, asked = secrets.token_hex(16), self.now_ms()
        body = {"protocol": protocol.VERSION, "nonce": nonce, "boot_id": self.boot, "facts": facts(self.plan)}
        answer = self.call("POST", "session", body)
        key, _, signature = answer.headers.get("Fleet-Signature", "").partition(":")
        public = protocol.parse_keys(self.plan["session_keys"]).get(key, b"")
        try:
            proved = ed25519.verify(public, answer.body, base64.b64decode(signature))
            opened = answer.json()
            ours = (nonce, self.plan["client"], self.plan["session"])
            if not proved or ours != (opened["nonce"], opened["client"], opened["session"]):
                raise Away("the session's answer is not signed for this client")
            self.keys = protocol.parse_keys(opened["keys"])
            self.hold_s, self.spread_s = float(opened["hold_s"]), float(opened["spread_s"])
            halfway = (asked + self.now_ms()) / 2 - (self.offset_ms or 0)
            self.offset_ms = float(opened["server_time_ms"]) - halfway
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Away(f"the session's answer is not as agreed: {error!r}") from None

    def deliver(self) -> None:
        """Send what is unsent. An acceptance that the server rejects cancels its command."""
        with self.lock:
            batch = list(self.unsent.items())[:KEPT]
        if not batch:
            return
        rejected: list[Any] = []
        try:
            answer = self.call("POST", "reports", {"reports": [report for _, report in batch]}).json()
            rejected = [
                entry.get("command") for entry in answer.get("rejected", []) if isinstance(entry, dict)
            ]
        except Away as trouble:
            if trouble.status not in (400, 413, 422):
                raise
            rejected = [key for key, _ in batch]  # it will never take these: go on without
        with self.lock:
            for key, report in batch:
                if self.unsent.get(key) is report:
                    del self.unsent[key]
            self.save()
        if self.open and not self.running and self.open.command in rejected:
            self.report(self.open, protocol.REFUSED, "cancelled")

    def poll(self) -> None:
        state = self.state()
        path = f"/agent/v1/next?cursor={self.sequence}&state={state}"
        hurry = lambda: self.state() != state  # noqa: E731
        answer = self.link.call("GET", path, timeout=self.hold_s + 15, stop=hurry)
        if answer is None:
            return
        content = answer.json() if answer.status == 200 else {}
        told = content.get("server_time_ms", answer.headers.get("Fleet-Time"))
        with suppress(TypeError, ValueError):
            if told is not None and abs(int(told) - self.now_ms()) > CLOCK_MS:
                self.offset_ms = None
        commands = content.get("commands", [])
        fresh = [self.receive(wrapped) for wrapped in commands[:KEPT]] if isinstance(commands, list) else []
        if answer.status == 200 and not any(fresh):
            raise Away("the gateway sent no command that is new and good")
        self.link.failures = 0

    def receive(self, wrapped: object) -> bool:
        """Judge one envelope; whether it was accepted."""
        command = None
        try:
            command = protocol.authenticate(wrapped, self.keys, self.plan["client"], self.boot)
            if command.command in self.reports:
                with self.lock:
                    self.unsent[command.command] = self.reports[command.command]
                return False
            protocol.admit(command, self.sequence, self.now_ms())
            if self.open and command.verb == protocol.CYCLE:
                raise Refused("busy", command.command)
        except Refused as refusal:
            if command and refusal.reason != "old-sequence":
                kept = self.open
                self.report(command, protocol.REFUSED, refusal.reason)
                self.open = kept
            else:
                refused = protocol.report(refusal.command, protocol.REFUSED, self.now_ms(), refusal.reason, {})
                self.unsent.setdefault(refusal.command, refused)
            if refusal.reason == "unknown-key":
                self.offset_ms = None  # the next session's answer names the keys of today
            return False
        self.report(command, protocol.ACCEPTED)
        return True

    # What is done

    def act(self) -> None:
        """Carry out the open command, once the server has its acceptance."""
        command = self.open
        if command is None or self.running or command.command in self.unsent:
            return
        if self.now_ms() >= command.expires_ms and command.verb != protocol.CYCLE:
            self.report(command, protocol.REFUSED, "expired")
        elif command.verb == protocol.CYCLE:
            self.running = self.cycling = True
            threading.Thread(target=self.cycle, args=(command,), daemon=True).start()
        else:
            self.bye(command.verb)
            power.go(command.verb)
            self.report(command, protocol.FAILED, "Neither systemd nor the kernel carried it out.")

    def cycle(self, command: Command) -> None:
        cycle = Cycle(self.home, self.session, command.args)
        state, reason = protocol.FAILED, ""
        try:
            cycle.run(self.link.fetch)
            state = protocol.SUCCEEDED
        except Stuck as error:
            reason = str(error)
        except Exception as error:  # whatever it was, the server must hear of it
            reason = f"{type(error).__name__}: {error}"
        self.cycling = False
        os.write(self.waker, b".")
        with suppress(Exception):
            cycle.account()
        self.report(command, state, reason[:300], cycle.result)
        self.running = False

    def bye(self, reason: str) -> None:
        with suppress(Away, Superseded):
            self.link.connection.close()
            self.link.call("POST", "/agent/v1/bye", {"reason": reason}, timeout=3)

    def run(self) -> None:
        """For ever; ends by SIGTERM."""
        while True:
            try:
                if self.offset_ms is None:
                    self.open_session()
                self.deliver()
                self.act()
                self.poll()
            except Away as trouble:
                print(f"Gateway: {trouble}.", file=sys.stderr, flush=True)
                time.sleep(self.link.pause_s(trouble, self.spread_s))
            except Superseded:
                print("A younger session of this client exists; quiet until the next boot.", flush=True)
                while True:
                    signal.pause()


def main() -> int:
    """Run with what the initrd left; SystemExit names what is missing."""
    words = dict(word.partition("=")[::2] for word in read("/proc/cmdline").split())
    agent = Agent(protocol.parse_plan(read(f"{FLEET}/plan")), words.get("fleet.server", ""))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        agent.run()
    finally:
        if power.going_down():
            agent.bye("shutdown")
    return 0
