"""What the worker does with a campaign: targets when it starts, commands as their turn comes, judgement, ends."""

import threading
import time
from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import time_machine
from django.db import connection
from django.utils import timezone
from pytest_django.fixtures import Settings

from agents import campaigning, campaigns, freezing, services, targets, tasks
from agents.models import (
    BootSession,
    Campaign,
    CampaignStatus,
    Cap,
    Command,
    CommandStatus,
    Order,
    Target,
    TargetStatus,
    Verb,
)
from agents.selecting import Selection
from fleet.models import AuditEntry, Client, ClientState, Membership, Tag
from tests.agents.halls import (
    accepts,
    comes,
    ends,
    fates,
    leaves,
    make_hall,
    ordered,
    planned,
    reason_of,
    started,
    stepped,
)
from tests.services import celery_sends_to
from tests.world import World, make_world

SUCCEEDED, FAILED, REFUSED, LOST = (
    CommandStatus.SUCCEEDED,
    CommandStatus.FAILED,
    CommandStatus.REFUSED,
    CommandStatus.LOST,
)


@pytest.fixture
def hall(world: World, begun_by_the_worker: None) -> dict[str, Client]:
    """Row A with four PCs, row B with two, all connected and ready."""
    return make_hall(world.clubroom, "A1", "A2", "A3", "A10", "B1", "B2")


@pytest.fixture
def clock() -> Any:
    """Time that stands still until it is moved."""
    with time_machine.travel(timezone.now(), tick=False) as traveller:
        yield traveller


def audited() -> list[tuple[str, str]]:
    rows = AuditEntry.objects.filter(action__startswith="campaign.").order_by("sequence")
    return list(rows.values_list("action", "actor"))


def test_all_in_one_wave_gets_a_command_each_and_every_target_its_end_with_its_reason(
    world: World, hall: dict[str, Client]
) -> None:
    campaign = started(world)
    assert (campaign.status, campaign.wave) == (CampaignStatus.RUNNING, 1)
    assert ordered(campaign) == ["A1", "A2", "A3", "A10", "B1", "B2"]
    assert {(c.verb, c.status, c.order_id) for c in Command.objects.all()} == {("restart", "queued", campaign.pk)}
    ends(SUCCEEDED, *list(hall.values())[:4], reason="booted anew")
    ends(FAILED, hall["B1"], reason="the client could not do it")
    ends(REFUSED, hall["B2"], reason="held")
    assert stepped(campaign).status == CampaignStatus.DONE
    assert campaign.ended_at is not None
    assert campaign.outcome == "4 succeeded, 1 failed, 1 refused"
    assert Counter(fates(campaign).values()) == {"succeeded": 4, "failed": 1, "refused": 1}
    assert reason_of(campaign, hall["A1"]) == "booted anew"
    assert reason_of(campaign, hall["B2"]) == "held"
    assert all(target.ended_at for target in Target.objects.all())
    assert audited() == [
        ("campaign.ordered", "vera"),
        ("campaign.started", "clock"),
        ("campaign.ended", "clock"),
    ]


def test_whom_it_reaches_is_decided_when_it_starts(world: World, hall: dict[str, Client], clock: Any) -> None:
    tag = Tag.objects.create(site=world.clubroom, name="stage")
    hall["A1"].tags.add(tag)
    later = timezone.now() + timedelta(minutes=10)
    campaign = started(world, selection=Selection(tags=("stage",)), starts_at=later)
    assert campaign.status == CampaignStatus.SCHEDULED
    hall["A1"].tags.clear()
    hall["B2"].tags.add(tag)
    clock.shift(timedelta(minutes=9, seconds=59))
    assert stepped(campaign).status == CampaignStatus.SCHEDULED
    clock.shift(timedelta(seconds=1))
    assert stepped(campaign).status == CampaignStatus.RUNNING
    assert ordered(campaign) == ["B2"]


def test_one_that_starts_later_and_fits_nobody_then_is_done(world: World, hall: dict[str, Client], clock: Any) -> None:
    tag = Tag.objects.create(site=world.clubroom, name="stage")
    campaign = started(world, selection=Selection(tags=(tag.name,)), starts_at=timezone.now() + timedelta(minutes=1))
    clock.shift(timedelta(minutes=1))
    assert stepped(campaign).status == CampaignStatus.DONE
    assert campaign.outcome == "nobody was selected"


def test_rows_follow_each_other_when_the_one_before_has_ended(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world, wave_by="row")
    assert ordered(campaign) == ["A1", "A2", "A3", "A10"]
    ends(SUCCEEDED, hall["A1"], hall["A2"], hall["A3"])
    assert ordered(stepped(campaign)) == ["A10"], "row B waits for the last of row A"
    ends(FAILED, hall["A10"])
    assert ordered(stepped(campaign)) == ["B1", "B2"]
    assert campaign.wave == 2
    ends(SUCCEEDED, hall["B1"], hall["B2"])
    assert stepped(campaign).status == CampaignStatus.DONE
    waves = AuditEntry.objects.get(action="campaign.wave")
    assert (waves.detail["wave"], waves.detail["succeeded"], waves.detail["failed"]) == (2, 3, 1)


def test_waves_by_share_have_so_many_percent_each(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world, wave_by="share", share=40)
    assert [Target.objects.filter(wave=wave).count() for wave in (1, 2, 3)] == [3, 3, 0]
    assert ordered(campaign) == ["A1", "A2", "A3"]


def test_a_canary_goes_first_and_is_made_of_those_who_can(world: World, hall: dict[str, Client]) -> None:
    leaves(hall["A1"])
    Client.objects.filter(pk=hall["A2"].pk).update(state="in-use")
    services.order(Verb.CYCLE, [hall["A3"]], "x", world.vera)
    campaign = started(world, canary=2)
    assert ordered(campaign) == ["A10", "B1"]


def test_over_a_spread_each_has_its_turn_at_its_place(world: World, hall: dict[str, Client], clock: Any) -> None:
    campaign = started(world, spread_s=60)
    seen = [ordered(campaign)]
    for _ in range(5):
        clock.shift(timedelta(seconds=10))
        seen.append(ordered(stepped(campaign)))
    assert [len(seats) for seats in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[0] == ["A1"]


def test_a_clock_that_is_set_back_holds_up_no_wave_without_a_spread(
    world: World, hall: dict[str, Client], clock: Any
) -> None:
    campaign = started(world)
    clock.shift(timedelta(seconds=-5))
    assert targets.reached(campaign, timezone.now()) == len(hall)


# --- who is not there ------------------------------------------------------------------------------------------------


def test_who_is_away_is_left_out_and_with_what_it_was(world: World, hall: dict[str, Client]) -> None:
    leaves(hall["A2"])
    leaves(hall["B1"], ClientState.LOST)
    campaign = started(world)
    assert ordered(campaign) == ["A1", "A3", "A10", "B2"]
    assert (fates(campaign)["A2"], reason_of(campaign, hall["A2"])) == ("skipped", "not connected: off")
    assert reason_of(campaign, hall["B1"]) == "not connected: lost"


def test_who_is_away_counts_as_failed_where_that_is_wanted(world: World, hall: dict[str, Client]) -> None:
    leaves(hall["A2"])
    campaign = started(world, offline="fail")
    assert (fates(campaign)["A2"], reason_of(campaign, hall["A2"])) == ("failed", "not connected: off")


def test_who_is_away_is_waited_for_and_holds_up_no_wave(world: World, hall: dict[str, Client], clock: Any) -> None:
    until = timezone.now() + timedelta(minutes=20)
    for seat in ("A2", "B1"):
        leaves(hall[seat])
    campaign = started(world, offline="wait", wait_until=until, wave_by="row")
    ends(SUCCEEDED, hall["A1"], hall["A3"], hall["A10"])
    assert ordered(stepped(campaign)) == ["B2"]
    comes(hall["A2"])
    assert ordered(stepped(campaign)) == ["A2", "B2"], "its wave is over, and its turn has come all the same"
    ends(SUCCEEDED, hall["A2"], hall["B2"])
    assert stepped(campaign).status == CampaignStatus.RUNNING
    clock.move_to(until - timedelta(seconds=1))
    assert stepped(campaign).status == CampaignStatus.RUNNING
    clock.move_to(until)
    stepped(campaign)
    assert (fates(campaign)["B1"], reason_of(campaign, hall["B1"])[:17]) == ("expired", "did not connect u")
    assert stepped(campaign).status == CampaignStatus.DONE


def test_who_is_busy_gets_its_turn_when_it_is_free(world: World, hall: dict[str, Client]) -> None:
    services.order(Verb.CYCLE, [hall["A2"]], "next person", world.vera)
    campaign = started(world)
    assert "A2" not in ordered(campaign)
    assert fates(campaign)["A2"] == "waiting"
    Command.objects.filter(client=hall["A2"]).update(status=SUCCEEDED)
    assert "A2" in ordered(stepped(campaign))


def test_who_is_away_because_of_what_it_carries_out_is_not_left_out(world: World, hall: dict[str, Client]) -> None:
    services.order(Verb.RESTART, [hall["A2"]], "hangs", world.vera)
    leaves(hall["A2"], ClientState.BOOTING)
    campaign = started(world)
    assert fates(campaign)["A2"] == "waiting"
    Command.objects.filter(client=hall["A2"]).update(status=SUCCEEDED)
    comes(hall["A2"])
    assert "A2" in ordered(stepped(campaign))


def test_nobody_is_left_out_before_the_caps_let_it_have_its_turn(world: World, hall: dict[str, Client]) -> None:
    Cap.objects.create(site=world.clubroom, verb=Verb.RESTART, at_once=1)
    for seat in ("A2", "B2"):
        leaves(hall[seat])
    campaign = started(world)
    assert Counter(fates(campaign).values()) == {"ordered": 1, "waiting": 5}
    comes(hall["A2"])
    ends(SUCCEEDED, hall["A1"])
    assert ordered(stepped(campaign)) == ["A2"]
    for seat in ("A2", "A3", "A10", "B1"):
        ends(SUCCEEDED, hall[seat])
        stepped(campaign)
    assert (fates(campaign)["B2"], stepped(campaign).status) == ("skipped", CampaignStatus.DONE)


def test_only_who_is_off_is_woken(world: World, hall: dict[str, Client]) -> None:
    leaves(hall["A2"])
    leaves(hall["B2"])
    BootSession.objects.filter(client=hall["A3"]).update(status="booting")
    campaign = started(world, verb=Verb.WAKE)
    assert ordered(campaign) == ["A2", "B2"]
    assert (fates(campaign)["A1"], reason_of(campaign, hall["A1"])) == ("skipped", "is on already")
    assert fates(campaign)["A3"] == "skipped", "it boots"


# --- bounds --------------------------------------------------------------------------------------------------------


def test_no_more_is_queued_than_the_caps_let_through_soon(world: World, hall: dict[str, Client], clock: Any) -> None:
    Cap.objects.create(site=world.clubroom, verb=Verb.RESTART, per_minute=4, at_once=2)
    campaign = started(world)
    assert ordered(campaign) == ["A1", "A2"]
    assert ordered(stepped(campaign)) == ["A1", "A2"]
    accepts(hall["A1"], hall["A2"])
    assert ordered(stepped(campaign)) == ["A1", "A2"], "two are under way"
    ends(SUCCEEDED, hall["A1"], hall["A2"])
    assert ordered(stepped(campaign)) == ["A3", "A10"]
    ends(SUCCEEDED, hall["A3"], hall["A10"])
    assert ordered(stepped(campaign)) == [], "four were signed within this minute"
    clock.shift(timedelta(seconds=61))
    assert ordered(stepped(campaign)) == ["B1", "B2"]


def test_what_others_ordered_counts_too_and_other_verbs_do_not(world: World, hall: dict[str, Client]) -> None:
    Cap.objects.create(site=world.clubroom, verb=Verb.RESTART, at_once=2)
    services.order(Verb.RESTART, [hall["B1"]], "x", world.vera)
    services.order(Verb.CYCLE, [hall["B2"]], "x", world.vera)
    assert ordered(started(world)) == ["A1"]


def test_beyond_the_cap_all_go_once_a_second_person_has_approved(world: World, hall: dict[str, Client]) -> None:
    Cap.objects.create(site=world.clubroom, verb=Verb.RESTART, at_once=1)
    campaign = started(world, beyond_cap=True)
    assert (campaign.status, Target.objects.count()) == (CampaignStatus.AWAITING, 0)
    campaigns.approve(campaign, world.otto)
    assert len(ordered(stepped(campaign))) == 6


def test_an_order_that_was_approved_by_itself_lets_its_campaign_begin(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world, beyond_cap=True)
    services.approve(campaign.order, world.otto)
    assert stepped(campaign).status == CampaignStatus.RUNNING


def test_the_ceiling_of_a_minute_bounds_the_queue(world: World, hall: dict[str, Client], settings: Settings) -> None:
    settings.CEILING = settings.CEILING | {"restart": 3}
    campaign = started(world)
    assert ordered(campaign) == ["A1", "A2", "A3"]


def test_nothing_is_ordered_while_a_freeze_stands_and_all_of_it_after(world: World, hall: dict[str, Client]) -> None:
    freeze = freezing.freeze(world.clubroom, "smoke in hall 2", world.vera)
    campaign = started(world)
    assert ordered(campaign) == []
    assert Counter(fates(campaign).values()) == {"waiting": 6}
    freezing.lift(freeze, world.otto)
    assert len(ordered(stepped(campaign))) == 6


def test_what_waits_for_the_sender_does_not_grow_old(world: World, hall: dict[str, Client], clock: Any) -> None:
    campaign = started(world)
    command = Command.objects.get(client=hall["A1"])
    for _ in range(4):
        clock.shift(timedelta(seconds=60))
        tasks.tick()
        stepped(campaign)
    command.refresh_from_db()
    assert command.status == CommandStatus.QUEUED
    assert command.expires_at > timezone.now()
    assert Command.objects.filter(expires_at__gt=campaign.expires_at).count() == 0


def test_a_commands_time_ends_with_the_campaign(world: World, hall: dict[str, Client], clock: Any) -> None:
    campaign = started(world, expires_at=timezone.now() + timedelta(seconds=30))
    assert set(Command.objects.values_list("expires_at", flat=True)) == {campaign.expires_at}


def test_nothing_waits_for_ever_and_each_says_what_for(world: World, hall: dict[str, Client], clock: Any) -> None:
    Cap.objects.create(site=world.clubroom, verb=Verb.RESTART, at_once=1)
    leaves(hall["A2"])
    services.order(Verb.CYCLE, [hall["A3"]], "x", world.vera)
    campaign = started(world, offline="wait")
    assert ordered(campaign) == ["A1"]
    accepts(hall["A1"])
    clock.move_to(campaign.expires_at)
    stepped(campaign)
    assert fates(campaign) == {"A1": "ordered"} | dict.fromkeys(("A2", "A3", "A10", "B1", "B2"), "expired")
    assert reason_of(campaign, hall["A2"]) == "did not connect until it expired"
    assert reason_of(campaign, hall["A3"]) == "was busy until it expired"
    assert reason_of(campaign, hall["B2"]) == "it expired before it was their turn"
    ends(SUCCEEDED, hall["A1"])
    assert stepped(campaign).status == CampaignStatus.DONE


@pytest.mark.parametrize("how", [{"beyond_cap": True}, {"starts_at": 600}])
def test_one_that_nobody_approved_or_that_could_not_begin_ends(
    world: World, hall: dict[str, Client], clock: Any, how: dict[str, Any]
) -> None:
    if seconds := how.get("starts_at"):
        how = {"starts_at": timezone.now() + timedelta(seconds=seconds)}
    campaign = started(world, **how)
    clock.move_to(campaign.expires_at)
    assert stepped(campaign).status == CampaignStatus.STOPPED
    assert campaign.ended_at is not None
    assert campaign.outcome == ("nobody approved it in time" if "beyond_cap" in how else "it did not begin in time")


# --- thresholds --------------------------------------------------------------------------------------------------


def test_too_many_failures_pause_it_before_the_next_are_ordered(world: World, hall: dict[str, Client]) -> None:
    Cap.objects.create(site=world.clubroom, verb=Verb.RESTART, at_once=3)
    campaign = started(world, failed_percent=50, judged_after=3)
    ends(FAILED, hall["A1"], hall["A2"])
    assert stepped(campaign).status == CampaignStatus.RUNNING, "two of three is too much, but only two have ended"
    ends(SUCCEEDED, hall["A3"])
    assert stepped(campaign).status == CampaignStatus.PAUSED
    assert campaign.outcome == "paused: 2 of 3 failed in wave 1: more than 50 %"
    assert audited()[-1] == ("campaign.paused", "clock")
    number = Command.objects.count()
    ends(SUCCEEDED, hall["A10"], hall["B1"])
    stepped(campaign)
    assert Command.objects.count() == number
    campaigns.resume(campaign, world.vera)
    assert stepped(campaign).status == CampaignStatus.RUNNING, (
        "what failed before a person said to go on counts no more"
    )
    assert ordered(campaign) == ["B2"]


def test_at_the_limit_it_goes_on(world: World, hall: dict[str, Client]) -> None:
    Cap.objects.create(site=world.clubroom, verb=Verb.RESTART, at_once=4)
    campaign = started(world, failed_percent=50, judged_after=2)
    ends(FAILED, hall["A1"], hall["A2"])
    ends(SUCCEEDED, hall["A3"], hall["A10"])
    assert ordered(stepped(campaign)) == ["B1", "B2"]


def test_aborted_it_ends_those_that_wait_and_calls_back_those_not_accepted(
    world: World, hall: dict[str, Client]
) -> None:
    Cap.objects.create(site=world.clubroom, verb=Verb.RESTART, at_once=4)
    campaign = started(world, failed_percent=0, on_failure="abort")
    accepts(hall["A2"])
    ends(LOST, hall["A1"])
    assert stepped(campaign).status == CampaignStatus.ABORTED
    assert campaign.ended_at is None, "one has accepted, and cannot be stopped"
    assert fates(campaign) == {"A1": "lost", "A2": "ordered"} | dict.fromkeys(("A3", "A10", "B1", "B2"), "cancelled")
    why = "aborted: 1 of 1 failed in wave 1: more than 0 %"
    assert {reason_of(campaign, hall[seat]) for seat in ("A3", "A10", "B1")} == {why}
    assert set(Command.objects.filter(client=hall["A3"]).values_list("status", "reason")) == {("cancelled", why)}
    ends(SUCCEEDED, hall["A2"])
    assert stepped(campaign).ended_at is not None
    assert (campaign.status, fates(campaign)["A2"]) == (CampaignStatus.ABORTED, "succeeded")


def test_a_canary_that_does_not_succeed_is_not_followed(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world, canary=2, success_percent=100)
    ends(SUCCEEDED, hall["A1"])
    ends(FAILED, hall["A2"])
    assert stepped(campaign).status == CampaignStatus.PAUSED
    assert campaign.outcome == "paused: 1 of 2 succeeded in wave 1: less than 100 %"
    assert ordered(campaign) == []
    campaigns.resume(campaign, world.vera)
    assert ordered(stepped(campaign)) == ["A3", "A10", "B1", "B2"]


def test_a_canary_that_nobody_carried_out_has_shown_nothing(world: World, hall: dict[str, Client]) -> None:
    campaign = campaigns.start(planned(world, canary=1), world.vera)
    for client in hall.values():
        leaves(client)
    assert stepped(campaign).status == CampaignStatus.PAUSED
    assert campaign.outcome == "paused: nobody of the canary carried it out, so it has shown nothing"
    for client in hall.values():
        comes(client)
    campaigns.resume(campaign, world.vera)
    assert ordered(stepped(campaign)) == ["A2", "A3", "A10", "B1", "B2"]


def test_who_was_left_out_is_neither_a_success_nor_a_failure(world: World, hall: dict[str, Client]) -> None:
    for seat in ("A2", "A3", "A10"):
        leaves(hall[seat])
    campaign = started(world, wave_by="row", success_percent=100, failed_percent=0)
    ends(SUCCEEDED, hall["A1"])
    assert ordered(stepped(campaign)) == ["B1", "B2"]


def test_who_was_waited_for_and_did_not_come_is_no_failure(world: World, hall: dict[str, Client], clock: Any) -> None:
    until = timezone.now() + timedelta(minutes=1)
    leaves(hall["A2"])
    campaign = started(world, failed_percent=0, wave_by="row", offline="wait", wait_until=until)
    clock.move_to(until)
    assert stepped(campaign).status == CampaignStatus.RUNNING
    assert stepped(campaign).status == CampaignStatus.RUNNING
    assert fates(campaign)["A2"] == "expired"
    ends(LOST, hall["A1"])
    assert stepped(campaign).status == CampaignStatus.PAUSED


def test_failures_at_the_very_end_leave_nothing_to_pause(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world, failed_percent=0)
    accepts(*hall.values())
    ends(FAILED, hall["A1"])
    assert stepped(campaign).status == CampaignStatus.RUNNING
    ends(SUCCEEDED, *hall.values())
    assert stepped(campaign).status == CampaignStatus.DONE


# --- people ------------------------------------------------------------------------------------------------------


def test_who_ordered_it_and_may_no_more_ends_it(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world, wave_by="row")
    Membership.objects.filter(user=world.vera).delete()
    ends(SUCCEEDED, hall["A1"], hall["A2"], hall["A3"], hall["A10"])
    assert stepped(campaign).status == CampaignStatus.STOPPED
    assert campaign.outcome == "stopped: You may not order that at Club room."
    assert (fates(campaign)["B1"], campaign.ended_at is None) == ("cancelled", False)


def test_who_ordered_it_and_is_gone_ends_it_before_it_begins(world: World, hall: dict[str, Client], clock: Any) -> None:
    campaign = started(world, starts_at=timezone.now() + timedelta(minutes=1))
    Order.objects.update(ordered_by=None)
    clock.shift(timedelta(minutes=1))
    assert stepped(campaign).status == CampaignStatus.STOPPED
    assert campaign.outcome == "stopped: who ordered it is gone"


def test_resumed_it_is_spread_as_it_was(world: World, hall: dict[str, Client], clock: Any) -> None:
    campaign = started(world, spread_s=60)
    campaigns.pause(campaign, world.vera)
    clock.shift(timedelta(minutes=5))
    stepped(campaign)
    campaigns.resume(campaign, world.vera)
    assert ordered(stepped(campaign)) == ["A1"]
    clock.shift(timedelta(seconds=10))
    assert ordered(stepped(campaign)) == ["A1", "A2"]


def test_what_is_queued_is_not_signed_while_it_is_paused(world: World, hall: dict[str, Client], keys: Any) -> None:
    campaign = started(world)
    campaigns.pause(campaign, world.vera)
    tasks.send_order(str(campaign.pk))
    assert set(Command.objects.values_list("status", flat=True)) == {"queued"}
    campaigns.resume(campaign, world.vera)
    tasks.send_order(str(campaign.pk))
    assert set(Command.objects.values_list("status", flat=True)) == {"sent"}


# --- twice, side by side, after a crash ----------------------------------------------------------------------------


def test_a_second_run_at_the_same_moment_changes_nothing(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world, wave_by="row")
    before = list(Target.objects.order_by("pk").values()), list(Command.objects.order_by("pk").values())
    entries = AuditEntry.objects.count()
    for _ in range(3):
        campaigning.go_on(campaign.pk)
        tasks.step_campaign(str(campaign.pk))
    assert (list(Target.objects.order_by("pk").values()), list(Command.objects.order_by("pk").values())) == before
    assert AuditEntry.objects.count() == entries


def test_a_target_has_one_command_even_if_its_rows_are_forgotten(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world)
    ends(SUCCEEDED, *hall.values())
    Target.objects.update(status=TargetStatus.WAITING, command=None)
    targets.order_due(campaign, 10, timezone.now())
    assert Command.objects.count() == 6


def test_a_client_that_was_ordered_something_meanwhile_waits_on(
    world: World, hall: dict[str, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other order is committed between our look and our statement."""
    real = targets._order

    def late(*arguments: Any) -> int:
        services.order(Verb.CYCLE, [hall["A2"]], "quicker", world.vera)
        return real(*arguments)

    monkeypatch.setattr(targets, "_order", late)
    campaign = started(world)
    assert fates(campaign)["A2"] == "waiting"
    assert len(ordered(campaign)) == 5


def test_many_workers_at_once_make_each_target_and_command_once(transactional_db: None) -> None:
    with celery_sends_to("redis://127.0.0.1:1/0"):
        world = make_world()
        make_hall(world.clubroom, *(f"A{number}" for number in range(1, 41)))
        campaign = campaigns.start(planned(world, wave_by="share", share=50), world.vera)
        start, faults = threading.Barrier(4), list[Exception]()

        def work() -> None:
            try:
                start.wait()
                for _ in range(5):
                    campaigning.step()
            except Exception as error:
                faults.append(error)
            finally:
                connection.close()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        campaigning.step()
        assert (Target.objects.count(), Command.objects.count()) == (40, 20)
        assert AuditEntry.objects.filter(action="campaign.started").count() == 1
        assert Campaign.objects.get(pk=campaign.pk).wave == 1


def test_one_campaign_that_cannot_go_on_holds_up_no_other(
    world: World, hall: dict[str, Client], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from django.db import OperationalError

    first = campaigns.start(planned(world, selection=Selection(rows=("A",))), world.vera)
    second = campaigns.start(planned(world, selection=Selection(rows=("B",))), world.vera)
    real = targets.make

    def make(campaign: Campaign, *arguments: Any) -> int:
        if campaign.pk == first.pk:
            raise OperationalError("deadlock detected")
        return real(campaign, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(targets, "make", make)
        stepped(second)
    assert "goes on a second later: deadlock detected" in caplog.text
    assert (ordered(first), ordered(second)) == ([], ["B1", "B2"])
    assert len(ordered(stepped(first))) == 4


def test_one_that_takes_long_to_look_at_is_looked_at_less_often(
    world: World, hall: dict[str, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[UUID] = []

    def look(key: UUID) -> None:
        looked.append(key)
        time.sleep(0.3 if key == large.pk else 0.0)

    large, small = (campaigns.start(planned(world), world.vera) for _ in range(2))
    monkeypatch.setattr(campaigning, "go_on", look)
    monkeypatch.setattr(campaigning, "REST", 5)
    for _ in range(2):
        campaigning.step()
    assert looked == [large.pk, small.pk, small.pk]
    time.sleep(0.3 * campaigning.REST)
    campaigning.step()
    assert looked[3:] == [large.pk, small.pk]
