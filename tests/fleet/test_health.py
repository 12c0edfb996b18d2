"""/healthz: what is well, what fails and what to do about it, with parts that really stopped."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import time_machine
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client as Browser
from pytest_django import Settings

from agents import freezing, witnessing
from fleet import alive, audit, health
from tests.agents.conftest import forget
from tests.agents.gateways import gateway
from tests.board.server import web_server
from tests.postgres import cluster
from tests.services import Service, celery_worker, database_url, redis_server, start, wait_for
from tests.trust.forging import unguarded
from tests.world import World, make_world

TOKEN = "t" * 40
JUDGED = ("clock", "default", "sender")


@pytest.fixture
def redis(settings: Settings, tmp_path: Path) -> Iterator[Service]:
    """A Redis of its own; this process has the keys of all workers."""
    settings.METRICS_TOKEN = TOKEN
    settings.COMMAND_KEY = str(settings.PUBLIC_KEYS / "command.key")
    settings.SENDER_BOOK = tmp_path / "sender" / "book.sqlite3"
    forget()
    with redis_server() as service:
        settings.REDIS_URL = service.url
        yield service
    forget()


def say_all_well() -> None:
    for part in (*JUDGED, "builds"):
        alive.say_alive(part)
    with alive.connection() as connected:
        connected.set(alive.GATEWAY_UP, str(time.time()))


def ask(client: Browser, token: str = TOKEN) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = client.get("/healthz", headers=headers)
    facts = answer.json()
    assert isinstance(facts, dict)
    assert (answer.status_code, facts["status"]) in ((200, "well"), (503, "failing"))
    return facts


def failing(client: Browser) -> list[str]:
    """What fails, by name."""
    return [one["part"] for one in ask(client)["failing"]]


def words(client: Browser, part: str) -> tuple[str, str]:
    """What is said of a part that fails, and what to do next."""
    [found] = [one for one in ask(client)["failing"] if one["part"] == part]
    return found["what"], found["next"]


def test_nobody_lives_until_heard_and_each_alone(db: None, redis: Service, client: Browser) -> None:
    silent: dict[str, Any] = {
        "status": "failing",
        "database": True,
        "redis": True,
        "clock": None,
        "workers": {"default": None, "sender": None, "builds": None},
        "able": {"default": None, "sender": None, "builds": None},
        "gateway": False,
        "migrated": True,
        "room": True,
        "frozen": 0,
        "audit": None,
    }
    assert ask(client, token="") == silent
    with alive.connection() as connected:
        connected.set(alive.GATEWAY_UP, "1")
    with time_machine.travel(time.time(), tick=False):
        for part in JUDGED:
            assert part in failing(client)
            alive.say_alive(part)
            assert part not in failing(client)
        answer = client.get("/healthz")
    heard = {"status": "well", "clock": 0, "workers": {"default": 0, "sender": 0, "builds": None}, "gateway": True}
    able = {"able": {"default": True, "sender": True, "builds": None}, "audit": True}
    assert (answer.status_code, answer.json()) == (200, silent | heard | able)
    assert answer["Cache-Control"].startswith("max-age=0, no-cache, no-store")


def test_a_clock_that_stopped_is_told_from_workers_that_did(db: None, redis: Service, client: Browser) -> None:
    now = time.time()
    with time_machine.travel(now, tick=False):
        say_all_well()
    with time_machine.travel(now + alive.LATE_S + 1, tick=False):
        alive.say_alive("clock")
        assert failing(client) == ["default", "sender"]
        assert ask(client)["workers"]["sender"] == alive.LATE_S + 1
        assert words(client, "sender") == (
            f"The worker of sender was last heard {alive.LATE_S + 1} s ago; it may be busy, hung, or gone.",
            "systemctl status fleet-sender; journalctl -u fleet-sender",
        )


def test_what_to_do_is_told_to_who_brings_the_token(
    db: None, redis: Service, client: Browser, settings: Settings
) -> None:
    for stranger in ("", "x", TOKEN[1:], f"{TOKEN} "):
        assert "failing" not in ask(client, stranger)
    assert "failing" in ask(client)
    say_all_well()
    assert ask(client)["failing"] == []
    settings.METRICS_TOKEN = ""
    assert "failing" not in ask(client, "")
    assert "failing" not in client.get("/healthz", headers={"Authorization": "Bearer "}).json()


def test_a_sender_that_cannot_sign_says_so_and_no_stranger_learns_where_its_key_lies(
    db: None, redis: Service, client: Browser, settings: Settings, tmp_path: Path
) -> None:
    say_all_well()
    key, settings.COMMAND_KEY = settings.COMMAND_KEY, str(tmp_path / "gone.key")
    forget()
    alive.say_alive("sender")
    facts = ask(client, token="")
    assert (facts["status"], facts["able"]["sender"], facts["workers"]["sender"] is None) == ("failing", False, False)
    assert str(tmp_path) not in client.get("/healthz").text
    what, _ = words(client, "sender")
    assert what.startswith(
        f"The worker of sender cannot do its work: The command key {tmp_path}/gone.key cannot be read"
    )
    settings.COMMAND_KEY = key
    forget()
    alive.say_alive("sender")
    assert failing(client) == []
    settings.SENDER_BOOK = Path("/proc/nowhere/book.sqlite3")
    alive.say_alive("sender")
    assert "The sender's book /proc/nowhere/book.sqlite3 cannot be used" in words(client, "sender")[0]


def test_a_worker_of_builds_may_be_silent_but_not_without_its_key(
    db: None, redis: Service, client: Browser, settings: Settings
) -> None:
    say_all_well()
    settings.IMAGE_KEY = ""
    alive.say_alive("builds")
    assert "has no image key" in words(client, "builds")[0]
    with time_machine.travel(time.time() + 600):
        for part in JUDGED:
            alive.say_alive(part)
        assert failing(client) == []


def test_what_an_older_server_left_in_redis_is_as_never_heard(db: None, redis: Service, client: Browser) -> None:
    say_all_well()
    with alive.connection() as connected:
        for rubbish in (str(time.time()), "[]", "{}", '{"at": "x"}', "no json"):
            connected.set("fleet.alive.sender", rubbish)
            assert failing(client) == ["sender"]
            assert ask(client)["workers"]["sender"] is None


@pytest.mark.django_db(transaction=True)
def test_a_migration_that_is_missing_is_named(redis: Service, client: Browser) -> None:
    say_all_well()
    recorder = MigrationRecorder(connection)
    recorder.record_unapplied("fleet", "0003_failed_logins")
    try:
        assert failing(client) == ["migrations"]
        assert words(client, "migrations") == (
            "The database lacks 1 migration, the first is fleet.0003_failed_logins.",
            "Run manage.py migrate, then restart all units.",
        )
        facts = ask(client, token="")
        assert (facts["database"], facts["migrated"], facts["frozen"]) == (True, False, None)
    finally:
        recorder.record_applied("fleet", "0003_failed_logins")
    assert failing(client) == []


def test_room_that_runs_out_is_told(
    db: None, redis: Service, client: Browser, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    say_all_well()
    monkeypatch.setattr(health, "SCARCE_SHARE", 1.1)
    assert failing(client) == [], "plenty of bytes are enough, however small their share"
    monkeypatch.setattr(health, "SCARCE_BYTES", 1 << 62)
    assert failing(client) == ["data", "store"]
    what, next_step = words(client, "store")
    assert what.endswith(f"GiB are free at {settings.STORE}.")
    assert "manage.py store usage" in next_step
    assert ask(client, token="")["room"] is False
    assert str(settings.STORE) not in client.get("/healthz").text


def test_an_audit_log_that_was_tampered_with_is_told(world: World, redis: Service, client: Browser) -> None:
    audit.record("tried", "this", site=world.clubroom, actor=world.vera)
    witnessing.witness()
    unguarded("UPDATE fleet_auditentry SET actor = 'mallory' WHERE action = 'tried'")
    audit.record("tried", "that", site=world.clubroom, actor=world.vera)
    try:
        assert witnessing.witness() == 0
        say_all_well()
        assert failing(client) == ["audit"]
        assert words(client, "audit")[0].startswith(f"The chain site-{world.clubroom.pk} does not go on at #1 ")
        facts = ask(client, token="")
        assert (facts["audit"], facts["able"]["sender"]) == (False, True)
        page = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
        assert "\nfleet_audit_tampered_chains 1.0\n" in page
    finally:
        witnessing.tampered.clear()


@pytest.mark.django_db(transaction=True)
def test_a_freeze_is_a_fact_and_no_failure(redis: Service, client: Browser) -> None:
    world = make_world()
    say_all_well()
    freeze = freezing.freeze(world.clubroom, "the hall is cabled anew", world.vera)
    facts = ask(client)
    assert (facts["status"], facts["frozen"], facts["failing"]) == ("well", 1, [])
    freezing.lift(freeze, world.otto)
    assert ask(client)["frozen"] == 0


def test_a_monitor_need_not_speak_https(db: None, redis: Service, client: Browser, settings: Settings) -> None:
    settings.SECURE_SSL_REDIRECT = True
    assert client.get("/healthz").status_code == 503
    assert client.get("/").status_code == 301
    assert client.post("/healthz").status_code == 405


# --- parts that really stop --------------------------------------------------------------------------------------------


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Hung: it neither answers nor ends."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_redis_that_is_killed_is_told_and_nothing_else_is_known(db: None, redis: Service, client: Browser) -> None:
    say_all_well()
    redis.kill()
    facts = ask(client)
    assert (facts["database"], facts["redis"], facts["clock"], facts["gateway"]) == (True, False, None, None)
    assert [one["part"] for one in facts["failing"]] == ["redis"]
    with redis_server(int(redis.url.rpartition(":")[2].removesuffix("/0"))):
        say_all_well()
        assert failing(client) == []


@pytest.mark.slow
def test_a_redis_that_hangs_is_away_too(db: None, redis: Service, client: Browser) -> None:
    say_all_well()
    with stopped(redis.pid):
        assert failing(client) == ["redis"]
    wait_for(lambda: failing(client) == [], "Redis is back")


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_gateway_that_is_killed_is_told_and_heard_again(redis: Service, client: Browser) -> None:
    with gateway(redis.url) as gate:
        wait_for(lambda: ask(client)["gateway"], "the gateway is heard")
        with stopped(gate.service.pid):
            wait_for(lambda: ask(client)["gateway"] is False, "a hung gateway is none")
            assert "systemctl status fleet-gateway" in words(client, "gateway")[1]
        wait_for(lambda: ask(client)["gateway"], "it goes on")
        gate.service.kill()
        wait_for(lambda: ask(client)["gateway"] is False, "it is gone")
        gate.start()
        wait_for(lambda: ask(client)["gateway"], "it is back")


@contextmanager
def clock(redis: Service, directory: Path) -> Iterator[Service]:
    environment = {"FLEET_REDIS_URL": redis.url, "FLEET_DATABASE_URL": database_url(), "FLEET_DATA": str(directory)}
    argv = [sys.executable, "-m", "celery", "-A", "fleet", "--quiet", "beat", "--pidfile="]
    service = start(argv, directory / "clock.log", environment)
    try:
        yield service
    finally:
        service.stop()


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.django_db(transaction=True)
def test_workers_and_clock_that_end_or_hang_are_told_by_name_and_heard_when_they_are_back(
    redis: Service, client: Browser, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alive, "LATE_S", 15)  # of ten seconds between two signs: so the test need not take minutes
    keys = {"FLEET_COMMAND_KEY": settings.COMMAND_KEY, "FLEET_PUBLIC_KEYS": str(settings.PUBLIC_KEYS)}
    environment = {"FLEET_REDIS_URL": redis.url}

    def fails(*parts: str) -> Callable[[], bool]:
        return lambda: failing(client) == [*parts, "gateway"]

    with celery_worker("sender", environment | keys) as sender, clock(redis, tmp_path) as first:
        with celery_worker("default", environment) as work:
            wait_for(fails(), "all are heard", 90)
            work.kill()
        [pool] = subprocess.run(
            ["pgrep", "-P", str(sender.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        with stopped(int(pool)):
            wait_for(fails("default", "sender"), "one is gone and one hangs", 90)
        with celery_worker("default", environment):
            wait_for(fails(), "all are back", 90)
            first.stop()
            wait_for(lambda: "clock" in failing(client), "the clock is gone", 90)
            with clock(redis, tmp_path):
                wait_for(fails(), "the clock is back", 90)
            settings.COMMAND_KEY, key = "", settings.COMMAND_KEY
            sender.stop()
            with celery_worker("sender", environment), clock(redis, tmp_path):
                said = "This process has no command key"
                wait_for(lambda: said in str(ask(client)["failing"]), "a sender without its key says so", 90)
            settings.COMMAND_KEY = key


@pytest.mark.slow
@pytest.mark.once
def test_a_database_that_hangs_or_is_gone_is_told_and_asked_again(redis: Service, tmp_path: Path) -> None:
    with cluster() as url, psycopg.connect(url) as asked:
        row = asked.execute("SHOW data_directory").fetchone()
        assert row is not None
        data = Path(row[0])
        pid = int((data / "postmaster.pid").read_text().split()[0])
        argv = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
        become = ["setpriv", *(f"--re{kind}={data.owner()}" for kind in ("uid", "gid")), "--clear-groups"]
        environment = {"FLEET_DATABASE_URL": url, "FLEET_REDIS_URL": redis.url, "FLEET_METRICS_TOKEN": TOKEN}
        environment |= {"FLEET_DATA": str(tmp_path), "FLEET_SECRET_KEY": "s" * 50}
        with web_server(environment, tmp_path) as web:

            def facts() -> dict[str, Any]:
                request = urllib.request.Request(f"{web.url}/healthz", headers={"Authorization": f"Bearer {TOKEN}"})
                try:
                    with urllib.request.urlopen(request, timeout=20) as answer:
                        return dict(json.load(answer))
                except urllib.error.HTTPError as error:
                    with error:
                        return dict(json.load(error))

            found = facts()
            assert (found["database"], found["redis"], found["migrated"]) == (True, True, False), "it is empty"
            with stopped(pid):
                found = facts()
                assert (found["database"], found["redis"], found["migrated"]) == (False, True, None)
                [what] = [one["what"] for one in found["failing"] if one["part"] == "database"]
                assert what == "The database does not answer within 3 s."
                request = urllib.request.Request(f"{web.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
                with urllib.request.urlopen(request, timeout=20) as page:
                    assert b'fleet_up{part="database"} 0.0' in page.read()
            wait_for(lambda: facts()["database"], "it goes on")
            asked.close()
            os.kill(pid, signal.SIGINT)
            wait_for(lambda: not facts()["database"], "it is gone")
            again = start([*(become if os.geteuid() == 0 else []), *argv], tmp_path / "postgres.log")
            try:
                wait_for(lambda: facts()["database"], "it is back")
            finally:
                again.process.send_signal(signal.SIGINT)
                again.stop()
            assert "Traceback" not in web.log
            assert url not in web.log
