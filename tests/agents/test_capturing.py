"""A capture is asked for by who may, is of one connected client, and ends by the digest of what arrived."""

import hashlib
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client as Browser
from django.utils import timezone
from pytest_django import DjangoCaptureOnCommitCallbacks
from pytest_django.fixtures import Settings
from rest_framework.test import APIClient

from agents import capturing, evidence, schedule, sending, services
from agents.daemon import protocol
from agents.models import BootSession, Command, CommandStatus, SessionStatus, Verb
from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import AuditEntry, Client
from images import homes
from images.models import HomeTemplate, Image, TemplateStatus
from tests.agents.boots import boot, make_release, plan_of
from tests.world import World, make_client, person

HOME = b"a home"
SENT = {"bytes": len(HOME), "sha256": hashlib.sha256(HOME).hexdigest()}


@pytest.fixture
def session(world: World, keys: Path, settings: Settings, tmp_path: Path) -> BootSession:
    """An open session of a client that booted an image of the club room's; uploads have a place of their own."""
    settings.UPLOADS = tmp_path / "uploads"
    settings.UPLOADS.mkdir()
    make_release(world.gamer)
    return boot(make_client(world.clubroom))


@pytest.fixture
def command(world: World, session: BootSession) -> Command:
    """A capture that the client has accepted."""
    command = services.order(Verb.CAPTURE, [session.client], "for the tournament", world.otto).commands.get()
    sending.send(Command.objects.filter(pk=command.pk))
    assert tell(command, protocol.ACCEPTED) == ""
    return command


def tell(command: Command, state: str, result: dict[str, Any] | None = None) -> str:
    command.refresh_from_db()
    assert command.envelope.session is not None
    why = evidence.take_report(command.envelope.session, protocol.report(str(command.pk), state, 0, "", result or {}))
    command.refresh_from_db()
    return why


def arrive(command: Command) -> Path:
    """What the gateway does once all of the home is here."""
    assert command.envelope.session is not None
    archive = capturing.archive_of(command.pk)
    archive.write_bytes(HOME)
    capturing.received(command.envelope.session, command.pk, size=SENT["bytes"], sha256=SENT["sha256"])  # type: ignore[arg-type]
    command.refresh_from_db()
    return archive


def test_what_arrived_as_the_client_says_becomes_a_candidate_for_a_person_to_look_at(
    world: World, command: Command
) -> None:
    assert command.envelope.args == {"most_bytes": homes.MOST_BYTES}
    archive = arrive(command)
    assert tell(command, protocol.SUCCEEDED, {**SENT, "files": 7, "skipped": 1, "rubbish": "x"}) == ""
    row = HomeTemplate.objects.get(origin="capture")
    assert (row.status, row.archive, row.name) == (TemplateStatus.PACKING, command.pk, str(command.client))
    assert (row.requested_by, row.reason, row.image.slug) == (world.otto, "for the tournament", "gamer")
    assert (command.status, command.reason) == (CommandStatus.SUCCEEDED, f"its home arrived: {SENT['sha256']:.12}")
    assert command.result == {**SENT, "files": 7, "skipped": 1, "home_template": row.pk}
    entry = AuditEntry.objects.get(action="home.captured")
    assert (entry.actor, entry.site, entry.detail["client"]) == ("otto", world.clubroom, str(command.client))
    assert (entry.detail["sha256"], entry.detail["order"]) == (SENT["sha256"], str(command.order_id))
    assert archive.read_bytes() == HOME
    assert tell(command, protocol.SUCCEEDED, SENT) == "", "told twice it is the same"
    assert HomeTemplate.objects.filter(origin="capture").count() == 1


@pytest.mark.parametrize("said", [{}, {**SENT, "sha256": "0" * 64}, {**SENT, "bytes": 7}, {**SENT, "bytes": [1]}])
def test_what_arrived_otherwise_than_the_client_says_is_thrown_away(
    command: Command, said: dict[str, Any], django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    archive = arrive(command)
    with django_capture_on_commit_callbacks(execute=True):
        tell(command, protocol.SUCCEEDED, said)
    assert (command.status, command.result) == (CommandStatus.FAILED, {})
    assert command.reason == "what arrived is not what the client says it sent"
    assert not archive.exists()
    assert not HomeTemplate.objects.filter(origin="capture").exists()


def test_a_client_that_sent_nothing_has_not_succeeded(command: Command) -> None:
    tell(command, protocol.SUCCEEDED, SENT)
    assert (command.status, command.reason) == (CommandStatus.FAILED, "no home arrived")


def test_a_capture_that_fails_is_lost_or_is_overtaken_by_a_boot_leaves_nothing(
    command: Command,
    settings: Settings,
    heard: None,
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    archive = arrive(command)

    def end(status: CommandStatus, by: Any) -> None:
        Command.objects.filter(pk=command.pk).update(status=CommandStatus.ACCEPTED, accepted_at=timezone.now())
        archive.write_bytes(HOME)
        with django_capture_on_commit_callbacks(execute=True):
            by()
        command.refresh_from_db()
        assert command.status == status
        assert not archive.exists()

    end(CommandStatus.FAILED, lambda: tell(command, protocol.FAILED))
    end(CommandStatus.FAILED, lambda: plan_of(command.client))
    assert command.reason == "the client booted anew in the middle of the capture"
    settings.CAPTURE_LIMIT = -1
    end(CommandStatus.LOST, schedule.tick)


def test_nothing_may_come_but_for_an_accepted_capture_of_this_boot_and_once(world: World, session: BootSession) -> None:
    with pytest.raises(WrongState, match="no capture of this client's"):
        capturing.begin(session, uuid.uuid4())
    command = services.order(Verb.CAPTURE, [session.client], "x", world.otto).commands.get()
    sending.send(Command.objects.filter(pk=command.pk))
    with pytest.raises(WrongState, match="is sent"):
        capturing.begin(session, command.pk)
    tell(command, protocol.ACCEPTED)
    assert capturing.begin(session, command.pk) == homes.MOST_BYTES
    other = boot(make_client(world.clubroom, "52:54:00:00:00:02"))
    with pytest.raises(WrongState, match="no capture of this client's"):
        capturing.begin(other, command.pk)
    arrive(command)
    with pytest.raises(WrongState, match="has arrived already"):
        capturing.begin(session, command.pk)
    tell(command, protocol.SUCCEEDED, SENT)
    with pytest.raises(WrongState, match="is succeeded"):
        capturing.begin(session, command.pk)
    Command.objects.filter(pk=command.pk).update(status=CommandStatus.ACCEPTED, verb=Verb.RESTART)
    with pytest.raises(WrongState, match="no capture of this client's"):
        capturing.begin(session, command.pk)


def test_an_organiser_orders_it_and_nobody_below(world: World, session: BootSession) -> None:
    for actor, where in ((world.vera, "an organiser"), (world.mallory, "an organiser")):
        with pytest.raises(Forbidden) as caught:
            services.order(Verb.CAPTURE, [session.client], "x", actor)
        assert where in caught.value.hint
    assert not Command.objects.exists()


def test_a_home_of_an_image_that_all_sites_share_is_captured_by_superusers_alone(
    world: World, session: BootSession
) -> None:
    Image.objects.update(site=None)
    with pytest.raises(Forbidden, match="edit recipes"):
        services.order(Verb.CAPTURE, [session.client], "x", world.otto)
    User.objects.filter(pk=person("root").pk).update(is_superuser=True)
    assert services.order(Verb.CAPTURE, [session.client], "x", User.objects.get(username="root"))


def test_it_is_of_one_client_that_is_connected_and_needs_a_reason(world: World, session: BootSession) -> None:
    off = make_client(world.clubroom, "52:54:00:00:00:02")
    with pytest.raises(OperatorError, match="2 homes cannot be captured by one order"):
        services.order(Verb.CAPTURE, [session.client, off], "x", world.otto)
    with pytest.raises(WrongState, match="is not connected"):
        services.order(Verb.CAPTURE, [off], "x", world.otto)
    with pytest.raises(OperatorError, match="needs a reason"):
        services.order(Verb.CAPTURE, [session.client], " ", world.otto)
    BootSession.objects.update(release=None)
    with pytest.raises(WrongState, match="is not connected"):
        services.order(Verb.CAPTURE, [session.client], "x", world.otto)
    assert not Command.objects.exists()


def test_a_client_that_went_down_meanwhile_ends_it(world: World, session: BootSession) -> None:
    command = services.order(Verb.CAPTURE, [session.client], "x", world.otto).commands.get()
    BootSession.objects.update(status=SessionStatus.CLOSED)
    sending.send(Command.objects.filter(pk=command.pk))
    command.refresh_from_db()
    assert (command.status, command.reason) == (CommandStatus.FAILED, "the client is not connected")


def test_the_clients_page_offers_it_to_organisers_and_leads_to_the_candidate(
    world: World, command: Command, client: Browser
) -> None:
    page, button = f"/admin/fleet/client/{command.client_id}/change/", b'value="capture"'
    client.force_login(world.vera)
    shown = client.get(page).content
    assert (button in shown, b'value="cycle"' in shown) == (False, True)
    client.force_login(world.otto)
    assert button in client.get(page).content
    arrive(command)
    tell(command, protocol.SUCCEEDED, SENT)
    row = HomeTemplate.objects.get(origin="capture")
    link = f'<a href="/admin/images/hometemplate/{row.pk}/change/">look at the template</a>'.encode()
    assert link in client.get(page).content
    assert link in client.get(f"/admin/agents/order/{command.order_id}/change/").content
    review = client.get(f"/admin/images/hometemplate/{row.pk}/change/").content.decode()
    assert f"from a client ({command.client})" in review


def test_it_is_ordered_on_the_clients_page(world: World, session: BootSession, client: Browser) -> None:
    form = {"action": "capture", "_selected_action": [str(session.client_id)], "alone": "yes"}
    url = "/admin/fleet/client/"
    client.force_login(world.vera)
    client.post(url, {**form, "confirmed": "yes", "reason": "x"})
    assert not Command.objects.exists()
    client.force_login(world.otto)
    assert b"sent to the server" in client.post(url, form).content
    client.post(url, {**form, "confirmed": "yes", "reason": "tournament"})
    assert (Command.objects.get().verb, Command.objects.get().order.reason) == ("capture", "tournament")


def test_scripts_order_it_and_find_the_candidate(world: World, session: BootSession) -> None:
    api = APIClient()
    body = {"verb": "capture", "clients": [str(session.client_id)], "reason": "tournament"}
    api.force_authenticate(world.vera)
    assert api.post("/api/v1/orders/", body, format="json").status_code == 403
    api.force_authenticate(world.otto)
    assert api.post("/api/v1/orders/", body, format="json").status_code == 202
    command = Command.objects.get()
    sending.send(Command.objects.filter(pk=command.pk))
    tell(command, protocol.ACCEPTED)
    arrive(command)
    tell(command, protocol.SUCCEEDED, SENT)
    told = api.get(f"/api/v1/commands/{command.pk}/").json()
    template = api.get(f"/api/v1/home-templates/{told['result']['home_template']}/").json()
    assert (told["status"], template["status"]) == ("succeeded", "packing")


def test_a_client_that_is_retired_has_nothing_to_capture(world: World, session: BootSession) -> None:
    BootSession.objects.update(status=SessionStatus.CLOSED)
    Client.objects.update(admission="retired")
    with pytest.raises(WrongState, match="is not connected"):
        services.order(Verb.CAPTURE, [session.client], "x", world.otto)
