import pytest
from django.core.exceptions import ValidationError
from django.db import DatabaseError, transaction

from fleet import audit
from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import AuditEntry, Membership
from fleet.roles import Role
from images import services
from images.models import HomeTemplate, ImageFile, ImageHook, ImageVersion, Release, VersionStatus
from tests.images.versions import make_image, make_manifest, make_version
from tests.world import World, member, person


def test_a_build_is_queued_with_a_snapshot_of_the_recipe(world: World) -> None:
    image = make_image(world.clubroom, packages="tmux\r\nnano\r\n", volatile="copy /etc\ncopy /srv")
    ImageFile.objects.create(image=image, path="/etc/motd", content="Hello\r\n")
    ImageFile.objects.create(image=image, path="~/.profile", content="x=1\n", mode="0600")
    ImageHook.objects.create(image=image, script="echo second", position=20)
    ImageHook.objects.create(image=image, script="echo first", position=10)
    version = services.request_build(image, world.vera, "a new game")
    image.packages = "vim"
    image.save()
    version.refresh_from_db()
    assert (version.number, version.status, version.requested_by) == (1, VersionStatus.QUEUED, world.vera)
    assert version.recipe["packages"] == ["tmux", "nano"]
    assert version.recipe["volatile"] == ["copy /etc", "copy /srv"]
    assert version.recipe["files"] == [{"path": "/etc/motd", "content": "Hello\n", "mode": "0644"}]
    assert version.recipe["home_files"] == [{"path": ".profile", "content": "x=1\n", "mode": "0600"}]
    assert [hook["script"] for hook in version.recipe["hooks"]] == ["echo first", "echo second"]
    entry = AuditEntry.objects.get(action="version.requested")
    assert (entry.site, entry.actor, entry.detail) == (world.clubroom, "vera", {"reason": "a new game"})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"packages": "tmux Bad_Name"}, "packages"),
        ({"suite": "Not A Suite"}, "suite"),
        ({"volatile": "copy etc"}, "volatile"),
        ({"user": "Röot"}, "user"),
        ({"components": ""}, "components"),
        ({"mirror": "gopher://x"}, "mirror"),
    ],
)
def test_a_recipe_that_cannot_be_built_is_refused_naming_the_field(
    world: World, fields: dict[str, str], named: str
) -> None:
    image = make_image(world.clubroom, **fields)
    with pytest.raises(OperatorError, match=f"{named}: "):
        services.request_build(image, world.vera)
    with pytest.raises(ValidationError) as caught:
        image.clean()
    assert list(caught.value.message_dict) == [named]
    assert not ImageVersion.objects.exists()


@pytest.mark.parametrize("path", ["etc/motd", "/proc/x", "~/../x", "~//x", "/home/../x"])
def test_a_file_that_could_not_be_put_in_is_refused_when_it_is_typed(world: World, path: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ImageFile(image=make_image(world.clubroom), path=path).clean()
    assert list(caught.value.message_dict) == ["path"]


def test_building_needs_the_right_at_the_site_of_the_image(world: World) -> None:
    image, shared = make_image(world.clubroom), make_image(None, "shared")
    viewer = person("viola")
    member(viewer, world.clubroom, Role.VIEWER)
    for actor in (world.mallory, viewer):
        with pytest.raises(Forbidden, match="may not edit recipes"):
            services.request_build(image, actor)
    with pytest.raises(Forbidden):
        services.request_build(shared, world.vera)
    version = make_version(image, VersionStatus.QUEUED)
    with pytest.raises(Forbidden):
        services.cancel_build(version, world.mallory)
    version.refresh_from_db()
    assert version.status == VersionStatus.QUEUED
    assert not AuditEntry.objects.exists()


def test_the_same_recipe_is_not_queued_twice(world: World) -> None:
    image = make_image(world.clubroom)
    services.request_build(image, world.vera)
    with pytest.raises(WrongState, match="gamer-1 is queued already"):
        services.request_build(image, world.vera)
    image.packages = "tmux"
    assert services.request_build(image, world.vera).number == 2


def test_a_cancelled_build_can_be_tried_again_with_its_own_recipe(world: World) -> None:
    image = make_image(world.clubroom, packages="tmux")
    version = services.request_build(image, world.vera)
    services.cancel_build(version, world.vera, "wrong")
    assert version.status == VersionStatus.CANCELLED
    with pytest.raises(WrongState, match="gamer-1 cannot become cancelled"):
        services.cancel_build(version, world.vera)
    image.packages = "nano"
    image.save()
    again = services.retry(version, world.vera)
    assert (again.number, again.status, again.recipe) == (2, VersionStatus.QUEUED, version.recipe)
    with pytest.raises(WrongState, match="cannot be tried again: it is queued"):
        services.retry(again, world.vera)


def test_a_release_replaces_the_one_before_it(world: World) -> None:
    image = make_image(world.clubroom)
    first, second = make_version(image), make_version(image)
    services.release(first, world.gamer, world.otto, "first")
    new = services.release(second, world.gamer, world.otto, "better")
    assert list(Release.objects.filter(current=True)) == [new]
    assert new.home == HomeTemplate.objects.get(sha256=make_manifest("gamer-2").home.sha256)
    entry = AuditEntry.objects.filter(action="version.released").latest("sequence")
    assert (entry.detail["replaces"], entry.detail["digest"]) == ("gamer-1", second.digest)
    with pytest.raises(WrongState, match="boots already"):
        services.release(second, world.gamer, world.otto)
    assert list(audit.verify()) == []


@pytest.mark.parametrize("status", [status for status in VersionStatus if status != VersionStatus.READY])
def test_only_a_ready_version_is_released(world: World, status: VersionStatus) -> None:
    version = make_version(make_image(world.clubroom), status)
    with pytest.raises(WrongState, match="gamer-1 cannot be released"):
        services.release(version, world.gamer, world.otto)
    assert not Release.objects.exists()


def test_a_release_needs_the_right_and_a_version_of_the_site(world: World) -> None:
    version, foreign = make_version(make_image(world.clubroom)), make_version(make_image(world.school, "school"))
    for actor in (world.vera, world.mallory):
        with pytest.raises(Forbidden, match="may not release"):
            services.release(version, world.gamer, actor)
    Membership.objects.create(user=world.otto, site=world.school, role=Role.SITE_ADMIN)
    with pytest.raises(OperatorError, match="school-1 belongs to another site"):
        services.release(foreign, world.gamer, world.otto)
    services.release(make_version(make_image(None, "shared")), world.gamer, world.otto)
    assert Release.objects.get().version.image.slug == "shared"


def test_roll_back_goes_one_further_each_time(world: World) -> None:
    image = make_image(world.clubroom)
    versions = [make_version(image) for _ in range(3)]
    for version in versions:
        services.release(version, world.gamer, world.otto)
    assert services.roll_back(world.gamer, world.otto, "it crashes").version == versions[1]
    assert services.roll_back(world.gamer, world.otto).version == versions[0]
    with pytest.raises(WrongState, match="no earlier release"):
        services.roll_back(world.gamer, world.otto)
    services.release(versions[2], world.gamer, world.otto)
    assert services.roll_back(world.gamer, world.otto).version == versions[0]
    assert Release.objects.filter(current=True).count() == 1


def test_roll_back_needs_the_right_and_something_to_go_back_to(world: World) -> None:
    with pytest.raises(WrongState, match="no earlier release"):
        services.roll_back(world.gamer, world.otto)
    with pytest.raises(Forbidden):
        services.roll_back(world.gamer, world.vera)


@pytest.mark.parametrize(
    "change",
    [{"digest": "0" * 64}, {"manifest": {"x": 1}}, {"recipe": {}}, {"number": 9}, {"status": "failed", "digest": ""}],
)
def test_the_database_refuses_to_change_a_ready_version(world: World, change: dict[str, object]) -> None:
    version = make_version(make_image(world.clubroom))
    with pytest.raises(DatabaseError, match="never changes"), transaction.atomic():
        ImageVersion.objects.filter(pk=version.pk).update(**change)
    with pytest.raises(DatabaseError, match="is not removed"), transaction.atomic():
        ImageVersion.objects.filter(pk=version.pk)._raw_delete("default")
    ImageVersion.objects.filter(pk=version.pk).update(reason="of no weight")
    failed = make_version(version.image, VersionStatus.FAILED)
    ImageVersion.objects.filter(pk=failed.pk).update(recipe={})
    assert failed.delete()[0] == 1
