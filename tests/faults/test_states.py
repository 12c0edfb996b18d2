"""Whatever happens in whatever order: each command ends once, is carried out at most once, and the log knows of all of it.

A state machine has people order, the sender die, the network lose and repeat, clients fail, and clocks be set, at random. The server is the
real one, the clients run the real daemon; between them is a network that the machine commands (``tests.faults.hall``).
"""

import uuid
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from django.db import transaction
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from agents.models import CampaignStatus, Command, CommandStatus, Envelope, HomeRestore, SessionStatus, Target, Verb
from fleet import audit
from fleet.models import Client, ClientState
from tests.agents.boots import make_release
from tests.faults.hall import HARMLESS, Hall, hall, is_true
from tests.faults.mishaps import MISHAPS
from tests.world import World

WARNED = {"warn_s": 6, "text": "Time is up.", "more": 1}
ORDERS: list[tuple[Verb, dict[str, Any] | None]] = [
    *((verb, args) for verb in (Verb.RESTART, Verb.POWEROFF, Verb.CYCLE) for args in ({}, {}, WARNED)),
    (Verb.MESSAGE, {"text": "Pizza is here.", "seconds": 5}),
    *((verb, None) for verb in (Verb.RESTART, Verb.POWEROFF, Verb.CYCLE)),  # a campaign
]
RESTORING = (CommandStatus.SUCCEEDED, CommandStatus.FAILED, CommandStatus.REFUSED, CommandStatus.LOST)
PATIENCE_S = 300  # within which all is at rest again once faults are over: longer than any limit that ``limits`` sets


class Evening(RuleBasedStateMachine):
    """An evening in a hall with two clients. Its rows are taken back when it ends."""

    world: World
    place: Path

    @initialize()
    def begin(self) -> None:
        self.taken_back = transaction.atomic()
        self.taken_back.__enter__()
        place = self.place / uuid.uuid4().hex
        place.mkdir()
        self.within = hall(self.world, place)
        self.hall: Hall = self.within.__enter__()
        self.ended: dict[uuid.UUID, tuple[Any, ...]] = {}
        for pc in self.hall.pcs:
            pc.switch_on()
        self.hall.flow()

    # --- what happens

    @rule(
        what=st.sampled_from([None, *ORDERS]),
        whom=st.sampled_from([(0,), (1,), (0, 1)]),
        hops=st.integers(0, 8),
        mishap=st.sampled_from(sorted(MISHAPS)),
        number=st.integers(0, 7),
        then=st.sampled_from(["", "", "flows", "goes on", "recovers", "recovers"]),
    )
    def turn(self, what: Any, whom: tuple[int, ...], hops: int, mishap: str, number: int, then: str) -> None:
        """Something may be ordered, and comes so far (half of a hop more for each message); then comes the mishap."""
        if what is not None:
            verb, args = what
            if args is None:
                self.hall.campaign(verb)
            else:
                self.hall.order(verb, [self.hall.pcs[which] for which in whom], **args)
            if hops:
                self.hall.send()
                self.hall.flow(hops - 1)
        MISHAPS[mishap](self.hall, number)
        self.hall.run()
        if then == "flows":
            self.hall.flow()
        elif then == "goes on":
            self.hall.passes(4)
        elif then == "recovers":
            for pc in self.hall.pcs:
                if not pc.on:
                    pc.switch_on()
            self.hall.heal()
            self.hall.passes(4)

    # --- what always holds

    @invariant()
    def holds(self) -> None:
        self.what_ended_stays_as_it_ended()
        self.each_cycle_that_reached_its_client_leaves_one_restore_and_nothing_else_does()
        self.nothing_is_done_twice_or_that_ended_without_effect()
        self.a_client_is_not_lost_while_its_session_is_open()
        self.no_number_is_given_twice()
        self.the_book_holds_all_that_was_signed()

    def what_ended_stays_as_it_ended(self) -> None:
        for command in Command.objects.all():
            if command.status not in Command.OPEN:
                fate = (command.status, command.reason, command.finished_at, command.result)
                assert self.ended.setdefault(command.pk, fate) == fate
                assert command.finished_at is not None
            else:
                assert command.finished_at is None

    def each_cycle_that_reached_its_client_leaves_one_restore_and_nothing_else_does(self) -> None:
        restored = dict(HomeRestore.objects.values_list("command", "result"))
        due = {
            command.pk: {CommandStatus.SUCCEEDED: "restored"}.get(CommandStatus(command.status), command.status)
            for command in Command.objects.filter(verb=Verb.CYCLE, status__in=RESTORING).exclude(sent_at=None)
        }
        assert restored == due

    def nothing_is_done_twice_or_that_ended_without_effect(self) -> None:
        effects = self.hall.effects()
        assert [command for command, times in effects.items() if times > 1] == []
        for command in Command.objects.filter(pk__in=list(effects)):
            assert command.status not in (CommandStatus.QUEUED, CommandStatus.SENT, *HARMLESS), command.reason

    def a_client_is_not_lost_while_its_session_is_open(self) -> None:
        for client in Client.objects.filter(sessions__status=SessionStatus.OPEN):
            assert client.state not in (ClientState.LOST, ClientState.OFF)

    def no_number_is_given_twice(self) -> None:
        numbers = Envelope.objects.values_list("sequence", flat=True)
        assert len(numbers) == len(set(numbers))

    def the_book_holds_all_that_was_signed(self) -> None:
        assert self.hall.book_holds() >= len(self.hall.notary.signed)

    def teardown(self) -> None:
        if not hasattr(self, "hall"):
            return
        try:
            self.comes_to_rest()
        finally:
            self.within.__exit__(None, None, None)
            transaction.set_rollback(True)
            self.taken_back.__exit__(None, None, None)

    def comes_to_rest(self) -> None:
        """The faults are over: all that was ordered ends, with the truth, and whoever runs is there."""
        self.hall.heal()
        waited = 0.0
        while (self.hall.unended() or self.hall.unheard()) and waited < PATIENCE_S:
            self.hall.stop_campaigns(CampaignStatus.PAUSED)  # which wait for somebody to decide
            self.hall.passes(4)
            waited += 4
        assert self.hall.unended() == []
        assert self.hall.unheard() == []
        for command in Command.objects.filter(status=CommandStatus.SUCCEEDED).select_related(
            "envelope__session", "client"
        ):
            assert is_true(command, self.hall), f"{command}: {command.reason}"
        for target in Target.objects.select_related("command"):
            assert target.command is None or target.status == target.command.status
        self.holds()
        assert [str(fault) for fault in audit.verify()] == []


def evenings(world: World, place: Path, number: int, steps: int) -> None:
    make_release(world.gamer)
    machine = type("Evening", (Evening,), {"world": world, "place": place})
    options = hypothesis.settings(
        phases=[Phase.generate],  # a failure is shown as it was found: to make it shorter would take minutes
        max_examples=number,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
    )
    run_state_machine_as_test(machine, settings=options)


def test_some_evenings(world: World, keys: Path, limits: None, tmp_path: Path) -> None:
    evenings(world, tmp_path, 3, 20)


@pytest.mark.slow
def test_many_evenings(world: World, keys: Path, limits: None, tmp_path: Path) -> None:
    evenings(world, tmp_path, 20, 40)
