"""/metrics of the web process: what the database and Redis say, for who brings the token."""

import time
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO

import pytest
import time_machine
from django.core.management import call_command
from django.db import DatabaseError
from django.test import Client as Browser
from django.utils import timezone
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from pytest_django.fixtures import Settings

from agents import freezing, services
from agents.models import Campaign, Cap, Command, CommandStatus, Order, Target, TargetStatus, Verb
from agents.waiting import Why
from fleet import alive, metrics
from fleet.models import Client, ClientState
from fleet.tasks import say_alive
from images.models import BuildStep, VersionStatus
from tests.agents.restores import make_envelope, make_session
from tests.images.versions import make_image, make_version
from tests.services import Service, celery_sends_to, redis_server
from tests.world import World, make_client

TOKEN = "t" * 40


@pytest.fixture
def redis(settings: Settings) -> Iterator[Service]:
    settings.METRICS_TOKEN = TOKEN
    with redis_server() as service:
        settings.REDIS_URL = service.url
        yield service


def read(client: Browser) -> dict[tuple[str, ...], float]:
    """(name, label values in the order of their names) → value."""
    answer = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("configured", "brought", "status"),
    [("", "", 404), ("", "Bearer ", 404), (TOKEN, "", 401), (TOKEN, "Bearer x", 401), (TOKEN, TOKEN, 401)],
)
def test_nobody_reads_them_without_the_token(
    db: None, client: Browser, settings: Settings, configured: str, brought: str, status: int
) -> None:
    settings.METRICS_TOKEN = configured
    answer = client.get("/metrics", headers={"Authorization": brought})
    assert answer.status_code == status
    assert "fleet_clients" not in answer.text
    assert "FLEET_METRICS_TOKEN" in answer.text


def test_they_are_only_read(db: None, redis: Service, client: Browser) -> None:
    assert client.post("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 405


def test_pcs_queues_and_silences_are_those_of_this_moment(world: World, redis: Service, client: Browser) -> None:
    before = read(client)
    make_client(world.clubroom, "52:54:00:00:00:77", client_class=world.gamer, state=ClientState.LOST)
    alive.say_alive("clock")
    with alive.connection() as connected:
        connected.rpush("builds", "a message")
    after = read(client)
    lost = ("fleet_clients", world.gamer.slug, world.clubroom.slug, "lost")
    assert after[lost] == before.get(lost, 0) + 1
    assert before["fleet_silence_seconds", "clock"] == float("inf")
    assert after["fleet_silence_seconds", "clock"] < 60
    assert (before["fleet_queue_messages", "builds"], after["fleet_queue_messages", "builds"]) == (0, 1)
    assert after["fleet_up", "redis"] == after["fleet_up", "database"] == 1


def test_what_waits_is_counted_with_its_age(world: World, redis: Service, client: Browser) -> None:
    order = services.order(Verb.CYCLE, [make_client(world.clubroom, "52:54:00:00:00:77")], "why", world.vera)
    Command.objects.filter(order=order).update(queued_at=timezone.now() - timedelta(minutes=5))
    now = timezone.now()
    image = make_image(world.clubroom)
    make_version(image, VersionStatus.QUEUED, requested_at=now - timedelta(minutes=2))
    make_version(image, VersionStatus.FAILED, started_at=now - timedelta(seconds=45), finished_at=now)
    found = read(client)
    assert found["fleet_commands", "queued"] == 1
    assert found["fleet_oldest_command_seconds", "queued"] == pytest.approx(300, abs=30)
    assert found["fleet_builds", "queued"] == 1
    assert found["fleet_builds", "building"] == 0
    assert found["fleet_oldest_build_seconds", "queued"] == pytest.approx(120, abs=30)
    assert found["fleet_build_duration_seconds_bucket", image.slug, "30.0", "failed"] == 0
    assert found["fleet_build_duration_seconds_bucket", image.slug, "60.0", "failed"] == 1
    assert found["fleet_build_duration_seconds_sum", image.slug, "failed"] == pytest.approx(45)


def test_of_a_queue_the_oldest_message_is_told(db: None, redis: Service, client: Browser) -> None:
    assert read(client)["fleet_queue_oldest_seconds", "builds"] == 0
    with celery_sends_to(redis.url), time_machine.travel(time.time() - 300):
        say_alive.apply_async(args=("builds",), queue="builds")
    with celery_sends_to(redis.url):
        say_alive.apply_async(args=("builds",), queue="builds")
    found = read(client)
    assert found["fleet_queue_messages", "builds"] == 2
    assert found["fleet_queue_oldest_seconds", "builds"] == pytest.approx(300, abs=30)
    with alive.connection() as connected:
        for rubbish in ("no json", "[]", '{"headers": {}}'):
            connected.rpush("builds", rubbish)
            assert read(client)["fleet_queue_oldest_seconds", "builds"] == 0


def test_builds_are_told_step_by_step(world: World, redis: Service, client: Browser) -> None:
    version = make_version(make_image(world.clubroom))
    now = timezone.now()
    for number, (name, seconds) in enumerate([("bootstrap", 40), ("squashfs", 12.5)]):
        step = {"version": version, "number": number, "name": name, "title": name}
        BuildStep.objects.create(**step, started_at=now - timedelta(seconds=seconds), finished_at=now)
    BuildStep.objects.create(version=version, number=9, name="initrd", title="initrd", started_at=now)
    found = read(client)
    assert found["fleet_build_step_seconds_sum", "squashfs"] == 12.5
    assert found["fleet_build_step_seconds_count", "bootstrap"] == 1
    assert ("fleet_build_step_seconds_count", "initrd") not in found


def test_what_workers_say_is_there(db: None, redis: Service, client: Browser, settings: Settings) -> None:
    assert ("fleet_able", "sender") not in read(client), "who was never heard has said nothing"
    settings.COMMAND_KEY = ""
    alive.say_alive("sender")
    alive.say_alive("default")
    alive.say_audited(2)
    for outcome in ("succeeded", "failed", "succeeded"):
        alive.count_task("agents.tasks.tick", outcome)
    found = read(client)
    assert (found["fleet_able", "sender"], found["fleet_able", "default"]) == (0, 1)
    assert found["fleet_ceiling", "cycle"] == settings.CEILING["cycle"]
    assert found["fleet_tasks_total", "succeeded", "agents.tasks.tick"] == 2
    assert found["fleet_tasks_total", "failed", "agents.tasks.tick"] == 1
    assert (found["fleet_audit_faults",], found["fleet_audit_proved_age_seconds",] < 60) == (2, True)
    assert found["fleet_up", "gateway"] == 0
    assert found["fleet_unapplied_migrations",] == 0
    assert 0 < found["fleet_disk_free_bytes", "store"] <= found["fleet_disk_size_bytes", "store"]
    assert found["process_resident_memory_bytes",] > 1e6
    assert ("fleet_parked_polls",) not in found, "gateways count those"


def test_the_proof_of_the_audit_log_is_told_when_it_was_of_all_of_it(
    world: World, redis: Service, client: Browser
) -> None:
    call_command("audit", "verify", "--site", world.clubroom.slug, stdout=StringIO())
    assert ("fleet_audit_faults",) not in read(client)
    call_command("audit", "verify", stdout=StringIO())
    assert read(client)["fleet_audit_faults",] == 0
    redis.stop()
    call_command("audit", "verify", stdout=StringIO())


def test_held_clients_and_twins_are_counted(world: World, redis: Service, client: Browser) -> None:
    now = timezone.now()
    for number, (until, twin) in enumerate([(60, None), (-60, None), (None, now), (60, now)], start=1):
        hold = {"hold_until": now + timedelta(seconds=until), "hold_reason": "match"} if until else {}
        make_client(world.clubroom, f"52:54:00:00:00:0{number}", twin_at=twin, **hold)
    found = read(client)
    assert found["fleet_held_clients", "clubroom"] == 2, "a hold that is over is none"
    assert found["fleet_twin_clients", "clubroom"] == 2


# --- why commands wait ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pcs(world: World) -> list[Client]:
    return [make_client(world.clubroom, f"52:54:00:00:00:{number:02x}") for number in range(1, 9)]


def order(world: World, clients: list[Client], verb: Verb = Verb.CYCLE, **options: bool) -> Order:
    """One that waits for five minutes."""
    asked = services.order(verb, clients, "why", world.vera, **options)  # type: ignore[arg-type]
    Command.objects.filter(order=asked).update(queued_at=timezone.now() - timedelta(minutes=5))
    return asked


def sign(order: Order, number: int, ago_s: float = 10) -> None:
    keys = list(order.commands.values_list("pk", flat=True)[:number])
    at = timezone.now() - timedelta(seconds=ago_s)
    for command in Command.objects.filter(pk__in=keys):
        session = make_session(command.client)
        make_envelope(command, session, signed_at=at)
        Command.objects.filter(pk=command.pk).update(status=CommandStatus.SENT, sent_at=at)


def waits(client: Browser) -> dict[str, float]:
    """What waits, by why; the oldest of them must be those of ``order``."""
    found = read(client)
    for why in Why:
        number, age = found["fleet_waiting_commands", why.value], found["fleet_waiting_seconds", why.value]
        assert age == (pytest.approx(300, abs=30) if number else 0), why
    return {why.value: number for why in Why if (number := found["fleet_waiting_commands", why.value])}


def test_what_nothing_holds_back_waits_for_the_sender(
    world: World, pcs: list[Client], redis: Service, client: Browser
) -> None:
    assert waits(client) == {}
    order(world, pcs)
    assert waits(client) == {"sender": 8}
    Cap.objects.create(site=world.clubroom, verb=Verb.CYCLE, per_minute=4)
    assert waits(client) == {"sender": 8}, "nobody has used the cap: the sender should have"


@pytest.mark.parametrize("bound", ["per_minute", "at_once"])
def test_what_a_cap_holds_back_waits_for_it(
    world: World, pcs: list[Client], redis: Service, client: Browser, bound: str
) -> None:
    Cap.objects.create(site=world.clubroom, verb=Verb.CYCLE, **{bound: 3})
    sign(order(world, pcs), 3)
    assert waits(client) == {"cap": 5}
    found = read(client)
    assert found["fleet_cap", bound, "clubroom", "cycle"] == 3
    assert found["fleet_cap_used", bound, "clubroom", "cycle"] == 3
    assert found["fleet_signed_last_minute", "clubroom", "cycle"] == 3
    Command.objects.filter(status=CommandStatus.SENT).update(status=CommandStatus.SUCCEEDED)
    with time_machine.travel(timezone.now() + timedelta(seconds=80)):
        Command.objects.open().update(queued_at=timezone.now() - timedelta(minutes=5))
        assert waits(client) == {"sender": 5}, "the cap is free again"
        Cap.objects.update(**{bound: 8})
        assert waits(client) == {"sender": 5}


def test_what_is_beyond_the_ceiling_waits_for_it(
    world: World, pcs: list[Client], redis: Service, client: Browser, settings: Settings
) -> None:
    settings.CEILING = {"cycle": 3}
    sign(order(world, pcs), 3)
    assert waits(client) == {"sender": 5}, "the ceiling is the sender's, who was not heard"
    alive.say_alive("sender")
    assert waits(client) == {"ceiling": 5}
    settings.CEILING = {"cycle": 0}
    alive.say_alive("sender")
    with time_machine.travel(timezone.now() + timedelta(seconds=80)):
        alive.say_alive("sender")
        Command.objects.open().update(queued_at=timezone.now() - timedelta(minutes=5))
        assert waits(client) == {"ceiling": 5}, "one of nothing needs no use"


def test_what_is_frozen_and_what_awaits_approval_is_told_apart(
    world: World, pcs: list[Client], redis: Service, client: Browser
) -> None:
    Cap.objects.create(site=world.clubroom, verb=Verb.CYCLE, per_minute=1)
    beyond = order(world, pcs[:2], beyond_cap=True)
    order(world, pcs[2:3], Verb.RESTART)
    assert waits(client) == {"approval": 2, "sender": 1}
    freeze = freezing.freeze(world.clubroom, "cables", world.vera)
    assert waits(client) == {"freeze": 3}
    assert read(client)["fleet_frozen_seconds", "clubroom"] == pytest.approx(0, abs=30)
    freezing.lift(freeze, world.otto)
    assert ("fleet_frozen_seconds", "clubroom") not in read(client)
    services.approve(beyond, world.otto)
    sign(order(world, pcs[3:5]), 1)
    assert waits(client) == {"sender": 3, "cap": 1}, "what was approved does not mind the cap"


def test_a_freeze_of_everything_freezes_each_site(
    world: World, pcs: list[Client], redis: Service, client: Browser
) -> None:
    world.vera.is_superuser = True
    world.vera.save()
    order(world, pcs[:1])
    freezing.freeze(None, "power cut", world.vera)
    assert waits(client) == {"freeze": 1}
    assert ("fleet_frozen_seconds", "all") in read(client)


def test_campaigns_that_go_on_are_counted_with_their_targets(
    world: World, pcs: list[Client], redis: Service, client: Browser
) -> None:
    now = timezone.now()
    for ended_at, status in ((None, TargetStatus.WAITING), (now, TargetStatus.SKIPPED)):
        asked = Order.objects.create(site=world.clubroom, verb=Verb.CYCLE, reason="why")
        campaign = Campaign.objects.create(order=asked, expires_at=now, ended_at=ended_at)
        for place, one in enumerate(pcs):
            Target.objects.create(campaign=campaign, client=one, wave=1, place=place, status=status)
    found = read(client)
    assert found["fleet_campaigns", "clubroom", "running"] == 1
    assert found["fleet_campaign_targets", "clubroom", "waiting"] == 8
    assert ("fleet_campaign_targets", "clubroom", "skipped") not in found, "it has ended"


def test_sessions_are_counted_by_what_their_daemons_speak(
    world: World, pcs: list[Client], redis: Service, client: Browser
) -> None:
    for one, protocol in zip(pcs, (1, 2, 2), strict=False):
        session = make_session(one)
        session.protocol = protocol
        session.save()
    found = read(client)
    assert (found["fleet_sessions", "1"], found["fleet_sessions", "2"]) == (1, 2)


def test_a_redis_that_is_away_is_told_and_the_rest_is_there(world: World, redis: Service, client: Browser) -> None:
    redis.stop()
    found = read(client)
    assert found["fleet_up", "redis"] == 0
    assert found["fleet_commands", "queued"] == 0
    assert not [name for name in found if name[0] in ("fleet_silence_seconds", "fleet_able")]
    assert ("fleet_up", "gateway") not in found, "nobody knows"


def test_a_database_that_is_away_leaves_its_part_out() -> None:
    def gather() -> Iterator[Metric]:
        raise DatabaseError("away")

    assert list(metrics.Asked(gather).collect()) == []
