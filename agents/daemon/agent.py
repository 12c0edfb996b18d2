"""The daemon's loop: one session with the gateway, one long poll at a time, commands verified, run and reported.

The loop talks, warns the user and restarts the PC; a cycle runs in a thread of its own, so that the poll (which is the client's
presence) goes on. What must survive the daemon's death stands in /run/fleet/commands.json.
"""

from __future__ import annotations

import base64
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..hands import alive, door, network, power, session
from ..hands.capture import Capture
from ..hands.cycle import Cycle
from ..hands.hardware import facts, read
from ..hands.overlay import OVERLAY, Home
from ..hands.screen import Screen, announcement
from ..hands.session import Stuck
from ..hands.writes import Watch
from . import ed25519, protocol, wishes
from .link import AT_WORK_S, Answer, Away, Link, Superseded
from .memory import KEPT, Memory, clock
from .protocol import CAPTURE, CYCLE, MESSAGE, POWEROFF, RELAY, RESTART, Command, Refused

FLEET = "/run/fleet"
SOFT = (RESTART, POWEROFF, CYCLE, CAPTURE)  # these disturb the user, who may have asked for none of it
CLOCK_MS = 5000  # a server whose unsigned time is further off is asked for a signed one
TICK_S = 5.0  # how soon a parked poll notices that the user touched the keyboard
LINGER_S = 60.0  # between two words of a boot that a younger one superseded


class Agent:
    def __init__(self, plan: Mapping[str, str], server: str) -> None:
        self.plan, self.boot = plan, read("/proc/sys/kernel/random/boot_id")
        self.wake, self.waker = os.pipe()
        self.link = Link(server, plan["bearer"], self.wake)
        self.home = Home(f"/home/{plan['user']}", plan["home"], plan["home_percent"], plan.get("home_kind", OVERLAY))
        self.session, self.screen = session.of(plan["user"], int(plan["uid"])), Screen(int(plan["uid"]))
        self.keys = protocol.parse_keys(plan["command_keys"])
        self.floor = min(int(plan.get("daemon", "1")), protocol.VERSION)  # the plan is signed: no server speaks less
        self.opened = False  # a session
        self.hold_s, self.spread_s = 60.0, 1.0
        self.memory = Memory.load(f"{FLEET}/commands.json")
        self.cycling = False  # until the next login
        self.working, self.rests_until = "", 0.0  # the command of the thread, until its account is made too
        self.unwanted: set[str] = set()  # what the server does not want to be told
        self.writes = Watch()
        self.counting = ""  # the cycle whose report waits for that account
        self.resumed = self.memory.open if self.memory.acts else None  # begun by the daemon that was before

    def nudge(self) -> None:
        """End the parked poll: there is something to say, or to do."""
        os.write(self.waker, b".")

    def report(self, command: Command, state: str, reason: str = "", result: Mapping[str, Any] = {}) -> dict[str, Any]:
        told = self.memory.report(command, state, reason, result)
        self.nudge()
        return told

    def state(self) -> str:
        if self.cycling:
            return protocol.CYCLING
        touched = self.session.touched()
        known = self.memory.logins
        logins = {session: known.get(session, atime) for session, atime in touched.items()}
        if logins != known:
            with self.memory.lock:
                self.memory.logins = logins
                self.memory.save()
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
        nonce = secrets.token_hex(16)
        body = {"protocol": protocol.VERSION, "nonce": nonce, "boot_id": self.boot, "facts": facts(self.plan)}
        asked = self.memory.now_ms()
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
            self.memory.offset_ms += float(opened["server_time_ms"]) - (asked + self.memory.now_ms()) / 2
            self.opened = True
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Away(f"the session's answer is not as agreed: {error!r}") from None

    def deliver(self) -> None:
        """Send what is unsent. A first acceptance that the server rejects cancels its command."""
        memory = self.memory
        with memory.lock:
            batch = [(key, report) for key, report in memory.unsent.items() if key != self.counting][:KEPT]
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
        with memory.lock:
            for key, report in batch:
                if memory.unsent.get(key) is report:
                    del memory.unsent[key]
            memory.save()
        if memory.open and not memory.acts and memory.open.command in rejected:
            self.report(memory.open, protocol.REFUSED, "cancelled")

    def tell(self, path: str, body: object) -> None:
        """Say what an older server does not want to know; one that answers so is not told again."""
        try:
            if path not in self.unwanted:
                self.call("PUT", path, body)
        except Away as trouble:
            if trouble.status not in (400, 404, 413):
                raise
            self.unwanted.add(path)

    def tell_hold(self) -> None:
        memory = self.memory
        if memory.hold_told:
            return
        reason, until = memory.held, memory.held_until
        self.tell("hold", {"reason": reason, "until_ms": memory.server_ms(until)})
        with memory.lock:
            memory.hold_told = (reason, until) == (memory.held, memory.held_until)
            memory.save()

    def tell_writes(self) -> None:
        """What was written that the image's rules may not name."""
        news = [] if self.cycling or "writes" in self.unwanted else self.writes.news()
        if news:
            self.tell("writes", {"writes": news})
            self.writes.told = news

    def poll(self) -> None:
        if self.working and not self.counting and (left := self.rests_until - clock()) > 0:
            self.link.woken(self.patience, left)
            return
        state = self.state()
        path = f"/agent/v1/next?cursor={self.memory.sequence}&state={state}"
        patience = lambda: self.patience() if self.state() == state else 0.0  # noqa: E731
        answer = self.link.call("GET", path, timeout=self.hold_s + 15, patience=patience)
        if answer is None:
            return
        content = answer.json() if answer.status == 200 else {}
        told = content.get("server_time_ms", answer.headers.get("Fleet-Time"))
        with suppress(TypeError, ValueError):
            if told is not None and abs(int(told) - self.memory.now_ms()) > CLOCK_MS:
                self.opened = False
        commands = content.get("commands", [])
        fresh = [self.receive(wrapped) for wrapped in commands[:KEPT]] if isinstance(commands, list) else []
        if answer.status == 200 and not any(fresh):
            self.deliver()
            raise Away("the gateway sent no command that is new and good")
        self.link.failures = 0

    def receive(self, wrapped: object) -> bool:
        """Judge one envelope; whether it was accepted."""
        command, memory = None, self.memory
        try:
            command = protocol.authenticate(wrapped, self.keys, self.plan["client"], self.boot, self.floor)
            if command.command in memory.reports:
                with memory.lock:
                    memory.unsent[command.command] = memory.reports[command.command]
                return False
            protocol.admit(command, memory.sequence, memory.now_ms())
            self.admit(command)
        except Refused as refusal:
            if command and refusal.reason != "old-sequence":
                self.report(command, protocol.REFUSED, refusal.reason)
            else:
                refused = protocol.report(refusal.command, protocol.REFUSED, memory.now_ms(), refusal.reason, {})
                memory.unsent.setdefault(refusal.command, refused)
            if refusal.reason == "unknown-key":
                self.opened = False  # the next session's answer names the keys of today
            return False
        if memory.open and memory.open.command != self.working:
            self.report(memory.open, protocol.FAILED, "Another command was carried out in its place.")
        self.report(command, protocol.ACCEPTED)
        return True

    def admit(self, command: Command) -> None:
        """Refused, where a good command does not suit the user, or what is being done already."""
        forced, first = command.args.get("force", False), self.memory.open
        warned = first is not None and first.command != self.working and "warn_s" in first.args
        if command.verb in SOFT and self.memory.is_held() and not forced:
            raise Refused("held", command.command)
        if (warned and not forced) or ((first or self.working) and command.verb not in (RESTART, POWEROFF)):
            raise Refused("busy", command.command)

    # What is done

    def patience(self) -> float:
        """How long the loop may wait, seconds; 0 when the moment of a command has come. The user is told of it until then."""
        alive.sign()
        command, acts = self.memory.pending(), self.memory.acts
        if command is None:
            return TICK_S if self.working or not acts else 0.0
        left = acts - clock()
        sentence = f"{command.args.get('text', '')} {announcement(command.verb, left, self.memory.more)}".lstrip()
        terminals = self.session.logins().values()
        return max(0.0, min(TICK_S, left, self.screen.count_down(acts, left, sentence, terminals)))

    def act(self) -> None:
        """Carry out the open command, once the server has its acceptance and the user was warned; one that was begun, in any case."""
        command, memory = self.memory.open, self.memory
        if command is None:
            return
        if not memory.acts:
            if command.command in memory.unsent:
                return
            if memory.now_ms() >= command.expires_ms:
                self.report(command, protocol.REFUSED, "expired")
                return
            self.begin(command)
        if clock() < memory.acts:
            return
        if command.verb in (RESTART, POWEROFF):
            self.leave(command.verb)
            self.report(command, protocol.FAILED, "Neither the init nor the kernel carried it out.")
        elif command.verb == MESSAGE:
            shown = self.screen.show(command.args["text"], command.args["seconds"], self.session.logins().values())
            state = protocol.SUCCEEDED if shown else protocol.FAILED
            self.report(command, state, "" if shown else "There is no screen that shows text.", {"shown": shown})
        elif command.verb == RELAY:
            sent = network.wake(command.args["macs"], command.args["packets"])
            state = protocol.SUCCEEDED if sent else protocol.FAILED
            self.report(command, state, "" if sent else "There is no network to send them on.", {"sent": sent})
        elif not self.working:
            self.working, self.cycling = command.command, command.verb == CYCLE
            self.rests_until = clock() + AT_WORK_S
            threading.Thread(target=self.work, args=(command,), daemon=True).start()

    def begin(self, command: Command) -> None:
        """From here on nothing but a reboot keeps the command from being carried out."""
        if warn_s := command.args.get("warn_s", 0):
            self.memory.announce(clock() + warn_s)
            return
        with self.memory.lock:
            self.memory.acts = clock()
            self.memory.save()

    def leave(self, verb: str) -> None:
        """Restart, or power off; returns only where that cannot be."""
        self.bye(verb)
        with suppress(Stuck):  # or systemd would wait 90 s for those of the user's that ignore SIGTERM
            self.session.hold(True)
            self.session.kill()
        power.go(verb)

    def work(self, command: Command) -> None:
        """A cycle or a capture, in a thread of its own."""
        memory, job = self.memory, self.job(command)
        state, reason = protocol.FAILED, ""
        try:
            job.run()
            state = protocol.SUCCEEDED
            if self.cycling and memory.is_held():
                memory.hold("", 0)  # who asked for it is gone
        except Exception as error:  # whatever it was, the server must hear of it
            reason = str(error) if isinstance(error, Stuck) else f"{type(error).__name__}: {error}"
        self.cycling, self.counting = False, command.command
        # Written down at once: a daemon that is killed now must not send the next user away again.
        told = self.report(command, state, reason[:300], job.result)
        try:
            account = job.account()
        except (OSError, ValueError) as error:
            print(f"What the cycle threw away could not be counted: {error}", file=sys.stderr, flush=True)
            account = {}
        if command == self.resumed and account.get("files") == 0:
            account = {}  # of the home that was made already: what was thrown away then is not known
        with memory.lock:
            told["result"].update(account)
            self.counting = self.working = ""
            memory.save()
        self.nudge()

    def job(self, command: Command) -> Cycle | Capture:
        if command.verb == CYCLE:
            return Cycle(self.home, self.session, command.args, self.link.fetch)
        way = f"/agent/v1/capture?command={command.command}"
        upload = lambda blocks: self.link.upload(way, blocks)  # noqa: E731
        return Capture(self.home.path, self.session.uid, command.args["most_bytes"], upload)

    def bye(self, reason: str) -> None:
        with suppress(Away, Superseded):
            self.link.connection.close()
            self.link.call("POST", "/agent/v1/bye", {"reason": reason}, timeout=3)

    def grant(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Answer the user, in a thread of its own: nobody waits at a keyboard for a server."""
        try:
            said = wishes.answer(self.memory, asked)
        except wishes.Denied as denial:
            return {"granted": False, "said": str(denial)}
        self.nudge()
        return {"granted": True, "said": said}

    def rest(self, seconds: float) -> None:
        """Keep off the gateway for so long, but not from what is to be done."""
        end = time.monotonic() + seconds
        while (left := min(end - time.monotonic(), self.patience())) > 0:
            time.sleep(left)
        self.act()

    def run(self) -> None:
        """For ever; ends by SIGTERM."""
        threading.Thread(target=door.serve, args=(self.session.uid, self.grant), daemon=True).start()
        self.act()  # what a killed daemon left half done needs no server
        while True:
            try:
                if not self.opened:
                    self.open_session()
                self.deliver()
                self.act()
                self.tell_hold()
                self.tell_writes()
                self.poll()
            except Away as trouble:
                print(f"Gateway: {trouble}.", file=sys.stderr, flush=True)
                self.rest(self.link.pause_s(trouble, self.spread_s))
            except Superseded:
                print("A younger session of this client exists; quiet until the next boot.", flush=True)
                while True:  # but heard now and then: so the server knows that two PCs have this MAC address
                    self.rest(LINGER_S)
                    with suppress(Away, Superseded):
                        self.call("GET", "next?cursor=0&state=" + protocol.BOOTING)


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
