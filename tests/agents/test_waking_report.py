"""Which models wake and which do not, and power ports: in the admin, the API and for Prometheus; of one's own sites alone."""

import ipaddress
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client as Browser
from django.urls import reverse
from prometheus_client import generate_latest
from pytest_django.fixtures import Settings

from agents import services
from agents.board.facts import OrderLine
from agents.board.orders import read_orders
from agents.models import BootSession, Command, CommandStatus, Order, PowerPort, Verb, Wake
from agents.power import report
from fleet.metrics import DATABASE
from fleet.models import AuditEntry, Client, Site
from tests.api import call
from tests.world import World, make_client

CIRRUS = "1013:00b8"


@pytest.fixture
def numbers() -> Iterator[int]:
    return iter(range(1, 200))


@pytest.fixture
def woken(world: World, numbers: Iterator[int]) -> Any:
    """Make a wake that has ended."""

    def make(product: str, *, asleep: bool = False, woke: bool = False, site: Site | None = None) -> Wake:
        site = site or world.clubroom
        client = make_client(site, f"52:54:00:00:00:{next(numbers):02x}", product=product)
        order = Order.objects.create(site=site, verb=Verb.WAKE, reason="why")
        status = CommandStatus.SUCCEEDED if woke else CommandStatus.FAILED
        times = {"expires_at": "2026-01-01T00:00Z", "sent_at": "2026-01-01T00:00Z"}
        command = Command.objects.create(order=order, client=client, verb=Verb.WAKE, status=status, **times)
        return Wake.objects.create(command=command, way="relays", product=product, adapter=CIRRUS, asleep=asleep)

    return make


@pytest.fixture
def mixed(world: World, woken: Any) -> None:
    for product, woke, asleep, other in (("Good 1", 3, 0, 1), ("Bad 2", 1, 3, 0), ("Odd 3", 0, 0, 2)):
        for _ in range(woke):
            woken(product, woke=True)
        for _ in range(asleep):
            woken(product, asleep=True)
        for _ in range(other):
            woken(product)
    woken("School 4", asleep=True, site=world.school)


def test_models_are_counted_the_worst_first_and_other_failures_are_not_theirs(world: World, mixed: None) -> None:
    counted = report.by_model(Wake.objects.visible_to(world.vera))
    assert [(one.product, one.woke, one.asleep, one.percent) for one in counted] == [
        ("Bad 2", 1, 3, 75),
        ("Good 1", 3, 0, 0),
    ]
    assert counted[0].adapter_name.endswith("GD 5446")


def test_the_api_tells_it_with_the_filters_of_the_list(world: World, mixed: None) -> None:
    status, models = call(world.vera, "wakes/models/")
    assert status == 200
    assert [(one["product"], one["asleep"]) for one in models] == [("Bad 2", 3), ("Good 1", 0)]
    assert call(world.vera, "wakes/models/?product=Good 1")[1] == [models[1]]
    assert [one["product"] for one in call(world.mallory, "wakes/models/")[1]] == ["School 4"]
    status, page = call(world.vera, "wakes/?asleep=true&size=2")
    assert (status, len(page["results"]), page["next"] is not None) == (200, 2, True)
    row = page["results"][0]
    assert (row["product"], row["asleep"], row["status"], row["relays"]) == ("Bad 2", True, "failed", [])
    assert call(world.mallory, f"wakes/{row['command']}/")[0] == 404


def test_the_admin_shows_it_above_the_list(world: World, mixed: None) -> None:
    browser = Browser()
    browser.force_login(world.vera)
    page = browser.get("/admin/agents/wake/")
    assert [one.product for one in page.context["models"]] == ["Bad 2", "Good 1"]
    assert "Did not wake" in page.text
    assert "School 4" not in page.text
    assert [one.product for one in browser.get("/admin/agents/wake/?product=Good 1").context["models"]] == ["Good 1"]
    wake = Wake.objects.filter(product="Bad 2").latest("pk")
    assert "Bad 2, Cirrus Logic GD 5446" in browser.get(reverse("admin:agents_wake_change", args=[wake.pk])).text


def test_prometheus_gets_both_numbers_of_each_model(mixed: None) -> None:
    said = generate_latest(DATABASE).decode()
    labels = f'adapter="{CIRRUS}",outcome="%s",product="%s",site="%s"'
    for outcome, product, site, number in (
        ("asleep", "Bad 2", "clubroom", 3),
        ("woke", "Bad 2", "clubroom", 1),
        ("woke", "Good 1", "clubroom", 3),
        ("asleep", "School 4", "school", 1),
    ):
        wanted = set((labels % (outcome, product, site)).split(","))
        found = [line for line in said.splitlines() if line.startswith("fleet_wakes_total{")]
        assert any(
            set(line.partition("{")[2].partition("}")[0].split(",")) == wanted and line.endswith(f" {number}.0")
            for line in found
        ), wanted


# Power ports


@pytest.fixture
def port(world: World, settings: Settings) -> PowerPort:
    settings.POWER_NETWORKS = [ipaddress.ip_network("10.20.9.0/24")]
    return PowerPort.objects.create(client=make_client(world.clubroom), address="https://10.20.9.5", credential="bmc")


def posted(person: User, path: str, client: Client, address: str) -> Any:
    browser = Browser()
    browser.force_login(person)
    form = {"client": str(client.pk), "kind": "redfish", "address": address, "outlet": "", "credential": "bmc"}
    return browser.post(path, form)


def test_a_site_admin_enters_ports_within_the_allowed_networks_and_it_is_written_down(
    world: World, port: PowerPort
) -> None:
    world.vera.memberships.update(role="site-admin")
    client = make_client(world.clubroom, "52:54:00:00:00:02")
    add = "/admin/agents/powerport/add/"
    refused = posted(world.vera, add, client, "https://169.254.169.254")
    assert "reaches power ports in 10.20.9.0/24 alone" in refused.text
    assert posted(world.vera, add, client, "https://10.20.9.6").status_code == 302
    made = PowerPort.objects.get(client=client)
    entry = AuditEntry.objects.get(action="powerport.added")
    assert (entry.site, entry.detail["now"]["address"]) == (world.clubroom, "https://10.20.9.6")
    assert (
        posted(world.vera, f"/admin/agents/powerport/{made.pk}/change/", client, "https://10.20.9.7").status_code == 302
    )
    made.refresh_from_db()
    assert made.address == "https://10.20.9.7"


@pytest.mark.parametrize("role", ["viewer", "volunteer", "organiser"])
def test_others_look_and_change_nothing(world: World, port: PowerPort, role: str) -> None:
    world.vera.memberships.update(role=role)
    client = make_client(world.clubroom, "52:54:00:00:00:02")
    assert posted(world.vera, "/admin/agents/powerport/add/", client, "https://10.20.9.6").status_code == 403
    change = f"/admin/agents/powerport/{port.pk}/change/"
    assert posted(world.vera, change, client, "https://10.20.9.7").status_code == 403
    port.refresh_from_db()
    assert port.address == "https://10.20.9.5"
    assert call(world.vera, "power-ports/")[1]["results"] == [
        {
            "client": str(port.client_id),
            "kind": "redfish",
            "address": "https://10.20.9.5",
            "outlet": "",
            "credential": "bmc",
        }
    ]


def test_nobody_of_another_site_sees_or_enters_one(world: World, port: PowerPort) -> None:
    assert call(world.mallory, "power-ports/")[1]["results"] == []
    client = make_client(world.clubroom, "52:54:00:00:00:02")
    answer = posted(world.mallory, "/admin/agents/powerport/add/", client, "https://10.20.9.6")
    assert "belongs to another site" in answer.text
    assert PowerPort.objects.count() == 1


# Orders of several PCs, in which relays have commands of their own


def test_relays_are_not_counted_among_those_that_were_ordered_something(world: World) -> None:
    target, near = make_client(world.clubroom), make_client(world.clubroom, "52:54:00:00:00:02")
    order = services.order(Verb.WAKE, [target], "doors open", world.vera)
    Command.objects.create(order=order, client=near, verb=Verb.RELAY, expires_at="2026-01-01T00:00Z")
    browser = Browser()
    browser.force_login(world.vera)
    [shown] = browser.get("/admin/agents/order/").context["cl"].result_list
    assert (shown.number, shown.queued) == (1, 1)
    [line] = read_orders(world.clubroom)
    assert isinstance(line, OrderLine)
    assert (line.whom, line.total) == (target.seat, 1)


def test_an_order_from_the_board_leaves_out_who_is_on(world: World) -> None:
    off, on = make_client(world.clubroom), make_client(world.clubroom, "52:54:00:00:00:02")
    BootSession.objects.create(client=on, boot_id=on.pk, bearer_digest="x", status="open")
    browser = Browser()
    browser.force_login(world.vera)
    asked = browser.post("/sites/clubroom/orders", {"verb": "wake", "client": [str(off.pk), str(on.pk)]})
    assert [client.pk for client in asked.context["plan"].clients] == [off.pk]
    assert "On already, so left out: A2." in asked.text
    assert "Not connected" not in asked.text
