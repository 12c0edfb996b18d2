from datetime import timedelta

import pytest
import time_machine
from django.contrib.auth import authenticate
from django.contrib.auth.models import User
from django.test import Client as Browser
from django.utils import timezone

from fleet import logins, refusals
from fleet.models import AuditEntry, FailedLogin
from tests.api import as_, call
from tests.world import World, make_client

PASSWORD = "correct horse battery"


def log_in(browser: Browser, name: str, password: str = PASSWORD, address: str = "192.0.2.1") -> int:
    return browser.post("/login/", {"username": name, "password": password}, REMOTE_ADDR=address).status_code


def actions() -> list[str]:
    return list(AuditEntry.objects.order_by("sequence").values_list("action", flat=True))


def test_login_and_logout_are_written_down(world: World, client: Browser) -> None:
    assert log_in(client, "vera") == 302
    assert client.post("/logout/").status_code == 302
    assert actions() == ["login", "logout"]
    entry = AuditEntry.objects.first()
    assert entry is not None
    assert (entry.actor, entry.chain, entry.detail) == ("vera", "everywhere", {"address": "127.0.0.1"})


def test_failures_close_the_door_are_written_twice_and_never_with_the_password(world: World, client: Browser) -> None:
    for _ in range(logins.NAME_LIMIT):
        assert log_in(client, "vera", "hunter2") == 200
    assert log_in(client, "vera") == 200, "the right password does not open a closed door"
    page = client.post("/login/", {"username": "vera", "password": PASSWORD}, REMOTE_ADDR="192.0.2.1")
    assert "Too many logins have failed. Wait 15 minutes" in page.content.decode()
    assert actions() == ["login.failed", "login.closed"]
    assert "hunter2" not in str(list(AuditEntry.objects.values()))
    assert log_in(client, "otto") == 302, "another person at the same address gets in"
    assert log_in(client, "vera", address="192.0.2.2") == 302, "and so does she from elsewhere"


def test_the_door_opens_again(world: World, client: Browser) -> None:
    for _ in range(logins.NAME_LIMIT):
        log_in(client, "vera", "wrong")
    with time_machine.travel(timezone.now() + logins.WINDOW + timedelta(seconds=1)):
        assert log_in(client, "vera") == 302


def test_one_who_tries_many_names_is_shut_out_and_fills_neither_log_nor_table(world: World, client: Browser) -> None:
    for number in range(logins.ADDRESS_LIMIT + 10):
        log_in(client, f"name-{number}", "x")
    assert log_in(client, "vera") == 200
    assert log_in(client, "vera", address="192.0.2.2") == 302
    assert actions().count("login.closed") == 1
    assert actions().count("login.failed") == logins.ADDRESS_LIMIT
    assert FailedLogin.objects.count() == logins.ADDRESS_LIMIT + 1


def test_the_addresses_of_one_ipv6_host_are_one(world: World, client: Browser) -> None:
    for number in range(logins.NAME_LIMIT):
        log_in(client, "vera", "x", f"2001:db8::{number:x}")
    assert log_in(client, "vera", address="2001:db8::ffff:0:0:1") == 200
    assert log_in(client, "vera", address="2001:db8:0:1::1") == 302


def test_what_was_counted_is_forgotten_after_its_time(world: World, client: Browser) -> None:
    log_in(client, "vera", "x")
    with time_machine.travel(timezone.now() + logins.WINDOW + timedelta(seconds=1)):
        assert log_in(client, "otto") == 302
    assert not FailedLogin.objects.exists()


def test_a_service_that_tries_passwords_without_a_request_is_not_counted(world: World) -> None:
    """createsuperuser and the like; the web has always a request."""
    assert authenticate(username="vera", password="x") is None
    assert authenticate(username="vera", password=PASSWORD) == world.vera


@pytest.mark.parametrize("name", ["\x00", "a\x1b[31mb", "x" * 5000, "", "名前"])
def test_rubbish_for_a_name_is_a_failure_like_others(db: None, client: Browser, name: str) -> None:
    assert log_in(client, name, "x") == 200
    assert all(entry.subject.isprintable() for entry in AuditEntry.objects.all())


def test_the_admin_has_the_same_door(world: World, client: Browser) -> None:
    page = client.get("/admin/", follow=True)
    assert (
        page.redirect_chain[-1][0] == "/login/?next=%2Fadmin%2F" or "/login/?next=/admin/" in page.redirect_chain[-1][0]
    )


def test_a_refusal_is_written_down_although_its_transaction_was_not(world: World) -> None:
    world.vera.memberships.update(role="viewer")
    client = make_client(world.clubroom)
    order = {"verb": "cycle", "clients": [str(client.pk)], "reason": "x"}
    for _ in range(3):
        browser = as_(world.vera)
        browser.force_login(world.vera)
        assert browser.post("/api/v1/orders/", order, format="json").status_code == 403
    [entry] = AuditEntry.objects.filter(action="refused")
    assert (entry.site, entry.actor) == (world.clubroom, "vera")
    assert entry.subject == "You may not order anything of A1 (pc-01)."
    assert entry.detail == {"request": "POST /api/v1/orders/"}


def test_a_script_that_may_not_is_written_down_by_its_owner(world: World) -> None:
    world.vera.memberships.update(role="viewer")
    client = make_client(world.clubroom)
    assert call(world.vera, f"clients/{client.pk}/admission/", {"admission": "retired"})[0] == 403
    assert AuditEntry.objects.get(action="refused").actor == "vera"


def test_a_page_of_the_admin_that_one_may_not_see_is_a_refusal_and_a_stranger_is_none(
    world: World, client: Browser
) -> None:
    client.get("/admin/fleet/site/")
    assert not AuditEntry.objects.filter(action="refused").exists()
    nobody = User.objects.create_user("nina", is_staff=True)
    client.force_login(nobody)
    assert client.get("/admin/fleet/site/").status_code == 403
    assert AuditEntry.objects.get(action="refused").detail == {"request": "GET /admin/fleet/site/"}


def test_one_who_tries_everything_is_written_down_ten_times_and_a_minute_later_again(world: World) -> None:
    world.vera.memberships.update(role="viewer")
    clients = [make_client(world.clubroom, f"52:54:00:00:00:{number:02x}") for number in range(refusals.MOST + 2)]

    def refused() -> int:
        assert {call(world.vera, f"clients/{each.pk}/admission/", {"admission": "retired"})[0] for each in clients} == {
            403
        }
        return AuditEntry.objects.filter(action="refused").values("subject").distinct().count()

    assert refused() == refusals.MOST
    assert AuditEntry.objects.filter(action="refused").count() == refusals.MOST
    with time_machine.travel(timezone.now() + refusals.ONCE_PER + timedelta(seconds=1)):
        refused()
    assert AuditEntry.objects.filter(action="refused").count() == 2 * refusals.MOST


def test_a_page_that_is_seen_is_no_refusal_and_asks_nothing_more(world: World, client: Browser) -> None:
    client.force_login(world.vera)
    assert client.get("/sites/clubroom/").status_code == 200
    assert not AuditEntry.objects.filter(action="refused").exists()
