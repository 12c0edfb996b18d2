"""Orders from the board, without a browser: who may, what is refused and how it is said."""

import re
import uuid
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client as Visitor

from agents.models import BootSession, Command, CommandStatus, Order, Rollout, Verb
from fleet.models import Admission, AuditEntry, Client, ClientState
from fleet.roles import Role
from images import releasing, services
from images.models import Release
from tests.board.rows import advance, make_order, make_session
from tests.images.versions import make_image, make_version
from tests.world import World, make_client, member, person

ORDERS = "/sites/clubroom/orders"
SCRIPT = {"X-Requested-With": "fetch"}


def as_(user: User | None) -> Visitor:
    visitor = Visitor(enforce_csrf_checks=False)
    if user:
        visitor.force_login(user)
    return visitor


def form(*clients: Client, verb: str = "cycle", **fields: Any) -> dict[str, Any]:
    return {"verb": verb, "client": [str(client.pk) for client in clients], **fields}


@pytest.fixture
def pcs(world: World) -> list[Client]:
    """A1 in use and connected, A2 ready and connected, A10 lost."""
    states = (ClientState.IN_USE, ClientState.READY, ClientState.LOST)
    clients = [
        make_client(world.clubroom, f"52:54:00:00:00:{number:02x}", state=state)
        for number, state in zip((1, 2, 10), states, strict=True)
    ]
    for client in clients[:2]:
        make_session(client)
    return clients


def test_a_volunteer_orders_a_cycle_and_each_pc_has_its_command(world: World, pcs: list[Client]) -> None:
    answer = as_(world.vera).post(ORDERS, form(*pcs, reason=" Next person "), headers=SCRIPT)
    assert (answer.status_code, answer.json()) == (201, {"said": "Ordered: cycle of 3 PCs."})
    order = Order.objects.get()
    assert (order.verb, order.reason, order.ordered_by, order.site) == (
        Verb.CYCLE,
        "Next person",
        world.vera,
        world.clubroom,
    )
    assert {command.client for command in order.commands.all()} == set(pcs)
    assert AuditEntry.objects.filter(action="order", actor="vera").count() == 1


def test_before_an_order_the_board_says_what_would_happen_to_whom(world: World, pcs: list[Client]) -> None:
    text = as_(world.vera).post(ORDERS, form(*pcs), headers=SCRIPT).content.decode()
    assert "Cycle 3 PCs?" in text
    assert "1 ready" in text
    assert "1 in use" in text
    assert "Somebody sits at A1." in text
    assert "Not connected: A10." in text
    assert re.findall(r"<li>(A\d+)</li>", text) == ["A1", "A2", "A10"]
    assert not Order.objects.exists()


def test_what_is_busy_is_left_out_and_named(world: World, pcs: list[Client]) -> None:
    make_order(Verb.RESTART, pcs[:1], "before", world.otto)
    text = as_(world.vera).post(ORDERS, form(*pcs), headers=SCRIPT).content.decode()
    assert "Cycle 2 PCs?" in text
    assert "left out: A1 (restart)" in text
    assert str(pcs[0].pk) not in text


def test_twice_is_refused_as_busy_and_orders_nothing(world: World, pcs: list[Client]) -> None:
    visitor = as_(world.vera)
    visitor.post(ORDERS, form(*pcs, reason="Next person"), headers=SCRIPT)
    again = visitor.post(ORDERS, form(*pcs, reason="Next person"), headers=SCRIPT)
    assert again.status_code == 409
    assert again.headers["Content-Type"] == "application/problem+json"
    assert "A1" in again.json()["detail"]
    assert Order.objects.count() == 1


def test_without_a_script_the_same_address_leads_over_a_page(world: World, pcs: list[Client]) -> None:
    visitor = as_(world.vera)
    page = visitor.post(ORDERS, form(*pcs))
    assert "<!doctype html>" in page.content.decode()
    fields = re.findall(r'name="(\w+)" value="([^"]+)"', page.content.decode())
    keep = {name: [value for key, value in fields if key == name] for name in ("verb", "client")}
    done = visitor.post(ORDERS, {**keep, "reason": "Next person"}, follow=True)
    assert done.redirect_chain == [("/sites/clubroom/", 302)]
    assert "Ordered: cycle of 3 PCs." in done.content.decode()


def test_without_a_script_a_refusal_keeps_what_was_typed(world: World, pcs: list[Client]) -> None:
    make_order(Verb.RESTART, pcs[:1], "before", world.otto)
    answer = as_(world.vera).post(ORDERS, form(*pcs, reason="Next <person>"))
    assert answer.status_code == 409
    assert "Still busy: A1" in answer.content.decode()
    assert 'value="Next &lt;person&gt;"' in answer.content.decode()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"verb": "explode"}, "no order"),
        ({"verb": ""}, "no order"),
        ({"client": []}, "No PC"),
        ({"client": ["rubbish"]}, "no PC"),
        ({"client": ["1' OR '1'='1"]}, "no PC"),
        ({"client": [str(uuid.UUID(int=number)) for number in range(1001)]}, "1001 PCs are more"),
        ({"reason": "  "}, "needs a reason"),
        ({"reason": "x" * 201}, "too long"),
    ],
)
def test_rubbish_is_refused_in_words(world: World, pcs: list[Client], fields: dict[str, Any], says: str) -> None:
    answer = as_(world.vera).post(ORDERS, {**form(*pcs, reason="why"), **fields}, headers=SCRIPT)
    assert answer.status_code == 400
    assert says in answer.json()["detail"]
    assert answer.json()["hint"]
    assert not Order.objects.exists()


def test_a_viewer_may_look_but_not_order(world: World, pcs: list[Client]) -> None:
    viewer = person("victor")
    member(viewer, world.clubroom, Role.VIEWER)
    answer = as_(viewer).post(ORDERS, form(*pcs, reason="Next person"), headers=SCRIPT)
    assert answer.status_code == 403
    assert as_(viewer).post(ORDERS, form(*pcs)).status_code == 403
    refused = AuditEntry.objects.get(action="refused")
    assert (refused.actor, refused.site) == ("victor", world.clubroom)
    assert not Order.objects.exists()
    page = as_(viewer).get("/sites/clubroom/").content.decode()
    assert 'id="selection"' not in page
    assert "operates" not in page
    assert 'id="selection"' in as_(world.vera).get("/sites/clubroom/").content.decode()


def test_another_site_is_not_there(world: World, pcs: list[Client]) -> None:
    foreign = make_client(world.school, "52:54:00:00:00:63")
    retired = make_client(world.clubroom, "52:54:00:00:00:64", admission=Admission.RETIRED)
    assert as_(world.mallory).post(ORDERS, form(*pcs, reason="ha"), headers=SCRIPT).status_code == 404
    for client in (foreign, retired):
        answer = as_(world.vera).post(ORDERS, form(pcs[0], client, reason="ha"), headers=SCRIPT)
        assert answer.status_code == 404
    assert not Order.objects.exists()


def test_only_post_changes_anything_and_only_with_its_token(world: World, pcs: list[Client]) -> None:
    command = make_order(Verb.CYCLE, pcs[:1], "before", world.vera)[0]
    cancel = f"{ORDERS}/{command.order_id}/cancel"
    strict = Visitor(enforce_csrf_checks=True)
    strict.force_login(world.vera)
    for address in (ORDERS, cancel):
        assert as_(world.vera).get(address).status_code == 405
        refused = strict.post(address, form(pcs[1], reason="Next person"))
        assert refused.status_code == 403
        assert "Nothing was done." in refused.content.decode()
    assert Order.objects.count() == 1
    command.refresh_from_db()
    assert command.status == CommandStatus.QUEUED


def test_a_stranger_is_asked_to_log_in(world: World, pcs: list[Client]) -> None:
    answer = as_(None).post(ORDERS, form(*pcs, reason="Next person"))
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith("/login/")
    assert not Order.objects.exists()


def test_what_still_waits_can_be_taken_back(world: World, pcs: list[Client]) -> None:
    commands = make_order(Verb.CYCLE, pcs, "Next person", world.otto)
    advance(commands[0], CommandStatus.ACCEPTED)
    advance(commands[1], CommandStatus.SENT)
    address = f"{ORDERS}/{commands[0].order_id}/cancel"
    answer = as_(world.vera).post(address, headers=SCRIPT)
    assert (answer.status_code, answer.json()["said"]) == (200, "Taken back: 2 commands.")
    assert sorted(Command.objects.values_list("status", flat=True)) == ["accepted", "cancelled", "cancelled"]
    again = as_(world.vera).post(address, headers=SCRIPT)
    assert again.status_code == 409
    assert AuditEntry.objects.get(action="order.cancelled").detail == {"commands": 2}


def test_who_may_not_order_may_not_take_back(world: World, pcs: list[Client]) -> None:
    viewer = person("victor")
    member(viewer, world.clubroom, Role.VIEWER)
    command = make_order(Verb.CYCLE, pcs[:1], "Next person", world.vera)[0]
    address = f"{ORDERS}/{command.order_id}/cancel"
    assert as_(viewer).post(address, headers=SCRIPT).status_code == 403
    assert as_(world.mallory).post(address, headers=SCRIPT).status_code == 404
    elsewhere = address.replace("clubroom", "school")
    assert as_(world.mallory).post(elsewhere, headers=SCRIPT).status_code == 404
    command.refresh_from_db()
    assert command.status == CommandStatus.QUEUED


@pytest.fixture
def older(world: World, pcs: list[Client]) -> list[Client]:
    """Two PCs that run gamer-1, while gamer-2 is released."""
    image = make_image(world.clubroom)
    first = services.release(make_version(image), world.gamer, world.otto)
    Client.objects.update(client_class=world.gamer)
    BootSession.objects.update(release=first, client_class=world.gamer)
    services.release(make_version(image), world.gamer, world.otto)
    return pcs[:2]


def test_who_is_behind_is_counted_and_restarted_when_idle(world: World, older: list[Client]) -> None:
    page = as_(world.vera).get("/sites/clubroom/").content.decode()
    assert "2 PCs run another version" in page
    address = f"/sites/clubroom/rollouts/{world.gamer.pk}"
    assert f'formaction="{address}"' in page
    answer = as_(world.vera).post(address, headers=SCRIPT)
    assert (answer.status_code, answer.json()) == (
        201,
        {"said": "PCs of Gamer are restarted when nobody uses them, 1 at a time."},
    )
    again = as_(world.vera).post(address, headers=SCRIPT)
    assert (again.status_code, again.json()["detail"]) == (409, "Clients of Gamer are being restarted already.")
    row = Rollout.objects.get()
    stop = f"/sites/clubroom/rollouts/{row.pk}/stop"
    assert f'formaction="{stop}"' in as_(world.vera).get("/sites/clubroom/").content.decode()
    assert as_(world.vera).post(stop).status_code == 302
    assert as_(world.vera).post(stop, headers=SCRIPT).status_code == 409


def test_a_rollout_is_for_who_may_operate_here(world: World, older: list[Client]) -> None:
    viewer = person("viola")
    member(viewer, world.clubroom, Role.VIEWER)
    address = f"/sites/clubroom/rollouts/{world.gamer.pk}"
    assert as_(viewer).post(address, headers=SCRIPT).status_code == 403
    assert as_(world.mallory).post(address, headers=SCRIPT).status_code == 404
    assert as_(None).post(address, headers=SCRIPT).status_code == 302
    assert as_(world.vera).get(address).status_code == 405
    assert as_(world.vera).post("/sites/clubroom/rollouts/999999", headers=SCRIPT).status_code == 404
    assert not Rollout.objects.exists()


def test_what_ended_by_itself_is_told_on_the_board(world: World, older: list[Client]) -> None:
    release = Release.objects.get(current=True)
    releasing.end_bad(release, "of 2 clients that booted gamer-2, 2 did not become ready")
    page = as_(world.vera).get("/sites/clubroom/").content.decode()
    assert "gamer-2 was rolled back by itself: of 2 clients that booted gamer-2, 2 did not become ready" in page
    assert "run another version" not in page
    BootSession.objects.filter(client=older[0]).update(verdict="good")
    releasing.start(
        make_version(release.version.image), world.gamer, world.otto, clients=Client.objects.filter(pk=older[0].pk)
    )
    page = as_(world.vera).get("/sites/clubroom/").content.decode()
    assert "some gamer-3" in page
    assert "canary: 0 good, 0 bad" in page
    assert "1 PC runs another version" in page
