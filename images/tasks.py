"""What Celery runs. Every task is safe to run twice; the clock's tick finds what was lost."""

from celery import shared_task

from images import builds, homebuilds


@shared_task
def build(version: int) -> None:
    """Build the version with this primary key, then send for the one that waited for it."""
    for waiting in builds.run(version):
        build.delay(waiting)


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
