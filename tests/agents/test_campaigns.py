"""Campaigns as people ask for them: planned, looked at, started, approved, paused, stopped; by whom, and what is refused."""

import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from agents import campaigning, campaigns, evidence, freezing, services, tasks
from agents.models import (
    BootSession,
    Campaign,
    CampaignStatus,
    Cap,
    Command,
    CommandStatus,
    Envelope,
    Freeze,
    Order,
    Target,
    TargetStatus,
    Verb,
    WaveBy,
)
from agents.previewing import preview
from agents.selecting import MOST_CLIENTS, Selection
from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import AuditEntry, Client
from fleet.roles import Role
from fleet.transitions import move
from tests.agents.halls import accepts, ends, fates, leaves, make_hall, ordered, planned, reason_of, started, stepped
from tests.services import celery_sends_to
from tests.trust.forging import forget_signed
from tests.world import World, make_client, make_world, member, person


@pytest.fixture
def hall(world: World, begun_by_the_worker: None) -> dict[str, Client]:
    return make_hall(world.clubroom, "A1", "A2", "A3", "B1")


def in_s(seconds: float) -> Any:
    return timezone.now() + timedelta(seconds=seconds)


def nothing_was_written() -> bool:
    return not any(model.objects.exists() for model in (Order, Campaign, Target, Command, AuditEntry))


# --- planned -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verb": "explode"}, "'explode' is not an order."),
        ({"verb": "wake-relay"}, "'wake-relay' is not an order."),
        ({"verb": Verb.CAPTURE, "actor": "otto"}, "A home is captured of one client. Give that as an order."),
        ({"reason": " "}, "An order needs a reason."),
        ({"args": {"seconds": 5}}, "Restart takes no seconds."),
        ({"selection": Selection(rows=("Z",))}, "Club room has no row Z."),
        ({"wave": 3}, "A campaign has no wave."),
        ({"starts_at": -60}, "It cannot start then."),
        ({"starts_at": 32 * 86400}, "It cannot start then. Choose a time from now on, within 31 days"),
        ({"expires_at": -1}, "It cannot expire then."),
        ({"expires_at": 8 * 86400}, "It cannot expire then. Choose a time after it starts, and within 7 days of it."),
        ({"starts_at": 600, "expires_at": 500}, "It cannot expire then."),
        ({"wait_until": 60}, "Those offline are not waited for."),
        ({"offline": "wait", "wait_until": 3700}, "Those offline cannot be waited for until then."),
        ({"offline": "wait", "wait_until": -1}, "Those offline cannot be waited for until then."),
        ({"offline": "kick"}, "offline: Value 'kick' is not a valid choice."),
        ({"spread_s": 3601}, "A wave that is spread over 3601 s lasts longer than the campaign."),
        ({"spread_s": -1}, "spread_s: "),
        ({"share": 50}, "A share is for waves by share."),
        ({"wave_by": "share", "share": 0}, "share: "),
        ({"wave_by": "share", "share": 101}, "share: "),
        ({"canary": MOST_CLIENTS + 1}, f"A canary of {MOST_CLIENTS + 1}?"),
        ({"success_percent": 90}, "There is one wave, so nothing comes after the successes that are asked for."),
        ({"canary": 2, "success_percent": 101}, "success_percent: "),
        (
            {"canary": 2, "success_percent": 50, "judged_after": 3},
            "A canary of 2 is never judged when 3 must have ended",
        ),
        ({"canary": 2, "failed_percent": 50, "judged_after": 3}, "A canary of 2 is never judged"),
        ({"judged_after": 0}, "judged_after: "),
        ({"on_failure": "cry"}, "on_failure: "),
    ],
)
def test_what_makes_no_campaign_is_said_and_writes_nothing(world: World, changes: dict[str, Any], message: str) -> None:
    Client.objects.filter(site=world.clubroom).delete()
    make_client(world.clubroom)
    times = {name: in_s(value) for name, value in changes.items() if name.endswith(("_at", "_until"))}
    actor = {"actor": getattr(world, changes["actor"])} if "actor" in changes else {}
    with pytest.raises(OperatorError) as caught:
        planned(world, **(changes | times | actor))
    assert message in str(caught.value)
    assert nothing_was_written()


def test_at_the_limits_it_is_taken(world: World, hall: dict[str, Client]) -> None:
    edge = planned(
        world, spread_s=3600, canary=2, judged_after=2, success_percent=100, failed_percent=0, wave_by="share", share=1
    )
    assert (edge.expires_at - timezone.now()).total_seconds() == pytest.approx(3600, abs=5)
    planned(world, starts_at=in_s(31 * 86400 - 60), expires_at=in_s(38 * 86400 - 120))
    until = in_s(3000)
    planned(world, offline="wait", wait_until=until, expires_at=until)
    assert nothing_was_written()


def test_another_site_a_viewer_and_a_stranger_may_not(world: World, hall: dict[str, Client]) -> None:
    viewer = person("viktor")
    member(viewer, world.clubroom, Role.VIEWER)
    for actor in (world.mallory, viewer, AnonymousUser()):
        with pytest.raises(Forbidden, match="You may not order that at Club room"):
            planned(world, actor=actor)
    ready = planned(world)
    with pytest.raises(Forbidden):
        campaigns.start(ready, world.mallory)
    assert nothing_was_written()


def test_to_pass_over_a_hold_takes_an_organiser(world: World, hall: dict[str, Client]) -> None:
    with pytest.raises(Forbidden, match=r"You may not pass over a local hold at Club room\. Ask an organiser"):
        planned(world, force=True)
    assert planned(world, force=True, actor=world.otto).order.force


# --- looked at ---------------------------------------------------------------------------------------------------


def test_a_preview_tells_who_when_and_what_stands_against_it_and_writes_nothing(
    world: World, hall: dict[str, Client]
) -> None:
    leaves(hall["A2"])
    Client.objects.filter(pk=hall["A3"].pk).update(state="in-use", hold_reason="match running", hold_until=in_s(600))
    services.order(Verb.CYCLE, [hall["B1"]], "x", world.vera)
    Freeze.objects.create(site=world.clubroom, reason="smoke in hall 2")
    before = Order.objects.count(), AuditEntry.objects.count()
    seen = preview(planned(world, wave_by="row"))
    assert (seen.total, seen.reached, seen.needs_approval) == (4, 3, False)
    assert seen.states == (("off", "Off", 1), ("ready", "Ready", 2), ("in-use", "In use", 1))
    assert (seen.offline, seen.busy, seen.in_use) == (("A2",), ("B1 (cycle)",), ("A3",))
    assert seen.held[0].startswith("A3 (match running until ")
    assert [(wave.number, wave.size, wave.names) for wave in seen.waves] == [
        (1, 3, ("A1", "A2", "A3")),
        (2, 1, ("B1",)),
    ]
    assert seen.warnings == (
        "Nothing is signed at present: smoke in hall 2.",
        "1 PC with a local hold will refuse.",
        "1 PC is left out unless it connects in time.",
    )
    assert (Order.objects.count(), AuditEntry.objects.count()) == before
    assert not Campaign.objects.exists()
    assert not Target.objects.exists()


def test_a_preview_says_how_long_caps_and_spread_make_it_take(world: World, hall: dict[str, Client]) -> None:
    assert preview(planned(world)).takes_s == 0
    assert preview(planned(world, spread_s=30, wave_by="row")).takes_s == 60
    assert preview(planned(world, args={"warn_s": 60})).takes_s == 60
    Cap.objects.create(site=world.clubroom, verb=Verb.RESTART, per_minute=2)
    seen = preview(planned(world, expires_at=in_s(30)))
    assert seen.takes_s == 60
    assert "It expires before all of them have had their turn" in seen.warnings[0]
    fast = preview(planned(world, beyond_cap=True))
    assert (fast.takes_s, fast.needs_approval) == (0, True)


def test_a_preview_of_waking_counts_those_that_are_off(world: World, hall: dict[str, Client]) -> None:
    leaves(hall["A2"])
    seen = preview(planned(world, verb=Verb.WAKE))
    assert (seen.reached, seen.warnings) == (1, ("3 PCs are left out: on already.",))


def test_a_preview_costs_as_much_for_many_as_for_few(world: World, hall: dict[str, Client]) -> None:
    def queries() -> int:
        campaign = planned(world, wave_by="row")
        with CaptureQueriesContext(connection) as asked:
            preview(campaign)
        return len(asked)

    few = queries()
    make_hall(world.clubroom, *(f"C{number}" for number in range(20)))
    assert queries() == few <= 4


# --- started -----------------------------------------------------------------------------------------------------


def test_it_is_written_down_who_ordered_what_of_whom_and_how(world: World, hall: dict[str, Client]) -> None:
    campaign = campaigns.start(
        planned(world, selection=Selection(rows=("A",)), args={"warn_s": 60}, canary=1, success_percent=100), world.vera
    )
    order = campaign.order
    assert (order.verb, order.ordered_by, order.args, order.site) == (
        "restart",
        world.vera,
        {"warn_s": 60},
        world.clubroom,
    )
    assert (campaign.status, campaign.selection) == (CampaignStatus.RUNNING, {"rows": ["A"]})
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.actor, entry.subject_id) == ("campaign.ordered", "vera", str(campaign.pk))
    assert entry.detail == {
        "verb": "restart",
        "reason": "new version",
        "args": {"warn_s": 60},
        "selection": {"rows": ["A"]},
        "clients": 3,
        "how": {"canary": 1, "success_percent": 100, "expires_at": campaign.expires_at.isoformat()},
    }
    assert not Target.objects.exists(), "whom it reaches is decided when it starts, by the worker"


def test_one_that_fits_nobody_is_refused_unless_it_starts_later(world: World, hall: dict[str, Client]) -> None:
    nobody = Selection(states=("lost",))
    with pytest.raises(OperatorError, match=r"No PC of Club room is that: state lost\. Select others\."):
        campaigns.start(planned(world, selection=nobody), world.vera)
    assert nothing_was_written()
    assert campaigns.start(planned(world, selection=nobody, starts_at=in_s(60)), world.vera).status == "scheduled"


def test_more_clients_than_one_campaign_takes_are_refused(
    world: World, hall: dict[str, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaigns, "MOST_CLIENTS", 3)
    with pytest.raises(OperatorError, match=r"4 clients are more than one campaign takes\. Select 3 or fewer\."):
        campaigns.start(planned(world), world.vera)
    campaigns.start(planned(world, selection=Selection(rows=("A",))), world.vera)


def test_the_worker_is_told_after_the_commit(
    world: World, hall: dict[str, Client], django_capture_on_commit_callbacks: Callable[..., object]
) -> None:
    with django_capture_on_commit_callbacks() as callbacks:  # type: ignore[attr-defined]
        campaigns.start(planned(world), world.vera)
    assert sum(getattr(one, "__module__", "") == "fleet.queue" for one in callbacks) == 1


def test_what_is_due_at_once_is_committed_with_the_order(
    world: World, django_capture_on_commit_callbacks: Callable[..., Any]
) -> None:
    make_hall(world.clubroom, "A1", "A2", "A3", "B1")
    with django_capture_on_commit_callbacks() as callbacks:
        campaign = campaigns.start(planned(world, wave_by=WaveBy.ROW), world.vera)
    assert ordered(campaign) == ["A1", "A2", "A3"]
    sent = [one for one in callbacks if getattr(one, "__module__", "") == "fleet.queue"]
    assert len(sent) == 2, "the sender is told of them, the worker of the rest"
    later = campaigns.start(planned(world, starts_at=in_s(3600)), world.vera)
    assert not Target.objects.filter(campaign=later).exists()


def test_where_all_are_ordered_at_once_the_worker_has_nothing_to_do_yet(
    world: World, django_capture_on_commit_callbacks: Callable[..., Any]
) -> None:
    make_hall(world.clubroom, "A1", "A2")
    with django_capture_on_commit_callbacks() as callbacks:
        campaign = campaigns.start(planned(world), world.vera)
    assert ordered(campaign) == ["A1", "A2"]
    assert sum(getattr(one, "__module__", "") == "fleet.queue" for one in callbacks) == 1, "the sender is told"


# --- approved ----------------------------------------------------------------------------------------------------


def test_beyond_the_cap_it_awaits_another_organiser(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world, beyond_cap=True, actor=world.otto)
    assert campaign.status == CampaignStatus.AWAITING
    with pytest.raises(Forbidden, match="Nobody approves their own order"):
        campaigns.approve(campaign, world.otto)
    for actor in (world.vera, world.mallory):
        with pytest.raises(Forbidden):
            campaigns.approve(campaign, actor)
    oda = person("oda")
    member(oda, world.clubroom, Role.ORGANISER)
    campaigns.approve(campaign, oda)
    assert (stepped(campaign).status, campaign.order.approved_by) == (CampaignStatus.RUNNING, oda)
    assert AuditEntry.objects.get(action="order.approved").actor == "oda"
    with pytest.raises(WrongState):
        campaigns.approve(campaign, oda)


def test_approved_before_its_time_it_is_scheduled(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world, beyond_cap=True, starts_at=in_s(60))
    with pytest.raises(WrongState, match="cannot be resumed: it is awaiting approval"):
        campaigns.resume(campaign, world.otto)
    campaigns.approve(campaign, world.otto)
    assert stepped(campaign).status == CampaignStatus.SCHEDULED


def test_what_needs_no_approval_gets_none(world: World, hall: dict[str, Client]) -> None:
    with pytest.raises(WrongState, match="That order awaits no approval"):
        campaigns.approve(started(world), world.otto)


# --- paused and resumed --------------------------------------------------------------------------------------------


def test_paused_nothing_more_is_ordered_and_what_is_on_its_way_ends(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world, wave_by="row")
    campaigns.pause(campaign, world.otto)
    assert (campaign.status, campaign.outcome) == (CampaignStatus.PAUSED, "paused by otto")
    ends(CommandStatus.SUCCEEDED, hall["A1"], hall["A2"], hall["A3"])
    stepped(campaign)
    assert Counter(fates(campaign).values()) == {"succeeded": 3, "waiting": 1}
    campaigns.resume(campaign, world.vera)
    assert (campaign.status, campaign.outcome, campaign.paused_at) == (CampaignStatus.RUNNING, "", None)
    assert ordered(stepped(campaign)) == ["B1"]
    actions = AuditEntry.objects.filter(action__in=["campaign.paused", "campaign.resumed"]).order_by("sequence")
    assert [(entry.action, entry.actor) for entry in actions] == [
        ("campaign.paused", "otto"),
        ("campaign.resumed", "vera"),
    ]


def test_one_whose_targets_have_all_ended_is_done_although_it_is_paused(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world)
    campaigns.pause(campaign, world.vera)
    ends(CommandStatus.SUCCEEDED, *hall.values())
    assert stepped(campaign).status == CampaignStatus.DONE


def test_what_cannot_be_paused_or_resumed_is_said(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world, starts_at=in_s(60))
    with pytest.raises(WrongState, match="cannot become paused: it is scheduled"):
        campaigns.pause(campaign, world.vera)
    with pytest.raises(WrongState, match="cannot be resumed: it is scheduled"):
        campaigns.resume(campaign, world.vera)
    campaign.refresh_from_db()
    running = started(world, selection=Selection(rows=("B",)))
    campaigns.pause(running, world.vera)
    with pytest.raises(WrongState):
        campaigns.pause(running, world.vera)
    for act in (campaigns.pause, campaigns.resume, campaigns.stop):
        with pytest.raises(Forbidden):
            act(running, world.mallory)
    assert campaign.status == CampaignStatus.SCHEDULED


# --- stopped -----------------------------------------------------------------------------------------------------


def test_a_stop_reaches_all_that_have_not_accepted_in_the_request_itself(world: World, hall: dict[str, Client]) -> None:
    """Waiting, queued and sent: no worker is needed for it."""
    Cap.objects.create(site=world.clubroom, verb=Verb.RESTART, at_once=3)
    campaign = started(world)
    assert ordered(campaign) == ["A1", "A2", "A3"]
    accepts(hall["A1"])
    Command.objects.filter(client=hall["A2"]).update(status=CommandStatus.SENT)
    assert campaigns.stop(campaign, world.otto) == 2
    assert fates(campaign) == {"A1": "ordered", "A2": "cancelled", "A3": "cancelled", "B1": "cancelled"}
    assert {reason_of(campaign, hall[seat]) for seat in ("A2", "A3", "B1")} == {"stopped by otto"}
    assert Counter(Command.objects.values_list("status", flat=True)) == {"accepted": 1, "cancelled": 2}
    assert (campaign.status, campaign.outcome, campaign.ended_at) == (CampaignStatus.STOPPED, "stopped by otto", None)
    entry = AuditEntry.objects.get(action="campaign.stopped")
    assert (entry.actor, entry.detail["why"], entry.detail["ordered"], entry.detail["waiting"]) == (
        "otto",
        "stopped by otto",
        3,
        1,
    )
    ends(CommandStatus.SUCCEEDED, hall["A1"])
    assert stepped(campaign).ended_at is not None
    assert fates(campaign)["A1"] == "succeeded"
    with pytest.raises(WrongState, match="cannot become stopped: it is stopped"):
        campaigns.stop(campaign, world.otto)
    with pytest.raises(WrongState):
        campaigns.resume(campaign, world.otto)


def test_what_was_stopped_is_signed_no_more_and_its_acceptance_is_rejected(
    world: World, hall: dict[str, Client], keys: Any
) -> None:
    campaign = started(world)
    tasks.send_order(str(campaign.pk))
    command = Command.objects.get(client=hall["A1"])
    forget_signed(Command.objects.get(client=hall["A2"]))
    campaigns.stop(campaign, world.vera)
    tasks.send_order(str(campaign.pk))
    tasks.send_due()
    assert set(Command.objects.values_list("status", flat=True)) == {"cancelled"}
    assert not Envelope.objects.filter(command__client=hall["A2"]).exists()
    session = BootSession.objects.get(client=hall["A1"])
    accepted = {"command": str(command.pk), "state": "accepted", "reason": "", "at_ms": 0, "result": {}}
    assert evidence.take_report(session, accepted) == "the command is cancelled"


@pytest.mark.parametrize("how", [{"beyond_cap": True}, {"starts_at": 60}, {}])
def test_one_that_has_not_begun_is_stopped_too(world: World, hall: dict[str, Client], how: dict[str, Any]) -> None:
    if seconds := how.get("starts_at"):
        how = {"starts_at": in_s(seconds)}
    campaign = campaigns.start(planned(world, **how), world.vera)
    assert campaigns.stop(campaign, world.vera) == 0
    assert (campaign.status, campaign.ended_at is None) == (CampaignStatus.STOPPED, False)
    stepped(campaign)
    assert not Target.objects.exists()


def test_a_paused_one_is_stopped(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world)
    campaigns.pause(campaign, world.vera)
    assert campaigns.stop(campaign, world.vera) == 4
    assert set(fates(campaign).values()) == {"cancelled"}


def test_what_was_being_signed_while_it_was_stopped_is_called_back_by_the_worker(
    world: World, hall: dict[str, Client]
) -> None:
    """As when the web process dies between its two transactions, or the sender holds a row all the time."""
    campaign = started(world)
    move(campaign, CampaignStatus.STOPPED, outcome="stopped by vera")
    Target.objects.filter(client=hall["B1"]).update(status=TargetStatus.WAITING, command=None)
    stepped(campaign)
    assert set(Command.objects.values_list("status", flat=True)) == {"cancelled"}
    assert set(fates(campaign).values()) == {"cancelled"}
    assert campaign.ended_at is not None


def test_an_order_that_is_a_campaign_is_stopped_as_one(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world)
    with pytest.raises(WrongState, match=r"That is a campaign, which would go on\. Stop the campaign\."):
        services.cancel_order(campaign.order, world.vera)
    services.cancel(Command.objects.get(client=hall["A1"]), world.vera)
    stepped(campaign)
    assert (fates(campaign)["A1"], reason_of(campaign, hall["A1"])) == ("cancelled", "cancelled by vera")


def test_while_clients_accept_a_stop_leaves_nobody_between(transactional_db: None) -> None:
    """Each command is either accepted or cancelled, and nobody waits for the other for ever."""
    with celery_sends_to("redis://127.0.0.1:1/0"):
        world = make_world()
        hall = make_hall(world.clubroom, *(f"A{number}" for number in range(1, 61)))
        campaign = started(world)
        Command.objects.update(status=CommandStatus.SENT)
        sessions = {session.client_id: session for session in BootSession.objects.all()}
        reports = [
            (sessions[command.client_id], {"command": str(command.pk), "state": "accepted", "reason": "", "result": {}})
            for command in Command.objects.order_by("pk")
        ]
        start, answers, faults = threading.Barrier(2), list[str](), list[Exception]()

        def gateway() -> None:
            """As it does: many reports in one transaction."""
            try:
                start.wait()
                for first in range(0, 60, 10):
                    with transaction.atomic():
                        answers.extend(evidence.take_report(*report) for report in reports[first : first + 10])
            except Exception as error:
                faults.append(error)
            finally:
                connection.close()

        thread = threading.Thread(target=gateway)
        thread.start()
        start.wait()
        campaigns.stop(campaign, world.vera)
        thread.join()
        assert faults == []
        stepped(campaign)
        counts = Counter(Command.objects.values_list("status", flat=True))
        assert counts["accepted"] == answers.count("")
        assert counts["accepted"] + counts["cancelled"] == len(hall)
        assert Counter(fates(campaign).values()) == {
            name: number
            for name, number in (("ordered", counts["accepted"]), ("cancelled", counts["cancelled"]))
            if number
        }


# --- what the database holds ---------------------------------------------------------------------------------------


def test_a_target_is_once_in_a_campaign_and_ordered_only_with_a_command(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world, starts_at=in_s(60))
    Target.objects.create(campaign=campaign, client=hall["A1"], wave=1, place=0)
    with pytest.raises(IntegrityError), transaction.atomic():
        Target.objects.create(campaign=campaign, client=hall["A1"], wave=2, place=0)
    with pytest.raises(IntegrityError), transaction.atomic():
        Target.objects.create(campaign=campaign, client=hall["A2"], wave=1, place=1, status=TargetStatus.ORDERED)


def test_a_campaign_that_ended_takes_no_part_in_the_clock(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world)
    ends(CommandStatus.SUCCEEDED, *hall.values())
    stepped(campaign)
    with CaptureQueriesContext(connection) as asked:
        campaigning.step()
    assert len(asked) == 1


def test_freezing_everything_is_for_superusers(world: World) -> None:
    with pytest.raises(Forbidden):
        freezing.freeze(None, "x", world.otto)
    assert freezing.freeze(None, "x", User.objects.create_superuser("root")).site is None
