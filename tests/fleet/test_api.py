import json
from typing import Any

import pytest
from django.core.management import call_command
from django.urls import URLPattern, URLResolver, get_resolver
from rest_framework.test import APIClient

from fleet import audit, services
from fleet.models import ApiToken, AuditEntry, Client, token_hash
from tests.api import as_, call
from tests.world import World, make_client

CIRRUS = {
    "address": "0000:00:02.0",
    "vendor": "1013",
    "device": "00b8",
    "subvendor": "1af4",
    "subdevice": "1100",
    "pci_class": "030000",
}


def with_token(user: Any, **options: Any) -> APIClient:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {services.issue_token(user, 'script', **options)[1]}")
    return client


def test_one_reads_ones_own_site_and_nothing_of_another(world: World) -> None:
    client = make_client(world.clubroom, client_class=world.gamer, adapters=[CIRRUS])
    audit.record("test", client, site=world.clubroom, actor="x")
    for path, count in {"sites": 1, "classes": 2, "rules": 2, "clients": 1, "audit": 1}.items():
        rows = call(world.vera, f"{path}/")[1]["results"]
        assert len(rows) == count, path
        theirs = call(world.mallory, f"{path}/")[1]["results"]
        assert {row["id"] for row in rows}.isdisjoint({row["id"] for row in theirs}), path
        assert call(world.mallory, f"{path}/{rows[0]['id']}/")[0] == 404
        assert call(world.vera, f"{path}/{rows[0]['id']}/")[0] == 200
    row = call(world.vera, "clients/")[1]["results"][0]
    assert (row["state"], row["site_slug"], row["client_class"]) == ("off", "clubroom", world.gamer.pk)
    assert row["adapters"][0]["name"] == "Cirrus Logic GD 5446"


@pytest.mark.parametrize(
    ("query", "found"),
    [("q=a1", 1), ("seat=A1", 1), ("state=off", 1), ("state=ready", 0), ("client_class=gamer", 1), ("q=52:54", 1)],
)
def test_clients_are_found(world: World, query: str, found: int) -> None:
    make_client(world.clubroom, client_class=world.gamer)
    assert len(call(world.vera, f"clients/?{query}")[1]["results"]) == found


def test_a_client_is_named_seated_and_pinned_with_an_audit_entry(world: World) -> None:
    client = make_client(world.clubroom)
    body = {"name": "station-7", "seat": "C7", "client_class": world.contest.pk, "class_pinned": True}
    status, row = call(world.vera, f"clients/{client.pk}/", body, "patch")
    assert (status, {key: row[key] for key in body}) == (200, body)
    entry = AuditEntry.objects.get(action="client.edited")
    assert entry.detail["was"]["name"] == "pc-01"
    assert entry.detail["now"]["client_class"] == "Paper contest"
    assert call(world.vera, f"clients/{client.pk}/", body, "patch")[0] == 200
    assert AuditEntry.objects.filter(action="client.edited").count() == 1, "nothing changed the second time"


@pytest.mark.parametrize(
    "body",
    [
        {"name": "No Host Name"},
        {"name": ""},
        {"name": "taken"},
        {"seat": "x" * 21},
        {"client_class": 999},
        {"client_class": "theirs"},
        {"class_pinned": True, "client_class": None},
    ],
)
def test_a_client_is_not_made_what_does_not_fit(world: World, body: dict[str, Any]) -> None:
    make_client(world.clubroom, "52:54:00:00:00:02", name="taken")
    client = make_client(world.clubroom, client_class=world.gamer)
    if body.get("client_class") == "theirs":
        body = {"client_class": world.school.classes.create(slug="kiosk", name="Kiosk").pk}
    before = Client.objects.filter(pk=client.pk).values().get()
    status, problem = call(world.vera, f"clients/{client.pk}/", body, "patch")
    assert (status, problem["status"]) == (400, 400)
    assert Client.objects.filter(pk=client.pk).values().get() == before


def test_a_client_has_the_tags_that_are_named_and_no_others(world: World) -> None:
    client = make_client(world.clubroom)
    address = f"clients/{client.pk}/"
    assert call(world.vera, address)[1]["tags"] == []
    status, row = call(world.vera, address, {"tags": ["stage", "loud"], "seat": "B1"}, "patch")
    assert (status, row["tags"], row["seat"]) == (200, ["loud", "stage"], "B1")
    assert call(world.vera, address, {"tags": ["stage", "finals"]}, "patch")[1]["tags"] == ["finals", "stage"]
    assert call(world.vera, address, {"seat": "B2"}, "patch")[1]["tags"] == ["finals", "stage"], "nobody spoke of them"
    assert [len(call(world.vera, f"clients/?tag={tag}")[1]["results"]) for tag in ("stage", "loud")] == [1, 0]
    told = AuditEntry.objects.filter(action__in=["clients.tagged", "clients.untagged"])
    assert sorted(told.values_list("action", "subject")) == [
        ("clients.tagged", "finals"),
        ("clients.tagged", "loud"),
        ("clients.tagged", "stage"),
        ("clients.untagged", "loud"),
    ]
    status, problem = call(world.vera, address, {"tags": ["two words"], "seat": "C1"}, "patch")
    assert (status, problem["status"]) == (400, 400)
    assert call(world.mallory, address, {"tags": []}, "patch")[0] == 404
    world.vera.memberships.update(role="viewer")
    assert call(world.vera, address, {"tags": []}, "patch")[0] == 403
    client.refresh_from_db()
    assert (client.seat, client.tags.count()) == ("B2", 2)


def test_what_is_seen_of_a_client_is_not_written(world: World) -> None:
    client = make_client(world.clubroom)
    body = {"mac": "52:54:00:ff:ff:ff", "state": "ready", "admission": "retired", "site": world.school.pk}
    assert call(world.vera, f"clients/{client.pk}/", body, "patch")[0] == 200
    client.refresh_from_db()
    assert (client.mac, client.state, client.admission, client.site) == (
        "52:54:00:00:00:01",
        "off",
        "in-service",
        world.clubroom,
    )
    assert call(world.vera, f"clients/{client.pk}/", {}, "delete")[0] == 405
    assert call(world.vera, "clients/", {"name": "x"})[0] == 405


def test_a_viewer_edits_and_admits_nothing(world: World) -> None:
    world.vera.memberships.update(role="viewer")
    client = make_client(world.clubroom)
    assert call(world.vera, f"clients/{client.pk}/", {"seat": "Z9"}, "patch")[0] == 403
    assert call(world.vera, f"clients/{client.pk}/admission/", {"admission": "retired"})[0] == 403
    assert call(world.mallory, f"clients/{client.pk}/", {"seat": "Z9"}, "patch")[0] == 404
    client.refresh_from_db()
    assert (client.seat, client.admission) == ("A1", "in-service")


def test_a_pending_client_is_admitted(world: World) -> None:
    client = make_client(world.clubroom, admission="pending")
    status, row = call(world.vera, f"clients/{client.pk}/admission/", {"admission": "in-service"})
    assert (status, row["admission"]) == (200, "in-service")
    assert call(world.vera, f"clients/{client.pk}/admission/", {"admission": "admitted"})[0] == 400


def test_the_audit_log_is_filtered_and_exported(world: World) -> None:
    audit.record("order", "a", site=world.clubroom, actor=world.vera, reason="next player")
    audit.record("release", "b", site=world.clubroom, actor=world.otto)
    audit.record("order", "c", site=world.school, actor=world.mallory)
    assert [row["subject"] for row in call(world.vera, "audit/")[1]["results"]] == ["b", "a"]
    assert [row["subject"] for row in call(world.vera, "audit/?action=order")[1]["results"]] == ["a"]
    assert [row["subject"] for row in call(world.vera, "audit/?actor=otto")[1]["results"]] == ["b"]
    lines = as_(world.vera).get("/api/v1/audit/export/?as=jsonl").getvalue().decode().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["subject"] for row in rows] == ["a", "b"], "oldest first, as a log is read"
    assert rows[1]["previous"] == rows[0]["digest"], "what is exported can be proved"


def test_one_sees_who_one_is(world: World) -> None:
    status, me = call(world.vera, "me/")
    assert (status, me["username"]) == (200, "vera")
    assert me["memberships"] == [
        {"site": "clubroom", "role": "volunteer", "rights": ["build", "enrol", "operate", "view"]}
    ]


def test_a_token_is_shown_once_kept_hashed_and_revoked(world: World) -> None:
    status, made = call(world.vera, "tokens/", {"name": "kiosk"})
    assert status == 201
    kept = ApiToken.objects.get()
    assert (kept.digest, made["hint"]) == (token_hash(made["token"]), made["token"][:8])
    script = APIClient()
    script.credentials(HTTP_AUTHORIZATION=f"Bearer {made['token']}")
    assert script.get("/api/v1/me/").json()["username"] == "vera"
    assert "token" not in call(world.vera, "tokens/")[1]["results"][0]
    assert call(world.vera, "tokens/", {"name": "kiosk"})[0] == 400
    assert call(world.mallory, f"tokens/{kept.pk}/", method="delete")[0] == 404
    assert call(world.vera, f"tokens/{kept.pk}/", method="delete")[0] == 204
    assert script.get("/api/v1/me/").status_code == 401
    assert set(AuditEntry.objects.values_list("action", flat=True)) >= {"token.issued", "token.revoked"}


def test_a_read_only_token_changes_nothing(world: World) -> None:
    client = make_client(world.clubroom)
    script = with_token(world.vera, read_only=True)
    assert script.get("/api/v1/clients/").status_code == 200
    for path in (f"clients/{client.pk}/admission/", "orders/", "tokens/"):
        assert script.post(f"/api/v1/{path}", {}, format="json").status_code == 403, path
    assert script.patch(f"/api/v1/clients/{client.pk}/", {}, format="json").status_code == 403


def test_a_session_without_the_csrf_token_changes_nothing(world: World) -> None:
    browser = APIClient(enforce_csrf_checks=True)
    browser.force_login(world.vera)
    assert browser.get("/api/v1/me/").status_code == 200
    answer = browser.post("/api/v1/tokens/", {"name": "x"}, format="json")
    assert (answer.status_code, answer["Content-Type"]) == (403, "application/problem+json")


def addresses(patterns: list[Any], prefix: str = "") -> list[str]:
    found = []
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            found += addresses(pattern.url_patterns, prefix + str(pattern.pattern))
        elif isinstance(pattern, URLPattern):
            found.append(prefix + str(pattern.pattern))
    return found


def test_no_address_of_the_api_answers_a_stranger(db: None) -> None:
    routes = [route for route in addresses(get_resolver().url_patterns) if route.startswith("api/v1/")]
    assert len(routes) > 25
    stranger = APIClient()
    for route in routes:
        path = "/" + route.replace("^", "").replace("$", "").replace("(?P<pk>[^/.]+)", "1").replace("<path:path>", "x")
        for method in ("get", "post", "put", "patch", "delete"):
            answer = getattr(stranger, method)(path)
            assert answer.status_code == 401, (method, path)
            assert answer["Content-Type"] == "application/problem+json"
            assert answer["WWW-Authenticate"] == "Bearer"


def test_the_openapi_document_is_valid_and_without_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("spectacular", "--validate", "--fail-on-warn")
    assert "/api/v1/orders/" in capsys.readouterr().out
