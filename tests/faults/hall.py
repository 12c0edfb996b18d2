"""A hall of simulated clients with their server: what people, the network, the clock and mishaps do to it, and what must never come of that."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from agents import campaigning, campaigns, schedule, sending, services, speaking, tasks
from agents.daemon import protocol
from agents.models import BootSession, Campaign, CampaignStatus, Command, CommandStatus, SessionStatus, Verb
from agents.selecting import Selection
from fleet.exceptions import WrongState
from fleet.models import AuditEntry, Client, ClientState
from fleet.signing import Signer
from tests.faults import clients
from tests.faults.clients import PC
from tests.faults.clock import Clock
from tests.faults.gate import Gate, Hints
from tests.faults.wire import Wire
from tests.world import World, make_client

STEP_S = 4.0  # of time that passes while all goes on
# Where a sender may die: each is replaced by a death.
CRASHES = {
    "before it numbers": "_prepare",
    "before the audit entry": "_write_down",
    "before it signs": "_sign",
    "before the envelopes are kept": "insert_rows",
    "before the nudge": "nudge",
}


class Crash(BaseException):
    """kill -9 of the sender."""


class Notary:
    """Sees all that is signed. Nothing may be of which the audit log does not know."""

    def __init__(self) -> None:
        self.signed: list[dict[str, Any]] = []
        self._sign = speaking.sign

    def sign(self, signer: Signer, bodies: Sequence[bytes], version: int) -> list[bytes]:
        for said in map(json.loads, bodies):
            told = {key: said[key] for key in ("command", "client", "boot", "sequence")}
            entries = AuditEntry.objects.filter(action="commands.signed").order_by("-pk")[:9]
            assert any(told in entry.detail["commands"] for entry in entries), f"signed behind the log's back: {told}"
            self.signed.append(told)
        return self._sign(signer, bodies, version)


class Hall:
    """Within ``hall()``. Everything happens in the test's one transaction."""

    def __init__(self, world: World, place: Path, clock: Clock, patch: pytest.MonkeyPatch) -> None:
        self.world, self.clock = world, clock
        self.hints = Hints(clock)
        self.notary = Notary()
        self._furnish(patch)
        self.gate = Gate(clock, self.hints, patch)
        self.wire = Wire(self.gate)
        self.pcs = list[PC]()
        for number in (1, 2):
            client = make_client(world.clubroom, f"52:54:00:00:00:0{number}")
            self.pcs.append(PC(client.mac, place / str(number), clock, self.wire))

    def _furnish(self, patch: pytest.MonkeyPatch) -> None:
        clients.furnish(patch, self.clock)
        patch.setattr(speaking, "sign", self.notary.sign)
        patch.setattr(sending, "connection", lambda: self.hints)
        patch.setattr(schedule, "connection", lambda: self.hints)
        patch.setattr(schedule, "CAP_S", clients.CAP_S)
        patch.setattr(campaigning, "REST", 0)  # in real time, of which there is none here

    def close(self) -> None:
        for pc in self.pcs:
            pc.close()
        self.gate.close()

    # --- what happens

    def order(self, verb: Verb, pcs: Sequence[PC], **args: Any) -> None:
        rows = list(Client.objects.filter(mac__in=[pc.mac for pc in pcs]))
        with suppress(WrongState):  # somebody is busy, as test_services has it
            services.order(verb, rows, "why", self.world.vera, args=args)

    def campaign(self, verb: Verb) -> None:
        """The same of both, with a canary: nobody waits for those who are off."""
        vera = self.world.vera
        plan = campaigns.plan(self.world.clubroom, vera, verb=verb, reason="why", selection=Selection(), canary=1)
        campaigns.start(plan, vera)
        tasks.step_campaigns()

    def stop_campaigns(self, *statuses: CampaignStatus) -> None:
        """All that have not ended, or those in one of these statuses."""
        rows = Campaign.objects.filter(status__in=statuses or Campaign.LIVE).select_related("order__site")
        for campaign in rows:
            campaigns.stop(campaign, self.world.vera)

    def cancel(self, pc: PC) -> None:
        commands = Command.objects.filter(status__in=services.CANCELLABLE, client__mac=pc.mac)
        for command in commands.select_related("order__site"):
            services.cancel(command, self.world.vera)

    def send(self, crash: str = "") -> None:
        """The sender's turn; where it dies in the middle of it."""

        def die(*_: Any, **__: Any) -> None:
            raise Crash

        with pytest.MonkeyPatch.context() as patch, suppress(Crash):
            if crash:
                patch.setattr(sending, CRASHES[crash], die)
            tasks.send_due()

    def tick(self) -> None:
        tasks.tick()
        tasks.step_campaigns()

    def kill_gateway(self) -> None:
        self.gate.kill()
        self.wire.gateway_died()
        self.run()

    def run(self) -> bool:
        """Clients and gateway do what they can without the network carrying anything."""
        ran = False
        while any([pc.run() for pc in self.pcs]):  # noqa: C419 - each of them
            ran = True
        self.wire.pump()
        return ran

    def flow(self, hops: int = 200) -> None:
        """The network carries everything, until nothing moves."""
        self.run()
        while hops and (moving := [call for call in self.wire.moving if call.awaited or self.gate.up]):
            hops -= 1
            self.wire.carry(moving[0])
            self.run()

    def passes(self, seconds: float, server: bool = True, network: bool = True) -> None:
        """Time in which all goes on that is not said to be away."""
        while seconds > 0:
            self.clock.advance(min(seconds, STEP_S))
            seconds -= STEP_S
            self.wire.pump()
            if server:
                self.send()
                self.tick()
            self.flow() if network else self.run()

    def heal(self) -> None:
        """All faults end."""
        self.hints.away = self.hints.deaf = False
        self.gate.rows.away = 0
        for pc in self.pcs:
            pc.mood = clients.Mood()
        if not self.gate.up:
            self.gate.start()
        self.flow()

    # --- what must hold

    def book_holds(self) -> int:
        """How many commands the sender has noted."""
        if not settings.SENDER_BOOK.exists():
            return 0
        with sqlite3.connect(settings.SENDER_BOOK) as book:
            return int(book.execute("SELECT COALESCE(SUM(number), 0) FROM signed").fetchone()[0])

    def effects(self) -> Counter[str]:
        return Counter(effect.command for pc in self.pcs for effect in pc.effects)

    def boots_over(self) -> set[str]:
        return {boot for pc in self.pcs for boot in pc.ended}

    def unended(self) -> list[object]:
        """Commands, and campaigns, that have not ended."""
        commands = Command.objects.filter(status__in=Command.OPEN)
        return [*commands, *Campaign.objects.filter(ended_at=None)]

    def unheard(self) -> list[str]:
        """Clients that run, and of which the server does not know it."""
        found = []
        for pc in self.pcs:
            client = Client.objects.get(mac=pc.mac)
            is_open = BootSession.objects.filter(client=client, boot_id=pc.boot, status=SessionStatus.OPEN).exists()
            if pc.on and (not is_open or client.state in (ClientState.LOST, ClientState.OFF)):
                found.append(f"{client} is {client.state}, its session open: {is_open}")
        return found


# Of a command that ended so, nothing may have been done.
HARMLESS = (CommandStatus.REFUSED, CommandStatus.EXPIRED, CommandStatus.CANCELLED)


@contextmanager
def hall(world: World, place: Path) -> Iterator[Hall]:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        one = Hall(world, place, clock, patch)
        try:
            yield one
        finally:
            one.close()
            clock.stop()


def is_true(command: Command, hall: Hall) -> bool:
    """Whether a command that succeeded came about: it was carried out; or the boot it was for ended by itself, which is all that a restart or
    a power-down wants; or the log says that there is doubt.
    """
    if hall.effects()[str(command.pk)] == 1:
        return True
    if command.verb not in (protocol.RESTART, protocol.POWEROFF):
        return False
    assert command.envelope.session is not None
    doubts = AuditEntry.objects.filter(action="command.doubted", subject_id=str(command.pk))
    return str(command.envelope.session.boot_id) in hall.boots_over() or doubts.exists()
