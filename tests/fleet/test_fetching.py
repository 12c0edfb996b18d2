"""How a class's root is fetched: chosen where it can work, refused where it cannot."""

from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from fleet.models import ClientClass, Membership, RootCheck, RootFetch
from fleet.roles import Role
from tests.fleet.test_admin_audit import as_
from tests.world import World

SHARE = "nfs://10.20.0.1:2049/srv/fleet/objects"


def form(world: World, **changes: Any) -> dict[str, Any]:
    form = {"site": world.clubroom.pk, "name": "Gamer", "slug": "gamer", "colour": "blue", "root_kind": "symlink"}
    return (
        form
        | {"root_percent": 50, "home_percent": 50, "root_check": "read", "root_fetch": "http", "home_kind": "overlay"}
        | changes
    )


@pytest.mark.parametrize("fetch", [RootFetch.NFS, RootFetch.LAZY])
def test_a_share_is_chosen_only_where_the_server_has_one(world: World, settings: Any, fetch: str) -> None:
    page = f"/admin/fleet/clientclass/{world.gamer.pk}/change/"
    Membership.objects.filter(user=world.otto).update(role=Role.SITE_ADMIN)
    settings.NFS_SHARE = ""
    refused = as_(world.otto).post(page, form(world, root_fetch=fetch))
    assert "set FLEET_NFS_SHARE" in refused.content.decode()
    world.gamer.refresh_from_db()
    assert world.gamer.root_fetch == RootFetch.HTTP
    settings.NFS_SHARE = SHARE
    assert as_(world.otto).post(page, form(world, root_fetch=fetch)).status_code == 302
    world.gamer.refresh_from_db()
    assert world.gamer.root_fetch == fetch


@pytest.mark.parametrize("fetch", [RootFetch.NFS, RootFetch.LAZY])
def test_all_of_a_root_cannot_be_checked_before_it_is_there(world: World, settings: Any, fetch: str) -> None:
    settings.NFS_SHARE = SHARE
    world.gamer.root_fetch, world.gamer.root_check = fetch, RootCheck.WHOLE
    with pytest.raises(ValidationError, match="checked when it is read"):
        world.gamer.full_clean()
    with pytest.raises(IntegrityError, match="class_whole_check_needs_the_whole"), transaction.atomic():
        world.gamer.save()


def test_a_way_that_nobody_declared_cannot_be_stored(world: World) -> None:
    with pytest.raises(IntegrityError, match="class_root_fetch_declared"), transaction.atomic():
        ClientClass.objects.filter(pk=world.gamer.pk).update(root_fetch="ftp")
