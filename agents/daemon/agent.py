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

from ..hands import power
from ..hands.capture import Capture
from ..hands.cycle import Cycle
from ..hands.hardware import facts, read
from ..hands.overlay import OVERLAY, Home
from ..hands.session import Session, Stuck
from ..hands.writes import written
from . import ed25519, protocol
from .link import Answer, Away, Link, Superseded
from .protocol import Command, Refused

FLEET = "/run/fleet"
LASTING = (protocol.CYCLE, protocol.CAPTURE)  # these run in a thread of their own, one at a time
KEPT = 32  # results of commands seen; the sequence refuses whatever is older
LOOK_FIRST_S, LOOK_EVERY_S = 120.0, 3600.0  # for what was written
CLOCK_MS = 5000  # a server whose unsigned time is further off is asked for a signed one


class Agent:
    def __init__(self, plan: Mapping[str, str], server: str) -> None:
        self.plan, self.boot = plan, read("/proc/sys/kernel/random/boot_id")
        self.wake, self.waker = os.pipe()
        self.link = Link(server, plan["bearer"], self.wake)
        self.home = Home(f"/home/{plan['user']}", plan["home"], plan["home_percent"], plan.get("home_kind", OVERLAY))
        self.session = Session(plan["user"], int(plan["uid"]))
        self.keys = protocol.parse_keys(plan["command_keys"])
        self.floor = min(
            int(plan.get("daemon", "1")), protocol.VERSION
        )  # no server speaks less than its signed plan says
        self.opened, self.offset_ms = False, 0.0  # a session; the server's time less the boot clock
        self.hold_s, self.spread_s = 60.0, 1.0
        self.lock = threading.Lock()  # over all below, which the cycle's thread shares
        self.sequence = 0
        self.reports: dict[str, dict[str, Any]] = {}  # the last report on each command seen
        self.unsent: dict[str, dict[str, Any]] = {}
        self.open: Command | None = None  # accepted, not yet done
        self.logins: dict[str, int] = {}  # sessions, and their terminal's atime when first seen
        self.cycling = self.running = False  # until the next login; until the account is made too
        self.told: list[dict[str, object]] = []  # what was written, as the server knows it
        self.seen: list[dict[str, object]] | None = None  # what was found and not told yet
        self.look_at = time.monotonic() + LOOK_FIRST_S
        self.counting = ""  # the cycle whose report waits for that account
        self.load()
        self.resumed = self.open is not None and self.open.verb == protocol.CYCLE  # by the daemon that was before

    # What is remembered

    def load(self) -> None:
        try:
            with open(f"{FLEET}/commands.json", encoding="utf-8") as file:
                kept = json.load(file)
        except FileNotFoundError:
            return
        self.sequence, self.offset_ms = kept["sequence"], kept["offset_ms"]
        self.reports, self.logins = kept["reports"], kept["logins"]
        self.unsent = {key: self.reports[key] for key in kept["unsent"]}
        self.open = Command(**kept["open"]) if kept["open"] else None

    def save(self) -> None:
        """Write everything down, at once or not at all. The caller holds the lock."""
        self.reports = dict(list(self.reports.items())[-KEPT:])
        self.unsent = dict(list(self.unsent.items())[-KEPT:])
        kept = {
            "sequence": self.sequence,
            "offset_ms": self.offset_ms,
            "reports": self.reports,
            "unsent": [key for key in self.unsent if key in self.reports],
            "open": asdict(self.open) if self.open else None,
            "logins": self.logins,
        }
        with open(f"{FLEET}/commands.json.new", "w", encoding="utf-8") as file:
            json.dump(kept, file)
        os.replace(f"{FLEET}/commands.json.new", f"{FLEET}/commands.json")

    def report(self, command: Command, state: str, reason: str = "", result: Mapping[str, Any] = {}) -> dict[str, Any]:
        """Remember how a command stands, and have it told; what is told."""
        key = command.command
        report = protocol.report(key, state, self.now_ms(), reason, result)
        with self.lock:
            self.reports[key] = self.unsent[key] = report
            if state == protocol.ACCEPTED:
                self.open = command
            elif self.open and self.open.command == key:
                self.open = None
            self.sequence = max(self.sequence, command.sequence)
            self.save()
        os.write(self.waker, b".")
        return report

    def now_ms(self) -> int:
        """The server's time, by the client's clock that neither stops in sleep nor jumps."""
        return round(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000 + self.offset_ms)

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
            if opened.get("protocol", 1) < self.floor:
                raise Away(f"the session's answer is older than protocol {self.floor}, which the boot plan promised")
            self.keys = protocol.parse_keys(opened["keys"])
            self.hold_s, self.spread_s = float(opened["hold_s"]), float(opened["spread_s"])
            self.offset_ms += float(opened["server_time_ms"]) - (asked + self.now_ms()) / 2
            self.opened = True
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Away(f"the session's answer is not as agreed: {error!r}") from None

    def deliver(self) -> None:
        """Send what is unsent. An acceptance that the server rejects cancels its command."""
        with self.lock:
            batch = [(key, report) for key, report in self.unsent.items() if key != self.counting][:KEPT]
        if not batch:
            return
        rejected: list[Any] = []
        try:
            answer = self.call("POST", "reports", {"reports": [report for _, report in batch]}).json()
            rejected = [entry.get("command") for entry in answer.get("rejected", []) if isinstance(entry, dict)]
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

    def observe(self) -> None:
        """Tell what was written that the image's rules may not name; an hour later again, if it is something else."""
        if time.monotonic() >= self.look_at and not self.cycling:
            self.look_at = time.monotonic() + LOOK_EVERY_S
            threading.Thread(target=self.look, daemon=True).start()
        seen, self.seen = self.seen, None
        if seen is None or seen == self.told:
            return
        try:
            self.call("PUT", "writes", {"writes": seen})
            self.told = seen
        except Away as trouble:
            if trouble.status not in (400, 404, 413):
                raise
            self.look_at = float("inf")  # a server that does not want to know

    def look(self) -> None:
        """In a thread of its own: commands do not wait for a slow root."""
        self.seen = written()

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
                self.opened = False
        commands = content.get("commands", [])
        fresh = [self.receive(wrapped) for wrapped in commands[:KEPT]] if isinstance(commands, list) else []
        if answer.status == 200 and not any(fresh):
            self.deliver()
            raise Away("the gateway sent no command that is new and good")
        self.link.failures = 0

    def receive(self, wrapped: object) -> bool:
        """Judge one envelope; whether it was accepted."""
        command = None
        try:
            command = protocol.authenticate(wrapped, self.keys, self.plan["client"], self.boot, self.floor)
            if command.command in self.reports:
                with self.lock:
                    self.unsent[command.command] = self.reports[command.command]
                return False
            protocol.admit(command, self.sequence, self.now_ms())
            if command.verb in LASTING and (self.open or self.running):
                raise Refused("busy", command.command)
        except Refused as refusal:
            if command and refusal.reason != "old-sequence":
                self.report(command, protocol.REFUSED, refusal.reason)
            else:
                refused = protocol.report(refusal.command, protocol.REFUSED, self.now_ms(), refusal.reason, {})
                self.unsent.setdefault(refusal.command, refused)
            if refusal.reason == "unknown-key":
                self.opened = False  # the next session's answer names the keys of today
            return False
        self.report(command, protocol.ACCEPTED)
        return True

    # What is done

    def act(self) -> None:
        """Carry out the open command, once the server has its acceptance; a cycle that was begun, in any case."""
        command = self.open
        if command is None or command.command in self.unsent:
            return
        if command.verb in LASTING:
            if not self.running:
                self.running, self.cycling = True, command.verb == protocol.CYCLE
                work = self.cycle if self.cycling else self.capture
                threading.Thread(target=work, args=(command,), daemon=True).start()
        elif self.now_ms() >= command.expires_ms:
            self.report(command, protocol.REFUSED, "expired")
        else:
            self.bye(command.verb)
            with suppress(Stuck):  # or systemd would wait 90 s for those of the user's that ignore SIGTERM
                self.session.hold(True)
                self.session.kill()
            power.go(command.verb)
            self.report(command, protocol.FAILED, "Neither systemd nor the kernel carried it out.")

    def cycle(self, command: Command) -> None:
        cycle, state, reason = Cycle(self.home, self.session, command.args), protocol.FAILED, ""
        try:
            cycle.run(self.link.fetch)
            state = protocol.SUCCEEDED
        except Exception as error:  # whatever it was, the server must hear of it
            reason = str(error) if isinstance(error, Stuck) else f"{type(error).__name__}: {error}"
        self.cycling, self.counting = False, command.command
        # Written down at once: a daemon that is killed now must not send the next user away again.
        told = self.report(command, state, reason[:300], cycle.result)
        try:
            account = cycle.account()
        except (OSError, ValueError) as error:
            print(f"What the cycle threw away could not be counted: {error}", file=sys.stderr, flush=True)
            account = {}
        if self.resumed and account.get("files") == 0:
            account = {}  # of the home that it had made already: what it threw away is not known
        self.resumed = False
        with self.lock:
            told["result"].update(account)
            self.counting, self.running = "", False
            self.save()
        os.write(self.waker, b".")

    def capture(self, command: Command) -> None:
        state, reason, result = protocol.FAILED, "", dict[str, Any]()
        try:
            way = f"/agent/v1/capture?command={command.command}"
            capture = Capture(self.home.path, self.session.uid, command.args["most_bytes"])
            result = capture.run(lambda blocks: self.link.upload(way, blocks))
            state = protocol.SUCCEEDED
        except Exception as error:  # whatever it was, the server must hear of it
            reason = str(error) if isinstance(error, Stuck) else f"{type(error).__name__}: {error}"
        self.report(command, state, reason[:300], result)
        self.running = False

    def bye(self, reason: str) -> None:
        with suppress(Away, Superseded):
            self.link.connection.close()
            self.link.call("POST", "/agent/v1/bye", {"reason": reason}, timeout=3)

    def run(self) -> None:
        """For ever; ends by SIGTERM."""
        self.act()  # what a killed daemon left half done needs no server
        while True:
            try:
                if not self.opened:
                    self.open_session()
                self.deliver()
                self.act()
                self.observe()
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
