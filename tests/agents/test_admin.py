import json

import pytest
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth.models import User
from django.test import Client as Browser

from agents import services
from agents.admin.restores import phases_bar
from agents.models import Command, CommandStatus, Order, Verb
from fleet.models import AuditEntry, Client
from tests.agents.restores import make_restore
from tests.world import World, make_client

CLIENTS = "/admin/fleet/client/"


def as_(user: User) -> Browser:
    browser = Browser()
    browser.force_login(user)
    return browser


def choose(*clients: Client, verb: str = "cycle", **more: str) -> dict[str, object]:
    return {"action": verb, ACTION_CHECKBOX_NAME: [str(client.pk) for client in clients], **more}


@pytest.mark.parametrize("verb", Verb.values)
def test_a_selection_is_ordered_after_a_page_that_asks_why(world: World, verb: str) -> None:
    one, two = make_client(world.clubroom), make_client(world.clubroom, "52:54:00:00:00:02")
    vera = as_(world.vera)
    asking = vera.post(CLIENTS, choose(one, two, verb=verb))
    assert asking.status_code == 200
    assert "2 clients" in asking.content.decode()
    assert not Order.objects.exists(), "nothing is ordered by asking"
    done = vera.post(CLIENTS, choose(one, two, verb=verb, confirmed="yes", reason="next player"), follow=True)
    order = Order.objects.get()
    assert (order.verb, order.reason, order.ordered_by, order.commands.count()) == (verb, "next player", world.vera, 2)
    assert done.redirect_chain == [(f"{CLIENTS}?", 302)]
    assert f'<a href="/admin/agents/order/{order.pk}/change/">' in done.content.decode()


def test_what_is_refused_is_said_on_the_page_that_keeps_what_was_typed(world: World) -> None:
    client = make_client(world.clubroom)
    vera = as_(world.vera)
    page = vera.post(CLIENTS, choose(client, confirmed="yes", reason="  "))
    assert page.status_code == 200
    assert "An order needs a reason." in page.content.decode()
    services.order("restart", [client], "x", world.vera)
    page = vera.post(CLIENTS, choose(client, confirmed="yes", reason="typed with care"))
    assert page.status_code == 200
    assert "Still busy: A1 (pc-01) (restart)." in page.content.decode()
    assert "typed with care" in page.content.decode()
    assert Order.objects.count() == 1


def test_a_viewer_is_offered_no_order_and_gets_none(world: World) -> None:
    world.vera.memberships.update(role="viewer")
    client = make_client(world.clubroom)
    vera = as_(world.vera)
    assert "Power down" not in vera.get(CLIENTS).content.decode()
    assert "Cycle …" not in vera.get(f"{CLIENTS}{client.pk}/change/").content.decode()
    vera.post(CLIENTS, choose(client, confirmed="yes", reason="x"))
    assert not Order.objects.exists()


def test_a_client_of_another_site_cannot_be_chosen(world: World) -> None:
    client = make_client(world.clubroom)
    as_(world.mallory).post(CLIENTS, choose(client, confirmed="yes", reason="x"))
    assert not Order.objects.exists()


def test_a_clients_page_offers_orders_and_tells_its_story(world: World) -> None:
    client = make_client(world.clubroom, client_class=world.gamer)
    restore = make_restore(world, client)
    page = as_(world.vera).get(f"{CLIENTS}{client.pk}/change/").content.decode()
    assert page.count('name="action" value=') == 3
    assert f"/admin/agents/homerestore/{restore.pk}/change/" in page
    assert f"/admin/agents/command/{restore.command_id}/change/" in page
    assert "the home is as its template" in page


def test_queued_commands_are_taken_back(world: World) -> None:
    order = services.order("cycle", [make_client(world.clubroom)], "x", world.vera)
    action = {"action": "cancel", ACTION_CHECKBOX_NAME: [str(order.pk)]}
    assert "1 command taken back" in as_(world.vera).post("/admin/agents/order/", action, follow=True).content.decode()
    assert Command.objects.get().status == CommandStatus.CANCELLED
    assert "What was sent cannot be called back." in as_(world.vera).post(
        "/admin/agents/order/", action, follow=True
    ).content.decode().replace("&#x27;", "'")


def test_a_restore_is_read_exported_and_never_changed(world: World) -> None:
    restore = make_restore(world, make_client(world.clubroom, client_class=world.gamer))
    vera = as_(world.otto)
    page = vera.get(f"/admin/agents/homerestore/{restore.pk}/change/").content.decode()
    assert "ab" * 32 in page
    assert 'name="_save"' not in page
    assert vera.post(f"/admin/agents/homerestore/{restore.pk}/change/", {"reason": "forged"}).status_code == 403
    assert vera.post(f"/admin/agents/homerestore/{restore.pk}/delete/", {"post": "yes"}).status_code == 403
    lines = vera.get("/admin/agents/homerestore/export/jsonl/?result__exact=restored").getvalue().decode().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["next player"]
    assert vera.get("/admin/agents/homerestore/export/jsonl/?result__exact=failed").getvalue() == b""
    assert as_(world.mallory).get("/admin/agents/homerestore/export/jsonl/").getvalue() == b""
    assert vera.get("/admin/agents/homerestore/export/xml/").status_code == 404


def test_phases_are_drawn_as_wide_as_they_took() -> None:
    bar = phases_bar({"kill": 100, "restore": 300, "total": 420})
    assert 'x="0" width="250"' in bar
    assert 'x="250" width="750"' in bar
    assert "total 420 ms" in bar
    assert phases_bar({}) == "—"


def test_orders_in_the_admin_are_in_the_audit_log(world: World) -> None:
    as_(world.vera).post(CLIENTS, choose(make_client(world.clubroom), confirmed="yes", reason="next player"))
    entry = AuditEntry.objects.get(action="order")
    assert (entry.actor, entry.detail["reason"]) == ("vera", "next player")
