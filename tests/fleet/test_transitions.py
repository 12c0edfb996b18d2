"""move(): who moves a status first has it, and everybody else is told in words."""

import threading
from collections.abc import Callable
from copy import copy

import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, models, transaction

from agents.models import BootSession, Campaign, Cap, Command, Freeze, Rollout, Target
from fleet.exceptions import WrongState
from fleet.models import ApiToken, Client, ClientClass, Site, Tag
from fleet.roles import Role
from fleet.transitions import move
from images import findings
from images.finding_models import Finding, FindingKind, FindingSource
from images.findings import Found
from images.layer_models import Layer, LayerBuild, LayerStatus
from images.merge_models import FileMerge
from images.models import ImageVersion, VersionStatus
from tests.agents.halls import make_rows
from tests.agents.restores import make_restore, make_wake
from tests.images.versions import make_image, make_version
from tests.world import World, make_client, make_world, member

OURS = [model for label in ("fleet", "images", "agents") for model in apps.get_app_config(label).get_models()]
MOVING = [BootSession, Campaign, Command, FileMerge, Finding, ImageVersion, LayerBuild, Rollout, Target]


def test_a_status_moves_with_its_changes_and_is_read_back(world: World) -> None:
    version = make_version(make_image(world.clubroom), VersionStatus.QUEUED)
    stale = ImageVersion.objects.get(pk=version.pk)
    move(version, VersionStatus.FAILED, failure="the disk is full")
    assert (version.status, version.failure) == (VersionStatus.FAILED, "the disk is full")
    with pytest.raises(WrongState, match=r"gamer-1 cannot become building: it is failed\. Reload the page"):
        move(stale, VersionStatus.BUILDING)
    assert stale.status == VersionStatus.FAILED, "the loser sees what the row is now"


def test_a_step_that_is_not_allowed_changes_nothing(world: World) -> None:
    for to in (VersionStatus.QUEUED, VersionStatus.READY):
        version = make_version(make_image(world.clubroom, f"to-{to}"), VersionStatus.FAILED)
        with pytest.raises(WrongState, match=f"cannot become {to}: it is failed"):
            move(version, to, failure="overwritten")
        assert ImageVersion.objects.get(pk=version.pk).failure == ""


def test_of_four_who_move_a_row_at_the_same_moment_one_does(transactional_db: None) -> None:
    version = make_version(make_image(make_world().clubroom), VersionStatus.QUEUED)
    start, outcomes = threading.Barrier(4), list[object]()

    def race(to: VersionStatus) -> None:
        try:
            mine = ImageVersion.objects.get(pk=version.pk)
            start.wait(10)
            move(mine, to)
            outcomes.append(to)
        except Exception as error:
            outcomes.append(error)
        finally:
            connection.close()

    # From QUEUED both are allowed, and neither may follow the other.
    racers = [threading.Thread(target=race, args=(to,)) for to in [VersionStatus.FAILED, VersionStatus.CANCELLED] * 2]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    won = [outcome for outcome in outcomes if isinstance(outcome, VersionStatus)]
    assert len(won) == 1, outcomes
    assert sum(isinstance(outcome, WrongState) for outcome in outcomes) == 3, outcomes
    version.refresh_from_db()
    assert version.status == won[0]


@pytest.mark.parametrize("model", MOVING)
def test_transitions_name_declared_statuses_only(
    model: type[BootSession | Campaign | Command | FileMerge | Finding | ImageVersion | LayerBuild | Rollout | Target],
) -> None:
    declared = {value for value, _ in model._meta.get_field("status").choices or ()}
    assert set(model.TRANSITIONS) <= declared
    assert {source for sources in model.TRANSITIONS.values() for source in sources} <= declared


def chosen(model: type[models.Model]) -> list[str]:
    """The fields of ``model`` whose choices are stored."""
    return [field.name for field in model._meta.concrete_fields if field.choices]


def everything(world: World) -> None:
    """One row at least of each model that has choices."""
    client = make_client(world.clubroom, client_class=world.gamer)
    image = make_image(world.clubroom)
    make_version(image)  # with its home template
    failed = make_version(
        image, VersionStatus.FAILED
    )  # the newest: a ready one without its status breaks another rule, too
    layer = Layer.objects.create(image=image, slug="driver", name="Driver")
    LayerBuild.objects.create(layer=layer, version=failed, change={}, status=LayerStatus.FAILED)
    FileMerge.objects.create(version=failed, path="/etc/x")
    findings.note(failed, FindingSource.CHECKED, [Found(FindingKind.UNIT, "x.service")])
    make_rows(world, make_restore(world, client).command)
    Rollout.objects.create(client_class=world.gamer, reason="a newer version")
    make_wake(client)


@pytest.mark.parametrize("model", [model for model in OURS if chosen(model)], ids=lambda model: model._meta.label)
def test_a_value_nobody_declared_cannot_be_stored(world: World, model: type[models.Model]) -> None:
    everything(world)
    row = model._default_manager.first()
    assert row is not None, f"no row of {model._meta.label}: make one in everything()"
    for field in chosen(model):
        another = copy(row)
        if model._meta.pk.remote_field is None:  # else it is another row's, and checks come before what is unique
            another.pk = None
        setattr(another, field, "?")
        with pytest.raises(IntegrityError, match="declared"), transaction.atomic():
            another.save(force_insert=True)


def cap(world: World, **bounds: int) -> Cap:
    return Cap.objects.create(site=world.clubroom, verb="cycle", **bounds)


TRIPPED: dict[str, Callable[[World], object]] = {
    "a site's slug": lambda world: Site.objects.create(slug="clubroom", name="Another"),
    "a class's slug": lambda world: ClientClass.objects.create(site=world.clubroom, slug="gamer", name="Another"),
    "a second role": lambda world: member(world.vera, world.clubroom, Role.VIEWER),
    "a client's name": lambda world: make_client(world.clubroom, "52:54:00:00:00:02", name="pc-01"),
    "a client's MAC": lambda world: make_client(world.school, "52:54:00:00:00:01", name="pc-02"),
    "pinned to nothing": lambda world: Client.objects.update(class_pinned=True),
    "a rule twice": lambda world: world.contest.rules.create(site=world.clubroom, vendor="1013", device="00b8"),
    "a cap twice": lambda world: [cap(world, at_once=number) for number in (1, 2)],
    "a cap without a bound": cap,
    "a cap of nothing": lambda world: cap(world, at_once=0, per_minute=5),
    "a tag's name": lambda world: [Tag.objects.create(site=world.clubroom, name="stage") for _ in range(2)],
    "a freeze twice": lambda world: [Freeze.objects.create(site=None, reason="x") for _ in range(2)],
    "a token's name": lambda world: [issue(world.vera, digest) for digest in ("a" * 64, "b" * 64)],
}


def issue(user: User, digest: str) -> ApiToken:
    return ApiToken.objects.create(user=user, name="kiosk", digest=digest, hint="sf_")


@pytest.mark.parametrize("what", TRIPPED)
def test_what_must_be_unique_or_complete_is_refused_by_the_database(world: World, what: str) -> None:
    make_client(world.clubroom)
    with pytest.raises(IntegrityError), transaction.atomic():
        TRIPPED[what](world)
