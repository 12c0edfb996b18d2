"""Campaigns in Chromium: chosen on the board, looked at, started, and bars that move by themselves."""

import pytest

from agents.models import Campaign, CommandStatus
from fleet.models import Client
from tests.agents.halls import ends, stepped
from tests.board.conftest import PHONE, Room

pytestmark = pytest.mark.slow


def test_a_campaign_of_chosen_pcs_on_a_phone(room: Room) -> None:
    page = room.live(room.world.otto, **PHONE)
    for seat in ("A4", "A9"):
        room.tile(page, seat).locator(".cover").click()
    page.get_by_role("button", name="Campaign …").click()
    page.get_by_text("Of these PCs: A4, A9").wait_for()
    page.get_by_label("Why?").fill("New version")
    page.get_by_role("button", name="What would it do?").click()
    page.get_by_role("heading", name="What it would do").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Start it").click()
    page.get_by_text("live", exact=True).wait_for()

    campaign = Campaign.objects.get()
    assert page.url == f"{room.board}campaigns/{campaign.pk}/"
    stepped(campaign)
    page.get_by_role("progressbar", name="All").and_(page.locator("[aria-valuetext='2 queued']")).wait_for()
    page.get_by_role("button", name="Pause").focus()
    ends(CommandStatus.FAILED, Client.objects.get(pk=room.clients["A4"].pk), reason="the disk is full")
    stepped(campaign)
    page.locator("[data-part=fates]").get_by_text("the disk is full").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "Pause"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Stop now").click()
    page.get_by_text("Stopped", exact=True).wait_for()
    page.get_by_role("button", name="Stop now").wait_for(state="detached")


def test_a_freeze_is_seen_by_all_at_once_and_lifted_by_who_may(room: Room) -> None:
    volunteer, organiser = room.live(room.world.vera), room.live(room.world.otto)
    volunteer.get_by_text("Freeze", exact=True).click()
    volunteer.get_by_label("Why freeze?").fill("fire alarm")
    volunteer.get_by_role("button", name=f"Freeze {room.world.clubroom}").click()
    organiser.get_by_text("Frozen: fire alarm").wait_for()
    organiser.get_by_text("Freeze", exact=True).wait_for(state="hidden")
    volunteer.get_by_text("Frozen: fire alarm").wait_for()
    assert not volunteer.get_by_role("button", name="Lift the freeze").is_visible()
    organiser.get_by_role("button", name="Lift the freeze").click()
    volunteer.get_by_text("Frozen: fire alarm").wait_for(state="detached")
    volunteer.get_by_text("Freeze", exact=True).wait_for()
