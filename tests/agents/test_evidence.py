"""How commands end: every report in every status, a new boot, silence; and that each cycle leaves one restore in the chain."""

import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from agents import attendance, evidence
from agents.daemon import protocol
from agents.models import BootSession, Command, CommandStatus, HomeRestore, RestoreResult, SessionStatus, Verb
from fleet import audit
from fleet.models import AuditEntry, Client
from tests.agents.boots import make_release, plan_of
from tests.agents.restores import make_command, make_session
from tests.world import World, make_client

GOOD = {
    "phases_ms": {"kill": 40, "unmount": 5, "restore": 60, "verify": 80, "login": 300, "total": 485},
    "template": "ef" * 32,
    "expected": "ab" * 32,
    "before": "cd" * 32,
    "after": "ab" * 32,
    "files": 12,
    "bytes": 40_960,
    "killed": 9,
    "session": "3",
}
QUEUED, SENT, ACCEPTED, SUCCEEDED, FAILED, REFUSED, EXPIRED, CANCELLED, LOST = CommandStatus


@pytest.fixture
def client(world: World) -> Client:
    return make_client(world.clubroom, client_class=world.gamer)


def command_in(world: World, client: Client, status: CommandStatus, verb: Verb = Verb.CYCLE) -> Command:
    command = make_command(world, client, verb)
    Command.objects.filter(pk=command.pk).update(status=status)
    command.refresh_from_db()
    return command


def tell(command: Command, state: str, reason: str = "", result: object = None) -> str:
    assert command.envelope.session is not None
    report = protocol.report(str(command.pk), state, 0, reason, GOOD if result is None else result)  # type: ignore[arg-type]
    why = evidence.take_report(command.envelope.session, report)
    command.refresh_from_db()
    return why


# What becomes of a cycle in a status (row) by a report (column), and "!" where the report is rejected.
FATES = {
    QUEUED: dict.fromkeys(protocol.REPORTS, "queued!"),
    SENT: {"accepted": "accepted", "succeeded": "succeeded", "failed": "failed", "refused": "refused"},
    ACCEPTED: {"accepted": "accepted", "succeeded": "succeeded", "failed": "failed", "refused": "refused"},
    **{
        status: {"accepted": f"{status}!", "succeeded": status, "failed": status, "refused": status}
        for status in (SUCCEEDED, FAILED, REFUSED, EXPIRED, CANCELLED, LOST)
    },
}


@pytest.mark.parametrize(("status", "state"), [(status, state) for status in FATES for state in protocol.REPORTS])
def test_each_report_in_each_status(world: World, client: Client, status: CommandStatus, state: str) -> None:
    command = command_in(world, client, status)
    for _ in range(2):  # told twice it is the same
        why = tell(command, state)
        fate = FATES[status][state]
        assert command.status == fate.rstrip("!")
        assert bool(why) == fate.endswith("!")
        ended_now = status in Command.OPEN and command.status not in Command.OPEN
        assert HomeRestore.objects.count() == ended_now
    assert [*audit.verify()] == []


def test_a_report_for_another_clients_command_is_rejected_written_down_and_touches_nothing(
    world: World, client: Client
) -> None:
    command = command_in(world, client, ACCEPTED)
    stranger = make_session(make_client(world.clubroom, "52:54:00:00:00:02"))
    report = protocol.report(str(command.pk), "succeeded", 0, "", GOOD)
    assert evidence.take_report(stranger, report) == "not a command of this client"
    command.refresh_from_db()
    assert command.status == ACCEPTED
    entry = AuditEntry.objects.get(action="report.rejected")
    assert (entry.subject_id, entry.detail) == (str(stranger.client_id), {"command": str(command.pk)})


def test_a_report_for_a_command_that_never_was_is_rejected(client: Client) -> None:
    session = make_session(client)
    report = protocol.report(str(uuid.uuid4()), "accepted", 0, "", {})
    assert evidence.take_report(session, report) == "not a command of this client"


@pytest.mark.parametrize("verb", [Verb.RESTART, Verb.POWEROFF])
def test_a_client_cannot_prove_by_its_word_what_a_boot_or_silence_proves(
    world: World, client: Client, verb: Verb
) -> None:
    command = command_in(world, client, ACCEPTED, verb)
    assert "proven" in tell(command, "succeeded", result={})
    assert command.status == ACCEPTED


def test_a_cycle_with_the_right_digest_is_a_restore_of_all_that_was_measured(world: World, client: Client) -> None:
    command = command_in(world, client, ACCEPTED)
    tell(command, "succeeded")
    restore = HomeRestore.objects.get(command=command)
    assert (restore.result, restore.asked_by, restore.reason) == (RestoreResult.RESTORED, "vera", "next player")
    assert (restore.client_name, restore.class_name) == (str(client), "Gamer")
    for name in ("template", "expected", "before", "after", "files", "bytes", "killed", "phases_ms"):
        assert getattr(restore, name) == GOOD[name]
    assert AuditEntry.objects.get(action="restore").subject_id == str(restore.pk)


@pytest.mark.parametrize("after", ["cd" * 32, "", None, "AB" * 32, ["ab" * 32], 7])
def test_a_cycle_whose_digest_is_wrong_or_missing_failed(world: World, client: Client, after: object) -> None:
    command = command_in(world, client, ACCEPTED)
    tell(command, "succeeded", result={**GOOD, "after": after})
    assert (command.status, command.reason) == (FAILED, "the restored home has another digest than its template")
    assert HomeRestore.objects.get().result == RestoreResult.FAILED


@pytest.mark.parametrize(("state", "reason"), [("failed", "mount: no such device"), ("refused", "busy")])
def test_the_clients_reason_stands_in_the_restore(world: World, client: Client, state: str, reason: str) -> None:
    command = command_in(world, client, ACCEPTED)
    tell(command, state, reason, {})
    restore = HomeRestore.objects.get()
    assert (restore.explanation, restore.result) == (reason, command.status)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("files", -1),
        ("files", True),
        ("bytes", 1 << 53),
        ("bytes", "12"),
        ("killed", 1.5),
        ("before", "x" * 64),
        ("template", "ab" * 33),
        ("session", "../../etc"),
        ("session", 3),
        ("phases_ms", []),
        ("phases_ms", {"kill": -1}),
        ("phases_ms", {"kill": "5", "other": 5}),
        ("expected", {}),
        ("nonsense", "x"),
    ],
)
def test_rubbish_in_a_result_is_left_out_and_the_rest_kept(field: str, value: object) -> None:
    clean = evidence.clean_result({**GOOD, field: value})
    assert clean.get(field, {}) == {}
    assert {k: v for k, v in clean.items() if k != field} == {k: v for k, v in GOOD.items() if k != field}


NEW_BOOT = {
    (SENT, Verb.CYCLE): (EXPIRED, "booted anew before it accepted"),
    (SENT, Verb.RESTART): (EXPIRED, "booted anew before it accepted"),
    (ACCEPTED, Verb.RESTART): (SUCCEEDED, "booted anew: "),
    (ACCEPTED, Verb.POWEROFF): (SUCCEEDED, "booted anew: "),
    (ACCEPTED, Verb.CYCLE): (FAILED, "in the middle of the cycle"),
    (QUEUED, Verb.RESTART): (QUEUED, ""),
}


@pytest.mark.parametrize(("before", "after"), NEW_BOOT.items(), ids=lambda value: "-".join(value))
def test_a_new_boot_tells_what_became_of_the_commands_of_the_last(
    world: World,
    client: Client,
    keys: Path,
    before: tuple[CommandStatus, Verb],
    after: tuple[CommandStatus, str],
) -> None:
    make_release(world.gamer)
    command = command_in(world, client, *before)
    plan_of(client)
    command.refresh_from_db()
    assert command.status == after[0]
    assert after[1] in command.reason
    assert HomeRestore.objects.count() == (before == (ACCEPTED, Verb.CYCLE))
    assert [*audit.verify()] == []


def test_a_new_boot_proves_no_message(world: World, client: Client, keys: Path) -> None:
    make_release(world.gamer)
    command = command_in(world, client, ACCEPTED, Verb.RESTART)
    Command.objects.update(verb=Verb.MESSAGE)
    plan_of(client)
    command.refresh_from_db()
    assert (command.status, command.result) == (FAILED, {})
    assert command.reason == "the client booted anew before it said that it showed the message"


def test_the_same_boot_asking_twice_proves_nothing(world: World, client: Client) -> None:
    command = command_in(world, client, ACCEPTED, Verb.RESTART)
    assert command.envelope.session is not None
    evidence.new_boots([evidence.Boot(client.pk, command.envelope.session.boot_id)])
    command.refresh_from_db()
    assert command.status == ACCEPTED


@pytest.mark.parametrize(
    ("status", "verb", "proved"),
    [
        (ACCEPTED, Verb.POWEROFF, True),
        (SENT, Verb.POWEROFF, False),
        (ACCEPTED, Verb.RESTART, False),
        (ACCEPTED, Verb.CYCLE, False),
    ],
)
def test_silence_proves_an_accepted_power_down_and_nothing_else(
    world: World, client: Client, status: CommandStatus, verb: Verb, proved: bool
) -> None:
    command = command_in(world, client, status, verb)
    assert command.envelope.session is not None
    assert evidence.silence(command.envelope.session, "silent") is proved
    command.refresh_from_db()
    assert command.status == (SUCCEEDED if proved else status)


def test_a_report_that_comes_with_a_new_boot_changes_nothing_that_ended(
    world: World, client: Client, keys: Path
) -> None:
    make_release(world.gamer)
    command = command_in(world, client, ACCEPTED)
    session = BootSession.objects.get(pk=plan_of(client)["session"])
    attendance.says_state(session.pk, "ready")
    assert evidence.take_report(session, protocol.report(str(command.pk), "succeeded", 0, "", GOOD)) == ""
    command.refresh_from_db()
    assert command.status == FAILED
    assert HomeRestore.objects.get().result == RestoreResult.FAILED


def test_a_restore_changed_behind_the_back_of_the_log_is_found(world: World, client: Client) -> None:
    command = command_in(world, client, ACCEPTED)
    tell(command, "succeeded")
    entry = AuditEntry.objects.get(action="restore")
    restore = HomeRestore.objects.get()
    restore.killed = 0
    assert audit._sha256(restore.sealed()) != entry.subject_seal
    assert re.fullmatch(r"[0-9a-f]{64}", entry.subject_seal)


def test_a_command_ends_once(world: World, client: Client) -> None:
    command: Any = command_in(world, client, ACCEPTED)
    stale = Command.objects.get(pk=command.pk)
    evidence.end(command, LOST, "no proof")
    with pytest.raises(Exception, match="cannot become succeeded: it is lost"):
        evidence.end(stale, SUCCEEDED)
    assert HomeRestore.objects.get().result == RestoreResult.LOST
    assert command.finished_at <= timezone.now()
    assert BootSession.objects.get().status == SessionStatus.OPEN
