"""The admin in Chromium: under the strict policy of its pages nothing is blocked, nothing runs over the edge of a phone."""

from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone

from agents import campaigning, campaigns
from agents.models import Command, CommandStatus, Order, Verb
from agents.selecting import Selection
from fleet.models import AuditEntry, HardwareRule
from images.models import BuildStep, Release
from tests.agents.restores import make_wake
from tests.board.conftest import DESKTOP, PHONE, Room
from tests.images.versions import make_version
from tests.services import celery_sends_to

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def addresses(room: Room) -> list[str]:
    """A page of each kind."""
    cycled = Command.objects.filter(verb=Verb.CYCLE, status=CommandStatus.SUCCEEDED).first()
    entry, rule = AuditEntry.objects.first(), HardwareRule.objects.first()
    assert cycled
    assert entry
    assert rule
    release = Release.objects.filter(current=True, client_class=room.world.gamer).select_related("version").get()
    other = make_version(release.version.image)
    BuildStep.objects.create(version=other, number=1, name="bootstrap", title="Install", finished_at=timezone.now())
    world = room.world
    with celery_sends_to("redis://127.0.0.1:1/0"):
        everybody = campaigns.plan(world.clubroom, world.vera, verb="restart", reason="x", selection=Selection())
        campaigns.start(everybody, world.vera)
        campaigning.step()
    wake = make_wake(room.clients["A1"], product="OptiPlex 7010", adapter="1013:00b8")
    lists = [
        "fleet_client",
        "agents_campaign",
        "agents_target",
        "agents_order",
        "agents_wake",
        "agents_powerport",
        "agents_homerestore",
        "fleet_auditentry",
        "fleet_apitoken",
    ]
    rows = [
        *(("fleet_client", cycled.client_id), ("agents_order", cycled.order_id), ("agents_command", cycled.pk)),
        *(("agents_homerestore", cycled.restore.pk), ("fleet_auditentry", entry.pk), ("fleet_hardwarerule", rule.pk)),
        ("agents_campaign", everybody.pk),
        *(
            ("agents_wake", wake.pk),
            ("agents_powerport", wake.command.client_id),
            ("fleet_site", room.world.clubroom.pk),
            ("images_release", release.pk),
        ),
        *(("images_image", release.version.image_id), ("images_imageversion", release.version_id)),
    ]
    return [
        reverse("admin:index"),
        *(reverse(f"admin:{name}_changelist") for name in lists),
        *(reverse(f"admin:{name}_change", args=[pk]) for name, pk in rows),
        reverse("admin:fleet_client_delete", args=[cycled.client_id]),
        *(reverse(f"admin:{name}_add") for name in ("fleet_membership", "agents_cap", "agents_freeze")),
        reverse("admin:fleet_apitoken_add"),
        reverse("admin:images_storage"),
        reverse("admin:images_imageversion_compare", args=[other.pk, release.version_id]),
    ]


@pytest.mark.parametrize(
    ("screen", "scheme"), [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")]
)
def test_no_page_is_blocked_or_runs_over_the_edge(room: Room, screen: dict[str, Any], scheme: str) -> None:
    """What the console says or the policy blocks fails in the fixture."""
    room.world.vera.memberships.update(role="site-admin")
    page = room.page(room.world.vera, color_scheme=scheme, **screen)
    for address in addresses(room):
        answer = page.goto(f"{room.url}{address}")
        assert answer is not None
        assert answer.status == 200, address
        over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert over <= 0, f"{address} is {over} pixels too wide"


def test_a_selection_is_cycled_from_the_list(room: Room) -> None:
    page = room.page(room.world.vera)
    page.goto(f"{room.url}{reverse('admin:fleet_client_changelist')}?state__exact=in-use")
    for seat in ("B1", "B2"):
        page.locator("tr", has=page.get_by_role("link", name=seat, exact=True)).locator(".action-select").check()
    page.locator("select[name=action]").select_option(label="Cycle: restore the home, log in again")
    page.locator("button[name=index]").click()
    page.get_by_role("heading", name="2 clients").wait_for()
    page.get_by_label("Reason").fill("between two rounds")
    page.get_by_role("button", name="Cycle").click()
    page.get_by_text("Cycle of 2 clients is ordered.").wait_for()
    assert page.url.endswith("?state__exact=in-use")
    page.get_by_role("link", name="Cycle of 2 clients").click()
    page.get_by_role("heading", name="Commands").wait_for()
    order = Order.objects.get(reason="between two rounds")
    assert {command.client.seat for command in order.commands.all()} == {"B1", "B2"}
