import csv
import io
import json

import pytest
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth.models import User
from django.test import Client as Browser

from agents import services
from agents.admin.restores import phases_bar
from agents.models import Command, CommandStatus, Order
from fleet.models import AuditEntry, Client
from fleet.roles import Role
from tests.agents.restores import make_restore, make_session
from tests.world import World, make_client, member

CLIENTS = "/admin/fleet/client/"


def as_(user: User) -> Browser:
    browser = Browser()
    browser.force_login(user)
    return browser


def choose(*clients: Client, verb: str = "cycle", **more: str) -> dict[str, object]:
    return {"action": verb, ACTION_CHECKBOX_NAME: [str(client.pk) for client in clients], **more}


@pytest.mark.parametrize("verb", ["restart", "poweroff", "cycle"])
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
    assert page.count('name="action" value=') == 4
    assert f"/admin/agents/homerestore/{restore.pk}/change/" in page
    assert f"/admin/agents/command/{restore.command_id}/change/" in page
    assert "the home is as its template" in page


def test_queued_commands_are_taken_back(world: World) -> None:
    order = services.order("cycle", [make_client(world.clubroom)], "x", world.vera)
    action = {"action": "cancel", ACTION_CHECKBOX_NAME: [str(order.pk)]}
    assert "1 command taken back" in as_(world.vera).post("/admin/agents/order/", action, follow=True).content.decode()
    assert Command.objects.get().status == CommandStatus.CANCELLED
    assert "What a client has accepted cannot be called back." in as_(world.vera).post(
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


def test_an_order_leads_back_to_the_filtered_list_and_from_a_clients_page_to_it(world: World) -> None:
    one, two = make_client(world.clubroom), make_client(world.clubroom, "52:54:00:00:00:02", state="ready")
    vera = as_(world.vera)
    asked = vera.post(f"{CLIENTS}?state__exact=off", choose(one, verb="restart"))
    assert 'name="_changelist_filters" value="state__exact=off"' in asked.content.decode()
    confirmed = choose(one, verb="restart", confirmed="yes", reason="x", _changelist_filters="state__exact=off")
    assert vera.post(CLIENTS, confirmed)["Location"] == f"{CLIENTS}?state__exact=off"
    done = vera.post(CLIENTS, choose(two, verb="restart", confirmed="yes", reason="x", alone="yes"))
    assert done["Location"] == f"{CLIENTS}{two.pk}/change/"


def test_an_order_without_the_forms_token_is_refused(world: World) -> None:
    strict = Browser(enforce_csrf_checks=True)
    strict.force_login(world.vera)
    client = make_client(world.clubroom)
    assert strict.post(CLIENTS, choose(client, confirmed="yes", reason="x")).status_code == 403
    assert not Order.objects.exists()


def test_a_reason_is_at_most_200_characters_and_kept_when_it_is_not(world: World) -> None:
    client = make_client(world.clubroom)
    page = as_(world.vera).post(CLIENTS, choose(client, confirmed="yes", reason="x" * 201)).content.decode()
    assert "Say it in 200 characters." in page
    assert "x" * 201 in page
    assert not Order.objects.exists()


def test_a_name_is_text_wherever_it_is_shown(world: World) -> None:
    client = make_client(world.clubroom, seat="<b>A1</b>")
    vera = as_(world.vera)
    for form in (choose(client), choose(client, confirmed="yes", reason="<i>why</i>")):
        page = vera.post(CLIENTS, form, follow=True).content.decode()
        assert "<b>A1" not in page
        assert "&lt;b&gt;A1" in page
    assert "<i>why" not in vera.get("/admin/agents/order/").content.decode()


def test_a_volunteer_of_one_site_who_views_another_is_refused_there(world: World) -> None:
    member(world.vera, world.school, Role.VIEWER)
    client = make_client(world.school)
    page = as_(world.vera).post(CLIENTS, choose(client, confirmed="yes", reason="x")).content.decode()
    assert "You may not order anything of A1 (pc-01)." in page
    assert not Order.objects.exists()


def test_one_command_is_taken_back_once_and_by_those_who_may(world: World) -> None:
    command = services.order("cycle", [make_client(world.clubroom)], "x", world.vera).commands.get()
    action = {"action": "cancel", ACTION_CHECKBOX_NAME: [str(command.pk)]}
    as_(world.mallory).post("/admin/agents/command/", action)
    command.refresh_from_db()
    assert command.status == CommandStatus.QUEUED
    vera = as_(world.vera)
    assert "is taken back." in vera.post("/admin/agents/command/", action, follow=True).content.decode()
    command.refresh_from_db()
    assert command.status == CommandStatus.CANCELLED
    assert "it is cancelled" in vera.post("/admin/agents/command/", action, follow=True).content.decode()


def test_an_order_counts_what_became_of_its_commands(world: World) -> None:
    clients = [make_client(world.clubroom, f"52:54:00:00:00:0{number}") for number in range(1, 4)]
    order = services.order("cycle", clients, "x", world.vera)
    services.cancel(order.commands.all()[0], world.vera)
    vera = as_(world.vera)
    assert "2 queued, 1 cancelled" in vera.get("/admin/agents/order/").content.decode()
    page = vera.get(f"/admin/agents/order/{order.pk}/change/").content.decode()
    assert "cancelled by vera" in page
    assert page.count("/admin/agents/command/") >= 3
    assert 'name="_save"' not in page


def test_a_boot_is_read_with_the_times_of_its_stages(world: World) -> None:
    session = make_session(make_client(world.clubroom, client_class=world.gamer))
    session.facts = {"boot_ms": {"daemon": 4200, "kernel": 910}, "cpus": 2}
    session.save()
    vera = as_(world.vera)
    page = vera.get(f"/admin/agents/bootsession/{session.pk}/change/").content.decode()
    assert "kernel 0.9 s, daemon 4.2 s" in page
    assert session.bearer_digest not in page
    assert (
        vera.get(f"/admin/agents/bootsession/?bearer_digest__startswith={session.bearer_digest[0]}").status_code == 400
    )
    assert "4.2" in vera.get("/admin/agents/bootsession/").content.decode()


def test_a_download_of_restores_opens_in_a_spreadsheet_as_text(world: World) -> None:
    restore = make_restore(world, make_client(world.clubroom, seat="=1+1"))
    text = as_(world.vera).get("/admin/agents/homerestore/export/csv/").getvalue().decode()
    [row] = csv.DictReader(io.StringIO(text))
    assert row["client_name"] == "'=1+1 (pc-01)"
    assert json.loads(row["phases_ms"]) == restore.phases_ms
    wrong = as_(world.vera).get("/admin/agents/homerestore/export/csv/?at__year=x")
    assert wrong["Location"] == "/admin/agents/homerestore/?e=1"
