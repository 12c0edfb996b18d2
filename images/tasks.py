"""What Celery runs. Every task is safe to run twice; the clock's tick finds what was lost."""

from celery import shared_task

from images import builds, checking, collecting, homebuilds, layerbuilds, layers, upgrades


@shared_task
def build(version: int) -> None:
    """Build the version with this primary key, then send for the one that waited for it."""
    for waiting in builds.run(version):
        build.delay(waiting)
    for layer in layers.waiting(version):
        build_layer.delay(layer)


@shared_task
def build_layer(build: int) -> None:
    """Build a layer against its version: the LayerBuild with this primary key."""
    layerbuilds.run(build)


@shared_task
def pack_home(template: int) -> None:
    """Pack what somebody uploaded as a home template."""
    homebuilds.pack(template)


@shared_task
def tick() -> None:
    """End the builds whose worker is gone, send again for those whose message may be lost."""
    for waiting in homebuilds.overdue():
        pack_home.delay(waiting)
    builds.fail_lost()
    for waiting in builds.overdue():
        build.delay(waiting)
    layerbuilds.fail_lost()
    for waiting in layerbuilds.overdue():
        build_layer.delay(waiting)
    for waiting in collecting.overdue():
        restore.delay(waiting)


@shared_task
def look_for_upgrades(version: int) -> None:
    """Look up which packages of the version with this primary key have newer versions."""
    upgrades.look(version)


@shared_task
def look_for_all_upgrades() -> None:
    """Send for a look at each version that classes boot."""
    for version in upgrades.due():
        look_for_upgrades.delay(version)


@shared_task
def check(version: int) -> None:
    """Boot the version with this primary key in a virtual PC and note what it met."""
    checking.check(version)


@shared_task
def collect() -> None:
    """Archive what is to be archived, remove what nobody needs."""
    collecting.collect(builds.context().store)


@shared_task
def restore(version: int) -> None:
    """Make the archived version with this primary key files again."""
    collecting.restore(version, builds.context().store)
