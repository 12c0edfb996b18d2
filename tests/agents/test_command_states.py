"""Whatever happens in whatever order, each command ends once, each cycle leaves one restore, and the chain proves it.

A state machine gives orders, sends, boots, reports (twice, late, for others), falls silent and lets the clock tick, at random.
"""

import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import time_machine
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pytest_django.fixtures import Settings

from agents import attendance, evidence, schedule, sending, services, tasks
from agents.attendance import Said
from agents.daemon import protocol
from agents.models import BootSession, Command, CommandStatus, HomeRestore, SessionStatus, Verb
from fleet import audit
from fleet.alive import GATEWAY_UP
from fleet.exceptions import WrongState
from fleet.models import Client, ClientState
from tests.agents.boots import boot, make_release, plan_of
from tests.agents.conftest import forget
from tests.services import redis_server
from tests.world import World, make_client

WHICH = st.integers(0, 1)
RESTORING = (CommandStatus.SUCCEEDED, CommandStatus.FAILED, CommandStatus.REFUSED, CommandStatus.LOST)


class Club(RuleBasedStateMachine):
    """Two clients, one volunteer. Its rows are taken back when an example ends."""

    world: World

    @initialize()
    def begin(self) -> None:
        self.taken_back = transaction.atomic()
        self.taken_back.__enter__()
        self.clock = time_machine.travel(timezone.now(), tick=False)
        self.now = self.clock.start()
        self.clients = [make_client(self.world.clubroom, f"52:54:00:00:00:0{n}") for n in (1, 2)]
        self.ended: dict[uuid.UUID, tuple[Any, ...]] = {}
        for client in self.clients:
            boot(client)

    def commands(self) -> list[Command]:
        return list(Command.objects.select_related("client", "envelope__session").order_by("queued_at", "pk"))

    # --- what people, clients and the clock do ------------------------------------------------------------------------

    @rule(which=WHICH, verb=st.sampled_from([Verb.RESTART, Verb.POWEROFF, Verb.CYCLE]), at_once=st.booleans())
    def order(self, which: int, verb: Verb, at_once: bool) -> None:
        self.now.shift(timedelta(milliseconds=1))
        busy = Command.objects.filter(client=self.clients[which], status__in=Command.OPEN).exists()
        try:
            services.order(verb, [self.clients[which]], "why", self.world.vera)
            assert not busy
        except WrongState:
            assert busy
        if at_once:
            self.send()

    @rule()
    def send(self) -> None:
        tasks.send_due()

    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        for command in self.commands():
            if command.client == self.clients[which] and command.status in Command.OPEN:
                try:
                    services.cancel(command, self.world.vera)
                except WrongState:
                    assert command.status not in services.CANCELLABLE

    @precondition(lambda self: Command.objects.exists())
    @rule(
        which=WHICH,
        back=st.sampled_from([0, 0, 0, 1, 2]),
        state=st.sampled_from([*protocol.REPORTS, protocol.ACCEPTED, protocol.ACCEPTED]),
        good=st.booleans(),
        other=st.sampled_from([False, False, False, True]),
        old=st.sampled_from([False, False, True]),
        times=st.integers(1, 2),
    )
    def report(self, which: int, back: int, state: str, good: bool, other: bool, old: bool, times: int) -> None:
        """One of the last commands is reported, by its client or by the other, in its youngest session or its oldest."""
        mine = [command for command in self.commands() if command.client == self.clients[which]] or self.commands()
        command = mine[-1 - back % len(mine)]
        who = self.clients[(self.clients.index(command.client) + other) % 2]
        sessions = BootSession.objects.filter(client=who).order_by("planned_at")
        session = sessions.first() if old else sessions.last()
        assert session is not None
        after = command.args.get("home_digest", "ab" * 32) if good else "00" * 32
        said = protocol.report(str(command.pk), state, 0, "so it was", {"after": after, "files": 3})
        before = (command.status, command.result)
        for _ in range(times):
            why = evidence.take_report(session, said)
            if other:
                assert why
                command.refresh_from_db()
                assert (command.status, command.result) == before

    @rule(which=WHICH, opened=st.booleans())
    def boots(self, which: int, opened: bool) -> None:
        if opened:
            boot(self.clients[which])
        else:
            plan_of(self.clients[which])

    @rule(which=WHICH, state=st.sampled_from(protocol.STATES))
    def heard(self, which: int, state: str) -> None:
        """The last session that opened is heard of, whatever became of it."""
        session = BootSession.objects.filter(client=self.clients[which]).exclude(opened_at=None).latest("planned_at")
        attendance.says_state(session.pk, state)
        attendance.seen({session.pk: Said(state, timezone.now())})

    @rule(which=WHICH)
    def bye(self, which: int) -> None:
        attendance.close_session(BootSession.objects.filter(client=self.clients[which]).latest("planned_at"))

    @rule(seconds=st.sampled_from([0.001, 1, 10, 46, 121, 301]))
    def passes(self, seconds: float) -> None:
        self.now.shift(timedelta(seconds=seconds))

    @rule()
    def tick(self) -> None:
        schedule.tick()

    # --- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def what_ended_stays_as_it_ended(self) -> None:
        for command in self.commands():
            if command.status not in Command.OPEN:
                fate = (command.status, command.reason, command.finished_at, command.result)
                assert self.ended.setdefault(command.pk, fate) == fate
                assert command.finished_at is not None
            else:
                assert command.finished_at is None

    @invariant()
    def each_cycle_that_reached_its_client_leaves_one_restore_and_nothing_else_does(self) -> None:
        restored = dict(HomeRestore.objects.values_list("command", "result"))
        due = {
            command.pk: {CommandStatus.SUCCEEDED: "restored"}.get(CommandStatus(command.status), command.status)
            for command in self.commands()
            if command.verb == Verb.CYCLE and command.sent_at and command.status in RESTORING
        }
        assert restored == due

    @invariant()
    def a_client_is_not_lost_while_its_session_is_open(self) -> None:
        for client in Client.objects.filter(sessions__status=SessionStatus.OPEN):
            assert client.state not in (ClientState.LOST, ClientState.OFF)

    @invariant()
    def sequences_rise_as_commands_are_sent(self) -> None:
        for client in Client.objects.all():
            sent = client.commands.exclude(envelope=None).order_by("queued_at", "pk")
            numbers = [number or 0 for number in sent.values_list("envelope__sequence", flat=True)]
            assert numbers == sorted(numbers)

    def teardown(self) -> None:
        if not hasattr(self, "now"):
            return
        try:
            for _ in range(2):
                self.now.shift(timedelta(seconds=1000))
                schedule.tick()
            assert not Command.objects.filter(status__in=Command.OPEN).exists(), "with time, every command ends"
            self.what_ended_stays_as_it_ended()
            self.each_cycle_that_reached_its_client_leaves_one_restore_and_nothing_else_does()
            assert [str(fault) for fault in audit.verify()] == []
        finally:
            self.clock.stop()
            transaction.set_rollback(True)
            self.taken_back.__exit__(None, None, None)


@pytest.fixture
def listened(keys: Path, settings: Settings) -> Iterator[None]:
    """A gateway that has listened for long: silence means something."""
    with redis_server() as queue, redis.Redis.from_url(queue.url) as hints:
        settings.REDIS_URL = queue.url
        forget()
        hints.set(GATEWAY_UP, str(time.time() - 100_000))
        yield
        sending.connection().close()


@pytest.mark.slow
def test_every_command_ends_once_and_every_cycle_is_proved(world: World, listened: None) -> None:
    make_release(world.gamer)
    machine = type("Club", (Club,), {"world": world})
    options = settings(
        phases=[Phase.generate],  # a failure is shown as it was found: to make it shorter would take minutes
        max_examples=15,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    run_state_machine_as_test(machine, settings=options)
