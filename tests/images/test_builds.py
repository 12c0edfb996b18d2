"""Builds by a real Celery worker, with real mmdebstrap, into a real store."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.db import connection
from django.utils import timezone
from pytest_django.fixtures import Settings

from fleet.models import AuditEntry
from images import builds, services, tasks
from images.builder.manifest import Manifest
from images.builder.run import Runner
from images.builder.store import Store
from images.follower import Cancelled, Follower, Output
from images.models import HomeTemplate, Image, ImageHook, ImageVersion, VersionStatus
from tests.images.versions import make_image, make_version
from tests.services import PROJECT, celery_sends_to, celery_worker, database_url, redis_server, wait_for
from tests.world import World, make_world

RAN = (VersionStatus.READY, VersionStatus.FAILED, VersionStatus.CANCELLED)


@dataclass
class Room:
    """Where a test's versions are built, and who works there."""

    place: Path
    environment: dict[str, str]
    world: World

    @property
    def store(self) -> Store:
        return Store(self.place / "store")

    @contextmanager
    def worker(self, concurrency: int = 1) -> Iterator[int]:
        with celery_worker("builds", self.environment, concurrency=concurrency) as worker:
            yield worker.pid
            self.log = worker.log

    def files(self) -> list[Path]:
        """What is left of builds; os.walk does not mind what vanishes while it looks."""
        return [Path(directory) / name for directory, _, names in os.walk(self.place) for name in names]

    def is_mounted(self) -> bool:
        return str(self.place) in "".join(_readable(Path("/proc").glob("[0-9]*/mountinfo")))

    def processes(self) -> list[str]:
        """Command lines that name the place, and processes whose root or working directory is in it."""
        found = [words for words in _readable(Path("/proc").glob("[0-9]*/cmdline")) if str(self.place) in words]
        for path in Path("/proc").glob("[0-9]*"):
            try:
                at = f"{(path / 'root').readlink()} {(path / 'cwd').readlink()}"
            except OSError:
                continue
            found += [at] if str(self.place) in at else []
        return found


def _readable(paths: Iterator[Path]) -> Iterator[str]:
    for path in paths:
        try:
            yield path.read_bytes().decode(errors="replace")
        except OSError:
            continue


@pytest.fixture
def room(transactional_db: None, tmp_path: Path, settings: Settings) -> Iterator[Room]:
    with redis_server() as redis, celery_sends_to(redis.url):
        environment = {
            "FLEET_REDIS_URL": redis.url,
            "FLEET_STORE": str(tmp_path / "store"),
            "FLEET_BUILD_WORK": str(tmp_path / "work"),
            "FLEET_IMAGE_KEY": settings.IMAGE_KEY,
            "FLEET_PUBLIC_KEYS": str(settings.PUBLIC_KEYS),
        }
        settings.STORE, settings.BUILD_WORK = tmp_path / "store", tmp_path / "work"
        yield Room(tmp_path, environment, make_world())


def until(version: ImageVersion, *statuses: VersionStatus, seconds: float = 300) -> None:
    def reached() -> bool:
        version.refresh_from_db()
        assert version.status in statuses or version.status not in RAN, version.failure
        return version.status in statuses

    wait_for(reached, f"{version} is {' or '.join(statuses)}", seconds)


def installing(version: ImageVersion) -> bool:
    """Packages are being unpacked in the chroot."""
    return version.steps.filter(name="bootstrap", done__gt=20).exists()


@pytest.mark.slow
@pytest.mark.build
@pytest.mark.root
def test_a_worker_builds_a_version_and_its_steps_stream_into_rows(room: Room) -> None:
    image = make_image(room.world.clubroom, packages="tmux")
    ImageHook.objects.create(image=image, script="echo the hook ran")
    with room.worker():
        version = services.request_build(image, room.world.vera)
        wait_for(lambda: installing(version), "output and progress of a step under way", 120)
        under_way = version.steps.get(name="bootstrap")
        assert "mmdebstrap" in under_way.command
        assert under_way.output
        assert under_way.finished_at is None
        assert 0 < under_way.bytes_done <= under_way.bytes_total
        assert re.fullmatch(r"\d+ of \d+ packages, [\d.]+ of [\d.]+ MB", under_way.progress)
        until(version, VersionStatus.READY)
    names = list(version.steps.values_list("name", flat=True))
    assert names == ["bootstrap", "configure", "hook-1", "finish", "list", "root", "plan", "home", "initrd", "store"]
    assert not version.steps.filter(finished_at=None).exists()
    assert not version.steps.filter(failed=True).exists()
    packing, manifest = version.steps.get(name="root"), Manifest.load(room.store, version.digest)
    assert packing.bytes_done == packing.bytes_total == manifest.unpacked_bytes
    assert "%" not in packing.output, "its bar is not kept"
    hook = version.steps.get(name="hook-1")
    assert (hook.exit_code, hook.output.splitlines()[-1]) == (0, "the hook ran")
    assert manifest == version.contents
    assert "tmux" in {package.name for package in manifest.packages}
    assert list(room.store.verify()) == []
    home = HomeTemplate.objects.get(image=image)
    assert (home.sha256, home.tree_digest) == (manifest.home.sha256, manifest.home_digest)
    assert sorted(path.name for path in (room.place / "work").iterdir()) == ["initrds", "locks", "trees"]
    assert AuditEntry.objects.get(action="version.ready").detail == {"digest": version.digest}
    with room.worker():
        same = services.request_build(image, room.world.vera)
        derived = services.request_derived(version, {"install": ["hello"]}, room.world.vera)
        until(same, VersionStatus.READY)
        until(derived, VersionStatus.READY)
        Image.objects.update(most_mib=64)
        too_large = services.request_derived(
            version, {"files": [{"path": "/etc/motd", "content": "x"}]}, room.world.vera
        )
        until(too_large, VersionStatus.FAILED)
    assert same.digest == version.digest
    assert list(same.steps.values_list("name", flat=True)) == ["compare"]
    version.refresh_from_db()
    assert version.volatile_change is None
    assert same.volatile_change is not None
    assert (same.volatile_change["against"], same.volatile_change["bytes"]) == (str(version), 0)
    assert derived.contents is not None
    assert {package.name for package in derived.contents.packages} - {
        package.name for package in manifest.packages
    } == {"hello"}
    assert list(derived.steps.values_list("name", flat=True))[:3] == ["open", "packages", "finish"]
    assert too_large.failure.startswith("List what is in the root: the root has ")
    assert "the image may have 64 MiB: leave something out, or raise its limit" in too_large.failure
    assert Manifest.load(room.store, version.digest) == manifest


@pytest.mark.slow
@pytest.mark.build
@pytest.mark.root
def test_a_worker_killed_in_mid_build_leaves_a_failed_version_and_nothing_else(room: Room) -> None:
    with celery_worker("builds", room.environment) as worker:
        version = services.request_build(make_image(room.world.clubroom), room.world.vera)
        wait_for(lambda: installing(version), "packages are being installed", 120)
        wait_for(room.is_mounted, "something is mounted in the chroot", 30)
        builds.fail_lost()
        version.refresh_from_db()
        assert version.status == VersionStatus.BUILDING
        worker.kill()
    wait_for(lambda: not room.processes() and not room.is_mounted(), "no process, no mount is left")
    tasks.tick()
    tasks.tick()
    version.refresh_from_db()
    assert (version.status, version.failure[:26]) == (VersionStatus.FAILED, "Its worker was lost in mid")
    assert version.steps.get().failed
    assert room.files() == []
    assert AuditEntry.objects.filter(action="version.failed").count() == 1


@pytest.mark.slow
@pytest.mark.build
@pytest.mark.root
def test_a_cancelled_build_ends_at_once_and_leaves_nothing(room: Room) -> None:
    image = make_image(room.world.clubroom)
    with room.worker():
        version = services.request_build(image, room.world.vera)
        wait_for(lambda: installing(version), "packages are being installed", 120)
        services.cancel_build(version, room.world.vera, "wrong image")
        wait_for(lambda: not room.processes(), "its commands are killed", 5)
        wait_for(lambda: room.files() == [], "its directory is removed", 20)
    version.refresh_from_db()
    assert (version.status, version.digest) == (VersionStatus.CANCELLED, "")
    assert version.steps.get().failed


@pytest.mark.slow
@pytest.mark.build
@pytest.mark.root
def test_a_package_that_does_not_exist_and_a_hook_that_fails_are_named(room: Room) -> None:
    wrong = make_image(room.world.clubroom, "wrong", packages="no-such-game")
    hooked = make_image(room.world.clubroom, "hooked")
    ImageHook.objects.create(image=hooked, script="echo looking\nno-such-command --now\n")
    with room.worker():
        first = services.request_build(wrong, room.world.vera)
        second = services.request_build(hooked, room.world.vera)
        until(first, VersionStatus.FAILED)
        until(second, VersionStatus.FAILED)
    assert "has no package no-such-game" in first.failure
    assert "Correct the packages of the recipe" in first.failure
    step = second.steps.get(name="hook-1")
    assert (step.failed, step.exit_code) == (True, 127)
    assert "no-such-command: not found" in second.failure
    assert f"The failing command:\n{step.command}" in second.failure
    assert f"manage.py image replay {second}" in second.failure
    assert room.files() == []


@pytest.mark.slow
@pytest.mark.build
@pytest.mark.root
def test_a_full_disk_is_told_as_such(room: Room) -> None:
    work = room.place / "work"
    work.mkdir(exist_ok=True)
    version = make_version(make_image(room.world.clubroom), VersionStatus.QUEUED)
    script = 'mount -t tmpfs -o size=100m tmpfs "$0" && exec "$@"'
    run = f"import django; django.setup(); from images import builds; builds.run({version.pk})"
    argv = ["unshare", "--mount", "sh", "-c", script, str(work), sys.executable, "-c", run]
    variables = {**os.environ, **room.environment, "FLEET_DATABASE_URL": database_url()}
    subprocess.run(argv, cwd=PROJECT, check=True, env=variables | {"DJANGO_SETTINGS_MODULE": "fleet.settings"})
    version.refresh_from_db()
    assert (version.status, version.failure[:18]) == (VersionStatus.FAILED, "The disk was full.")
    assert "make room and build again" in version.failure


@pytest.mark.slow
@pytest.mark.build
@pytest.mark.root
def test_a_lost_message_costs_a_delay_and_one_build_of_an_image_runs_at_a_time_beside_another_ones(room: Room) -> None:
    image, another = (make_image(room.world.clubroom, slug, packages="no-such-game") for slug in ("gamer", "contest"))
    first, second, third = (
        make_version(of, VersionStatus.QUEUED, recipe=of.recipe().to_dict()) for of in (image, image, another)
    )
    assert builds.overdue() == []
    ImageVersion.objects.update(sent_at=timezone.now() - timedelta(minutes=1))
    with room.worker(concurrency=2):
        tasks.tick()
        for version in (first, second, third):
            until(version, VersionStatus.FAILED, seconds=180)
    assert builds.overdue() == []
    earlier, later = sorted((span(first), span(second)))  # whichever a worker took first
    assert later[0] >= earlier[1]
    began, ended = span(third)
    assert any(one[0] < ended and began < one[1] for one in (earlier, later)), "another image is built beside"


def span(version: ImageVersion) -> tuple[datetime, datetime]:
    assert version.started_at is not None
    assert version.finished_at is not None
    return version.started_at, version.finished_at


def test_a_version_waits_while_its_image_has_another_build(world: World) -> None:
    image: Image = make_image(world.clubroom)
    make_version(image, VersionStatus.BUILDING)
    waiting = make_version(image, VersionStatus.QUEUED, sent_at=timezone.now() - timedelta(minutes=1))
    assert builds.overdue() == []
    tasks.build(waiting.pk)
    waiting.refresh_from_db()
    assert waiting.status == VersionStatus.QUEUED


def test_a_build_that_ended_is_not_built_again(world: World) -> None:
    version = make_version(make_image(world.clubroom), VersionStatus.CANCELLED)
    tasks.build(version.pk)
    tasks.build(10**6)
    version.refresh_from_db()
    assert version.status == VersionStatus.CANCELLED
    assert not version.steps.exists()


def test_a_lock_is_held_once_and_free_after(settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings.BUILD_WORK = tmp_path  # type: ignore[attr-defined]
    with builds.held(1) as mine, builds.held(1) as other, builds.held(2) as different:
        assert (mine, other, different) == (True, False, True)
    with builds.held(1) as again:
        assert again
    assert list((tmp_path / "locks").iterdir()) == []


def test_output_keeps_its_head_and_its_tail() -> None:
    output = Output(head=10, tail=20)
    for number in range(1000):
        output.add(f"{number:03}\n")
    output.add("\0")
    text = str(output)
    assert text.startswith("000\n001\n\n… ")
    assert text.endswith("998\n999\n\N{REPLACEMENT CHARACTER}")
    assert len(text) < 80


@pytest.mark.slow
@pytest.mark.root
def test_a_silent_command_is_broken_off_when_its_version_is_cancelled(transactional_db: None) -> None:
    world = make_world()
    version = make_version(make_image(world.clubroom), VersionStatus.BUILDING)
    follower = Follower(version, lambda line: None, 60)

    def cancel() -> None:
        wait_for(lambda: version.steps.filter(output__endswith="1999\n2000\n").exists(), "the step's output")
        services.cancel_build(ImageVersion.objects.get(pk=version.pk), world.vera)
        connection.close()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    started = time.monotonic()
    with pytest.raises(Cancelled), follower, follower.cancellable(), follower.step("quiet", "Be quiet") as step:
        Runner(step)(["sh", "-c", "seq 2000; sleep 30"])
    canceller.join()
    assert time.monotonic() - started < 25
    row = version.steps.get()
    assert (row.failed, row.exit_code, row.command) == (True, None, "sh -c 'seq 2000; sleep 30'")
    assert follower.failed_step == row


@pytest.mark.slow
@pytest.mark.root
def test_a_build_that_takes_longer_than_it_may_is_broken_off_and_says_so(
    transactional_db: None, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.STORE, settings.BUILD_WORK = tmp_path / "store", tmp_path / "work"
    image = make_image(make_world().clubroom, most_minutes=1)
    version = make_version(image, VersionStatus.QUEUED, recipe=image.recipe().to_dict())
    clock = time.monotonic
    monkeypatch.setattr("images.follower.time", SimpleNamespace(monotonic=lambda: clock() * 60))  # a minute is a second
    builds.run(version.pk)
    version.refresh_from_db()
    assert version.status == VersionStatus.FAILED
    assert version.failure.startswith("It was broken off after 1 minutes, the limit of Gamer image")
    assert list(version.steps.values_list("name", "failed")) == [("bootstrap", True)]
    assert not [path for path in (tmp_path / "work").rglob("*") if path.name == "tree"]
