"""visible_to(): who sees which rows, for which right. Nothing when in doubt."""

import pytest
from django.apps import apps
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import ImproperlyConfigured
from django.db import models

from fleet.models import AuditEntry, Client, Membership, Site
from fleet.querysets import ScopedQuerySet, site_of
from fleet.roles import RIGHTS, Right, Role
from images.models import Image
from tests.images.versions import make_image
from tests.world import World, make_client, member, person

SCOPED = [model for model in apps.get_models() if isinstance(model._default_manager.all(), ScopedQuerySet)]


@pytest.mark.parametrize("right", Right)
@pytest.mark.parametrize("role", Role)
def test_each_role_has_its_rights_at_its_own_site_alone(world: World, role: Role, right: Right) -> None:
    ours, theirs = make_client(world.clubroom), make_client(world.school, "52:54:00:00:00:02")
    nina = person("nina")
    member(nina, world.clubroom, role)
    found = set(Client.objects.visible_to(nina, right))
    assert found == ({ours} if right in RIGHTS[role] else set())
    assert theirs not in found


def test_the_table_of_rights() -> None:
    """Written out once more, so that nobody widens a role by accident."""
    assert {role.value: "".join(right.value[0] for right in Right if right in RIGHTS[role]) for role in Role} == {
        "viewer": "v",
        "volunteer": "voeb",
        "organiser": "voebr",
        "site-admin": "voebrm",
    }


def test_roles_at_two_sites_do_not_mix(world: World) -> None:
    ours, theirs = make_client(world.clubroom), make_client(world.school, "52:54:00:00:00:02")
    member(world.otto, world.school, Role.VIEWER)
    assert set(Client.objects.visible_to(world.otto)) == {ours, theirs}
    assert set(Client.objects.visible_to(world.otto, Right.OPERATE)) == {ours}


def test_superusers_see_all_while_their_account_is_open(world: World) -> None:
    make_client(world.clubroom)
    root = User.objects.create_superuser("root")
    assert Client.objects.visible_to(root, Right.MANAGE).count() == 1
    root.is_active = False
    assert not Client.objects.visible_to(root).exists()


def test_strangers_see_nothing_and_neither_do_closed_accounts(world: World) -> None:
    make_client(world.clubroom)
    world.otto.is_active = False
    for nobody in (AnonymousUser(), world.otto, person("nina")):
        for model in SCOPED:
            assert not model._default_manager.all().visible_to(nobody).exists(), model  # type: ignore[attr-defined]


def test_who_leaves_a_site_sees_nothing_of_it_any_more(world: World) -> None:
    make_client(world.clubroom)
    Membership.objects.filter(user=world.vera).delete()
    assert not Client.objects.visible_to(world.vera).exists()
    assert not Site.objects.visible_to(world.vera).exists()


def test_what_belongs_to_no_site_is_seen_by_members_and_changed_by_none(world: World) -> None:
    shared = make_image(None)
    assert set(Image.objects.visible_to(world.mallory)) == {shared}
    assert not Image.objects.visible_to(world.mallory, Right.BUILD).exists()
    assert not Image.objects.visible_to(person("nina")).exists()


def test_the_log_of_what_belongs_to_no_site_is_for_superusers(world: World) -> None:
    AuditEntry.objects.create(chain="everywhere", sequence=1, at="2026-01-01T00:00Z", action="login", digest="x")
    assert not AuditEntry.objects.visible_to(world.otto).exists()


@pytest.mark.parametrize("model", SCOPED, ids=lambda model: model._meta.label)
def test_every_scoped_model_says_how_it_reaches_its_site(world: World, model: type[models.Model]) -> None:
    str(model._default_manager.all().visible_to(world.vera).query)  # type: ignore[attr-defined]


def test_a_model_that_does_not_is_refused_by_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Client, "SITE")
    with pytest.raises(ImproperlyConfigured, match="Client does not say how it reaches its site: set SITE"):
        Client.objects.visible_to(world.vera)


def test_the_site_of_a_row(world: World) -> None:
    assert site_of(make_client(world.clubroom)) == world.clubroom
    assert site_of(world.clubroom) == world.clubroom
    assert site_of(make_image(None)) is None
    assert site_of(world.vera) is None
