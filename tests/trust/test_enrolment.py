"""Windows of enrolment: opened for a time by who may, seen, written down, and closed by themselves."""

from datetime import timedelta

import pytest
import time_machine
from django.test import Client as Browser
from django.utils import timezone

from agents import netboot
from agents.board.facts import Notice
from agents.board.reading import read
from fleet import enrolment
from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import Admission, AuditEntry, Client, Site
from fleet.roles import Role
from tests.agents.boots import make_release
from tests.api import call
from tests.world import World, make_client, member, person

MAC = "52:54:00:ab:cd:ef"


@pytest.fixture
def world(world: World) -> World:
    world.otto.memberships.update(role=Role.SITE_ADMIN)
    return world


def appears(mac: str, site: Site) -> str:
    """What becomes of a client that was never seen."""
    netboot.client_script({"mac": mac, "site": site.slug})
    return Client.objects.get(mac=mac).admission


def notices(site: Site) -> dict[str, Notice]:
    return {fact.key: fact for fact in read(site).sections["notices"] if isinstance(fact, Notice)}


def test_a_window_admits_and_closes_by_itself(world: World) -> None:
    make_release(world.gamer)
    with time_machine.travel("2026-11-01T12:00Z", tick=False) as clock:
        assert appears("52:54:00:ab:cd:00", world.clubroom) == Admission.PENDING
        enrolment.open_for(world.clubroom, 60, world.otto)
        assert world.clubroom.enrolment_open
        clock.shift(59 * 60)
        assert appears("52:54:00:ab:cd:01", world.clubroom) == Admission.IN_SERVICE
        assert appears("52:54:00:ab:cd:02", world.school) == Admission.PENDING, "it is the club room's window"
        clock.shift(60)
        world.clubroom.refresh_from_db()
        assert not world.clubroom.enrolment_open
        assert appears("52:54:00:ab:cd:03", world.clubroom) == Admission.PENDING
    entry = AuditEntry.objects.get(action="enrolment.opened")
    assert (entry.actor, entry.site) == ("otto", world.clubroom)
    assert entry.detail == {"minutes": 60, "until": "2026-11-01T13:00:00+00:00"}


def test_a_window_can_be_moved_and_closed_before_its_time(world: World) -> None:
    with pytest.raises(WrongState, match="Enrolment at Club room is not open"):
        enrolment.close(world.clubroom, world.otto)
    enrolment.open_for(world.clubroom, 240, world.otto)
    enrolment.open_for(world.clubroom, 15, world.otto)
    assert world.clubroom.enrolment_until is not None
    assert world.clubroom.enrolment_until < timezone.now() + timedelta(minutes=16)
    enrolment.close(world.clubroom, world.otto)
    world.clubroom.refresh_from_db()
    assert not world.clubroom.enrolment_open
    actions = AuditEntry.objects.filter(action__startswith="enrolment").order_by("sequence")
    assert [entry.action.partition(".")[2] for entry in actions] == ["opened", "opened", "closed"]


@pytest.mark.parametrize("minutes", [0, -1, enrolment.LONGEST_MIN + 1])
def test_a_window_has_an_end_within_a_week(world: World, minutes: int) -> None:
    with pytest.raises(OperatorError, match=f"cannot be open for {minutes} minutes"):
        enrolment.open_for(world.clubroom, minutes, world.otto)
    assert not AuditEntry.objects.filter(action="enrolment.opened").exists()


def test_only_a_site_admin_of_that_site_opens_or_closes_one(world: World) -> None:
    for somebody in (world.vera, world.mallory, person("nina")):
        with pytest.raises(Forbidden, match="You may not open or close enrolment at Club room"):
            enrolment.open_for(world.clubroom, 60, somebody)
    enrolment.open_for(world.clubroom, 60, world.otto)
    with pytest.raises(Forbidden):
        enrolment.close(world.clubroom, world.vera)


def test_over_the_api(world: World) -> None:
    path = f"sites/{world.clubroom.pk}/enrolment/"
    status, site = call(world.otto, path, {"minutes": 60})
    assert (status, site["enrolment_open"]) == (200, True)
    assert site["enrolment_until"] is not None
    assert call(world.otto, path, {"minutes": 0})[1]["enrolment_open"] is False
    assert call(world.otto, path, {"minutes": 0})[0] == 409
    assert call(world.otto, path, {"minutes": enrolment.LONGEST_MIN + 1})[0] == 400
    assert call(world.vera, path, {"minutes": 60})[0] == 403
    assert call(world.mallory, path, {"minutes": 60})[0] == 404


def test_in_the_admin_by_one_choice_on_the_page_of_the_site(world: World, client: Browser) -> None:
    client.force_login(world.otto)
    address = f"/admin/fleet/site/{world.clubroom.pk}/change/"
    page = client.get(address).content.decode()
    assert "for 1 hour from now" in page
    form = {"name": "Club room", "slug": "clubroom", "unknown_hardware": "pending", "default_class": ""}
    assert client.post(address, {**form, "enrolment": "60"}).status_code == 302
    world.clubroom.refresh_from_db()
    assert world.clubroom.enrolment_open
    assert "until" in client.get("/admin/fleet/site/").content.decode()
    client.post(address, {**form, "enrolment": ""})
    world.clubroom.refresh_from_db()
    assert world.clubroom.enrolment_open, "who edits something else leaves it open"
    assert client.post(address, {**form, "enrolment": "close"}).status_code == 302
    assert client.post(address, {**form, "enrolment": "close"}).status_code == 302, "twice is no error"
    world.clubroom.refresh_from_db()
    assert not world.clubroom.enrolment_open
    entries = AuditEntry.objects.filter(site=world.clubroom).order_by("sequence")
    actions = list(entries.values_list("action", flat=True))
    assert actions == ["enrolment.opened", "enrolment.closed"], "and no empty edit beside them"
    assert client.post(address, {**form, "enrolment": "600000"}).status_code == 200, "no such choice"
    world.clubroom.refresh_from_db()
    assert not world.clubroom.enrolment_open


def test_who_waits_is_counted_where_they_are_admitted(world: World, client: Browser) -> None:
    assert notices(world.clubroom) == {}
    for number in (1, 2):
        make_client(world.clubroom, f"52:54:00:00:00:0{number}", admission=Admission.PENDING)
    make_client(world.school, "52:54:00:00:00:03", admission=Admission.PENDING)
    notice = notices(world.clubroom)["pending"]
    assert notice.words == "2 new PCs wait to be admitted"
    client.force_login(world.vera)
    listed = client.get(notice.admin_url).content.decode()
    assert "pc-01" in listed
    assert "pc-02" in listed
    sites = client.get("/admin/fleet/site/").content.decode()
    assert f'?site__id__exact={world.clubroom.pk}&amp;admission__exact=pending">2</a>' in sites
    chosen = {"action": "admit", "_selected_action": [str(pk) for pk in Client.objects.values_list("pk", flat=True)]}
    client.post(notice.admin_url, chosen)
    assert notices(world.clubroom) == {}
    assert Client.objects.get(site=world.school).admission == Admission.PENDING


def test_the_board_says_that_newcomers_are_admitted(world: World, client: Browser) -> None:
    enrolment.open_for(world.clubroom, 60, world.otto)
    words = notices(Site.objects.get(pk=world.clubroom.pk))["enrolment"].words
    assert words.startswith("New PCs are admitted without asking until ")
    client.force_login(world.vera)
    assert words in client.get("/sites/clubroom/").content.decode()


def test_a_site_admin_of_two_sites_opens_the_one(world: World) -> None:
    member(world.otto, world.school, Role.SITE_ADMIN)
    enrolment.open_for(world.school, 60, world.otto)
    assert not Site.objects.get(pk=world.clubroom.pk).enrolment_open
