"""Campaigns, caps and freezes in the admin: read, acted on by those who may, and written down."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth.models import User
from django.test import Client as Browser
from django.utils import timezone

from agents import freezing
from agents.models import Campaign, Cap, Command, CommandStatus, Freeze, Target
from fleet import audit
from fleet.models import AuditEntry, Client
from fleet.roles import Role
from tests.agents.halls import ends, leaves, make_hall, started, stepped
from tests.world import World, member, person

CAMPAIGNS, CAPS, FREEZES = (f"/admin/agents/{name}/" for name in ("campaign", "cap", "freeze"))


def as_(user: User) -> Browser:
    browser = Browser()
    browser.force_login(user)
    return browser


def act(user: User, page: str, row: Any, action: str) -> str:
    chosen = {"action": action, ACTION_CHECKBOX_NAME: [str(row.pk)]}
    return as_(user).post(page, chosen, follow=True).content.decode().replace("&#x27;", "'")


@pytest.fixture
def hall(world: World, begun_by_the_worker: None) -> dict[str, Client]:
    return make_hall(world.clubroom, "A1", "A2", "B1")


def test_a_campaign_is_read_with_those_that_failed_first_and_why(world: World, hall: dict[str, Client]) -> None:
    leaves(hall["A2"])
    campaign = started(world)
    ends(CommandStatus.SUCCEEDED, hall["A1"], reason="booted anew")
    ends(CommandStatus.FAILED, hall["B1"], reason="the client could not do it")
    stepped(campaign)
    page = as_(world.vera).get(f"{CAMPAIGNS}{campaign.pk}/change/").content.decode()
    assert 'name="_save"' not in page
    assert "1 succeeded, 1 failed, 1 left out" in page
    table = page[page.index("<h2>Clients</h2>") :]
    assert table.index("the client could not do it") < table.index("not connected: off") < table.index("booted anew")
    command = Command.objects.get(client=hall["B1"])
    assert f"/admin/agents/command/{command.pk}/change/" in table
    listed = as_(world.vera).get(CAMPAIGNS).content.decode()
    assert "1 succeeded, 1 failed, 1 left out" in listed
    assert f"/admin/agents/order/{campaign.pk}/change/" in listed


def test_of_many_clients_a_page_shows_some_and_leads_to_all(
    world: World, hall: dict[str, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.admin.campaigns.SHOWN", 2)
    campaign = started(world)
    page = as_(world.vera).get(f"{CAMPAIGNS}{campaign.pk}/change/").content.decode()
    assert "2 of 3: those that failed first." in page
    every = f"/admin/agents/target/?campaign__exact={campaign.pk}"
    assert every in page
    targets = as_(world.vera).get(every).content.decode()
    assert all(f"{seat} (pc" in targets for seat in hall)
    other = as_(world.vera).get(f"/admin/agents/target/?campaign__exact={Target.objects.all()[0].pk}")
    assert other.status_code in (302, 400)


def test_it_is_paused_resumed_and_stopped(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world)
    for action, said, status in (
        ("pause", "is paused.", "paused"),
        ("resume", "goes on.", "running"),
        ("stop", "is stopped.", "stopped"),
        ("stop", "cannot become stopped: it is stopped.", "stopped"),
        ("resume", "cannot be resumed: it is stopped.", "stopped"),
    ):
        assert said in act(world.vera, CAMPAIGNS, campaign, action), action
        campaign.refresh_from_db()
        assert campaign.status == status
    assert set(Command.objects.values_list("status", flat=True)) == {"cancelled"}


def test_the_page_offers_what_can_be_done_now_to_those_who_may(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world, starts_at=timezone.now() + timedelta(minutes=5))
    address = f"{CAMPAIGNS}{campaign.pk}/change/"

    def offered(user: User) -> list[str]:
        page = as_(user).get(address).content.decode()
        return [
            action for action in ("approve", "pause", "resume", "stop") if f'name="action" value="{action}"' in page
        ]

    assert offered(world.vera) == ["stop"]
    for status, actions in (
        ("awaiting", ["approve", "stop"]),
        ("running", ["pause", "stop"]),
        ("paused", ["resume", "stop"]),
        ("done", []),
    ):
        Campaign.objects.update(status=status)
        assert offered(world.vera) == actions, status
    Campaign.objects.update(status="running")
    world.vera.memberships.update(role="viewer")
    assert offered(world.vera) == []


def test_a_viewer_and_another_site_change_nothing(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world)
    viewer = person("viktor")
    member(viewer, world.clubroom, Role.VIEWER)
    for user in (viewer, world.mallory):
        for action in ("pause", "stop", "approve"):
            act(user, CAMPAIGNS, campaign, action)
    campaign.refresh_from_db()
    assert campaign.status == "running"
    assert as_(world.mallory).get(f"{CAMPAIGNS}{campaign.pk}/change/").status_code == 302


def test_an_organiser_approves_what_another_ordered(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world, beyond_cap=True)
    assert "is approved" not in act(world.vera, CAMPAIGNS, campaign, "approve")
    assert "is approved." in act(world.otto, CAMPAIGNS, campaign, "approve")
    campaign.refresh_from_db()
    assert (campaign.status, campaign.order.approved_by) == ("scheduled", world.otto)


# --- caps --------------------------------------------------------------------------------------------------------


def test_a_change_of_caps_is_for_site_admins_and_written_down(world: World) -> None:
    anna = person("anna")
    member(anna, world.clubroom, Role.SITE_ADMIN)
    form = {"site": str(world.clubroom.pk), "verb": "poweroff", "per_minute": "30", "at_once": ""}
    for user in (world.vera, world.otto):
        assert as_(user).post(f"{CAPS}add/", form).status_code == 403
    browser = as_(anna)
    assert browser.post(f"{CAPS}add/", form).status_code == 302
    cap = Cap.objects.get()
    assert browser.post(f"{CAPS}{cap.pk}/change/", form | {"per_minute": "60"}).status_code == 302
    assert browser.post(f"{CAPS}{cap.pk}/delete/", {"post": "yes"}).status_code == 302
    entries = AuditEntry.objects.filter(action__startswith="cap.").order_by("sequence")
    assert [(entry.action, entry.actor, entry.site) for entry in entries] == [
        (f"cap.{what}", "anna", world.clubroom) for what in ("added", "edited", "deleted")
    ]
    assert (entries[1].detail["was"], entries[1].detail["now"]) == ({"per_minute": 30}, {"per_minute": 60})
    assert [*audit.verify()] == []


def test_a_cap_that_lets_nothing_through_or_says_nothing_is_refused(world: World) -> None:
    anna = person("anna")
    member(anna, world.clubroom, Role.SITE_ADMIN)
    form = {"site": str(world.clubroom.pk), "verb": "poweroff"}
    for bounds in ({}, {"per_minute": "0"}, {"per_minute": "-1", "at_once": "5"}, {"at_once": "many"}):
        assert as_(anna).post(f"{CAPS}add/", form | bounds).status_code == 200, bounds
    assert as_(anna).post(f"{CAPS}add/", form | {"site": str(world.school.pk), "at_once": "5"}).status_code == 200
    assert not Cap.objects.exists()


# --- freezes -----------------------------------------------------------------------------------------------------


def test_a_volunteer_freezes_the_site_and_an_organiser_lifts_it(world: World) -> None:
    vera = as_(world.vera)
    form = {"site": str(world.clubroom.pk), "reason": "smoke in hall 2"}
    assert vera.post(f"{FREEZES}add/", form).status_code == 302
    freeze = Freeze.objects.get()
    assert (freeze.reason, freeze.frozen_by, freezing.standing(world.clubroom)) == (
        "smoke in hall 2",
        world.vera,
        freeze,
    )
    again = vera.post(f"{FREEZES}add/", form, follow=True).content.decode()
    assert "Club room is frozen already." in again
    assert "frozen no more" not in act(world.vera, FREEZES, freeze, "lift")
    assert "Club room is frozen no more." in act(world.otto, FREEZES, freeze, "lift")
    assert "was lifted already" in act(world.otto, FREEZES, freeze, "lift")
    assert freezing.standing(world.clubroom) is None
    entries = AuditEntry.objects.filter(subject_type="agents.Freeze").order_by("sequence")
    assert [(entry.action, entry.actor) for entry in entries] == [
        ("signing.frozen", "vera"),
        ("signing.resumed", "otto"),
    ]


def test_a_freeze_is_never_changed_or_forgotten(world: World) -> None:
    freeze = freezing.freeze(world.clubroom, "smoke", world.vera)
    anna = person("anna")
    member(anna, world.clubroom, Role.SITE_ADMIN)
    for user in (anna, User.objects.create_superuser("root")):
        browser = as_(user)
        assert browser.post(f"{FREEZES}{freeze.pk}/change/", {"reason": "nothing"}).status_code == 403
        assert browser.post(f"{FREEZES}{freeze.pk}/delete/", {"post": "yes"}).status_code == 403
    freeze.refresh_from_db()
    assert freeze.reason == "smoke"
    page = as_(anna).get(f"{FREEZES}{freeze.pk}/change/").content.decode()
    assert "smoke" in page
    assert "vera" in page


def test_everything_is_frozen_by_superusers_alone(world: World) -> None:
    form = {"site": "", "reason": "fire"}
    assert as_(world.otto).post(f"{FREEZES}add/", form).status_code == 200, "a site must be chosen"
    assert not Freeze.objects.exists()
    root = User.objects.create_superuser("root")
    assert as_(root).post(f"{FREEZES}add/", form).status_code == 302
    freeze = Freeze.objects.get()
    assert freeze.site is None
    assert "all sites" in as_(world.vera).get(FREEZES).content.decode(), "who waits sees why"
    assert "You may not lift the freeze of all sites." in act(world.otto, FREEZES, freeze, "lift")
    assert "Everything is frozen no more." in act(root, FREEZES, freeze, "lift")


def test_another_sites_freeze_is_neither_seen_nor_made(world: World) -> None:
    freeze = freezing.freeze(world.clubroom, "smoke", world.vera)
    assert "smoke" not in as_(world.mallory).get(FREEZES).content.decode()
    act(world.mallory, FREEZES, freeze, "lift")
    as_(world.mallory).post(f"{FREEZES}add/", {"site": str(world.clubroom.pk), "reason": "mine"})
    freeze.refresh_from_db()
    assert (freeze.lifted_at, Freeze.objects.count()) == (None, 1)
