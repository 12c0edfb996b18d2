"""What can happen in between: the table of docs/protocol.md, line by line, with the real server and the real daemon."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from agents import speaking
from agents.daemon.link import AT_WORK_S
from agents.models import BootSession, Command, CommandStatus, Envelope, HomeRestore, SessionStatus, Verb
from fleet.models import AuditEntry, Client, ClientState
from tests.agents.boots import make_release
from tests.faults import clients
from tests.faults.clients import PC, Mood
from tests.faults.hall import CRASHES, Hall, hall
from tests.world import World

OFF = (ClientState.OFF, SessionStatus.CLOSED)
READY = (ClientState.READY, SessionStatus.OPEN)
T = TypeVar("T")
HOPS = range(9)  # so many half ways of messages, and a command has been carried out


@pytest.fixture
def room(world: World, keys: Path, limits: None, tmp_path: Path) -> Iterator[Hall]:
    """A hall whose two clients are connected."""
    make_release(world.gamer)
    with hall(world, tmp_path) as one:
        for pc in one.pcs:
            pc.switch_on()
        one.flow()
        assert one.unheard() == []
        yield one


@pytest.fixture
def pc(room: Hall) -> PC:
    """The first of them, of which things are ordered here."""
    return room.pcs[0]


def state_of(pc: PC) -> tuple[str, str]:
    """Of a client, and of its last session."""
    client = Client.objects.get(mac=pc.mac)
    return client.state, BootSession.objects.filter(client=client).latest("planned_at").status


def flows_until(room: Hall, seen: Callable[[], T]) -> T:
    """What is seen when the messages came so far, half a way after the other."""
    for _ in range(100):
        if found := seen():
            return found
        room.flow(1)
    raise AssertionError("They do not come so far.")


def is_accepted(command: Command) -> bool:
    command.refresh_from_db()
    return command.status == CommandStatus.ACCEPTED


def ordered(room: Hall, verb: Verb, hops: int = 0) -> Command:
    """The first client was ordered something, which was sent and came so far."""
    room.order(verb, [room.pcs[0]])
    room.send()
    room.flow(hops)
    return Command.objects.get()


def accepted(room: Hall, verb: Verb) -> Command:
    """One whose acceptance the server has; its client does not know that yet."""
    command = ordered(room, verb)
    flows_until(room, lambda: is_accepted(command))
    assert not room.effects()
    return command


def cut_off(room: Hall, pc: PC, seconds: float) -> None:
    """No network for so long."""
    for call in room.wire.calls[:]:
        room.wire.cut(call)
    room.passes(seconds, network=False)


def fate(room: Hall, command: Command) -> tuple[str, int]:
    """How it ended, and how often it was carried out."""
    command.refresh_from_db()
    return command.status, room.effects()[str(command.pk)]


ONCE = (CommandStatus.SUCCEEDED, 1)


def polls(room: Hall) -> list[str]:
    """In which state are those who wait for commands?"""
    return sorted(
        call.target.rpartition("=")[2] for call in room.wire.calls if call.target.startswith("/agent/v1/next")
    )


def test_who_is_at_work_asks_for_nothing_for_a_while_and_is_shown_so_all_the_same(
    room: Hall, pc: PC, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "CYCLE_S", AT_WORK_S + 3)
    command = accepted(room, Verb.CYCLE)
    room.flow()
    assert state_of(pc) == (ClientState.CYCLING, SessionStatus.OPEN)
    assert polls(room) == ["ready"], "of the other one"
    room.passes(AT_WORK_S + 1)
    assert polls(room) == ["cycling", "ready"], "it lasts, so that it may be wanted for something else"
    room.passes(4)
    assert (fate(room, command), state_of(pc), polls(room)) == (ONCE, READY, ["ready", "ready"])


# --- the server's parts


@pytest.mark.parametrize("when", CRASHES)
def test_where_a_sender_dies_the_next_one_goes_on(room: Hall, when: str) -> None:
    room.order(Verb.CYCLE, [room.pcs[0]])
    room.send(when)
    command = Command.objects.get()
    assert command.status == (CommandStatus.SENT if when == "before the nudge" else CommandStatus.QUEUED)
    room.passes(12)
    assert fate(room, command) == ONCE
    assert room.book_holds() >= len(room.notary.signed)


def test_what_is_taken_back_while_it_is_signed_is_not_done(room: Hall, pc: PC, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its envelope is kept by nobody, and handed to nobody."""
    sign = speaking.sign

    def late(*args: Any) -> list[bytes]:
        room.cancel(pc)
        return sign(*args)

    with monkeypatch.context() as patch:  # over before the room takes its own patch of it away
        patch.setattr(speaking, "sign", late)
        command = ordered(room, Verb.CYCLE)
    assert len(room.notary.signed) == 1
    room.passes(8)
    assert fate(room, command) == (CommandStatus.CANCELLED, 0)
    assert not Envelope.objects.exists()
    assert pc.agent.memory.reports == {}


def test_a_lost_nudge_costs_a_sweep(room: Hall) -> None:
    room.order(Verb.CYCLE, [room.pcs[0]])
    room.hints.away = True
    room.send()
    room.flow()
    command = Command.objects.get()
    assert command.status == CommandStatus.SENT
    room.passes(8)
    assert fate(room, command) == ONCE


@pytest.mark.slow
@pytest.mark.parametrize("hops", HOPS)
@pytest.mark.parametrize("verb", [Verb.CYCLE, Verb.RESTART])
def test_a_gateway_that_dies_at_any_moment_loses_nothing(room: Hall, verb: Verb, hops: int) -> None:
    command = ordered(room, verb, hops)
    room.kill_gateway()
    room.passes(2)
    room.gate.start()
    room.passes(24)
    assert fate(room, command) == ONCE
    assert room.unheard() == []


@pytest.mark.parametrize("verb", [Verb.CYCLE, Verb.POWEROFF])
def test_while_nobody_listens_no_proof_is_missed(room: Hall, verb: Verb) -> None:
    """A cycle is done, a PC goes off, and the gateway is away for longer than either may take."""
    command = accepted(room, verb)
    room.flow(1)
    room.kill_gateway()
    room.passes(60)
    assert fate(room, command) == (CommandStatus.ACCEPTED, 1)
    room.gate.start()
    room.passes(40)
    assert fate(room, command) == ONCE


@pytest.mark.slow
@pytest.mark.parametrize("doubtful", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("hops", HOPS)
def test_a_database_that_dies_before_or_after_a_commit_is_asked_again(room: Hall, hops: int, doubtful: bool) -> None:
    command = ordered(room, Verb.CYCLE, hops)
    room.gate.rows.away, room.gate.rows.doubtful = 2, doubtful
    room.passes(24)
    assert fate(room, command) == ONCE


def test_after_a_standstill_nobody_counts_as_silent_before_all_had_the_time_to_come_back(room: Hall) -> None:
    cut_off(room, room.pcs[0], 0)
    room.clock.advance(60)  # all of the server
    room.gate.pump()
    room.tick()
    assert [state_of(one) for one in room.pcs] == [READY, READY]
    room.passes(30)
    assert room.unheard() == []


def test_a_client_that_is_gone_is_missed_after_a_standstill_too(room: Hall, pc: PC) -> None:
    pc.unplug()
    room.clock.advance(60)
    room.passes(4)
    assert state_of(pc) == READY
    room.passes(30)
    assert state_of(pc) == (ClientState.LOST, SessionStatus.LOST)


# --- the network


@pytest.mark.slow
@pytest.mark.parametrize("hops", HOPS)
@pytest.mark.parametrize("what", ["lost", "cut", "twice"])
def test_a_message_that_is_lost_or_comes_twice_changes_nothing(room: Hall, what: str, hops: int) -> None:
    command = ordered(room, Verb.CYCLE, hops)
    for call in room.wire.moving:
        if what == "lost":
            room.wire.lose(call)
        elif what == "cut":
            room.wire.cut(call)
        elif call.line is None:
            room.wire.calls.append(call.copy())
    room.passes(60)
    assert fate(room, command) == ONCE
    assert room.unheard() == []


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_what_is_taken_back_while_its_envelope_is_on_the_way_is_not_done(room: Hall, pc: PC, how: str) -> None:
    command = ordered(room, Verb.POWEROFF)  # the answer to the poll is on its way
    if how == "cancelled":
        room.cancel(pc)
    else:
        room.clock.step(60)
        room.tick()
    room.passes(8)
    assert fate(room, command) == (how, 0)
    assert pc.agent.memory.reports[str(command.pk)]["state"] == "refused"
    assert state_of(pc) == READY


def test_a_power_down_that_only_the_network_made_silent_is_made_up_for(room: Hall, pc: PC) -> None:
    """The answer to its acceptance was lost with the network, so the PC waits; and its silence looked like success."""
    command = accepted(room, Verb.POWEROFF)
    cut_off(room, pc, 20)
    assert (fate(room, command), state_of(pc)) == ((CommandStatus.SUCCEEDED, 0), OFF)
    assert command.reason == "silent since it accepted"
    room.passes(12)
    assert (fate(room, command), state_of(pc), pc.on) == (ONCE, OFF, False)


@pytest.mark.slow
def test_one_whose_network_comes_back_too_late_for_that_is_shown_and_written_down(room: Hall, pc: PC) -> None:
    command = accepted(room, Verb.POWEROFF)
    cut_off(room, pc, 48)
    room.passes(40)
    assert fate(room, command) == (CommandStatus.SUCCEEDED, 0)
    assert state_of(pc) == READY
    assert Client.objects.get(mac=pc.mac).trouble == "It did not power down: expired"
    entry = AuditEntry.objects.get(action="command.doubted")
    assert (entry.subject_id, entry.detail) == (str(command.pk), {"why": "expired"})
    room.order(Verb.CYCLE, [pc])
    room.passes(12)
    assert Command.objects.get(verb=Verb.CYCLE).status == CommandStatus.SUCCEEDED


def test_a_plan_that_does_not_arrive_costs_a_fresh_token(room: Hall, pc: PC) -> None:
    pc.unplug()
    pc.switch_on()
    room.run()
    asked = flows_until(room, lambda: [one for one in room.wire.calls if one.target == "/boot/v1/plan" and one.line])
    room.wire.cut(asked[0])
    room.passes(20)
    assert room.unheard() == []
    assert BootSession.objects.filter(client__mac=pc.mac, status=SessionStatus.OPEN).count() == 1


def test_a_boot_that_was_given_up_does_not_end_the_one_that_followed(room: Hall, pc: PC) -> None:
    """The network held up a question for a boot plan until the PC was up by another."""
    pc.unplug()
    pc.switch_on()
    room.run()
    late = flows_until(room, lambda: [one for one in room.wire.moving if one.target == "/boot/v1/plan"])
    stray = late[0].copy()
    pc.unplug()
    room.wire.lose(late[0])
    pc.switch_on()
    room.passes(4)
    room.wire.calls.append(stray)
    room.passes(16)
    assert room.unheard() == []
    assert BootSession.objects.get(client__mac=pc.mac, boot_id=pc.boot).status == SessionStatus.OPEN


def test_nor_does_a_last_word_of_the_boot_before(room: Hall, pc: PC) -> None:
    """A poll of a boot that said good-bye arrives when the next one runs, and the gateway has forgotten both."""
    stray = room.wire.calls[0].copy()
    ordered(room, Verb.RESTART)
    room.passes(20)
    assert room.unheard() == []
    room.kill_gateway()
    room.gate.start()
    room.passes(12)
    room.wire.calls.append(stray)
    room.passes(20)
    assert room.unheard() == []
    assert BootSession.objects.filter(client__mac=pc.mac, status=SessionStatus.OPEN).count() == 1


# --- the clients


@pytest.mark.slow
@pytest.mark.parametrize("verb", [Verb.CYCLE, Verb.RESTART, Verb.MESSAGE])
@pytest.mark.parametrize("dies", ["before", "after"])
@pytest.mark.parametrize("times", range(3))
def test_a_daemon_that_dies_when_it_writes_down_goes_on_from_there(
    room: Hall, pc: PC, verb: Verb, dies: str, times: int
) -> None:
    """At the first, second or third time that it writes something down because of the command."""
    args = {"text": "Pizza is here.", "seconds": 5} if verb == Verb.MESSAGE else {}
    room.order(verb, [pc], **args)
    room.send()
    pc.mood = Mood(dies=dies, spared=times)
    room.passes(20)
    assert fate(room, Command.objects.get()) == ONCE
    assert room.unheard() == []


@pytest.mark.parametrize(
    ("verb", "sent", "after"),
    [
        (Verb.RESTART, CommandStatus.EXPIRED, CommandStatus.SUCCEEDED),
        (Verb.POWEROFF, CommandStatus.EXPIRED, CommandStatus.SUCCEEDED),
        (Verb.CYCLE, CommandStatus.EXPIRED, CommandStatus.FAILED),
    ],
)
def test_a_boot_by_hand_ends_what_was_ordered_of_the_boot_before(
    room: Hall, pc: PC, verb: Verb, sent: str, after: str
) -> None:
    first = ordered(room, verb)
    pc.unplug()
    pc.switch_on()
    room.passes(8)
    assert fate(room, first) == (sent, 0)
    room.order(verb, [pc])
    room.send()
    second = Command.objects.exclude(pk=first.pk).get()
    flows_until(room, lambda: is_accepted(second))
    pc.unplug()
    pc.switch_on()
    room.passes(8)
    assert fate(room, second) == (after, 0)


@pytest.mark.parametrize(("verb", "end"), [(Verb.CYCLE, CommandStatus.LOST), (Verb.POWEROFF, CommandStatus.SUCCEEDED)])
def test_what_a_pc_took_with_it_for_good_ends_all_the_same(room: Hall, pc: PC, verb: Verb, end: CommandStatus) -> None:
    command = accepted(room, verb)
    pc.unplug()
    room.passes(72)
    assert fate(room, command) == (end, 0)
    restores = HomeRestore.objects.values_list("command", "result")
    assert [*restores] == ([(command.pk, "lost")] if verb == Verb.CYCLE else [])


@pytest.mark.slow
@pytest.mark.parametrize("verb", [Verb.RESTART, Verb.POWEROFF])
def test_a_pc_that_does_not_go_down_is_heard_of_again(room: Hall, pc: PC, verb: Verb) -> None:
    pc.mood = Mood(power="stuck")
    command = ordered(room, verb)
    room.passes(60)
    assert state_of(pc) == READY
    command.refresh_from_db()
    if verb == Verb.RESTART:
        assert command.status == CommandStatus.FAILED
    else:  # it had said good-bye
        assert AuditEntry.objects.filter(action="command.doubted", subject_id=str(command.pk)).count() == 1
    room.order(Verb.CYCLE, [pc])
    room.passes(12)
    assert Command.objects.get(verb=Verb.CYCLE).status == CommandStatus.SUCCEEDED
