import csv
import io
import json
import uuid
from typing import Any

import pytest

from agents import services
from agents.models import Command, CommandStatus, Order
from fleet.models import AuditEntry
from fleet.roles import Role
from tests.agents.restores import make_command, make_restore, make_session
from tests.api import as_, call
from tests.world import World, make_client, member, person


def asked(*clients: Any, verb: str = "cycle", reason: str = "next player") -> dict[str, Any]:
    return {"verb": verb, "clients": [str(getattr(client, "pk", client)) for client in clients], "reason": reason}


@pytest.mark.parametrize("verb", ["restart", "poweroff", "cycle", "wake"])
def test_an_order_for_a_selection_makes_one_command_each(world: World, verb: str) -> None:
    one, two = make_client(world.clubroom), make_client(world.clubroom, "52:54:00:00:00:02")
    status, order = call(world.vera, "orders/", asked(one, two, verb=verb))
    assert (status, order["verb"], order["ordered_by"], order["reason"]) == (202, verb, "vera", "next player")
    assert {command["client"] for command in order["commands"]} == {str(one.pk), str(two.pk)}
    assert {command["status"] for command in order["commands"]} == {"queued"}
    entry = AuditEntry.objects.get(action="order")
    assert (entry.actor, entry.detail["reason"], len(entry.detail["clients"])) == ("vera", "next player", 2)


def test_a_client_named_twice_gets_one_command(world: World) -> None:
    client = make_client(world.clubroom)
    assert len(call(world.vera, "orders/", asked(client, client))[1]["commands"]) == 1


def test_a_client_of_another_site_is_as_unknown_as_one_that_does_not_exist(world: World) -> None:
    theirs, ours = make_client(world.clubroom), make_client(world.school, "52:54:00:00:00:02")
    for stranger in (theirs, uuid.uuid4()):
        status, problem = call(world.mallory, "orders/", asked(ours, stranger))
        name = getattr(stranger, "pk", stranger)
        assert (status, problem["errors"]) == (400, {"clients": [f"There is no client {name}."]})
    assert not Command.objects.exists()


def test_a_viewer_may_not_order(world: World) -> None:
    world.vera.memberships.update(role="viewer")
    client = make_client(world.clubroom)
    status, problem = call(world.vera, "orders/", asked(client))
    assert (status, problem["hint"]) == (403, "Ask a volunteer of that site.")
    assert not Order.objects.exists()


def test_a_client_that_is_still_busy_answers_409_and_none_of_the_order_is_kept(world: World) -> None:
    busy, idle = make_client(world.clubroom), make_client(world.clubroom, "52:54:00:00:00:02")
    call(world.vera, "orders/", asked(busy))
    status, problem = call(world.vera, "orders/", asked(busy, idle, verb="restart"))
    assert (status, problem["detail"]) == (409, "Still busy: A1 (pc-01) (cycle).")
    assert Order.objects.count() == Command.objects.count() == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"verb": "format"}, "verb"),
        ({"verb": ["cycle"]}, "verb"),
        ({"clients": []}, "clients"),
        ({"clients": "all"}, "clients"),
        ({"clients": ["A1"]}, "clients"),
        ({"clients": [str(uuid.uuid4()) for _ in range(1001)]}, "clients"),
        ({"reason": ""}, "reason"),
        ({"reason": "x" * 201}, "reason"),
        ({"reason": "a\x00b"}, "reason"),
    ],
)
def test_what_is_no_order_answers_400_naming_the_field(world: World, change: dict[str, Any], field: str) -> None:
    status, problem = call(world.vera, "orders/", asked(make_client(world.clubroom)) | change)
    assert status == 400
    assert field in problem["errors"]


def test_rubbish_is_answered_as_a_problem(world: World) -> None:
    client = as_(world.vera)
    for body in (b"{", b"\xff\xfe", b"[]", b'"x"', b"null"):
        answer = client.post("/api/v1/orders/", body, content_type="application/json")
        assert answer.status_code == 400, body
        assert answer["Content-Type"] == "application/problem+json"
    assert client.post("/api/v1/orders/", b"<x/>", content_type="text/xml").status_code == 415
    assert client.delete("/api/v1/orders/").json()["title"] == "Method Not Allowed"
    assert client.get("/api/v1/orders/not-one/").status_code == 404
    assert client.get("/api/v1/nothing/here/").json()["title"] == "Not Found"


def test_a_queued_command_is_cancelled_once(world: World) -> None:
    command = services.order("cycle", [make_client(world.clubroom)], "x", world.vera).commands.get()
    assert call(world.mallory, f"commands/{command.pk}/cancel/", {})[0] == 404
    status, body = call(world.vera, f"commands/{command.pk}/cancel/", {})
    assert (status, body["status"], body["reason"]) == (200, "cancelled", "cancelled by vera")
    assert call(world.vera, f"commands/{command.pk}/cancel/", {})[0] == 409


def test_an_order_carries_a_warning_and_is_taken_back_as_a_whole(world: World) -> None:
    clients = [make_client(world.clubroom), make_client(world.clubroom, "52:54:00:00:00:02")]
    status, order = call(world.vera, "orders/", asked(*clients) | {"warn_s": 120, "text": "Two minutes", "more": 1})
    assert (status, order["args"]) == (202, {"warn_s": 120, "text": "Two minutes", "more": 1})
    assert call(world.vera, "orders/", asked(*clients) | {"text": "no time"})[0] == 400
    assert call(world.mallory, f"orders/{order['id']}/cancel/", {})[0] == 404
    status, body = call(world.vera, f"orders/{order['id']}/cancel/", {})
    assert (status, {command["status"] for command in body["commands"]}) == (200, {"cancelled"})
    assert call(world.vera, f"orders/{order['id']}/cancel/", {})[0] == 409


def test_beyond_the_cap_another_organiser_approves(world: World) -> None:
    oda = person("oda")
    member(oda, world.clubroom, Role.ORGANISER)
    order = call(world.otto, "orders/", asked(make_client(world.clubroom)) | {"beyond_cap": True})[1]
    address = f"orders/{order['id']}/approve/"
    assert order["approved_by"] is None
    assert [call(who, address, {})[0] for who in (world.mallory, world.vera, world.otto)] == [404, 403, 403]
    status, body = call(oda, address, {})
    assert (status, body["approved_by"]) == (200, "oda")
    assert call(oda, address, {})[0] == 409


def test_a_command_on_its_way_is_not_cancelled(world: World) -> None:
    command = make_command(world, make_client(world.clubroom))
    assert call(world.vera, f"commands/{command.pk}/cancel/", {})[0] == 409
    command.refresh_from_db()
    assert command.status == CommandStatus.ACCEPTED


def test_commands_orders_sessions_and_restores_are_read_at_ones_own_site_only(world: World) -> None:
    client = make_client(world.clubroom, client_class=world.gamer)
    restore = make_restore(world, client)
    paths = {
        "orders": restore.command.order_id,
        "commands": restore.command_id,
        "sessions": restore.command.envelope.session_id,
        "restores": restore.pk,
    }
    for path, pk in paths.items():
        assert [row["id"] for row in call(world.vera, f"{path}/")[1]["results"]] == [
            str(pk) if path != "restores" else pk
        ]
        assert call(world.vera, f"{path}/{pk}/")[0] == 200
        assert call(world.mallory, f"{path}/")[1]["results"] == []
        assert call(world.mallory, f"{path}/{pk}/")[0] == 404
    row = call(world.vera, f"restores/{restore.pk}/")[1]
    assert (row["class_name"], row["files"], row["phases_ms"]) == ("Gamer", 7, {"total": 480})


def test_lists_are_filtered_and_a_filter_that_is_none_is_refused(world: World) -> None:
    one, two = make_client(world.clubroom), make_client(world.clubroom, "52:54:00:00:00:02")
    make_restore(world, one)
    services.order("restart", [two], "x", world.vera)
    for path, found in (
        (f"commands/?client={two.pk}", 1),
        ("commands/?status=queued&status=sent", 1),
        ("commands/?site=clubroom", 2),
        ("commands/?site=school", 0),
        ("orders/?verb=cycle", 1),
        ("restores/?result=failed", 0),
        ("restores/?result=restored&since=2020-01-01T00:00:00Z", 1),
        ("restores/?until=2020-01-01T00:00:00Z", 0),
        ("sessions/?status=open", 1),
    ):
        assert len(call(world.vera, path)[1]["results"]) == found, path
    for path in ("commands/?state=queued", "commands/?status=done", "restores/?since=yesterday", "orders/?q=%00"):
        status, problem = call(world.vera, path)
        assert (status, problem["status"]) == (400, 400), path


def test_what_grows_comes_newest_first_in_pages_by_cursor(world: World) -> None:
    for number in range(5):
        make_session(make_client(world.clubroom, f"52:54:00:00:00:{number:02x}"))
    page = call(world.vera, "sessions/?size=2")[1]
    times = [row["planned_at"] for row in page["results"]]
    while page["next"]:
        page = call(world.vera, page["next"].partition("/api/v1/")[2])[1]
        times += [row["planned_at"] for row in page["results"]]
    assert len(times) == 5
    assert times == sorted(times, reverse=True)


def test_restores_are_exported_as_csv_and_as_json_lines(world: World) -> None:
    client = make_client(world.clubroom, name="minus", seat="=1+1")
    make_restore(world, client)
    answer = as_(world.vera).get("/api/v1/restores/export/")
    assert answer["Content-Type"].startswith("text/csv")
    assert "restore" in answer["Content-Disposition"]
    [row] = csv.DictReader(io.StringIO(answer.getvalue().decode()))
    assert (row["client_name"], row["result"], json.loads(row["phases_ms"])) == (
        "'=1+1 (minus)",
        "restored",
        {"total": 480},
    )
    lines = as_(world.vera).get("/api/v1/restores/export/?as=jsonl").getvalue().decode().splitlines()
    assert [json.loads(line)["client_name"] for line in lines] == ["=1+1 (minus)"]
    assert as_(world.mallory).get("/api/v1/restores/export/?as=jsonl").getvalue() == b""
    assert call(world.vera, "restores/export/?as=xml")[0] == 400
    assert as_(world.vera).get("/api/v1/restores/export/?as=jsonl&result=failed").getvalue() == b""
