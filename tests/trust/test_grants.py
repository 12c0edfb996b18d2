"""Database users of PostgreSQL: each process does its work with the rights of its own user, and cannot do what is not its work."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest
import time_machine
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import DatabaseError, ProgrammingError, connection, transaction
from django.test import Client as Browser
from django.utils import timezone
from pytest_django.fixtures import Settings

from agents import grants, schedule, sending, services, tasks
from agents.gateway import waker
from agents.models import BootSession, Command, CommandStatus, PowerPort, Verb
from agents.power import pressing
from fleet.checks import powerful_database_user
from fleet.models import ApiToken, AuditCheckpoint
from images import tasks as images_tasks
from tests.agents.boots import boot, make_release, plan_of
from tests.agents.restores import make_command
from tests.agents.test_sending import ordered
from tests.fleet.test_admin_sweep import full_world
from tests.trust.test_routes import api, ask, house, token_for
from tests.world import World, make_client

__all__ = ["full_world", "house"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        connection.vendor != "postgresql", reason="SQLite has no users; `make test` runs this on PostgreSQL, too"
    ),
]


def grant() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")  # or rows of this transaction were in the way of ALTER TABLE
        for statement in grants.statements():
            cursor.execute(statement)


@contextmanager
def as_process(name: str) -> Iterator[None]:
    """Within it this process has the rights of another one's database user, and none of its own."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET ROLE {grants.PREFIX}{name}")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET ROLE")


@pytest.fixture
def room(world: World, keys: Path) -> World:
    make_release(world.gamer)
    grant()
    return world


def refused(process: str, statement: str) -> str:
    """How the database refuses it."""
    with (
        as_process(process),
        pytest.raises(DatabaseError) as error,
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute(statement)
    return str(error.value)


# --- what is not theirs -----------------------------------------------------------------------------------------------

LOG = ("fleet_auditentry", "agents_homerestore", "agents_envelope", "fleet_auditcheckpoint")


@pytest.mark.parametrize("process", grants.PROCESSES)
@pytest.mark.parametrize("table", LOG)
def test_nobody_changes_or_removes_what_is_written_down(room: World, process: str, table: str) -> None:
    key = "command_id" if table == "agents_envelope" else "id"
    for statement in (f"UPDATE {table} SET {key} = {key}", f"DELETE FROM {table}", f"TRUNCATE {table}"):
        assert "permission denied" in refused(process, statement), statement
    for statement in (
        f"DROP TABLE {table}",
        f"ALTER TABLE {table} DISABLE TRIGGER ALL",
        f"DROP TRIGGER {table}_append_only ON {table}",
        f"ALTER TABLE {table} OWNER TO fleet_{process}",
    ):
        assert "must be owner" in refused(process, statement), statement


SENDERS = ("client_id", "order_id", "verb", "args", "sent_at")


@pytest.mark.parametrize("process", ["web", "gateway", "builds"])
def test_nobody_else_writes_what_the_sender_does(room: World, process: str) -> None:
    for column in SENDERS:
        assert "permission denied" in refused(process, f"UPDATE agents_command SET {column} = {column}"), column
    assert "permission denied" in refused(process, "DELETE FROM agents_command")
    for table in ("agents_envelope", "fleet_auditcheckpoint"):
        assert "permission denied" in refused(process, f"INSERT INTO {table} SELECT * FROM {table}"), table


@pytest.mark.parametrize("status", [one for one in CommandStatus if one != CommandStatus.QUEUED])
def test_the_web_process_makes_no_command_but_one_that_waits(room: World, status: CommandStatus) -> None:
    order = ordered(room, make_client(room.clubroom)).order
    fields = {"order": order, "verb": order.verb, "expires_at": timezone.now()}
    other = make_client(room.clubroom, "52:54:00:00:00:02")
    with as_process("web"):
        with pytest.raises(ProgrammingError, match="row-level security policy"), transaction.atomic():
            Command.objects.create(client=other, **fields, status=status)
        Command.objects.create(client=other, **fields)


@pytest.mark.parametrize("process", ["gateway", "sender", "builds"])
def test_who_may_log_in_is_the_web_processes_affair(room: World, process: str) -> None:
    for table in ("fleet_apitoken", "django_session", "fleet_failedlogin"):
        assert "permission denied" in refused(process, f"SELECT * FROM {table}"), table
    for table in ("auth_user", "fleet_membership", "fleet_site", "agents_cap", "agents_order", "agents_freeze"):
        assert "permission denied" in refused(process, f"UPDATE {table} SET id = id"), table
    assert "permission denied" in refused(process, "INSERT INTO agents_order SELECT * FROM agents_order")


def test_a_process_that_owns_the_database_is_warned_of_it(room: World) -> None:
    [warned] = powerful_database_user(None)
    assert (warned.id, "may remove entries of the audit log" in warned.msg) == ("fleet.W006", True)
    with as_process("web"):
        assert powerful_database_user(None) == []


@pytest.mark.parametrize("process", grants.PROCESSES)
def test_nobody_becomes_somebody_else_or_makes_tables(room: World, process: str) -> None:
    for other in {*grants.PROCESSES} - {process}:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_has_role(%s, %s, 'MEMBER')", [f"fleet_{process}", f"fleet_{other}"])
            assert cursor.fetchone() == (False,)
            cursor.execute(
                "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls FROM pg_roles WHERE rolname = %s",
                [f"fleet_{process}"],
            )
            assert cursor.fetchone() == (False,)
    assert "permission denied" in refused(process, "CREATE TABLE public.mine (id int)")


def test_every_table_has_rights_for_the_web_process(room: World) -> None:
    """What is new is not forgotten: rights come from the models there are."""
    said = "\n".join(grants.statements())
    for table in connection.introspection.table_names():
        assert f'"{table}"' in said or f" {table} " in said, table


# --- what is ----------------------------------------------------------------------------------------------------------


def test_the_rights_may_be_given_again_and_again(room: World, capsys: pytest.CaptureFixture[str]) -> None:
    grant()
    call_command("grants")
    printed = capsys.readouterr().out
    with connection.cursor() as cursor:
        cursor.execute(printed)


def test_the_sender_sends_and_signs_the_log(room: World) -> None:
    client = make_client(room.clubroom)
    boot(client)
    command = ordered(room, client)
    with as_process("sender"):
        tasks.send_due()
        tasks.send_checkpoints()
    command.refresh_from_db()
    assert command.status == CommandStatus.SENT
    assert AuditCheckpoint.objects.exists()


def test_clients_are_woken_by_sender_gateway_and_clock_together(room: World, settings: Settings) -> None:
    settings.WAKE_BROADCAST, settings.POWER_NETWORKS = ["127.255.255.255"], [ip_network("127.0.0.0/8")]
    near, *asleep = (make_client(room.clubroom, f"52:54:00:00:00:0{n}", network="10.20.0.0/24") for n in range(1, 5))
    boot(near)
    BootSession.objects.update(protocol=2)
    PowerPort.objects.create(client=asleep[2], address="http://127.0.0.1:1")
    order = services.order(Verb.WAKE, asleep, "doors open", room.vera)
    with as_process("sender"):
        sending.send(order.commands.all())
        sending.send(order.commands.all())
        pressing.press(order.commands.get(client=asleep[2]).pk)
    assert order.commands.filter(verb=Verb.WAKE, status=CommandStatus.SENT).count() == 3
    assert order.commands.get(verb=Verb.RELAY).status == CommandStatus.SENT
    with as_process("gateway"):
        due = dict(waker._under_way())
        assert waker._packets(list(due)).keys() == due.keys()
        waker._note(due)
        plan_of(asleep[0])
    for seconds in (21, 301):
        with time_machine.travel(timezone.now() + timedelta(seconds=seconds), tick=False), as_process("web"):
            schedule.tick()
    became = dict(order.commands.filter(verb=Verb.WAKE).values_list("client", "reason"))
    assert became[asleep[0].pk].startswith("booted: ")
    assert became[asleep[1].pk].startswith("did not wake within 300 s: packets were sent by the boot host")
    assert became[asleep[2].pk].startswith("http://127.0.0.1:1")


def test_the_web_process_serves_every_route_of_the_api(house: World, keys: Path) -> None:
    grant()
    root = User.objects.create_superuser("root")
    who = token_for(root)
    ApiToken.objects.exclude(user=root).delete()  # nobody ends those of others
    for route, view in api():
        with as_process("web"):
            answer = ask(route, view, who)
        assert answer.status_code < 500, (route, answer.status_code)
        assert answer.status_code not in (401, 403, 404), (route, answer.status_code)


def test_people_edit_in_the_admin(room: World, client: Browser) -> None:
    """A page of the admin saves what was edited, not the whole row: columns of the sender's are in it."""
    machine = make_client(room.clubroom)
    room.otto.memberships.update(role="site-admin")
    with as_process("web"):
        client.force_login(room.otto)
        page = client.get(f"/admin/fleet/client/{machine.pk}/change/")
        form = {**page.context["adminform"].form.initial, "seat": "C3", "client_class": "", "tags": []}
        form = {name: value for name, value in form.items() if value is not None}
        answer = client.post(f"/admin/fleet/client/{machine.pk}/change/", form)
        assert answer.status_code == 302, answer.content.decode()
        answer = client.post("/admin/fleet/client/", {"action": "retire", "_selected_action": [str(machine.pk)]})
        assert answer.status_code == 302
    machine.refresh_from_db()
    assert (machine.seat, machine.admission) == ("C3", "retired")


def test_the_everyday_worker_and_the_clock_do_their_work(room: World) -> None:
    client = make_client(room.clubroom)
    boot(client)
    expired = ordered(room, client)
    Command.objects.update(expires_at=timezone.now())
    with as_process("web"):
        tasks.tick()
        tasks.step_campaigns()
        images_tasks.tick()
    expired.refresh_from_db()
    assert expired.status == CommandStatus.EXPIRED


def test_a_lost_cycle_leaves_its_restore(room: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock ends what nobody proves; that writes a row that nobody changes any more."""
    monkeypatch.setattr(schedule, "_gateway_listens", lambda: True)
    command = make_command(room, make_client(room.clubroom))
    Command.objects.update(accepted_at=timezone.now() - timedelta(hours=1))
    with as_process("web"):
        tasks.tick()
    command.refresh_from_db()
    assert (command.status, command.restore.result) == ("lost", "lost")
