"""Campaigns of thousands, with real workers and a real queue: begun at once, stopped at once, and whole after a worker was killed."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext

from agents import campaigning, campaigns, tasks
from agents.models import Campaign, Command, CommandStatus, Envelope, Target, TargetStatus, Verb
from agents.selecting import Selection
from fleet import audit
from fleet.models import AuditEntry, Site
from fleet.queue import enqueue
from tests.agents.halls import make_crowd, planned, stepped
from tests.services import Service, celery_sends_to, celery_worker, redis_server, wait_for
from tests.world import World, make_world

pytestmark = pytest.mark.slow
CROWD = 3000


@pytest.fixture
def queue(transactional_db: None, keys: Path) -> Iterator[dict[str, str]]:
    """A real Redis; what a worker needs to find it, and the keys."""
    with redis_server() as server, celery_sends_to(server.url):
        yield {
            "FLEET_REDIS_URL": server.url,
            "FLEET_COMMAND_KEY": str(keys / "command.key"),
            "FLEET_PUBLIC_KEYS": str(keys),
            "FLEET_CEILING": "restart=100000",
        }


@contextmanager
def worker(queue: str, environment: dict[str, str]) -> Iterator[Service]:
    with celery_worker(queue, environment) as service:
        yield service
        assert "Traceback" not in service.log, service.log


def of(status: CommandStatus) -> int:
    return Command.objects.filter(status=status).count()


def crowd() -> World:
    world = make_world()
    make_crowd(world.clubroom, CROWD)
    return world


def test_all_is_signed_without_the_clock_and_a_stop_reaches_all_of_it(queue: dict[str, str]) -> None:
    world = crowd()
    with worker("default", queue), worker("sender", queue):
        campaign = campaigns.start(planned(world), world.vera)
        wait_for(lambda: of(CommandStatus.SENT) == CROWD, "the sender has signed all", 120)
        assert campaigns.stop(campaign, world.vera) == CROWD
        assert of(CommandStatus.CANCELLED) == CROWD, "when the request answers it is done"
    stepped(campaign)
    assert campaign.ended_at is not None
    assert dict(Counter(Target.objects.values_list("status", flat=True))) == {"cancelled": CROWD}
    assert [*audit.verify()] == []


def test_stopped_while_it_is_made_and_signed_nothing_is_signed_afterwards(queue: dict[str, str]) -> None:
    world = crowd()
    with worker("default", queue), worker("sender", queue):
        campaign = campaigns.start(planned(world), world.vera)
        wait_for(lambda: of(CommandStatus.SENT), "the first group is signed", 120)
        campaigns.stop(campaign, world.vera)
        signed = set(Envelope.objects.values_list("pk", flat=True))
        waiting = of(CommandStatus.QUEUED) + of(CommandStatus.SENT)
        for _ in range(3):
            enqueue(tasks.step_campaigns)
            enqueue(tasks.send_due)
        wait_for(lambda: Campaign.objects.get().ended_at, "the worker has looked at it", 60)
    assert waiting == 0, "when the request answers it is done"
    assert set(Envelope.objects.values_list("pk", flat=True)) == signed
    assert set(Command.objects.values_list("status", flat=True)) == {"cancelled"}
    assert Target.objects.filter(status=TargetStatus.CANCELLED).count() == CROWD


@pytest.mark.parametrize("first", [Target, Command])
def test_a_worker_that_is_killed_in_the_middle_loses_and_doubles_nothing(
    queue: dict[str, str], first: type[Target] | type[Command]
) -> None:
    world = crowd()
    with celery_worker("default", queue) as service:
        campaigns.start(planned(world), world.vera)
        wait_for(first.objects.exists, "the first rows are made", 120)
        service.kill()
    with worker("default", queue):
        enqueue(tasks.step_campaigns)  # as the clock does
        wait_for(lambda: Command.objects.count() == CROWD, "the rest is made", 120)
        enqueue(tasks.step_campaigns)
    assert Target.objects.filter(status=TargetStatus.ORDERED, command__isnull=False).count() == CROWD
    assert Command.objects.values("client").distinct().count() == CROWD
    assert AuditEntry.objects.filter(action="campaign.started").count() == 1


def test_a_step_asks_the_database_as_often_for_thousands_as_for_few(transactional_db: None) -> None:
    """What a campaign of ten thousand costs is the database's work, not ours."""
    world = make_world()
    make_crowd(world.school, 3)
    make_crowd(world.clubroom, 1500)

    def queries(site: Site, actor: User) -> int:
        with celery_sends_to("redis://127.0.0.1:1/0"):
            asked_for = campaigns.plan(site, actor, verb=Verb.CYCLE, reason="x", selection=Selection())
            campaign = campaigns.start(asked_for, actor)
            with CaptureQueriesContext(connection) as asked:
                campaigning.go_on(campaign.pk)
        assert Target.objects.filter(campaign=campaign, status=TargetStatus.ORDERED).count() > 0
        return len(asked)

    assert queries(world.clubroom, world.vera) == queries(world.school, world.mallory)
