"""Findings: noted once, decided once, and one click brings their rule into the recipe."""

import pytest
from django.test import Client as Browser
from rest_framework.test import APIClient

from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import AuditEntry
from fleet.roles import Role
from images import findings
from images.builder.volatile import DEBIAN
from images.finding_models import Finding, FindingKind, FindingSource, FindingStatus
from images.findings import Found
from images.models import Image, ImageVersion
from tests.images.versions import make_image, make_version
from tests.world import World, make_client, member

GAMES = Found(FindingKind.EROFS, "/opt/game/save", "copy /opt/game", "game[311] openat", 512)


@pytest.fixture
def version(world: World) -> ImageVersion:
    return make_version(make_image(world.clubroom))


def noted(version: ImageVersion, *found: Found) -> Finding:
    findings.note(version, FindingSource.CHECKED, found or (GAMES,))
    return version.findings.get(subject=(found or (GAMES,))[0].subject)


def test_what_is_met_again_is_the_same_finding_with_the_most_and_each_pc_once(
    world: World, version: ImageVersion
) -> None:
    one, two = make_client(world.clubroom, "52:54:00:00:00:01"), make_client(world.clubroom, "52:54:00:00:00:02")
    for client, size in ((one, 100), (two, 700), (one, 300)):
        met = Found(FindingKind.WRITTEN, "/var/lib/x", "copy /var/lib/x", bytes=size)
        findings.note(version, FindingSource.OBSERVED, [met], client)
    row = version.findings.get()
    assert (row.bytes, row.clients.count(), row.status) == (700, 2, FindingStatus.OPEN)
    assert row.last_at > row.first_at


def test_no_more_are_kept_than_a_person_looks_through(version: ImageVersion) -> None:
    many = [Found(FindingKind.WRITTEN, f"/srv/{number}") for number in range(findings.MOST_OPEN + 5)]
    assert findings.note(version, FindingSource.OBSERVED, many) == findings.MOST_OPEN
    assert findings.note(version, FindingSource.OBSERVED, many) == 0
    assert findings.note(version, FindingSource.OBSERVED, [Found(FindingKind.WRITTEN, "/x" * 300)]) == 0
    assert findings.note(version, FindingSource.CHECKED, [GAMES]) == 0
    assert version.findings.count() == findings.MOST_OPEN


def test_a_rule_that_is_accepted_is_in_the_recipe_after_those_of_the_family(
    world: World, version: ImageVersion
) -> None:
    image = findings.accept(noted(version), world.otto)
    image = Image.objects.get(pk=image.pk)
    assert image.volatile.splitlines() == [*map(str, DEBIAN), "copy /opt/game"]
    assert image.recipe().volatile[: len(DEBIAN)] == DEBIAN
    row = version.findings.get()
    assert (row.status, row.decided_by) == (FindingStatus.ACCEPTED, world.otto)
    assert AuditEntry.objects.filter(action="finding.accepted").get().detail["rule"] == "copy /opt/game"


def test_findings_with_one_cure_are_decided_together_and_the_rule_is_written_once(
    world: World, version: ImageVersion
) -> None:
    first = noted(version)
    second = noted(version, Found(FindingKind.EROFS, "/opt/game/scores", "copy /opt/game"))
    later = make_version(version.image)
    third = noted(later)
    image = findings.accept(first, world.otto)
    for row in (second, third):
        row.refresh_from_db()
        assert row.status == FindingStatus.ACCEPTED
    fourth = noted(make_version(version.image))
    findings.accept(fourth, world.otto)
    image.refresh_from_db()
    assert image.volatile.count("copy /opt/game") == 1


def test_one_is_decided_once_and_stays_decided_when_it_is_met_again(world: World, version: ImageVersion) -> None:
    row = noted(version)
    findings.dismiss(row, world.otto)
    findings.note(version, FindingSource.CHECKED, [GAMES])
    row = version.findings.get()
    assert row.status == FindingStatus.DISMISSED
    for decide in (findings.accept, findings.dismiss):
        with pytest.raises(WrongState):
            decide(row, world.otto)
    assert "copy /opt/game" not in Image.objects.get(pk=version.image_id).volatile


@pytest.mark.parametrize("role", [Role.VIEWER, None])
def test_who_may_not_change_the_recipe_decides_nothing(world: World, version: ImageVersion, role: Role | None) -> None:
    row = noted(version)
    if role:
        member(world.mallory, world.clubroom, role)
    for decide in (findings.accept, findings.dismiss):
        with pytest.raises(Forbidden):
            decide(row, world.mallory)
    assert version.findings.get().status == FindingStatus.OPEN


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("", "No rule is known"),
        ("share /etc", "contradicts"),
        ("copy relative", "cannot be added"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_and_the_finding_stays(
    world: World, version: ImageVersion, rule: str, complaint: str
) -> None:
    row = noted(version, Found(FindingKind.UNIT, "x.service", rule))
    with pytest.raises(OperatorError, match=complaint):
        findings.accept(row, world.otto)
    assert version.findings.get().status == FindingStatus.OPEN
    assert Image.objects.get(pk=version.image_id).volatile == ""


def test_the_version_s_page_has_a_button_for_each(world: World, version: ImageVersion, client: Browser) -> None:
    row = noted(version)
    noted(version, Found(FindingKind.UNIT, "broken.service", "", "it said why"))
    client.force_login(world.otto)
    page = client.get(f"/admin/images/imageversion/{version.pk}/change/").text
    assert page.count("Add the rule</button>") == 1
    assert page.count("Dismiss</button>") == 2
    assert "it said why" in page
    answer = client.post(f"/admin/images/finding/{row.pk}/order/accept/", follow=True)
    assert answer.redirect_chain[-1][0] == f"/admin/images/imageversion/{version.pk}/change/"
    assert "is in the recipe of" in answer.text
    assert "Add the rule</button>" not in answer.text


def test_who_only_watches_sees_them_without_buttons(world: World, version: ImageVersion, client: Browser) -> None:
    row = noted(version)
    watcher = member(world.mallory, world.clubroom, Role.VIEWER).user
    client.force_login(watcher)
    page = client.get(f"/admin/images/imageversion/{version.pk}/change/").text
    assert "/opt/game/save" in page
    assert "Add the rule</button>" not in page
    client.post(f"/admin/images/finding/{row.pk}/order/accept/")
    assert version.findings.get().status == FindingStatus.OPEN


def test_the_api_lists_and_decides(world: World, version: ImageVersion) -> None:
    row = noted(version)
    make_version(make_image(world.school, "other")).findings.create(source="checked", kind="unit", subject="x")
    api = APIClient()
    api.force_authenticate(world.otto)
    [found] = api.get("/api/v1/findings/?kind=erofs&status=open").json()["results"]
    assert (found["subject"], found["rule"], found["told_by"]) == ("/opt/game/save", "copy /opt/game", 0)
    assert api.get("/api/v1/findings/").json()["results"] == [found]
    assert api.post(f"/api/v1/findings/{row.pk}/accept/").json()["status"] == "accepted"
    assert api.post(f"/api/v1/findings/{row.pk}/dismiss/").status_code == 409
    api.force_authenticate(world.mallory)
    assert api.post(f"/api/v1/findings/{row.pk}/accept/").status_code == 404
