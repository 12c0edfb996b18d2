"""Power on: who is asked to send the packets, what proves it, and what is said where nobody woke."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client as Browser
from django.utils import timezone
from pytest_django.fixtures import Settings

from agents import evidence, freezing, schedule, scripts, sending, services, waking
from agents.models import BootSession, Cap, Command, CommandStatus, SessionStatus, Verb, Wake
from agents.power import relays
from fleet.models import Admission, AuditEntry, Client, ClientState
from fleet.signing import Signer
from tests.agents.boots import boot, make_release, plan_of, token_of
from tests.agents.restores import make_envelope
from tests.api import call
from tests.world import World, make_client

LAN = "10.20.0.0/24"
BOTH = "packets were sent by"


@pytest.fixture(autouse=True)
def lan(world: World, keys: Path, settings: Settings) -> None:
    """The server stands in the boot LAN, and what boots there has a version to boot."""
    settings.WAKE_BROADCAST = ["10.20.0.255"]
    make_release(world.gamer)


def off(world: World, number: int = 1, **fields: Any) -> Client:
    """A client that ran in the LAN once and is off now."""
    mac = f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"
    names = {"name": f"pc-{number}", "seat": f"A{number}", "network": LAN}
    return make_client(world.clubroom, mac, **(names | fields))


def awake(world: World, number: int, state: str = ClientState.READY, protocol: int = 2, **fields: Any) -> Client:
    """A client that runs, in the same LAN unless told."""
    client = off(world, number, **fields)
    boot(client)
    BootSession.objects.filter(client=client).update(protocol=protocol)
    Client.objects.filter(pk=client.pk).update(state=state)
    client.refresh_from_db()
    return client


def ordered(world: World, *clients: Client) -> list[Command]:
    order = services.order(Verb.WAKE, clients, "doors open", world.vera)
    return list(order.commands.filter(verb=Verb.WAKE).order_by("client__mac"))


def begin(*commands: Command) -> int:
    """What the sender does with them, within caps that it has asked."""
    return waking.send([command.pk for command in commands], Signer.load(settings.COMMAND_KEY, "command"))


def sent(world: World, *clients: Client) -> list[Command]:
    """The commands after the sender had them."""
    commands = ordered(world, *clients)
    begin(*commands)
    for command in commands:
        command.refresh_from_db()
    return commands


def relayed() -> list[Command]:
    return list(Command.objects.filter(verb=Verb.RELAY).order_by("queued_at", "client__mac"))


def done(relay: Command, status: CommandStatus = CommandStatus.SUCCEEDED) -> None:
    Command.objects.filter(pk=relay.pk).update(status=status)


def after(seconds: float) -> time_machine.travel:
    return time_machine.travel(timezone.now() + timedelta(seconds=seconds), tick=False)


def gateway_sent(command: Command) -> None:
    """What a gateway's waker notes."""
    Wake.objects.filter(pk=command.pk).update(dealt=1, sent_at=timezone.now())


# Who is asked


def test_the_boot_host_alone_is_asked_where_nobody_else_is_awake(world: World) -> None:
    [command] = sent(world, off(world))
    assert command.status == CommandStatus.SENT
    assert (command.wake.rounds, command.wake.dealt, command.wake.way) == (1, 0, "relays")
    assert not relayed()


def test_beside_the_boot_host_one_awake_client_of_the_lan_relays(world: World) -> None:
    target = off(world)
    near = awake(world, 2)
    awake(world, 3, network="10.30.0.0/24")
    awake(world, 4, protocol=1)
    make = make_client(world.school, "52:54:00:00:00:05", network=LAN, client_class=None)
    BootSession.objects.create(client=make, boot_id=make.pk, bearer_digest="x", status="open", protocol=2)
    [command] = sent(world, target)
    [relay] = relayed()
    assert (relay.client, relay.status, relay.order) == (near, CommandStatus.QUEUED, command.order)
    assert relay.args == {"macs": [{"mac": target.mac, "secure": ""}], "packets": 3}
    assert list(command.wake.relays.all()) == [relay]


def test_an_old_daemon_and_one_out_of_service_are_no_relays(world: World) -> None:
    awake(world, 2, protocol=1)
    retired = awake(world, 3)
    Client.objects.filter(pk=retired.pk).update(admission=Admission.RETIRED)
    sent(world, off(world))
    assert not relayed()


def test_without_a_boot_host_two_clients_relay_rather_such_that_nobody_uses(world: World, settings: Settings) -> None:
    settings.WAKE_BROADCAST = []
    idle = [awake(world, number) for number in (2, 5)]
    awake(world, 3, ClientState.IN_USE)
    busy = awake(world, 4)
    services.order(Verb.CYCLE, [busy], "next", world.vera)
    sent(world, off(world))
    assert {relay.client for relay in relayed()} == set(idle)


def test_where_there_is_no_boot_host_and_nobody_is_awake_it_fails_and_says_so(world: World, settings: Settings) -> None:
    settings.WAKE_BROADCAST = []
    awake(world, 3, network="10.30.0.0/24")
    commands = sent(world, off(world), off(world, 2, network=""))
    assert {command.status for command in commands} == {CommandStatus.FAILED}
    assert [command.reason for command in commands] == [
        f"nobody can wake it: the server has no boot host (FLEET_WAKE_BROADCAST is empty), and no PC is awake {where}"
        for where in ("in its network 10.20.0.0/24", "(its network is unknown)")
    ]
    assert not AuditEntry.objects.filter(action="commands.woken").exists()


def test_many_clients_of_a_lan_share_a_relay_as_many_as_its_command_takes(world: World) -> None:
    near = [awake(world, number) for number in (101, 102)]
    targets = [off(world, number) for number in range(1, 35)]
    sent(world, *targets)
    told = [[entry["mac"] for entry in relay.args["macs"]] for relay in relayed()]
    assert sorted(map(len, told)) == [2, 32]
    assert sorted(mac for macs in told for mac in macs) == [target.mac for target in targets]
    assert {relay.client for relay in relayed()} == set(near)


def test_while_all_who_could_relay_are_busy_it_waits(world: World, settings: Settings) -> None:
    settings.WAKE_BROADCAST = []
    awake(world, 101)
    commands = sent(world, *(off(world, number) for number in range(1, 35)))
    [first] = relayed()
    assert {command.status for command in commands} == {CommandStatus.SENT}
    assert sorted(Wake.objects.values_list("rounds", flat=True)) == [0] * 2 + [1] * 32
    with after(3):
        schedule.tick()
        assert relayed() == [first], "its relay is busy still"
        done(first)
    with after(6):
        schedule.tick()
        assert [len(relay.args["macs"]) for relay in relayed()] == [32, 2]


def test_an_order_that_a_relay_gets_this_very_moment_is_not_disturbed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = awake(world, 2)
    target = off(world)
    choose = relays._choose

    def and_then(free: list[Any], targets: Any) -> list[Any]:
        chosen = choose(free, targets)
        services.order(Verb.CYCLE, [near], "next", world.vera)
        return chosen

    monkeypatch.setattr(relays, "_choose", and_then)
    [command] = sent(world, target)
    assert not relayed()
    assert (command.status, command.wake.rounds) == (CommandStatus.SENT, 1), "the boot host is enough"


def test_it_is_written_down_before_anybody_hears_of_it(world: World) -> None:
    commands = sent(world, off(world), off(world, 2))
    entry = AuditEntry.objects.get(action="commands.woken")
    assert (entry.actor, entry.site, entry.subject_id) == ("sender", world.clubroom, str(commands[0].order_id))
    told = {(one["command"], one["client"], one["way"]) for one in entry.detail["commands"]}
    assert told == {(str(command.pk), str(command.client_id), "relays") for command in commands}


# What makes no sense


def test_a_client_that_is_on_is_left_alone(world: World) -> None:
    on, booting, gone = awake(world, 1), off(world, 2), awake(world, 3)
    plan_of(booting)
    BootSession.objects.filter(client=gone).update(status=SessionStatus.LOST)
    commands = sent(world, on, booting, gone)
    since = {row.client_id: f"{row.planned_at:%Y-%m-%d %H:%M}" for row in BootSession.objects.all()}
    assert [(command.status, command.reason) for command in commands] == [
        (CommandStatus.FAILED, f"is on already, since {since[on.pk]}"),
        (CommandStatus.FAILED, f"boots already, since {since[booting.pk]}"),
        (CommandStatus.SENT, ""),
    ]
    assert set(waking.on_already([on, booting, gone])) == {on.pk, booting.pk}


@pytest.mark.parametrize("admission", [one for one in Admission if one != Admission.IN_SERVICE])
def test_a_client_that_would_not_boot_is_not_woken(world: World, admission: Admission) -> None:
    [command] = sent(world, off(world, admission=admission))
    word = str(admission.label).lower()
    assert command.status == CommandStatus.FAILED
    assert command.reason == f"it is {word}, so it would not boot: take it into service first"


def test_what_is_past_its_time_or_taken_back_is_not_begun(world: World) -> None:
    late, back = ordered(world, off(world), off(world, 2))
    Command.objects.filter(pk=late.pk).update(expires_at=timezone.now())
    services.cancel(back, world.vera)
    assert begin(late, back) == 0
    late.refresh_from_db()
    back.refresh_from_db()
    assert (late.status, back.status) == (CommandStatus.EXPIRED, CommandStatus.CANCELLED)
    assert not Wake.objects.exists()


def test_sent_twice_it_is_begun_once(world: World) -> None:
    awake(world, 2)
    [command] = ordered(world, off(world))
    assert [begin(command) for _ in range(2)] == [1, 0]
    assert len(relayed()) == Wake.objects.count() == 1
    assert AuditEntry.objects.filter(action="commands.woken").count() == 1


# Again, and its end


def test_it_is_tried_again_twice_and_by_others(world: World) -> None:
    for number in (2, 3, 4, 5):
        awake(world, number)
    sent(world, off(world))
    used = []
    for rounds, seconds in ((1, 0), (1, 19), (2, 21), (2, 79), (3, 82), (3, 200)):
        with after(seconds):
            schedule.tick()
        assert Wake.objects.get().rounds == rounds, seconds
        for relay in Command.objects.filter(verb=Verb.RELAY, status=CommandStatus.QUEUED):
            used.append(relay.client)
            done(relay, CommandStatus.EXPIRED)
    assert len(used) == 3
    assert len(set(used)) == 3, "each round by another"


def test_who_asks_for_its_boot_script_needs_no_more_packets(world: World) -> None:
    near, target = awake(world, 2), off(world)
    sent(world, target)
    done(relayed()[0])
    token_of(target.mac)
    with after(21):
        schedule.tick()
    assert [relay.client for relay in relayed()] == [near]
    wake = Wake.objects.get()
    assert (wake.rounds, wake.next_at) == (1, None)


def test_a_new_session_proves_it(world: World) -> None:
    target = off(world)
    [command] = sent(world, target)
    plan = plan_of(target)
    command.refresh_from_db()
    assert (command.status, command.reason) == (CommandStatus.SUCCEEDED, f"booted: {plan['boot']}")
    assert command.result == {"boot": plan["boot"]}
    with after(400):
        schedule.tick()
    command.refresh_from_db()
    assert command.status == CommandStatus.SUCCEEDED


def test_a_boot_while_it_waits_to_be_sent_is_none_of_its_doing(world: World) -> None:
    target = off(world)
    [command] = ordered(world, target)
    plan_of(target)
    begin(command)
    command.refresh_from_db()
    assert command.status == CommandStatus.FAILED
    assert command.reason.startswith("boots already")


def nothing(_: Command) -> None: ...


def relay_sent(command: Command) -> None:
    [relay] = relayed()
    Command.objects.filter(pk=relay.pk).update(status=CommandStatus.SENT)
    session = BootSession.objects.get(client=relay.client)
    report = {"command": str(relay.pk), "state": "succeeded", "reason": "", "result": {"sent": 12}}
    assert evidence.take_report(session, report) == ""
    relay.refresh_from_db()
    assert (relay.status, relay.result) == (CommandStatus.SUCCEEDED, {"sent": 12})


def both(command: Command) -> None:
    gateway_sent(command)
    relay_sent(command)


def firmware_asks(command: Command) -> None:
    gateway_sent(command)
    scripts.client_script({"mac": command.client.mac})


@pytest.mark.parametrize(
    ("happens", "reason", "asleep"),
    [
        (nothing, "nobody sent its packets within 300 s: neither a gateway nor an awake PC has taken that on", False),
        (gateway_sent, f"did not wake within 300 s: {BOTH} the boot host", True),
        (relay_sent, f"did not wake within 300 s: {BOTH} A2 (pc-2)", True),
        (both, f"did not wake within 300 s: {BOTH} the boot host, A2 (pc-2)", True),
        (firmware_asks, "it woke, but opened no session within 300 s. ", False),
    ],
)
def test_what_is_not_proven_in_time_fails_with_what_is_known(
    world: World, happens: Callable[[Command], None], reason: str, asleep: bool
) -> None:
    awake(world, 2)
    [command] = sent(world, off(world))
    happens(command)
    with after(299):
        schedule.tick()
        command.refresh_from_db()
        assert command.status == CommandStatus.SENT
    with after(301):
        schedule.tick()
        command.refresh_from_db()
    assert (command.status, command.reason) == (CommandStatus.FAILED, reason.strip())
    assert Wake.objects.get(pk=command.pk).asleep is asleep


def test_one_that_was_only_silent_did_not_need_it(world: World) -> None:
    target = awake(world, 1)
    sessions = BootSession.objects.filter(client=target)
    sessions.update(status=SessionStatus.LOST)
    [command] = sent(world, target)
    schedule.tick()
    command.refresh_from_db()
    assert command.status == CommandStatus.SENT
    sessions.update(status=SessionStatus.OPEN)
    schedule.tick()
    command.refresh_from_db()
    assert (command.status, command.wake.asleep) == (CommandStatus.FAILED, False)
    assert command.reason == "it was on all the time: after a silence it was heard again"


def test_one_that_was_taken_back_is_tried_no_more(world: World) -> None:
    awake(world, 2)
    [command] = sent(world, off(world))
    relays_before = len(relayed())
    Command.objects.filter(order=command.order).update(status=CommandStatus.CANCELLED)
    with after(301):
        schedule.tick()
    command.refresh_from_db()
    assert (command.status, len(relayed())) == (CommandStatus.CANCELLED, relays_before)


def test_a_relay_that_is_away_for_later_rounds_ends_nothing(world: World, settings: Settings) -> None:
    settings.WAKE_BROADCAST = []
    near = awake(world, 2)
    [command] = sent(world, off(world))
    BootSession.objects.filter(client=near).update(status=SessionStatus.CLOSED)
    with after(21):
        schedule.tick()
    command.refresh_from_db()
    assert command.status == CommandStatus.SENT


def test_a_relay_that_boots_anew_has_failed(world: World) -> None:
    near = awake(world, 2)
    sent(world, off(world))
    [relay] = relayed()
    make_envelope(relay, BootSession.objects.get())
    Command.objects.filter(pk=relay.pk).update(status=CommandStatus.ACCEPTED)
    plan_of(near)
    relay.refresh_from_db()
    assert (relay.status, relay.reason) == (
        CommandStatus.FAILED,
        "the client booted anew before it said that it sent the packets",
    )


# SecureOn passwords

SECRET = "de:ad:be:ef:00:01"


def test_the_password_is_in_the_signed_bytes_and_nowhere_else(world: World) -> None:
    awake(world, 2)
    target = off(world, secure_on=SECRET)
    [command] = sent(world, target)
    [relay] = relayed()
    told = relays.permitted(relay.args)
    assert told == {"macs": [{"mac": target.mac, "secure": SECRET}], "packets": 3}
    relay.refresh_from_db()
    assert SECRET not in str([*Command.objects.values_list("args", "result", "reason")])
    assert SECRET not in str([*AuditEntry.objects.values_list("detail", "subject")])
    assert command.status == CommandStatus.SENT


def as_(person: User) -> Browser:
    browser = Browser()
    browser.force_login(person)
    return browser


def test_only_who_may_edit_a_client_sees_its_password(world: World) -> None:
    target = off(world, secure_on=SECRET)
    page = f"/admin/fleet/client/{target.pk}/change/"
    assert SECRET in as_(world.vera).get(page).text
    world.vera.memberships.update(role="viewer")
    shown = as_(world.vera).get(page)
    assert shown.status_code == 200
    assert SECRET not in shown.text
    assert "SecureOn" not in shown.text
    for path in (f"clients/{target.pk}/", "clients/"):
        assert SECRET not in str(call(world.vera, path))


def test_that_it_was_changed_is_written_down_and_not_to_what(world: World) -> None:
    target = off(world, secure_on=SECRET)
    status, answer = call(world.vera, f"clients/{target.pk}/", {"secure_on": "00:11:22:33:44:55"}, "patch")
    assert (status, "secure_on" in answer) == (200, False)
    target.refresh_from_db()
    assert target.secure_on == "00:11:22:33:44:55"
    entry = AuditEntry.objects.get(action="client.edited")
    assert (entry.detail["was"], entry.detail["now"]) == ({"secure_on": "(one)"}, {"secure_on": "(one)"})
    form = {"seat": "A1", "name": "pc-1", "admission": "in-service", "secure_on": SECRET}
    assert as_(world.vera).post(f"/admin/fleet/client/{target.pk}/change/", form).status_code == 302
    target.refresh_from_db()
    assert target.secure_on == SECRET
    assert not [
        entry for entry in AuditEntry.objects.all() if SECRET in str(entry.detail) or "00:11" in str(entry.detail)
    ]
    world.vera.memberships.update(role="viewer")
    assert call(world.vera, f"clients/{target.pk}/", {"secure_on": ""}, "patch")[0] == 403
    assert call(world.vera, f"clients/{target.pk}/", {"secure_on": "xyz"}, "patch")[0] in (400, 403)


# Caps and freezes


def test_caps_let_so_many_be_under_way_and_no_more(world: World) -> None:
    Cap.objects.create(site=world.clubroom, verb=Verb.WAKE, at_once=2)
    clients = [off(world, number) for number in (1, 2, 3)]
    order = services.order(Verb.WAKE, clients, "doors open", world.vera)
    sending.send(order.commands.all())
    assert order.commands.filter(status=CommandStatus.SENT).count() == Wake.objects.count() == 2
    plan_of(Wake.objects.all()[0].command.client)
    sending.send(order.commands.all())
    assert Wake.objects.count() == 3


def test_while_a_freeze_stands_nothing_is_begun(world: World) -> None:
    for number in (2, 3):
        awake(world, number)
    sent(world, off(world))
    freeze = freezing.freeze(world.clubroom, "fire alarm", world.otto)
    late = ordered(world, off(world, 4))[0]
    sending.send(Command.objects.all())
    late.refresh_from_db()
    assert late.status == CommandStatus.QUEUED
    with after(21):
        schedule.tick()
        assert Wake.objects.get().rounds == 1
        freezing.lift(freeze, world.otto)
        schedule.tick()
    assert Wake.objects.get().rounds == 2
