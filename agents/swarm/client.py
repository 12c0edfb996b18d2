"""One client of a swarm: boots as an initrd does, then lives as the daemon does."""

import asyncio
import time
import uuid
from contextlib import suppress
from functools import cache
from typing import Any
from urllib.parse import urlencode

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agents.daemon import protocol
from agents.daemon.link import AT_WORK_S, CAP_S
from agents.swarm.ledger import PREFIX, Ledger
from agents.swarm.nature import Nature
from agents.swarm.wire import Away, Interrupted, Wire

ADAPTER = "0000:00:02.0,1013:00b8,1af4:1100,030000"


def mac_of(number: int) -> str:
    """The MAC of a swarm's client."""
    return PREFIX + ":".join(f"{number >> shift & 255:02x}" for shift in (24, 16, 8, 0))


class Player:
    """One of them; ``kernel`` is the one it says it has loaded."""

    def __init__(
        self, number: int, site: str, address: tuple[str, int], kernel: str, nature: Nature, seed: int, ledger: Ledger
    ) -> None:
        self.mac, self._kernel = mac_of(number), kernel
        self._site, self._nature, self._ledger = site, nature, ledger
        self._dice = nature.random_of(seed, number)
        self._skew_ms = self._dice.uniform(-nature.skew_s, nature.skew_s) * 1000
        self._wire = Wire(*address)
        self._failures = 0
        self._interrupted = False  # by a boot, which is how its last command ended
        self._new_boot()

    def _new_boot(self) -> None:
        self.boot = str(uuid.UUID(int=self._dice.getrandbits(128), version=4))
        self.plan: dict[str, str] = {}
        self._keys: dict[str, bytes] = {}
        self._opened, self._offset_ms, self._sequence = False, 0.0, 0
        self._state = protocol.READY
        self._reports: dict[str, dict[str, Any]] = {}
        self._unsent: dict[str, dict[str, Any]] = {}
        self._taken: dict[str, protocol.Command] = {}  # accepted, of which the server does not know yet
        self._work: asyncio.TimerHandle | None = None  # what is being carried out
        self._polls = False
        self._rest: asyncio.Future[None] | None = None  # at work, and nothing to say yet

    async def live(self) -> None:
        """For ever, until cancelled."""
        try:
            while True:
                try:
                    if not self.plan:
                        await self._start()
                    if not self._opened:
                        await self._open()
                    await self._deliver()
                    if self._rest is not None:
                        await self._at_work(self._rest)
                    else:
                        await self._ask()
                    self._failures = 0
                except Away as trouble:
                    await self._endure(trouble)
        finally:
            if self._work:
                self._work.cancel()
            self._wire.close()

    async def _endure(self, trouble: Away) -> None:
        """Full jitter, as the daemon's (``agents.daemon.link``)."""
        self._ledger.troubles[str(trouble)] += 1
        if self._opened:
            self._ledger.connected -= 1
            self._opened = False
        if trouble.status == 409:
            self._new_boot()  # a younger session: this client was started twice
        bound = min(CAP_S, 2.0**self._failures)
        self._failures = min(self._failures + 1, 10)
        await asyncio.sleep(trouble.retry_s + self._dice.uniform(0, bound))

    # What firmware and initrd do

    async def _start(self) -> None:
        self._wire.say([])
        query = urlencode({"mac": self.mac, "site": self._site, "product": "Swarm", "serial": self.mac[-8:]})
        _, script = await self._wire.ask("GET", f"/boot/v1/client.ipxe?{query}")
        words = dict(word.partition("=")[::2] for word in script.decode().split())
        if "fleet.token" not in words:
            raise Away(f"no boot: {script.decode().splitlines()[1][:120]}", retry_s=5)
        form = {"token": words["fleet.token"], "mac": self.mac, "boot_id": self.boot, "kernel": self._kernel}
        form |= {"pci": ADAPTER, "memory_kib": "4000000", "uptime_ms": "2500"}
        _, answer = await self._wire.ask("POST", "/boot/v1/plan", urlencode(form).encode())
        text = answer.decode().rpartition("signature=")[0]
        plan = protocol.parse_plan(text)
        if plan.get("action") != "boot":
            raise Away(f"no boot: {plan.get('reason', plan.get('action', ''))}", retry_s=5)
        self.plan = plan
        self._keys = protocol.parse_keys(plan["command_keys"])
        self._wire.say([("Authorization", f"Bearer {plan['bearer']}"), ("Content-Type", "application/json")])
        self._ledger.boots += 1
        self._ledger.settled += self._interrupted
        self._interrupted = False

    # What the daemon does

    async def _open(self) -> None:
        facts = {
            "adapters": [],
            "memory_kib": 4_000_000,
            "cpus": 4,
            "kernel": self._kernel,
            "class": self.plan["class"],
        }
        facts |= {
            "version_digest": self.plan.get("digest", ""),
            "boot_ms": {"kernel": 900, "daemon": 4200},
            "product": "Swarm",
        }
        facts |= {"serial": self.mac[-8:], "clock_ms": round(time.time() * 1000 + self._skew_ms)}
        asked = time.time() * 1000
        body = {"protocol": protocol.VERSION, "nonce": uuid.uuid4().hex, "boot_id": self.boot, "facts": facts}
        _, answer = await self._wire.ask("POST", "/agent/v1/session", body)
        opened = _json(answer)
        self._keys = protocol.parse_keys(opened["keys"])
        self._offset_ms = float(opened["server_time_ms"]) - (asked + time.time() * 1000) / 2
        self._opened = True
        self._ledger.joined()

    async def _deliver(self) -> None:
        while batch := list(self._unsent.items())[:32]:
            rounds = 2 if self._dice.random() < self._nature.duplicate else 1
            for _ in range(rounds):
                _, answer = await self._wire.ask("POST", "/agent/v1/reports", {"reports": [one for _, one in batch]})
            rejected = {entry.get("command"): entry.get("reason") for entry in _json(answer).get("rejected", [])}
            for key, one in batch:
                if self._unsent.get(key) is one:
                    del self._unsent[key]
                if one["state"] != protocol.ACCEPTED:
                    self._ledger.ended(key)
                elif command := self._taken.pop(key, None):
                    self._begin(command, taken=key not in rejected)
            for reason in rejected.values():
                self._ledger.troubles[f"rejected: {reason}"] += 1

    async def _at_work(self, rest: "asyncio.Future[None]") -> None:
        """As the daemon, which asks for nothing more for a while."""
        over = asyncio.get_running_loop().call_later(AT_WORK_S, _settle, rest)
        try:
            await rest
        finally:
            over.cancel()
            self._rest = None

    async def _ask(self) -> None:
        if self._dice.random() < self._nature.drop:
            self._wire.close()
            raise Away("dropped by the swarm")
        self._polls = True
        try:
            status, answer = await self._wire.ask("GET", f"/agent/v1/next?cursor={self._sequence}&state={self._state}")
        except Interrupted:
            return  # its own work has something to tell
        finally:
            self._polls = False
        for wrapped in _json(answer).get("commands", []) if status == 200 else []:
            self._receive(wrapped)

    def _receive(self, wrapped: object) -> None:
        now = round(time.time() * 1000 + self._offset_ms)
        try:
            verify = _verify if self._dice.random() < self._nature.verify else _believe
            command = protocol.authenticate(wrapped, self._keys, self.plan["client"], self.boot, verify=verify)
            if command.command in self._reports:
                self._unsent[command.command] = self._reports[command.command]
                return
            protocol.admit(command, self._sequence, now)
        except protocol.Refused as refusal:
            self._ledger.troubles[f"refused: {refusal.reason}"] += 1
            if refusal.command:
                self._tell(refusal.command, protocol.REFUSED, refusal.reason)
            return
        self._sequence = max(self._sequence, command.sequence)
        if (self._work or self._taken) and command.verb not in (protocol.RESTART, protocol.POWEROFF):
            self._tell(command.command, protocol.REFUSED, "busy")
            return
        self._taken[command.command] = command
        self._tell(command.command, protocol.ACCEPTED)

    def _begin(self, command: protocol.Command, taken: bool) -> None:
        """Not before the server has the acceptance, and not at all where the command was cancelled."""
        if not taken:
            self._tell(command.command, protocol.REFUSED, "cancelled")
            return
        self._ledger.acknowledged(command.command)
        if self._work:
            self._work.cancel()  # by a restart
        self._state = protocol.CYCLING if command.verb == protocol.CYCLE else self._state
        loop, warned_s = asyncio.get_running_loop(), command.args.get("warn_s", 0)
        lasts_s = warned_s + self._dice.uniform(self._nature.delay_s / 2, self._nature.delay_s)
        self._work = loop.call_later(lasts_s, self._finish, command)
        if command.verb == protocol.CYCLE and not warned_s:
            self._rest = loop.create_future()

    def _finish(self, command: protocol.Command) -> None:
        self._work = None
        key, verb = command.command, command.verb
        if self._dice.random() < self._nature.reboot or verb in (protocol.RESTART, protocol.POWEROFF):
            if verb != protocol.CYCLE:
                self._ledger.carried_out(key)
            self._restart()
            return
        self._state = protocol.READY
        if self._dice.random() < self._nature.fail:
            self._tell(key, protocol.FAILED, "the swarm had it fail", {"phases_ms": {"total": 900}})
        elif verb == protocol.CYCLE:
            self._ledger.carried_out(key)
            self._ledger.cycles.add(key)
            home = command.args["home_digest"]
            result = {"template": command.args["home"], "expected": home, "after": home}
            result |= {"files": 12, "bytes": 4096, "killed": 3}
            phases = {"phases_ms": {"kill": 50, "restore": 200, "total": 900}}
            self._tell(key, protocol.SUCCEEDED, "", {**result, **phases})
        elif verb == protocol.MESSAGE:
            self._ledger.carried_out(key)
            self._tell(key, protocol.SUCCEEDED, "", {"shown": "tty1"})
        else:
            self._tell(key, protocol.FAILED, "a swarm has neither a home to capture nor anybody to wake")

    def _restart(self) -> None:
        """Pull the plug and boot anew."""
        if self._opened:
            self._ledger.connected -= 1
        polls, rest = self._polls, self._rest
        self._new_boot()
        self._interrupted = True
        if polls:
            self._wire.interrupt()
        else:
            self._wire.close()
            _settle(rest)

    def _tell(self, command: str, state: str, reason: str = "", result: dict[str, Any] | None = None) -> None:
        """Remember a report and end the poll, so that it is sent at once."""
        now = round(time.time() * 1000 + self._offset_ms)
        self._reports[command] = self._unsent[command] = protocol.report(command, state, now, reason, result or {})
        if self._polls:
            self._wire.interrupt()
        _settle(self._rest)


def _settle(rest: "asyncio.Future[None] | None") -> None:
    if rest is not None and not rest.done():
        rest.set_result(None)


@cache
def _public(key: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(key)


def _verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """As the daemon's own, a hundred times as fast."""
    try:
        _public(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _believe(public: bytes, message: bytes, signature: bytes) -> bool:
    return True


def _json(content: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        found = orjson.loads(content)
        if isinstance(found, dict):
            return found
    return {}
