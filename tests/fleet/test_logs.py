"""Logs: how lines look, what is part of what, what must never stand in them; and the story of an order, from the click to the digest."""

import io
import json
import logging
import os
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.test import Client as Browser
from pytest_django.fixtures import Settings

from agents import telling
from agents.daemon import protocol
from agents.models import HomeRestore
from fleet import audit, logs, services
from fleet.models import Client
from tests.agents.boots import form
from tests.agents.gateways import gateway
from tests.agents.rooms import make_room
from tests.board.server import web_server
from tests.services import PROJECT, Service, celery_worker, database_url, redis_server
from tests.world import World, make_client

Lines = Callable[[], list[str]]
Objects = Callable[[], list[dict[str, Any]]]
log = logging.getLogger("fleet.test")


@pytest.fixture(params=[logs.Lines, logs.Json], ids=["lines", "json"])
def written(request: pytest.FixtureRequest) -> Iterator[Lines]:
    """What is written in one of the two forms while the test lasts."""
    with collected(request.param()) as lines:
        yield lines


@pytest.fixture
def objects() -> Iterator[Objects]:
    """The same as objects."""
    with collected(logs.Json()) as lines:
        yield lambda: [json.loads(line) for line in lines()]


@contextmanager
def collected(formatter: logging.Formatter) -> Iterator[Lines]:
    stream, root = io.StringIO(), logging.getLogger()
    handler, before = logging.StreamHandler(stream), root.level
    handler.setFormatter(formatter)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield lambda: stream.getvalue().splitlines()
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


# --- lines ---------------------------------------------------------------------------------------------------------------


def test_a_line_says_what_it_is_part_of(written: Lines) -> None:
    with logs.about(request="r-1"), logs.about(order="o-1"):
        log.info("%d signed", 3, extra=logs.told(verb="cycle", number=3))
    log.info("alone")
    [line, alone] = written()
    if line.startswith("{"):
        said = json.loads(line)
        assert said.pop("at").endswith("Z")
        assert said == {
            "level": "INFO",
            "logger": "fleet.test",
            "message": "3 signed",
            "request": "r-1",
            "order": "o-1",
            "verb": "cycle",
            "number": 3,
        }
        assert "request" not in json.loads(alone)
    else:
        assert line == "INFO fleet.test: 3 signed request=r-1 order=o-1 verb=cycle number=3"
        assert alone == "INFO fleet.test: alone"


def test_what_strangers_send_makes_no_lines_of_its_own(written: Lines) -> None:
    log.warning("reason: %s", "x\nERROR fleet: all is lost\x1b[31m", extra=logs.told(name='a "b"\nc', empty=""))
    [line] = written()
    assert "\x1b" not in line
    if not line.startswith("{"):
        assert line == r'WARNING fleet.test: reason: x\nERROR fleet: all is lost\x1b[31m name="a \"b\"\\nc" empty=""'


def test_a_fault_comes_with_its_traceback_and_a_bad_line_is_better_than_none(written: Lines) -> None:
    try:
        raise ValueError("it broke")
    except ValueError:
        log.exception("%s failed", "this")
    text = "\n".join(written())
    assert "this failed" in text
    assert "Traceback" in text
    assert "ValueError: it broke" in text
    bad = logging.LogRecord("x", logging.INFO, "", 0, "%d of them", ("three",), None)
    assert logs.Lines().format(bad) == "INFO x: '%d of them' ('three',)"


def test_a_field_cannot_pass_for_a_part_of_the_line(objects: Objects) -> None:
    log.info("true", extra=logs.told(message="forged", level="ERROR"))
    [line] = objects()
    assert (line["message"], line["level"], line["message_"], line["level_"]) == ("true", "INFO", "forged", "ERROR")


def test_the_journal_is_told_how_bad_each_line_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w") as journal:
        place = os.fstat(journal.fileno())
        monkeypatch.setattr(sys, "stderr", journal)
        record = logging.LogRecord("x", logging.ERROR, "", 0, "bad", None, (ValueError, ValueError("v"), None))
        monkeypatch.setenv("JOURNAL_STREAM", f"{place.st_dev}:{place.st_ino + 1}")
        assert logs.Lines().format(record) == "ERROR x: bad\nValueError: v", "that is another's"
        monkeypatch.setenv("JOURNAL_STREAM", f"{place.st_dev}:{place.st_ino}")
        assert logs.Lines().format(record) == "<3>ERROR x: bad\n<3>ValueError: v"
        assert logs.Json().format(record).startswith('<3>{"at": ')


@pytest.mark.django_db(transaction=True)
def test_what_is_rolled_back_is_not_told_and_the_rest_with_the_fields_of_its_time(written: Lines) -> None:
    with transaction.atomic():
        with logs.about(order="one"):
            logs.once_committed(log.info, "kept")
        with suppress(RuntimeError), transaction.atomic():
            logs.once_committed(log.info, "lost")
            raise RuntimeError
        assert written() == []
    [line] = written()
    assert "kept" in line
    assert "one" in line


# --- secrets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer 0123456789abcdef", "0123456789abcdef"),
        ("kernel … fleet.token=0123456789abcdef initrd", "0123456789abcdef"),
        ("{'bearer': '0123456789abcdef', 'x': 1}", "0123456789abcdef"),
        ('{"secure_on": "00:11:22:33:44:55"}', "00:11:22:33:44:55"),
        ("FLEET_SECRET_KEY=hunter2hunter2", "hunter2hunter2"),
        ("password: hunter2", "hunter2"),
        ("postgres://fleet:hunter2@127.0.0.1/fleet", "hunter2"),
        ("redis://:hunter2@127.0.0.1", "hunter2"),
        ("DETAIL:  Failing row contains (1, 52:54:00:00:00:01, hunter2, null).", "hunter2"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out(written: Lines, text: str, secret: str) -> None:
    log.info("it was %s", text, extra=logs.told(detail=text))
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("failed")
    said = "\n".join(written())
    assert secret not in said
    assert said.count("…") >= 3


def test_what_only_resembles_a_secret_stays(written: Lines) -> None:
    log.info("the token is unknown to vera@example.org, home_digest=%s", "ab" * 32)
    [line] = written()
    assert f"the token is unknown to vera@example.org, home_digest={'ab' * 32}" in line


def test_a_row_that_the_database_refuses_is_not_shown(world: World, written: Lines) -> None:
    """PostgreSQL shows all of it in its error."""
    one = make_client(world.clubroom, secure_on="00:11:22:33:44:55")
    try:
        with transaction.atomic():
            Client.objects.filter(pk=one.pk).update(admission="nonsense")
    except IntegrityError:
        log.exception("The client could not be changed")
    text = "\n".join(written())
    assert "client_admission_declared" in text
    assert "00:11:22:33:44:55" not in text


# --- requests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("brought", ["4711-abcd.EF_1", "0" * 64])
def test_a_request_keeps_the_id_it_brings(db: None, client: Browser, brought: str) -> None:
    assert client.get("/nowhere", headers={"X-Request-Id": brought})["X-Request-Id"] == brought


@pytest.mark.parametrize(
    "brought", ["", "short", "0" * 65, "with space", "a\tb-cdefgh", "-starts-so", "ünicode-id", "a=b;c=dd"]
)
def test_an_id_that_is_none_is_replaced(db: None, client: Browser, brought: str) -> None:
    given = {client.get("/nowhere", headers={"X-Request-Id": brought})["X-Request-Id"] for _ in range(2)}
    assert len(given) == 2
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in given)


def test_what_a_request_does_carries_its_id_and_what_comes_after_it_does_not(
    transactional_db: None, client: Browser, objects: Objects
) -> None:
    user = User.objects.create_user("vera", password="correct horse battery")
    client.post(
        "/login/", {"username": "vera", "password": "correct horse battery"}, headers={"X-Request-Id": "click-one"}
    )
    audit.record("somebody", "else", site=None, actor="test")
    said = {line["message"]: line.get("request") for line in objects()}
    assert said["login: vera by vera"] == "click-one"
    assert said["somebody: else by test"] is None
    assert user.get_username() in str(said)


def test_the_audit_log_is_told_but_not_its_lists(
    world: World, objects: Objects, django_capture_on_commit_callbacks: Callable[..., Any]
) -> None:
    one = make_client(world.clubroom)
    detail = {
        "commands": ["a", "b"],
        "why": "so",
        "times": 2,
        "args": {"text": "hidden"},
        "text": "t",
        "say": "s",
        "client": "x",
    }
    with django_capture_on_commit_callbacks(execute=True):
        audit.record("tried", one, site=world.clubroom, actor=world.vera, **detail)
    [line] = objects()
    assert line["message"] == "tried: A1 (pc-01) by vera"
    fields = {
        "site": "clubroom",
        "client": str(one.pk),
        "commands": 2,
        "why": "so",
        "times": 2,
        "text": "t",
        "say": "s",
    }
    assert {name: value for name, value in line.items() if name not in ("at", "level", "logger", "message")} == fields


# --- steps of commands ---------------------------------------------------------------------------------------------------


def test_of_many_commands_the_first_is_told_at_once_and_the_rest_by_the_second(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("agents.telling.time.monotonic", lambda: now)
    steps = telling.Steps()

    def said() -> list[tuple[str, str]]:
        return [(line["message"], line["order"]) for line in objects()]

    def take() -> None:
        for _ in range(500):
            steps.took("accepted", {"one": 1})

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    steps.took("accepted", {"two": 1})
    steps.flush()
    assert said() == [("1 accepted", "one"), ("1 accepted", "two")]
    now += 1
    steps.flush()
    assert said()[2:] == [("1999 accepted", "one")]
    now += 1
    steps.took("accepted", {"one": 1})
    assert said()[3:] == [("1 accepted", "one")]
    steps.took("accepted", {"one": 1})
    now += 1
    steps.took("delivered", {"two": 1})
    assert said()[4:] == [("1 accepted", "one"), ("1 delivered", "two")], "whose second is over is told with any other"
    now += 3600
    steps.flush()
    assert len(said()) == 6, "nothing is told twice"
    assert steps._again == {}, "and nothing is remembered for ever"


# --- the whole -----------------------------------------------------------------------------------------------------------


def test_no_process_starts_with_a_form_or_level_that_does_not_exist() -> None:
    for name, value in (("FLEET_LOG", "xml"), ("FLEET_LOG_LEVEL", "loud")):
        environment = {**os.environ, name: value}
        tried = subprocess.run(
            [sys.executable, "manage.py", "check"],
            env=environment,
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert tried.returncode != 0
        assert f"{name}='{value}' is none of" in tried.stderr


def call(web: Service, token: str, body: dict[str, Any], request_id: str) -> tuple[dict[str, Any], str]:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "X-Request-Id": request_id}
    asked = urllib.request.Request(f"{web.url}/api/v1/orders/", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=20) as answer:
        return dict(json.load(answer)), answer.headers["X-Request-Id"]


@pytest.mark.slow
def test_one_search_finds_an_order_from_the_click_to_the_digest_and_no_secret(
    transactional_db: None, settings: Settings, tmp_path: Path
) -> None:
    level = {"FLEET_LOG": "json", "FLEET_LOG_LEVEL": "debug"}
    with (
        redis_server() as queue,
        gateway(queue.url, poll_hold=15, log="json", log_level="debug", metrics_token="m" * 40) as gate,
        make_room(gate, queue.url, settings) as room,
    ):
        common = {"FLEET_REDIS_URL": queue.url, "FLEET_PUBLIC_KEYS": str(gate.keys), **level}
        web_only = {"FLEET_DATABASE_URL": database_url(), "FLEET_SECRET_KEY": "s" * 50, "FLEET_DATA": str(tmp_path)}
        key = {"FLEET_COMMAND_KEY": str(gate.keys / "command.key")}
        session, visitor = room.running()
        with gate.visitor() as firmware:
            mac = room.client(2).mac
            script = firmware.get(f"/boot/v1/client.ipxe?mac={mac}").body.decode()
            boot_token = script.partition("fleet.token=")[2].split()[0]
            asked = urllib.parse.urlencode(form(boot_token, mac)).encode()
            plan = protocol.parse_plan(firmware.ask("POST", "/boot/v1/plan", asked).body.decode().rpartition("sig")[0])
            again = urllib.parse.urlencode(form(boot_token, mac)).encode()
            assert firmware.ask("POST", "/boot/v1/plan", again).status == 403, "which is told"
        Client.objects.update(secure_on="00:11:22:33:44:55")
        _, token = services.issue_token(room.world.vera, "kiosk", read_only=False)
        visitor.park()
        with web_server(common | web_only, tmp_path) as web, celery_worker("sender", common | key) as sender:
            wish = {"verb": "cycle", "clients": [str(session.client_id)], "reason": "next player"}
            order, request_id = call(web, token, wish, "click-4711")
            assert request_id == "click-4711"
            [command] = room.opened(visitor.reply(), session)
            home = session.client.commands.get().envelope.args["home_digest"]
            result = {"template": "ef" * 32, "before": "cd" * 32, "after": home, "phases_ms": {"total": 900}}
            assert visitor.report(command, "accepted").json["accepted"] == [command]
            assert visitor.report(command, "succeeded", "", result).json["accepted"] == [command]
            texts = {"web": web.log, "sender": sender.log, "gateway": gate.log}

        found = []
        for process, text in texts.items():
            found += [(json.loads(line), process) for line in text.splitlines() if order["id"] in line]
        found.sort(key=lambda one: one[0]["at"])
        story = [
            (process, line["message"])
            for line, process in found
            if line["level"] == "INFO" and "celery" not in line["logger"]
        ]
        ordered = f"Cycle ordered {order['ordered_at'][:16].replace('T', ' ')}"
        assert story == [
            ("web", f"order: {ordered} by vera"),
            ("sender", f"commands.signed: {ordered} by sender"),
            ("sender", "1 signed: cycle"),
            ("gateway", "1 delivered"),
            ("gateway", "1 accepted"),
            ("gateway", "cycle of A1 (pc-01): restored: the home is as its template"),
        ]
        assert all(line["request"] == "click-4711" for line, process in found if process != "gateway")
        last = found[-1][0]
        ids = {"order": order["id"], "command": command, "client": str(session.client_id), "boot": str(session.boot_id)}
        digests = {"template": "ef" * 32, "before": "cd" * 32, "after": home}
        assert {**last, **ids, **digests} == last
        assert 0 <= last["signed_ms"] <= last["accepted_ms"] <= last["over_ms"]
        restore = HomeRestore.objects.get()
        assert (restore.before, restore.after) == (last["before"], last["after"])
        debug = [line for line, _ in found if line["level"] == "DEBUG"]
        assert [(line["message"], line["command"]) for line in debug] == [("delivered", command), ("accepted", command)]

        assert "boot.refused: " in texts["gateway"]
        secrets = [token, visitor.bearer, boot_token, plan["bearer"], "00:11:22:33:44:55", "s" * 50, "m" * 40]
        secrets += [path.read_text().strip().rpartition(":")[2] for path in gate.keys.glob("*.key")]
        assert len(secrets) == 10
        for process, text in texts.items():
            assert not [secret for secret in secrets if secret in text], process
