"""Tags: words that a site puts on its clients; by whom, and what is refused."""

import pytest
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth.models import User
from django.test import Client as Browser

from fleet import services
from fleet.exceptions import Forbidden, OperatorError
from fleet.models import AuditEntry, Client, Tag
from fleet.roles import Role
from tests.world import World, make_client, member

CLIENTS = "/admin/fleet/client/"


@pytest.fixture
def pcs(world: World) -> list[Client]:
    return [make_client(world.clubroom, f"52:54:00:00:00:0{number}") for number in (1, 2, 3)]


def as_(user: User) -> Browser:
    browser = Browser()
    browser.force_login(user)
    return browser


def tagged(name: str) -> list[str]:
    return [*Client.objects.filter(tags__name=name).order_by("seat").values_list("seat", flat=True)]


def test_clients_are_tagged_and_untagged_and_it_is_written_down_what_changed(world: World, pcs: list[Client]) -> None:
    assert services.tag(pcs[:2], "stage", world.vera) == 2
    assert services.tag(pcs, "stage", world.vera) == 1, "two have it already"
    assert services.tag(pcs, "stage", world.vera) == 0
    assert services.tag(pcs[:1], "stage", world.vera, off=True) == 1
    assert tagged("stage") == ["A2", "A3"]
    entries = AuditEntry.objects.order_by("sequence")
    assert [(entry.action, entry.subject, entry.detail["clients"]) for entry in entries] == [
        ("clients.tagged", "stage", ["A1 (pc-01)", "A2 (pc-02)"]),
        ("clients.tagged", "stage", ["A3 (pc-03)"]),
        ("clients.untagged", "stage", ["A1 (pc-01)"]),
    ]


def test_each_site_has_tags_of_its_own(world: World, pcs: list[Client]) -> None:
    member(world.vera, world.school, Role.VOLUNTEER)
    other = make_client(world.school, "52:54:00:00:00:09")
    assert services.tag([*pcs, other], "stage", world.vera) == 4
    assert {tag.site for tag in Tag.objects.all()} == {world.clubroom, world.school}
    assert AuditEntry.objects.filter(action="clients.tagged").values("chain").distinct().count() == 2


def test_who_may_not_edit_a_client_does_not_tag_it(world: World, pcs: list[Client]) -> None:
    other = make_client(world.school, "52:54:00:00:00:09")
    with pytest.raises(Forbidden, match=r"You may not tag A9 \(pc-09\)\."):
        services.tag([*pcs, other], "stage", world.vera)
    with pytest.raises(Forbidden):
        services.tag(pcs, "stage", world.mallory)
    assert not Tag.objects.exists()


@pytest.mark.parametrize("name", ["", "two words", "ä", "x" * 41])
def test_what_is_no_tag_is_refused(world: World, pcs: list[Client], name: str) -> None:
    with pytest.raises(OperatorError, match="is no tag"):
        services.tag(pcs, name, world.vera)
    assert not Tag.objects.exists()


def test_a_tag_that_nobody_has_is_not_made_to_be_taken_away(world: World, pcs: list[Client]) -> None:
    assert services.tag(pcs, "stage", world.vera, off=True) == 0
    assert not Tag.objects.exists()
    assert not AuditEntry.objects.exists()


def test_many_are_tagged_in_the_list_and_found_by_it(world: World, pcs: list[Client]) -> None:
    vera = as_(world.vera)
    chosen = {ACTION_CHECKBOX_NAME: [str(client.pk) for client in pcs[:2]], "tag": "stage"}
    page = vera.post(CLIENTS, chosen | {"action": "tag"}, follow=True).content.decode()
    assert "The tag stage is put on 2 clients." in page
    tag = Tag.objects.get()
    page = vera.get(f"{CLIENTS}?tags__id__exact={tag.pk}").content.decode()
    assert ("A1</a>" in page, "A3</a>" in page) == (True, False)
    page = vera.post(CLIENTS, chosen | {"action": "untag"}, follow=True).content.decode()
    assert "The tag stage is taken from 2 clients." in page
    assert tagged("stage") == []
    assert "is no tag" in vera.post(CLIENTS, chosen | {"action": "tag", "tag": " "}, follow=True).content.decode()


def test_a_clients_page_offers_the_tags_of_its_site(world: World, pcs: list[Client]) -> None:
    ours, theirs = (Tag.objects.create(site=site, name="stage") for site in (world.clubroom, world.school))
    vera, address = as_(world.vera), f"{CLIENTS}{pcs[0].pk}/change/"
    form = {"seat": "A1", "name": "pc-01", "admission": "in-service", "tags": [str(ours.pk)]}
    assert vera.post(address, form).status_code == 302
    assert tagged("stage") == ["A1"]
    entry = AuditEntry.objects.get(action="client.edited")
    assert entry.detail["now"]["tags"] == ["stage"]
    assert vera.post(address, form | {"tags": [str(theirs.pk)]}).status_code == 200, "another site's"
    assert [*pcs[0].tags.all()] == [ours]


def test_tags_are_made_by_volunteers_and_once(world: World) -> None:
    vera, form = as_(world.vera), {"site": str(world.clubroom.pk), "name": "stage"}
    assert vera.post("/admin/fleet/tag/add/", form).status_code == 302
    assert vera.post("/admin/fleet/tag/add/", form).status_code == 200
    world.vera.memberships.update(role="viewer")
    assert vera.post("/admin/fleet/tag/add/", form | {"name": "loud"}).status_code == 403
    assert [tag.name for tag in Tag.objects.all()] == ["stage"]
    assert AuditEntry.objects.get(subject_type="fleet.Tag").action == "tag.added"
