"""Campaigns in the REST API: by whom, at which site, in which state, twice, at the limit."""

from typing import Any

import pytest
from rest_framework.test import APIClient

from agents import campaigns
from agents.models import Campaign, Command, CommandStatus, Order, Target, Verb
from fleet.models import Client
from fleet.services import issue_token
from tests.agents.halls import accepts, ends, leaves, make_hall, planned, started, stepped
from tests.api import as_, call
from tests.world import World


@pytest.fixture
def hall(world: World, begun_by_the_worker: None) -> dict[str, Client]:
    return make_hall(world.clubroom, "A1", "A2", "B1")


def asked(**changes: Any) -> dict[str, Any]:
    return {"site": "clubroom", "verb": "restart", "reason": "new version", "selection": {}} | changes


def nothing_was_written() -> bool:
    return not Order.objects.exists() and not Campaign.objects.exists() and not Target.objects.exists()


def test_a_campaign_is_ordered_watched_and_listed(world: World, hall: dict[str, Client]) -> None:
    status, body = call(world.vera, "campaigns/", asked(selection={"rows": ["A"]}, args={"warn_s": 60}, canary=1))
    assert (status, body["status"], body["verb"], body["site"]) == (202, "running", "restart", "clubroom")
    assert (body["selection"], body["args"], body["canary"]) == ({"rows": ["A"]}, {"warn_s": 60}, 1)
    assert (body["ordered_by"], body["counts"]) == ("vera", {})
    campaign = Campaign.objects.get(pk=body["id"])
    stepped(campaign)
    body = call(world.vera, f"campaigns/{campaign.pk}/")[1]
    assert (body["wave"], body["counts"]) == (1, {"ordered": 1, "waiting": 1})
    [row] = call(world.vera, "campaigns/?site=clubroom&verb=restart&status=running")[1]["results"]
    assert (row["id"], row["counts"]) == (str(campaign.pk), {"ordered": 1, "waiting": 1})
    for nothing in ("?site=school", "?verb=cycle", "?status=done"):
        assert call(world.vera, f"campaigns/{nothing}")[1]["results"] == []
    assert call(world.vera, f"orders/{campaign.pk}/")[1]["reason"] == "new version"


def test_a_preview_answers_what_it_would_do_and_writes_nothing(world: World, hall: dict[str, Client]) -> None:
    leaves(hall["A2"])
    status, body = call(world.vera, "campaigns/preview/", asked(wave_by="row", spread_s=30, beyond_cap=True))
    assert status == 200
    assert (body["total"], body["reached"], body["states"]) == (3, 2, {"off": 1, "ready": 2})
    assert body["offline"] == {"number": 1, "names": ["A2"]}
    assert body["waves"] == [
        {"number": 1, "size": 2, "names": ["A1", "A2"]},
        {"number": 2, "size": 1, "names": ["B1"]},
    ]
    assert (body["takes_s"], body["needs_approval"]) == (60, True)
    assert body["warnings"] == ["1 PC is left out unless it connects in time."]
    assert nothing_was_written()


def test_a_preview_names_so_many_and_counts_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    make_hall(world.clubroom, *(f"A{number}" for number in range(1, 121)), state="in-use")
    body = call(world.vera, "campaigns/preview/", asked())[1]
    assert (body["in_use"]["number"], len(body["in_use"]["names"])) == (120, 100)
    assert (body["waves"][0]["size"], len(body["waves"][0]["names"])) == (120, 100)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"verb": "format"}, "verb"),
        ({"verb": "capture"}, "verb"),
        ({"verb": "wake-relay"}, "verb"),
        ({"site": "nowhere"}, "site"),
        ({"site": None}, "site"),
        ({"reason": ""}, "reason"),
        ({"reason": "x" * 201}, "reason"),
        ({"canray": 3}, "canray"),
        ({"canary": -1}, "canary"),
        ({"offline": "kick"}, "offline"),
        ({"share": 101}, "share"),
        ({"share": 0}, "share"),
        ({"judged_after": 0}, "judged_after"),
        ({"starts_at": "soon"}, "starts_at"),
        ({"args": [1]}, "args"),
        ({"status": "done"}, "status"),
    ],
)
@pytest.mark.parametrize("path", ["campaigns/", "campaigns/preview/"])
def test_what_is_no_campaign_answers_400_naming_the_field(
    world: World, hall: dict[str, Client], path: str, change: dict[str, Any], field: str
) -> None:
    status, problem = call(world.vera, path, asked(**change))
    assert status == 400
    assert field in problem["errors"]
    assert nothing_was_written()


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"selection": {"rows": ["Z"]}}, "Club room has no row Z."),
        ({"selection": {"seats": ["A1"]}}, "Clients are not selected by seats."),
        ({"selection": "all"}, "A selection is an object."),
        ({"selection": {"states": ["lost"]}}, "No PC of Club room is that: state lost."),
        ({"args": {"seconds": 3}}, "Restart takes no seconds."),
        ({"starts_at": "2020-01-01T00:00:00Z"}, "It cannot start then."),
    ],
)
def test_what_does_not_fit_answers_400_with_a_sentence(
    world: World, hall: dict[str, Client], change: dict[str, Any], detail: str
) -> None:
    status, problem = call(world.vera, "campaigns/", asked(**change))
    assert (status, problem["detail"]) == (400, detail)
    assert problem["hint"]
    assert nothing_was_written()


def test_a_selection_must_be_said_even_if_it_is_the_whole_site(world: World, hall: dict[str, Client]) -> None:
    body = asked()
    del body["selection"]
    status, problem = call(world.vera, "campaigns/", body)
    assert (status, [*problem["errors"]]) == (400, ["selection"])


def test_another_site_is_as_unknown_as_one_that_does_not_exist(world: World, hall: dict[str, Client]) -> None:
    for path in ("campaigns/", "campaigns/preview/"):
        status, problem = call(world.mallory, path, asked())
        assert (status, problem["errors"]) == (400, {"site": ["There is no site clubroom."]})
    campaign = started(world)
    assert call(world.mallory, "campaigns/")[1]["results"] == []
    for path in ("", "targets/"):
        assert call(world.mallory, f"campaigns/{campaign.pk}/{path}")[0] == 404
    for act in ("stop", "pause", "resume", "approve"):
        assert call(world.mallory, f"campaigns/{campaign.pk}/{act}/", {})[0] == 404
    campaign.refresh_from_db()
    assert campaign.status == "running"


def test_a_viewer_watches_and_orders_nothing(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world)
    world.otto.memberships.update(role="viewer")
    assert call(world.otto, f"campaigns/{campaign.pk}/")[0] == 200
    assert call(world.otto, f"campaigns/{campaign.pk}/targets/")[0] == 200
    for path in ("campaigns/", "campaigns/preview/"):
        assert call(world.otto, path, asked())[0] == 403
    for act in ("stop", "pause", "resume", "approve"):
        assert call(world.otto, f"campaigns/{campaign.pk}/{act}/", {})[0] == 403, act
    assert Campaign.objects.count() == 1


def test_force_is_for_organisers(world: World, hall: dict[str, Client]) -> None:
    assert call(world.vera, "campaigns/", asked(force=True))[0] == 403
    assert call(world.otto, "campaigns/", asked(force=True))[1]["force"] is True


def test_a_read_only_token_reads_and_a_writing_one_orders(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world)
    for read_only, expected in ((True, 403), (False, 200)):
        browser = APIClient()
        secret = issue_token(world.vera, f"token {read_only}", read_only=read_only)[1]
        browser.credentials(HTTP_AUTHORIZATION=f"Bearer {secret}")
        assert browser.get(f"/api/v1/campaigns/{campaign.pk}/targets/").status_code == 200
        for path in ("campaigns/preview/", f"campaigns/{campaign.pk}/pause/"):
            answer = browser.post(f"/api/v1/{path}", asked(), format="json")
            assert answer.status_code == expected, path


def test_stop_pause_and_resume_answer_409_where_they_make_no_sense(world: World, hall: dict[str, Client]) -> None:
    campaign = started(world)
    path = f"campaigns/{campaign.pk}"
    assert call(world.vera, f"{path}/resume/", {})[0] == 409
    assert call(world.vera, f"{path}/pause/", {})[1]["status"] == "paused"
    assert call(world.vera, f"{path}/pause/", {})[0] == 409
    assert call(world.vera, f"{path}/resume/", {})[1]["status"] == "running"
    accepts(hall["A1"])
    status, body = call(world.vera, f"{path}/stop/", {})
    assert (status, body["status"], body["outcome"]) == (200, "stopped", "stopped by vera")
    assert body["counts"] == {"ordered": 1, "cancelled": 2}
    for act in ("stop", "pause", "resume", "approve"):
        status, problem = call(world.otto, f"{path}/{act}/", {})
        assert (status, problem["status"]) == (409, 409), act
    assert Command.objects.filter(status=CommandStatus.CANCELLED).count() == 2


def test_beyond_the_cap_a_second_organiser_approves(world: World, hall: dict[str, Client]) -> None:
    body = call(world.vera, "campaigns/", asked(beyond_cap=True))[1]
    path = f"campaigns/{body['id']}/approve/"
    assert body["status"] == "awaiting"
    assert call(world.vera, path, {})[0] == 403
    status, body = call(world.otto, path, {})
    assert (status, body["status"], body["approved_by"]) == (200, "scheduled", "otto")
    assert call(world.otto, path, {})[0] == 409


def test_targets_come_in_the_order_of_their_turns_in_pages_and_by_status(world: World, hall: dict[str, Client]) -> None:
    leaves(hall["A2"])
    campaign = started(world)
    ends(CommandStatus.FAILED, hall["B1"], reason="the client could not do it")
    stepped(campaign)
    path = f"campaigns/{campaign.pk}/targets/"
    page = call(world.vera, f"{path}?size=2")[1]
    first = page["results"]
    assert [row["name"] for row in first] == ["A1 (pc1)", "A2 (pc2)"]
    assert (first[0]["status"], first[0]["command_status"], first[0]["place"]) == ("ordered", "queued", 0)
    assert (first[1]["status"], first[1]["command"], first[1]["reason"]) == ("skipped", None, "not connected: off")
    rest = call(world.vera, page["next"].partition("/api/v1/")[2])[1]
    assert ([row["reason"] for row in rest["results"]], rest["next"]) == (["the client could not do it"], None)
    for query, names in (
        ("status=failed", ["B1 (pc3)"]),
        ("status=failed&status=skipped", ["A2 (pc2)", "B1 (pc3)"]),
        ("wave=2", []),
    ):
        assert [row["name"] for row in call(world.vera, f"{path}?{query}")[1]["results"]] == names, query
    for wrong in ("status=broken", "state=failed", "wave=x"):
        assert call(world.vera, f"{path}?{wrong}")[0] == 400, wrong


def test_pages_of_targets_are_whole_beyond_a_thousand(world: World, begun_by_the_worker: None) -> None:
    """A page begins behind a key of its own; a place that thousands share would be lost."""
    make_hall(world.clubroom, "A1")
    campaign = campaigns.start(planned(world), world.vera)
    clients = Client.objects.bulk_create(
        Client(site=world.clubroom, mac=f"52:54:00:01:{n >> 8:02x}:{n & 255:02x}", name=f"x{n}") for n in range(1300)
    )
    Target.objects.bulk_create(
        Target(campaign=campaign, client=client, wave=1, place=place) for place, client in enumerate(clients)
    )
    seen, path = [], f"campaigns/{campaign.pk}/targets/?size=500"
    while path:
        page = call(world.vera, path)[1]
        seen += [row["place"] for row in page["results"]]
        path = (page["next"] or "").partition("/api/v1/")[2]
    assert seen == [*range(1300)]


def test_rubbish_is_answered_as_a_problem(world: World, hall: dict[str, Client]) -> None:
    client = as_(world.vera)
    for body in (b"{", b"\xff\xfe", b"[]", b'"x"', b"null", b'{"selection": null}'):
        for path in ("campaigns/", "campaigns/preview/"):
            answer = client.post(f"/api/v1/{path}", body, content_type="application/json")
            assert (answer.status_code, answer["Content-Type"]) == (400, "application/problem+json"), body
    assert client.get("/api/v1/campaigns/not-one/").status_code == 404
    assert nothing_was_written()


def test_the_api_describes_campaigns(world: World) -> None:
    schema = as_(world.vera).get("/api/schema/?format=json").json()
    assert {"/api/v1/campaigns/", "/api/v1/campaigns/preview/"} <= schema["paths"].keys()
    create = schema["paths"]["/api/v1/campaigns/"]["post"]
    assert create["responses"]["202"]["content"]["application/json"]["schema"]["$ref"].endswith("/Campaign")
    wanted = schema["components"]["schemas"]["NewCampaign"]
    assert {"site", "verb", "reason", "selection"} == set(wanted["required"])
    parameters = schema["paths"]["/api/v1/campaigns/{order}/targets/"]["get"]["parameters"]
    assert {"status", "wave", "cursor", "size"} <= {parameter["name"] for parameter in parameters}
    assert Verb.CAPTURE not in schema["components"]["schemas"]["Campaign"]["properties"]["verb"].get("enum", [])
