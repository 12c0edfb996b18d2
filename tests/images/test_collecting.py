"""The store keeps what anybody may boot, and no more."""

import multiprocessing
import os
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.db import models
from django.utils import timezone

from agents.models import BootSession, SessionStatus
from fleet.exceptions import Forbidden, WrongState
from fleet.models import Admission, AuditEntry, ClientClass
from images import collecting, homes, keeping, services, storing
from images.builder.chunks import Archive
from images.builder.errors import BuildError
from images.builder.store import Artefact, Store
from images.models import HomeTemplate, ImageVersion, Release, Storage, VersionStatus
from tests.images.stored import age, flip_a_bit, like, noise, paths, put, store, stored_version
from tests.images.versions import make_image, make_version
from tests.world import World, make_client

__all__ = ["store"]


@pytest.fixture(autouse=True)
def one_release_back(settings: Any) -> None:
    settings.RELEASES_KEPT = 1


def long_ago() -> None:
    """The grace period of what was released is over."""
    Release.objects.update(released_at=timezone.now() - timedelta(days=30))


def release(version: ImageVersion, client_class: ClientClass, actor: User) -> Release:
    given = services.release(version, client_class, actor)
    long_ago()
    return given


def forgotten(version: ImageVersion) -> None:
    ImageVersion.objects.filter(pk=version.pk).update(storage=Storage.NOTHING)


def test_a_forgotten_version_goes_and_what_others_share_with_it_stays(world: World, store: Store) -> None:
    image, kernel = make_image(world.clubroom), b"the same kernel"
    old, new = (stored_version(image, store, salt, kernel=kernel) for salt in ("old", "new"))
    storing.forget(old, world.vera, "no room")
    age(store)
    planned = collecting.plan(store)
    done = collecting.collect(store)
    assert planned.bytes == done.bytes == sum(size for _, size in keeping.artefacts_in(old.manifest)) - len(kernel)
    assert all(path.exists() for path in paths(store, new).values())
    assert [part for part, path in paths(store, old).items() if path.exists()] == ["kernel"]
    assert store.path(old.digest).exists(), "the manifest tells what the version was"
    old.refresh_from_db()
    assert (old.status, old.storage) == (VersionStatus.READY, Storage.NOTHING)
    assert AuditEntry.objects.get(action="version.forgotten").detail == {"reason": "no room"}
    assert AuditEntry.objects.get(action="store.collected").detail["bytes"] == done.bytes


def test_a_second_collection_finds_nothing_to_do(world: World, store: Store) -> None:
    forgotten(stored_version(make_image(world.clubroom), store))
    age(store)
    assert collecting.collect(store).files == 6
    assert collecting.collect(store) == collecting.Collected(0, 0, 0, 0)
    assert AuditEntry.objects.filter(action="store.collected").count() == 1


def test_two_collections_at_once_are_refused(world: World, store: Store) -> None:
    with collecting._alone(store), pytest.raises(WrongState, match="being collected already"):
        collecting.collect(store)


def test_what_no_row_names_goes_only_when_it_is_old(world: World, store: Store) -> None:
    left = put(store, b"left by a build that was killed")
    assert collecting.plan(store).young == (next(store.artefacts()),)
    assert collecting.collect(store).files == 0
    age(store, days=0.9)
    assert collecting.collect(store).files == 0
    age(store, days=1.1)
    assert collecting.collect(store).bytes == left.bytes


def test_nothing_put_since_a_build_began_is_collected_however_long_it_builds(world: World, store: Store) -> None:
    put(store, b"of the build under way")
    age(store, days=3)
    started = timezone.now() - timedelta(days=4)
    building = make_version(make_image(world.clubroom), VersionStatus.BUILDING, started_at=started)
    assert collecting.collect(store).files == 0
    ImageVersion.objects.filter(pk=building.pk).update(status=VersionStatus.FAILED)
    assert collecting.collect(store).files == 1


def refused(version: ImageVersion, world: World) -> str:
    with pytest.raises(WrongState) as caught:
        storing.forget(version, world.vera)
    with pytest.raises(WrongState):
        storing.archive(version, world.vera)
    forgotten(version)  # even if it were: who needs it keeps it
    return str(caught.value)


def test_a_version_that_a_class_boots_is_not_forgotten_nor_collected(world: World, store: Store) -> None:
    version = stored_version(make_image(world.clubroom), store)
    release(version, world.gamer, world.otto)
    assert "gamer-1 cannot be forgotten: Gamer boots it. Release another" in refused(version, world)
    age(store)
    assert collecting.collect(store).files == 0


def test_the_releases_one_may_go_back_to_are_kept_as_many_as_the_settings_say(
    world: World, store: Store, settings: Any
) -> None:
    image = make_image(world.clubroom)
    first, second, third = (stored_version(image, store, salt) for salt in "abc")
    for version in (first, second, third):
        release(version, world.gamer, world.otto)
    assert set(keeping.holds()) == {second.pk, third.pk}
    assert keeping.holds()[second.pk] == ["Gamer may be rolled back to it"]
    settings.RELEASES_KEPT = 2
    assert set(keeping.holds()) == {first.pk, second.pk, third.pk}
    services.roll_back(world.gamer, world.otto)
    long_ago()
    settings.RELEASES_KEPT = 1
    assert set(keeping.holds()) == {first.pk, second.pk}, "after one roll-back the next goes to the first"


def test_what_was_booted_until_lately_is_kept_for_clients_on_their_way(
    world: World, store: Store, settings: Any
) -> None:
    image = make_image(world.clubroom)
    versions = [stored_version(image, store, salt) for salt in "abc"]
    for version in versions:
        release(version, world.gamer, world.otto)
    Release.objects.update(released_at=timezone.now())
    assert "Gamer booted it until" in refused(versions[0], world)


@pytest.mark.parametrize(
    ("status", "admission", "runs"),
    [
        (SessionStatus.BOOTING, Admission.IN_SERVICE, True),
        (SessionStatus.OPEN, Admission.IN_SERVICE, True),
        (SessionStatus.OPEN, Admission.RETIRED, True),
        (SessionStatus.LOST, Admission.IN_SERVICE, True),
        (SessionStatus.LOST, Admission.RETIRED, False),
        (SessionStatus.SUPERSEDED, Admission.IN_SERVICE, False),
        (SessionStatus.CLOSED, Admission.IN_SERVICE, False),
    ],
)
def test_a_version_that_a_client_runs_is_kept(
    world: World, store: Store, status: SessionStatus, admission: Admission, runs: bool
) -> None:
    image = make_image(world.clubroom)
    versions = [stored_version(image, store, salt) for salt in "abc"]
    releases = [release(version, world.gamer, world.otto) for version in versions]
    client = make_client(world.clubroom, admission=admission)
    BootSession.objects.create(
        client=client, boot_id="0" * 8 + "-0000-4000-8000-" + "0" * 12, status=status, release=releases[0]
    )
    if runs:
        assert "A1 (pc-01) " in refused(versions[0], world)
    else:
        storing.forget(versions[0], world.vera)
    age(store)
    assert collecting.collect(store).files == (0 if runs else 6)


def test_forgetting_needs_the_right_at_the_site(world: World, store: Store) -> None:
    version = stored_version(make_image(world.clubroom), store)
    for order in (storing.forget, storing.archive, storing.restore):
        with pytest.raises(Forbidden):
            order(version, world.mallory)
    version.refresh_from_db()
    assert version.storage == Storage.FILES


def test_only_a_ready_version_can_be_forgotten_and_only_once(world: World, store: Store) -> None:
    image = make_image(world.clubroom)
    with pytest.raises(WrongState, match="it is queued"):
        storing.forget(make_version(image, VersionStatus.QUEUED), world.vera)
    version = stored_version(image, store)
    storing.forget(version, world.vera)
    with pytest.raises(WrongState, match="forgotten already"):
        storing.forget(version, world.vera)


def test_a_forgotten_version_is_neither_released_nor_rolled_back_to(world: World, store: Store, settings: Any) -> None:
    image = make_image(world.clubroom)
    first, second, third = (stored_version(image, store, salt) for salt in "abc")
    release(first, world.gamer, world.otto)
    release(second, world.gamer, world.otto)
    release(third, world.gamer, world.otto)
    storing.forget(first, world.vera)
    with pytest.raises(WrongState, match=r"gamer-1 was forgotten.*Build it again"):
        release(first, world.gamer, world.otto)
    services.roll_back(world.gamer, world.otto)
    with pytest.raises(WrongState, match="gamer-1 was forgotten"):
        services.roll_back(world.gamer, world.otto)
    assert Release.objects.get(current=True).version == second


def test_a_home_template_is_kept_while_a_release_uses_it(world: World, store: Store) -> None:
    image = make_image(world.clubroom)
    old, new = stored_version(image, store, "old"), stored_version(image, store, "new")
    home = HomeTemplate.objects.get(sha256=old.manifest["home"]["sha256"])  # type: ignore[index]
    uploaded = put(store, b"a template of no version")
    HomeTemplate.objects.create(image=image, sha256=uploaded.sha256, bytes=uploaded.bytes, tree_digest="ab" * 32)
    Release.objects.create(client_class=world.gamer, version=new, home=home)
    storing.forget(old, world.vera)
    age(store)
    collecting.collect(store)
    assert store.path(home.sha256).exists()
    assert store.path(uploaded.sha256).exists()
    assert not paths(store, old)["root"].exists()


def test_every_model_that_names_an_artefact_is_asked() -> None:
    """A new model with digests must be known to ``images.keeping``: else what it names would be collected."""
    naming = {
        f"{model.__name__}.{field.name}"
        for model in apps.get_app_config("images").get_models()
        for field in model._meta.concrete_fields
        if field.name in ("sha256", "manifest", "digest")
        or (isinstance(field, models.CharField) and field.max_length == 64)
    }
    asked = {
        "ImageVersion.manifest",
        "ImageVersion.digest",
        "HomeTemplate.sha256",
        "LayerBuild.manifest",
        "LayerBuild.digest",
    }
    no_artefact = {"HomeTemplate.tree_digest", "ImageVersion.provenance"}
    assert naming == asked | no_artefact


def test_an_artefact_put_again_while_it_is_collected_is_there_afterwards(world: World, store: Store) -> None:
    """The collection planned to remove it; a build puts the same bytes before its turn comes."""
    left = put(store, b"as old as the hills")
    age(store)
    planned = collecting.plan(store)
    assert [artefact.sha256 for artefact in planned.remove] == [left.sha256]
    put(store, b"as old as the hills")
    assert store.remove(left.sha256, planned.before) == 0
    assert store.whole(left.sha256)


def _put_often(store: Store, seconds: float) -> None:
    """Put the same bytes again and again; each time they must be there as long as they are young."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        artefact = put(store, b"wanted")
        if not store.path(artefact.sha256).is_file():
            os._exit(3)
        then = time.time() - 90_000
        os.utime(store.path(artefact.sha256), (then, then))


@pytest.mark.slow
def test_puts_and_removals_side_by_side_lose_nothing(store: Store) -> None:
    putting = multiprocessing.get_context("fork").Process(target=_put_often, args=(store, 0.6))
    putting.start()
    sha256, removed = Artefact.of(_file(store, b"wanted")).sha256, 0
    while putting.is_alive():
        removed += bool(store.remove(sha256, time.time() - 86400))
    putting.join()
    assert putting.exitcode == 0
    assert removed > 3, "the two must have met"


def _file(store: Store, content: bytes) -> Any:
    path = store.root / "file"
    path.write_bytes(content)
    return path


def test_a_put_waits_for_the_lock_of_a_removal(store: Store) -> None:
    done = threading.Event()

    def put_one() -> None:
        put(store, b"x")
        done.set()

    thread = threading.Thread(target=put_one)
    with store.locked():
        thread.start()
        assert not done.wait(0.2)
    assert done.wait(5)
    thread.join()


def test_a_second_put_leaves_the_file_that_clients_read_and_mends_a_damaged_one(store: Store) -> None:
    artefact = put(store, b"read over the network")
    inode = store.path(artefact.sha256).stat().st_ino
    put(store, b"read over the network")
    assert store.path(artefact.sha256).stat().st_ino == inode
    flip_a_bit(store.path(artefact.sha256))
    put(store, b"read over the network")
    assert store.whole(artefact.sha256)


def test_an_archived_version_takes_what_makes_it_differ_and_comes_back_whole(world: World, store: Store) -> None:
    image, root = make_image(world.clubroom), noise("root", 2_000_000)
    first, second = (
        stored_version(image, store, salt, root=content) for salt, content in (("a", root), ("b", like(root, 1)))
    )
    release(stored_version(image, store, "c"), world.gamer, world.otto)
    for version in (first, second):
        storing.archive(version, world.vera, "kept for the record")
    age(store)
    done = collecting.collect(store)
    first.refresh_from_db()
    second.refresh_from_db()
    assert not any(path.exists() for version in (first, second) for path in paths(store, version).values())
    assert first.chunk_bytes > 2_000_000
    assert second.chunk_bytes < 250_000
    assert done.archived_bytes == first.chunk_bytes + second.chunk_bytes == Archive(store).bytes()
    with pytest.raises(WrongState, match=r"gamer-2 is archived\. Restore it"):
        release(second, world.gamer, world.otto)
    assert collecting.collect(store) == collecting.Collected(0, 0, 0, 0)

    storing.restore(second, world.vera)
    with pytest.raises(WrongState, match="being restored"):
        release(second, world.gamer, world.otto)
    collecting.restore(second.pk, store)
    collecting.restore(second.pk, store)
    assert all(store.whole(path.name) for path in paths(store, second).values())
    release(second, world.contest, world.otto)
    before = Archive(store).bytes()
    collecting.collect(store)
    assert Archive(store).bytes() < before, "the chunks that only it had are files now"
    assert list(collecting.verify(store)) == []


def test_a_damaged_version_is_not_archived_and_keeps_its_files_and_stops_nothing_else(
    world: World, store: Store
) -> None:
    image = make_image(world.clubroom)
    version, old = stored_version(image, store), stored_version(image, store, "old")
    flip_a_bit(paths(store, version)["root"])
    storing.archive(version, world.vera)
    storing.forget(old, world.vera)
    age(store)
    with pytest.raises(BuildError, match="damaged"):
        collecting.collect(store)
    assert paths(store, version)["root"].exists()
    assert not paths(store, old)["root"].exists()


def test_a_damaged_archive_is_told_and_leaves_the_version_archived(world: World, store: Store) -> None:
    version = stored_version(make_image(world.clubroom), store)
    storing.archive(version, world.vera)
    age(store)
    collecting.collect(store)
    flip_a_bit(max(Archive(store).chunks.glob("*/*"), key=lambda path: path.stat().st_size))
    assert [str(damage).partition(" ")[2] for damage in collecting.verify(store)] == [
        "is damaged in the archive: gamer-1"
    ]
    storing.restore(version, world.vera)
    with pytest.raises(BuildError):
        collecting.restore(version.pk, store)
    version.refresh_from_db()
    assert version.storage == Storage.CHUNKS
    assert "Bad message" in AuditEntry.objects.get(action="version.not-restored").detail["why"]


def test_a_restore_whose_message_was_lost_is_sent_again(world: World, store: Store) -> None:
    version = stored_version(make_image(world.clubroom), store)
    storing.archive(version, world.vera)
    storing.restore(version, world.vera)
    assert collecting.overdue() == []
    ImageVersion.objects.update(sent_at=timezone.now() - timedelta(minutes=2))
    assert collecting.overdue() == [version.pk]
    assert collecting.overdue() == []


def test_verify_names_the_flipped_bit_and_the_missing_file_and_whose_they_are(world: World, store: Store) -> None:
    image = make_image(world.clubroom)
    first, second = (stored_version(image, store, salt, kernel=b"shared") for salt in "ab")
    assert list(collecting.verify(store)) == []
    flip_a_bit(paths(store, first)["kernel"])
    paths(store, second)["plan"].unlink()
    put(store, b"nobody's")
    flip_a_bit(store.path(Artefact.of(_file(store, b"nobody's")).sha256))
    told = {str(damage).partition(" ")[2] for damage in collecting.verify(store)}
    assert told == {
        "is damaged: gamer-1, gamer-2",
        "is missing: gamer-2",
        "is damaged: no version needs it",
    }


def test_a_site_of_its_own_class_holds_as_any(world: World, store: Store) -> None:
    image = make_image(None, "shared")
    version = stored_version(image, store)
    lab = ClientClass.objects.create(site=world.school, slug="lab", name="Lab")
    world.otto.is_superuser = True
    release(version, lab, world.otto)
    assert keeping.holds() == {version.pk: ["Lab boots it"]}


def test_what_a_waiting_version_is_derived_from_is_kept_and_nothing_is_derived_from_the_forgotten(
    world: World, store: Store
) -> None:
    parent = stored_version(make_image(world.clubroom), store)
    derived = services.request_derived(parent, {"install": ["tree"]}, world.vera)
    assert "gamer-2 is derived from it" in refused(parent, world)
    age(store)
    assert collecting.collect(store).files == 0
    services.cancel_build(derived, world.vera)
    assert collecting.collect(store).files == 6
    with pytest.raises(WrongState, match="gamer-1 was forgotten"):
        services.request_derived(parent, {"install": ["tree"]}, world.vera)


def test_a_template_that_went_with_its_version_is_given_to_nobody(world: World, store: Store) -> None:
    image = make_image(world.clubroom)
    old, new = stored_version(image, store, "old"), stored_version(image, store, "new")
    release(new, world.gamer, world.otto)
    home = HomeTemplate.objects.get(sha256=paths(store, old)["home"].name)
    storing.forget(old, world.vera)
    with pytest.raises(WrongState, match="archived or forgotten"):
        homes.use(home, world.gamer, world.otto)
    ImageVersion.objects.filter(pk=old.pk).update(storage=Storage.FILES)
    homes.use(home, world.gamer, world.otto)
    age(store)
    assert collecting.collect(store).files == 0
