"""The board in Chromium, served by uvicorn: orders by keyboard and by thumb, live changes, and what everybody must be able to use."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from agents.models import Command, CommandStatus, Order, Verb
from agents.observing import observe
from fleet.models import ClientState, Membership
from fleet.roles import Role
from tests.board.conftest import PHONE, Room
from tests.board.rows import advance, make_order
from tests.board.server import web_server
from tests.services import free_port, wait_for
from tests.world import member, person

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CHECKS = Path(__file__).with_name("checks.js").read_text()


def focused(page: Page) -> str:
    """What has the focus, as people would name it."""
    script = (
        "(e => e.closest('.tile')?.dataset.title ?? e.dataset.name ?? e.id ?? e.textContent)(document.activeElement)"
    )
    return str(page.evaluate(script))


def test_a_cycle_is_ordered_by_keyboard_alone_and_the_tile_changes_by_itself(room: Room) -> None:
    page = room.page(None)
    page.goto(room.board)
    expect(page.get_by_label("User name")).to_be_focused()
    page.keyboard.type("vera")
    page.keyboard.press("Tab")
    page.keyboard.type("correct horse battery")
    page.keyboard.press("Enter")
    page.locator("[data-line=live]").wait_for()
    page.evaluate("window.neverReloaded = true")

    while "A1" not in focused(page):
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")  # A4
    page.keyboard.press("Shift+ArrowRight")  # to A5
    expect(page.locator("[data-selected]")).to_have_text("2 selected: A4, A5")
    while not page.evaluate("document.activeElement.value === 'cycle'"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")

    dialog = page.get_by_role("dialog", name="Cycle 2 PCs?")
    expect(dialog).to_contain_text("Somebody sits at A5.")
    expect(page.locator("#reason")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert page.evaluate("document.activeElement.value") == "cycle"
    page.keyboard.press("Enter")
    expect(page.locator("#reason")).to_be_focused()
    for _ in range(12):  # round and round: the focus stays in the dialog, or with the browser itself
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    page.locator("#reason").focus()
    page.keyboard.type("Next person")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("[data-said]")).to_have_text("Ordered: cycle of 2 PCs.")
    assert focused(page) == "A4"
    order = Order.objects.get(reason="Next person", ordered_by=room.world.vera, commands__client__seat="A4")
    wait_for(lambda: room.queue.llen("sender") == 1, "the order waits for the sender")

    expect(room.tile(page, "A4").locator(".doing")).to_contain_text("queued")
    for command in order.commands.all():
        advance(command, CommandStatus.SENT, CommandStatus.ACCEPTED)
    observe(room.clients["A4"], ClientState.CYCLING)
    expect(room.tile(page, "A4")).to_have_attribute("data-state", "cycling")
    expect(room.tile(page, "A4")).to_contain_text("accepted")
    assert page.evaluate("window.neverReloaded")
    assert focused(page) == "A4"


def test_with_a_thumb_on_a_phone(room: Room) -> None:
    page = room.live(room.world.vera, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    room.tile(page, "B3").locator(".cover").tap()
    room.tile(page, "B7").locator(".cover").tap()
    assert page.evaluate(CHECKS) == []
    page.get_by_role("button", name="Restart").tap()
    dialog = page.get_by_role("dialog", name="Restart 2 PCs?")
    dialog.get_by_role("button", name="New version").tap()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate(CHECKS) == []
    dialog.get_by_role("button", name="Restart 2 PCs").tap()
    expect(page.locator("[data-said]")).to_have_text("Ordered: restart of 2 PCs.")
    assert set(
        Order.objects.filter(verb=Verb.RESTART, reason="New version").values_list("commands__client__seat", flat=True)
    ) == {"B3", "B7"}


def test_a_refused_order_says_why_and_keeps_what_was_typed(room: Room) -> None:
    page = room.live(room.world.vera)
    room.tile(page, "A4").locator(".cover").click()
    page.get_by_role("button", name="Power down").click()
    dialog = page.get_by_role("dialog")
    page.locator("#reason").fill("End of the evening")
    make_order(Verb.RESTART, [room.clients["A4"]], "meanwhile", room.world.otto)
    dialog.get_by_role("button", name="Power down A4").click()
    expect(dialog.get_by_role("alert")).to_contain_text("Still busy: A4")
    expect(page.locator("#reason")).to_have_value("End of the evening")
    expect(page.locator("#reason")).to_be_focused()
    room.tellings[:] = [text for text in room.tellings if "409" not in text]  # Chromium logs every answer of that kind


def test_ranges_and_all_that_are_shown(room: Room) -> None:
    page = room.live(room.world.vera)
    selected = page.locator("[data-selected]")
    room.tile(page, "A2").locator(".cover").click()
    room.tile(page, "A5").locator(".cover").click(modifiers=["Shift"])
    expect(selected).to_have_text("4 selected: A2, A3, A4, A5")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#selection")).to_be_hidden()
    page.get_by_role("searchbox").fill("paper ready")
    page.get_by_role("button", name="Select all shown").click()
    expect(selected).to_have_text("2 selected: B3, B7")
    page.get_by_role("searchbox").fill("B3")
    expect(selected).to_have_text("1 selected: B3")
    page.get_by_role("searchbox").fill("kiosk")
    room.tile(page, "K1").locator(".pick").focus()
    page.keyboard.press("Control+a")
    expect(selected).to_have_text("2 selected: K1, K2")
    page.keyboard.press("Escape")
    expect(page.locator("#selection")).to_be_hidden()


def test_queued_commands_are_cancelled_from_their_panel(room: Room) -> None:
    page = room.live(room.world.vera)
    page.get_by_role("button", name="Cancel 2 waiting").click()
    expect(page.locator("[data-said]")).to_have_text("Taken back: 2 commands.")
    expect(page.locator(".order").first).to_contain_text("6 of 8 ended")
    assert Command.objects.filter(client__seat="B8", status=CommandStatus.CANCELLED).exists()


def test_details_stay_open_while_their_pc_changes(room: Room) -> None:
    page = room.live(room.world.vera)
    info = room.tile(page, "A1").get_by_role("button", name="Details of A1")
    info.focus()
    page.keyboard.press("Enter")
    details = page.get_by_role("dialog", name="Details of A1")
    expect(details).to_contain_text("GeForce GTX 1060")
    expect(details).to_contain_text("Cycle: succeeded")
    expect(details.get_by_role("button", name="Close")).to_be_focused()
    assert page.evaluate(CHECKS) == []
    observe(room.clients["A1"], ClientState.LOST)
    expect(details).to_contain_text("Lost")
    expect(details).to_be_visible()
    page.keyboard.press("Escape")
    expect(details).to_be_hidden()
    expect(info).to_be_focused()


def test_who_loses_the_role_sees_the_line_end_and_a_viewer_cannot_order(room: Room) -> None:
    victor = person("victor")
    membership = member(victor, room.world.clubroom, Role.VIEWER)
    page = room.live(victor)
    expect(page.locator(".pick").first).to_be_hidden()
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    expect(page.get_by_role("button", name="Select all")).to_have_count(0)
    Membership.objects.filter(pk=membership.pk).delete()
    page.locator("[data-line=ended]").wait_for()


@pytest.mark.parametrize(("cookie", "says"), [("sessionid", "You are logged out."), ("csrftoken", "out of date")])
def test_who_was_logged_out_meanwhile_is_told_so(room: Room, cookie: str, says: str) -> None:
    page = room.live(room.world.vera)
    room.tile(page, "A4").locator(".cover").click()
    page.context.clear_cookies(name=cookie)
    page.get_by_role("button", name="Cycle").click()
    expect(page.locator("[data-said]")).to_contain_text(says)
    assert not Order.objects.filter(commands__client__seat="A4").exists()
    room.tellings[:] = [text for text in room.tellings if "403" not in text]


def test_a_restarted_server_is_found_again_and_what_was_missed_is_shown(room: Room, tmp_path: Path) -> None:
    environment = dict(room.service.environment)
    port = free_port()
    with web_server(environment, tmp_path, port) as other:
        room.url = other.url
        page = room.live(room.world.vera)
        page.evaluate("window.neverReloaded = true")
        room.tile(page, "A4").locator(".cover").click()
    page.locator("[data-line=broken]").wait_for()
    observe(room.clients["A1"], ClientState.LOST)
    with web_server(environment, tmp_path, port):
        page.locator("[data-line=live]").wait_for()
        expect(room.tile(page, "A1")).to_have_attribute("data-state", "lost")
        expect(page.locator("[data-selected]")).to_have_text("1 selected: A4")
        assert page.evaluate("window.neverReloaded")
        page.context.close()
    room.tellings[:] = [text for text in room.tellings if "ERR_" not in text]


def test_without_scripts_an_order_goes_over_a_page(room: Room) -> None:
    page = room.page(room.world.vera, java_script_enabled=False)
    page.goto(room.board)
    page.locator(f"#pick-{room.clients['A4'].pk}").check(force=True)
    page.get_by_role("button", name="Cycle").click()
    expect(page.get_by_role("heading", name="Cycle A4?")).to_be_visible()
    page.get_by_label("Why?").fill("Next person")
    page.get_by_role("button", name="Cycle A4").click()
    expect(page.get_by_text("Ordered: cycle of A4.")).to_be_visible()
    assert Order.objects.filter(commands__client__seat="A4").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_can_be_read_and_used(room: Room, scheme: Any) -> None:
    desktop = room.live(room.world.vera, color_scheme=scheme)
    wrong = {"board": desktop.evaluate(CHECKS)}
    desktop.get_by_role("button", name="Select all shown").click()
    desktop.get_by_role("button", name="Power down").click()
    desktop.get_by_role("dialog").wait_for()
    wrong["dialog"] = desktop.evaluate(CHECKS)
    projector = room.live(room.world.vera, "?projector", color_scheme=scheme, viewport={"width": 1920, "height": 1080})
    wrong["projector"] = projector.evaluate(CHECKS)
    last = projector.locator(".tile").last.bounding_box()
    assert last is not None
    assert last["y"] + last["height"] <= 1080  # nobody scrolls a wall
    phone = room.live(room.world.vera, color_scheme=scheme, **PHONE)
    wrong["phone"] = phone.evaluate(CHECKS)
    for name, address in {"login": "/login/", "missing": "/sites/nowhere/"}.items():
        phone.goto(room.url + address)
        wrong[name] = phone.evaluate(CHECKS)
    assert {name: found for name, found in wrong.items() if found} == {}
    room.tellings[:] = [text for text in room.tellings if "404" not in text]  # the page that is missing
