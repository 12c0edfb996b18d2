"""What people ask of the store is done by a worker of builds, the clock finding what a lost message left behind."""

from pathlib import Path
from typing import Any

import pytest
import redis

from fleet.celery import app
from images import services, storing, tasks
from images.builder.store import Store
from images.models import ImageVersion, Storage
from tests.images.stored import age, paths, store, stored_version
from tests.images.versions import make_image
from tests.services import celery_sends_to, celery_worker, redis_server, wait_for
from tests.world import World, make_world

__all__ = ["store"]


def test_the_clock_has_the_store_collected_every_day(settings: Any) -> None:
    entry = settings.CELERY_BEAT_SCHEDULE["store"]
    assert entry["task"] == tasks.collect.name
    assert app.amqp.router.route({}, entry["task"])["queue"].name == "builds"
    assert entry["schedule"].hour == {4}


@pytest.mark.slow
def test_a_restore_that_nobody_heard_of_is_sent_again_by_the_clock(world: World, store: Store) -> None:
    version = stored_version(make_image(world.clubroom), store)
    storing.archive(version, world.vera)
    storing.restore(version, world.vera)
    ImageVersion.objects.update(sent_at=version.requested_at.replace(year=2020))
    with redis_server() as server, celery_sends_to(server.url), redis.Redis.from_url(server.url) as queue:
        tasks.tick()
        tasks.tick()
        assert queue.llen("builds") == 1


@pytest.mark.slow
def test_a_worker_archives_restores_and_forgets_what_people_ask(
    transactional_db: None, store: Store, tmp_path: Path
) -> None:
    world = make_world()
    image = make_image(world.clubroom)
    version, other = stored_version(image, store, "a"), stored_version(image, store, "b")
    age(store)
    root = paths(store, version)["root"]
    with redis_server() as server, celery_sends_to(server.url):
        places = {"FLEET_STORE": str(store.root), "FLEET_BUILD_WORK": str(tmp_path / "work")}
        with celery_worker("builds", {"FLEET_REDIS_URL": server.url, **places}):
            storing.archive(version, world.vera)
            wait_for(lambda: not root.exists(), "the archived version is chunks", 30)
            storing.restore(version, world.vera)
            wait_for(lambda: _storage(version) == Storage.FILES, "it is files again", 30)
            assert store.whole(root.name)
            services.release(version, world.gamer, world.otto)
            storing.forget(other, world.vera)
            wait_for(lambda: not paths(store, other)["root"].exists(), "the forgotten version is gone", 30)
    assert all(path.exists() for path in paths(store, version).values())


def _storage(version: ImageVersion) -> str:
    version.refresh_from_db()
    return version.storage
