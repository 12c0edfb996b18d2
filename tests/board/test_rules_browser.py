"""The page of an image in Chromium: what a volatile rule costs stands below it while it is typed."""

import subprocess
from pathlib import Path

import pytest
from django.urls import reverse
from playwright.sync_api import expect

from images.builder.ruling import LIMIT_BYTES, MIB
from images.builder.store import Store
from tests.board.conftest import PHONE, Room
from tests.images.stored import stored_version
from tests.images.versions import make_image

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_a_rule_is_weighed_while_it_is_typed_and_refused_when_it_is_saved(room: Room, tmp_path: Path) -> None:
    (tmp_path / "tree/etc").mkdir(parents=True)
    (tmp_path / "tree/etc/motd").write_text("welcome")
    with (tmp_path / "tree/game").open("wb") as file:
        file.truncate(LIMIT_BYTES + MIB)
    subprocess.run(["mksquashfs", tmp_path / "tree", tmp_path / "root", "-quiet", "-no-progress"], check=True)
    image = make_image(room.world.clubroom, "cellar")
    store = Store(room.service.log_path.parent / "store")
    stored_version(image, store, root=(tmp_path / "root").read_bytes())
    page = room.page(room.world.vera, **PHONE)
    page.goto(f"{room.url}{reverse('admin:images_image_change', args=[image.pk])}")
    told = page.locator("#weights")
    expect(told).to_contain_text("Every client holds a copy of 1 file, 7\N{NO-BREAK SPACE}bytes, as cellar-1 has it.")
    page.get_by_label("Volatile").press_sequentially("copy /etc\ncopy /game")
    expect(told).to_contain_text(
        "would copy 65 MiB into the memory of every client as cellar-1 has it (at most 64 MiB)"
    )
    expect(told.locator("tr")).to_have_text(
        ["copy /etc1 file, 7\N{NO-BREAK SPACE}bytes", "copy /game1 file, 65.0\N{NO-BREAK SPACE}MB"]
    )
    over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert over <= 0
    page.get_by_role("button", name="Save and continue editing").click()
    expect(page.locator(".errorlist")).to_contain_text("would copy 65 MiB")
    page.get_by_label("Volatile").fill("copy /etc")
    page.get_by_role("button", name="Save and continue editing").click()
    expect(page.locator(".messagelist")).to_contain_text("The volatile rules copy 1 file, 7\N{NO-BREAK SPACE}bytes")
