"""Campaigns on the board, without a browser: who sees and does what, how it is shown, and what is refused."""

import re
import uuid
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client as Visitor

from agents import campaigns, freezing
from agents.models import Campaign, CampaignStatus, CommandStatus, Freeze, TargetStatus, WaveBy
from fleet.models import Client
from fleet.roles import Role
from tests.agents.halls import accepts, ends, fates, leaves, make_hall, planned, started, stepped
from tests.world import World, member, person

CAMPAIGNS = "/sites/clubroom/campaigns/"
SCRIPT = {"X-Requested-With": "fetch"}


@pytest.fixture
def hall(world: World) -> dict[str, Client]:
    """Row A with three PCs, row B with two, all connected and ready."""
    return make_hall(world.clubroom, "A1", "A2", "A3", "B1", "B2")


def as_(user: User, *, csrf: bool = False) -> Visitor:
    visitor = Visitor(enforce_csrf_checks=csrf)
    visitor.force_login(user)
    return visitor


def page_of(campaign: Campaign, act: str = "") -> str:
    return f"{CAMPAIGNS}{campaign.pk}/{act}"


def seen(user: User, campaign: Campaign, **headers: Any) -> str:
    answer = as_(user).get(page_of(campaign), **headers)
    assert answer.status_code == 200
    return answer.content.decode()


def test_its_bars_tell_how_many_of_all_and_of_each_wave_are_how_far(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world, wave_by=WaveBy.ROW)
    ends(CommandStatus.SUCCEEDED, hall["A1"])
    accepts(hall["A2"])
    text = seen(world.vera, stepped(campaign))
    assert 'aria-label="All" aria-valuemin="0" aria-valuemax="5" aria-valuenow="1"' in text
    assert 'aria-valuetext="1 succeeded, 1 accepted, 1 queued, 2 waiting"' in text
    assert 'aria-label="Wave 1" aria-valuemin="0" aria-valuemax="3" aria-valuenow="1"' in text
    assert '<rect class="succeeded" x="0.0" width="20.0" height="4" />' in text
    assert '<rect class="accepted" x="20.0" width="20.0" height="4" />' in text
    assert "<b>2</b> Waiting" in text


def test_who_failed_is_named_with_the_reason(world: World, hall: dict[str, Client]) -> None:
    leaves(hall["B1"])
    campaign = started(world, offline="fail")
    ends(CommandStatus.FAILED, hall["A3"], reason="<the disk> is full")
    text = seen(world.vera, stepped(campaign))
    assert "<b>A3</b>" in text
    assert "&lt;the disk&gt; is full" in text
    assert "<b>B1</b>" in text
    assert "not connected: off" in text
    assert "<b>A1</b>" not in text


def test_a_script_gets_the_part_that_moves_until_it_has_ended(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world)
    text = seen(world.vera, campaign, headers=SCRIPT)
    assert text.startswith("<div data-progress data-live>")
    assert "<html" not in text
    ends(CommandStatus.SUCCEEDED, *hall.values())
    text = seen(world.vera, stepped(campaign), headers=SCRIPT)
    assert text.startswith("<div data-progress>")
    assert "5 of 5 ended" in text


def test_a_volunteer_pauses_resumes_and_stops(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world, wave_by=WaveBy.ROW)
    for act, status in (("pause", "paused"), ("resume", "running"), ("stop", "stopped")):
        answer = as_(world.vera).post(page_of(campaign, act))
        assert (answer.status_code, answer.headers["Location"]) == (302, page_of(campaign))
        campaign.refresh_from_db()
        assert campaign.status == status
    assert set(fates(campaign).values()) == {TargetStatus.CANCELLED}


def test_twice_is_a_wrong_state_and_says_so_on_its_page(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world)
    for act in ("pause", "stop"):
        as_(world.vera).post(page_of(campaign, act))
        again = as_(world.vera).post(page_of(campaign, act))
        assert again.status_code == 409
        assert 'class="problem" role="alert">' in again.content.decode()
    assert as_(world.vera).post(page_of(campaign, "resume")).status_code == 409


def test_only_another_organiser_approves_and_only_they_have_the_button(world: World, hall: dict[str, Client]) -> None:
    campaign = campaigns.start(planned(world, beyond_cap=True), world.vera)
    approve = page_of(campaign, "approve")
    assert approve not in seen(world.vera, campaign)
    assert as_(world.vera).post(approve).status_code == 403
    assert approve in seen(world.otto, campaign)
    assert as_(world.otto).post(approve).status_code == 302
    assert as_(world.otto).post(approve).status_code == 409
    own = campaigns.start(planned(world, beyond_cap=True, actor=world.otto), world.otto)
    assert page_of(own, "approve") not in seen(world.otto, own)
    assert as_(world.otto).post(page_of(own, "approve")).status_code == 403


def test_another_site_s_people_and_addresses_find_nothing(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world)
    for address in (page_of(campaign), f"/sites/school/campaigns/{campaign.pk}/"):
        assert as_(world.mallory).get(address).status_code == 404
        assert as_(world.mallory).post(f"{address}stop").status_code == 404
    for address in (f"{CAMPAIGNS}{uuid.uuid4()}/stop", page_of(campaign, "explode")):
        assert as_(world.vera).post(address).status_code == 404
    campaign.refresh_from_db()
    assert campaign.status == CampaignStatus.RUNNING


def test_nothing_is_done_without_a_token_nor_by_a_link(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world)
    assert as_(world.vera, csrf=True).post(page_of(campaign, "stop")).status_code == 403
    assert as_(world.vera).get(page_of(campaign, "stop")).status_code == 405
    assert Visitor().get(page_of(campaign)).status_code == 302
    campaign.refresh_from_db()
    assert campaign.status == CampaignStatus.RUNNING


def asked(**fields: Any) -> dict[str, Any]:
    """The form as somebody fills it in; everything else is empty."""
    return {"verb": "restart", "reason": "New version", **fields}


def test_before_it_starts_people_see_what_it_would_do(world: World, hall: dict[str, Client]) -> None:
    leaves(hall["A2"])
    answer = as_(world.vera).post(
        CAMPAIGNS, asked(rows=["A"], canary="1", wave_by="row", warn_s="60", text="Save your match", beyond_cap="on")
    )
    text = answer.content.decode()
    assert answer.status_code == 200
    assert "<b>3 PCs</b>, 2 of which would carry it out now" in text
    assert "Not connected <b>1</b></dt><dd>A2</dd>" in text
    assert "A second person has to approve it." in text
    assert '<b>Wave 1</b> <span class="of">1 PC</span> A1' in text
    assert 'name="text" value="Save your match"' in text
    assert not Campaign.objects.exists()


def test_confirmed_it_starts_once_however_often_it_is_pressed(world: World, hall: dict[str, Client]) -> None:
    chosen = [str(hall["B1"].pk), str(hall["B2"].pk)]
    key = str(uuid.uuid4())
    form = asked(client=chosen, confirmed=key, warn_s="120", more="2", text="Two minutes", failed_percent="20")
    for _ in range(2):
        answer = as_(world.vera).post(CAMPAIGNS, form)
        assert (answer.status_code, answer.headers["Location"]) == (302, f"{CAMPAIGNS}{key}/")
    campaign = Campaign.objects.get()
    assert str(campaign.pk) == key
    assert campaign.selection == {"clients": chosen}
    assert (campaign.failed_percent, campaign.share, campaign.success_percent) == (20, 100, 0)
    assert campaign.order.args == {"warn_s": 120, "more": 2, "text": "Two minutes"}
    assert (campaign.order.ordered_by, campaign.order.site) == (world.vera, world.clubroom)
    assert set(fates(stepped(campaign))) == {"B1", "B2"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"reason": " "}, "Why?"),
        ({"verb": "capture"}, "What"),
        ({"rows": ["Z"]}, "Rows"),
        ({"client": ["not-a-key"]}, "is no id of a client"),
        ({"verb": "message"}, "There is no message."),
        ({"more": "3"}, "A warning needs its time."),
        ({"share": "20"}, "A share is for waves by share."),
        ({"expires_at": "2020-01-01T10:00"}, "It cannot expire then."),
        ({"spread_s": "many"}, "Spread of a wave"),
        ({"confirmed": "yes"}, "no key of a campaign"),
    ],
)
def test_what_does_not_fit_is_told_and_what_was_typed_stays(
    world: World, hall: dict[str, Client], wrong: dict[str, Any], said: str
) -> None:
    answer = as_(world.vera).post(CAMPAIGNS, asked(**{"canary": "7", "judged_after": "2", **wrong}))
    text = answer.content.decode()
    assert answer.status_code == 400
    assert said in text.partition("</p>")[0]
    assert 'name="canary" value="7"' in text
    assert not Campaign.objects.exists()


def test_pcs_chosen_on_the_board_come_with_it(world: World, hall: dict[str, Client]) -> None:
    text = as_(world.vera).post(CAMPAIGNS, {"client": str(hall["A3"].pk)}).content.decode()
    assert "Of these PCs: <b>A3</b>" in text
    assert 'role="alert" hidden' in text
    assert "aria-invalid" not in text
    stranger = make_hall(world.school, "S1")["S1"]
    answer = as_(world.vera).post(CAMPAIGNS, asked(client=str(stranger.pk), confirmed=str(uuid.uuid4())))
    assert answer.status_code == 400
    assert "S1" not in answer.content.decode()
    assert not Campaign.objects.exists()


def test_who_may_not_order_sees_the_list_without_a_form(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world)
    watcher = person("wanda")
    member(watcher, world.clubroom, Role.VIEWER)
    text = as_(watcher).get(CAMPAIGNS).content.decode()
    assert page_of(campaign) in text
    assert "New campaign" not in text
    assert page_of(campaign, "stop") not in seen(watcher, campaign)
    assert as_(watcher).post(CAMPAIGNS, asked(confirmed=str(uuid.uuid4()))).status_code == 403
    assert as_(watcher).post(page_of(campaign, "stop")).status_code == 403
    forced = as_(world.vera).post(CAMPAIGNS, asked(force="on", confirmed=str(uuid.uuid4())))
    assert forced.status_code == 403
    assert as_(world.mallory).get(CAMPAIGNS).status_code == 404
    assert as_(world.mallory).post(CAMPAIGNS, asked()).status_code == 404
    assert as_(world.vera, csrf=True).post(CAMPAIGNS, asked(confirmed=str(uuid.uuid4()))).status_code == 403
    assert Campaign.objects.count() == 1


def test_those_that_run_stand_before_those_that_have_ended(world: World, hall: dict[str, Client]) -> None:
    first = started(world, reason="still running")
    last = campaigns.start(planned(world, reason="long over"), world.vera)
    campaigns.stop(last, world.vera)
    stepped(last)
    text = as_(world.vera).get(CAMPAIGNS).content.decode()
    assert -1 < text.index(page_of(first)) < text.index(page_of(last))
    assert "5 ordered" in text


def test_a_freeze_stands_on_the_board_until_an_organiser_lifts_it(world: World) -> None:
    board, freeze, lift = "/sites/clubroom/", "/sites/clubroom/freeze", "/sites/clubroom/freeze/lift"
    assert as_(world.vera).post(freeze, {"reason": " "}).status_code == 400
    assert as_(world.vera).post(lift).status_code == 409
    assert as_(world.vera).post(freeze, {"reason": "<fire> alarm"}).status_code == 302
    again = as_(world.vera).post(freeze, {"reason": "again"})
    assert again.status_code == 409
    assert "is frozen already" in again.content.decode()
    text = as_(world.vera).get(board).content.decode()
    assert "<b>Frozen: &lt;fire&gt; alarm</b> Nothing is signed. vera" in text
    assert "releases" not in re.findall(r'<body class="([^"]*)"', text)[0].split(), "or she would see how to lift it"
    assert as_(world.vera).post(lift).status_code == 403
    text = as_(world.otto).get(board).content.decode()
    assert "releases" in re.findall(r'<body class="([^"]*)"', text)[0].split()
    assert f'form="cancel" formaction="{lift}"' in text
    assert as_(world.otto).post(lift).status_code == 302
    assert as_(world.otto).post(lift).status_code == 409
    assert "Frozen" not in as_(world.otto).get(board).content.decode()


def test_nobody_freezes_elsewhere_without_the_right_or_by_a_link(world: World) -> None:
    watcher = person("wanda")
    member(watcher, world.clubroom, Role.VIEWER)
    freeze = "/sites/clubroom/freeze"
    assert freeze not in as_(watcher).get("/sites/clubroom/").content.decode()
    assert as_(watcher).post(freeze, {"reason": "why not"}).status_code == 403
    assert as_(world.mallory).post(freeze, {"reason": "why not"}).status_code == 404
    assert as_(world.mallory).post(f"{freeze}/lift").status_code == 404
    assert as_(world.vera, csrf=True).post(freeze, {"reason": "why not"}).status_code == 403
    assert as_(world.vera).get(freeze).status_code == 405
    assert freezing.standing(world.clubroom) is None


def test_what_is_frozen_everywhere_is_lifted_elsewhere(world: World) -> None:
    Freeze.objects.create(site=None, reason="the key is being changed")
    text = as_(world.otto).get("/sites/clubroom/").content.decode()
    assert "Frozen at all sites: the key is being changed" in text
    assert "/freeze/lift" not in text
    assert as_(world.otto).post("/sites/clubroom/freeze/lift").status_code == 409
