"""What is done to clients and tokens, by whom, and what the log says of it."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.utils import timezone

from fleet import audit, classifying, services
from fleet.exceptions import Forbidden, OperatorError
from fleet.hardware import Adapter
from fleet.models import (
    Admission,
    ApiToken,
    AuditEntry,
    Client,
    ClientClass,
    HardwareRule,
    UnknownHardware,
    token_hash,
)
from tests.world import World, make_client, person

CIRRUS = Adapter.parse("0000:00:02.0,1013:00b8,1af4:1100,030000")
ATI = Adapter.parse("0000:00:03.0,1002:5046,1af4:1100,030000")
OTHER = Adapter.parse("0000:00:04.0,8086:1234,8086:1234,030000")


@pytest.fixture
def client(world: World) -> Client:
    return make_client(world.clubroom)


def last() -> AuditEntry:
    entry = AuditEntry.objects.order_by("-pk").first()
    assert entry is not None, "nothing was written down"
    return entry


def classify(client: Client, adapters: list[Adapter], actor: str) -> ClientClass | None:
    """The class of a client, by its rules, as it is written down."""
    found = classifying.class_of(client, adapters, classifying.rules_of(client.site))
    classifying.settle([(client, found)], actor)
    return found.target


@pytest.mark.parametrize(("adapters", "slug"), [([CIRRUS], "gamer"), ([ATI], "contest"), ([ATI, CIRRUS], "gamer")])
def test_a_client_is_of_the_class_whose_rule_its_adapter_fits(
    world: World, client: Client, adapters: list[Adapter], slug: str
) -> None:
    found = classify(client, adapters, actor="boot")
    client.refresh_from_db()
    assert found == client.client_class == ClientClass.objects.get(slug=slug)
    entry = last()
    assert (entry.action, entry.actor, entry.site) == ("client.classified", "boot", world.clubroom)
    assert (entry.detail["was"], entry.detail["now"]) == ("", str(found))
    assert " by " in entry.detail["why"]
    classify(client, adapters, actor="boot")
    assert AuditEntry.objects.count() == 1, "the same class again is nothing new"


def test_rules_of_another_site_do_not_count(world: World) -> None:
    elsewhere = make_client(world.school)
    assert classify(elsewhere, [CIRRUS], actor="boot") is None


def test_a_pinned_client_keeps_its_class(world: World, client: Client) -> None:
    client.client_class, client.class_pinned = world.contest, True
    client.save()
    assert classify(client, [CIRRUS], actor="boot") == world.contest
    assert not AuditEntry.objects.exists()


def test_what_no_rule_fits_waits_or_is_of_the_default_class_as_the_site_chooses(world: World, client: Client) -> None:
    site = world.clubroom
    site.default_class = world.contest
    site.save()
    assert classify(client, [OTHER], actor="boot") is None
    site.unknown_hardware = UnknownHardware.DEFAULT
    site.save()
    client.refresh_from_db()
    assert classify(client, [OTHER], actor="boot") == world.contest
    assert last().detail["why"] == "no rule matches"


def test_a_rule_made_later_counts_at_the_next_boot(world: World, client: Client) -> None:
    assert classify(client, [OTHER], actor="boot") is None
    HardwareRule.objects.create(site=world.clubroom, client_class=world.gamer, vendor="8086")
    assert classify(client, [OTHER], actor="boot") == world.gamer


@pytest.mark.parametrize("admission", [Admission.MAINTENANCE, Admission.RETIRED, Admission.PENDING])
def test_a_volunteer_admits_and_withdraws(world: World, client: Client, admission: Admission) -> None:
    services.admit(client, world.vera, admission)
    client.refresh_from_db()
    assert client.admission == admission
    assert (last().action, last().detail) == ("client.admission", {"was": "in-service", "now": admission.value})
    services.admit(client, world.vera, admission)
    assert AuditEntry.objects.count() == 1, "twice is once"


def test_who_has_no_right_there_admits_and_edits_nothing(world: World, client: Client) -> None:
    viewer = person("nina")
    viewer.memberships.create(site=world.clubroom, role="viewer")
    for who in (world.mallory, viewer, AnonymousUser(), person("nobody")):
        with pytest.raises(Forbidden, match=r"You may not admit A1 \(pc-01\)"):
            services.admit(client, who, Admission.RETIRED)
        with pytest.raises(Forbidden, match="You may not edit"):
            services.edit_client(client, who, seat="Z9")
    client.refresh_from_db()
    assert (client.admission, client.seat) == (Admission.IN_SERVICE, "A1")
    assert not AuditEntry.objects.exists()


def test_an_edit_keeps_what_was_and_what_is(world: World, client: Client) -> None:
    services.edit_client(client, world.vera, seat="B2", client_class=world.gamer, name="pc-01")
    client.refresh_from_db()
    assert (client.seat, client.client_class) == ("B2", world.gamer)
    assert last().detail == {
        "was": {"seat": "A1", "client_class": None},
        "now": {"seat": "B2", "client_class": "Gamer"},
    }
    assert list(audit.verify()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "No Host"}, "A host name"),
        ({"class_pinned": True}, "needs a class"),
        ({"name": "pc-02"}, "already exists"),
    ],
)
def test_what_does_not_fit_is_said_and_leaves_the_client_as_it_was(
    world: World, client: Client, changes: dict[str, Any], said: str
) -> None:
    make_client(world.clubroom, "52:54:00:00:00:02")
    with pytest.raises(OperatorError, match=said):
        services.edit_client(client, world.vera, **changes)
    client.refresh_from_db()
    assert (client.name, client.class_pinned) == ("pc-01", False)
    assert not AuditEntry.objects.exists()


def test_a_class_of_another_site_does_not_fit(world: World, client: Client) -> None:
    kiosk = ClientClass.objects.create(site=world.school, slug="kiosk", name="Kiosk")
    with pytest.raises(OperatorError, match="another site"):
        services.edit_client(client, world.vera, client_class=kiosk)


def test_a_token_is_kept_as_its_hash_and_its_secret_is_written_nowhere(world: World) -> None:
    until = timezone.now() + timedelta(days=1)
    token, secret = services.issue_token(world.vera, "kiosk", read_only=True, expires_at=until)
    token.refresh_from_db()
    assert (token.digest, token.user, token.read_only, token.expires_at) == (
        token_hash(secret),
        world.vera,
        True,
        until,
    )
    assert token.hint == secret[:8]
    entry = last()
    assert (entry.action, entry.actor, entry.site) == ("token.issued", "vera", None)
    assert secret not in f"{entry.subject} {entry.detail}"


def test_a_name_is_used_once_per_person(world: World) -> None:
    services.issue_token(world.vera, "kiosk")
    services.issue_token(world.otto, "kiosk")
    with pytest.raises(OperatorError, match="You have a token called kiosk already"):
        services.issue_token(world.vera, "kiosk")
    assert ApiToken.objects.count() == 2


def test_a_token_is_ended_by_its_owner_or_a_superuser(world: World) -> None:
    mine, _ = services.issue_token(world.vera, "kiosk")
    for who in (world.otto, AnonymousUser()):
        with pytest.raises(Forbidden, match="is not yours"):
            services.revoke_token(mine, who)
    services.revoke_token(mine, User.objects.create_superuser("root"))
    assert not ApiToken.objects.exists()
    assert (last().action, last().actor, last().detail) == ("token.revoked", "root", {"owner": "vera"})
