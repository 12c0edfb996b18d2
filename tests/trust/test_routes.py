"""Every route of the web process, found in its own list of addresses, without and with the wrong credentials."""

import base64
import secrets
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.core.cache import cache
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client as Browser
from django.utils import timezone
from pytest_django.fixtures import Settings

from agents.models import BootSession, BootToken, Order, Rollout
from fleet import services
from fleet.models import ApiToken, token_hash
from fleet.roles import RIGHTS, Right, Role
from tests.fleet.test_admin_sweep import TRACES, addresses, full_world, rows
from tests.trust.routes import (
    API,
    BODIES,
    ELSEWHERE,
    FORMS,
    OPEN,
    OWN,
    PAGES,
    QUERIES,
    page_parameters,
    web_routes,
)
from tests.world import World, member, person

__all__ = ["full_world"]
pytestmark = pytest.mark.slow
API_ROOT = "api/v1/"


# --- what there is ----------------------------------------------------------------------------------------------------


def test_every_route_says_who_may_ask_it() -> None:
    there = {route for route, _ in web_routes()}
    stated = {f"{method} {API_ROOT}{path}" for method, _, path in (route.partition(" ") for route in API)}
    stated |= {*PAGES, *OPEN}
    assert sorted(there - stated) == [], "routes without a stated answer: put them into tests/trust/routes.py"
    assert sorted(stated - there) == [], "no such routes any more"


# --- who asks ---------------------------------------------------------------------------------------------------------

Credentials = dict[str, str]


@pytest.fixture
def house(full_world: World) -> World:
    """The club room with a row of each kind."""
    Order.objects.update(ordered_by=person("nina"))  # nobody approves their own
    Rollout.objects.create(client_class=full_world.gamer, ordered_by=full_world.vera, reason="why", at_once=1)
    return full_world


def bearer(secret: str) -> Credentials:
    return {"Authorization": f"Bearer {secret}"}


def token_for(user: User, **fields: Any) -> Credentials:
    return bearer(services.issue_token(user, secrets.token_hex(4), **fields)[1])


def strangers(world: World) -> dict[str, Credentials]:
    """Whoever is nobody here. Each has something that is a secret elsewhere."""
    superuser = User.objects.create_superuser("root")
    closed = person("closed")
    member(closed, world.clubroom, Role.SITE_ADMIN)
    closed_token = token_for(closed)
    User.objects.filter(pk=closed.pk).update(is_active=False)
    revoked = token_for(superuser)
    services.revoke_token(ApiToken.objects.latest("pk"), superuser)
    session = BootSession.objects.filter(client__site=world.clubroom).first()
    assert session is not None
    secret, token = "5" * 64, "7" * 32
    BootSession.objects.filter(pk=session.pk).update(bearer_digest=token_hash(secret))
    BootToken.objects.create(
        client=session.client, digest=token_hash(token), expires_at=timezone.now() + timedelta(minutes=5)
    )
    cookie = Browser()
    cookie.force_login(superuser)
    ended = cookie.cookies[django_settings.SESSION_COOKIE_NAME].value
    cookie.logout()
    basic = base64.b64encode(b"otto:correct horse battery").decode()
    return {
        "nobody": {},
        "garbage": bearer("sf_" + "x" * 43),
        "not even text": {"Authorization": "Bearer \xff\xfe"},
        "no scheme": {"Authorization": "sf_"},
        "a hash of a token": bearer(ApiToken.objects.latest("pk").digest),
        "an expired token": token_for(superuser, expires_at=timezone.now() - timedelta(seconds=1)),
        "a revoked token": revoked,
        "a token of a closed account": closed_token,
        "a session's bearer": bearer(secret),
        "a boot token": bearer(token),
        "the name and password": {"Authorization": f"Basic {basic}"},
        "an ended login": {"Cookie": f"{django_settings.SESSION_COOKIE_NAME}={ended}"},
        "an invented login": {"Cookie": f"{django_settings.SESSION_COOKIE_NAME}={'0' * 32}"},
    }


def ask(route: str, view: Any, who: Credentials, *, undo: bool = True, browser: Browser | None = None) -> Any:
    """One request of the API; what it changes is taken back."""
    cache.clear()  # how many were asked before is another matter
    method, _, path = route.partition(" ")
    if "<pk>" in path:
        rows_of: Any = view.cls.queryset.model._default_manager
        row = rows_of.order_by("pk").first()
        assert row is not None, f"the house has no {view.cls.queryset.model.__name__}"
        path = path.replace("<pk>", str(row.pk)) + QUERIES.get(route, "").replace("<pk>", str(row.pk))
    else:
        path += QUERIES.get(route, "")
    body: Any = BODIES.get(route, dict)() if method != "GET" else None
    send = getattr(browser or Browser(), method.lower())
    options: dict[str, Any] = {"content_type": "application/json"} if method != "GET" else {}
    if route.endswith("/home-templates/") and method == "POST":
        body, options = {"archive": SimpleUploadedFile("home.tar", b"x")}, {}
    with transaction.atomic():
        answer = send(f"/{API_ROOT}{path}", body, headers=who, **options)
        if undo:
            transaction.set_rollback(True)
    return answer


def api() -> Iterator[tuple[str, Any]]:
    for route, view in web_routes():
        method, _, path = route.partition(" ")
        if path.startswith(API_ROOT) and route not in OPEN:
            yield f"{method} {path.removeprefix(API_ROOT)}", view


def test_strangers_get_nothing_from_the_api(house: World) -> None:
    known = strangers(house)
    before = rows()
    for route, view in api():
        for name, who in known.items():
            answer = ask(route, view, who)
            assert answer.status_code == 401, (route, name, answer.status_code)
            assert answer.headers["WWW-Authenticate"] == "Bearer", (route, name)
            assert not TRACES.search(answer.getvalue().decode()), (route, name)
    assert rows() == before


@pytest.mark.parametrize("by", ["token", "login"])
def test_who_is_of_another_site_finds_nothing_there(house: World, by: str) -> None:
    """An admin of the school, with an API token or a login."""
    browser, who = Browser(), dict[str, str]()
    if by == "token":
        who = token_for(house.mallory)
    else:
        browser.force_login(house.mallory)
    before = rows()
    for route, view in api():
        if API[route] == OWN:
            continue
        answer = ask(route, view, who, browser=browser)
        expected = ELSEWHERE.get(route, 404 if "<pk>" in route else 200)
        assert answer.status_code == expected, (route, answer.status_code)
        assert not TRACES.search(answer.getvalue().decode()), route
    assert rows() == before


def lacking(right: Right) -> Role | None:
    """The highest role without ``right``."""
    return next((role for role in reversed(Role) if right not in RIGHTS[role]), None)


def test_each_needs_its_right_and_no_more(house: World) -> None:
    """The highest role that lacks the right is told so and changes nothing; the lowest that has it is not."""
    who = token_for(house.vera)
    for route, view in api():
        right = API[route]
        if not isinstance(right, Right):
            continue
        if without := lacking(right):
            house.vera.memberships.update(role=without)
            before = rows()
            answer = ask(route, view, who, undo=False)
            assert answer.status_code == 403, (route, without, answer.status_code, answer.getvalue())
            assert rows() == before, route
        with_it = next(role for role in Role if right in RIGHTS[role])
        house.vera.memberships.update(role=with_it)
        answer = ask(route, view, who)
        assert answer.status_code not in (401, 403, 404, 405), (route, with_it, answer.status_code, answer.getvalue())
        assert answer.status_code < 500, (route, answer.status_code)


def test_a_token_that_may_only_read_only_reads(house: World) -> None:
    root = User.objects.create_superuser("root")
    who = token_for(root, read_only=True)
    services.issue_token(root, "other")
    before = rows()
    for route, view in api():
        answer = ask(route, view, who, undo=False)
        if route.startswith("GET "):
            assert answer.status_code < 500, (route, answer.status_code)
            assert answer.status_code not in (401, 403), (route, answer.status_code)
        else:
            assert answer.status_code == 403, (route, answer.status_code)
    assert rows() == before


def test_a_login_changes_nothing_over_the_api_without_its_csrf_token(house: World) -> None:
    """A page elsewhere, opened in the browser of somebody who is logged in."""
    browser = Browser(enforce_csrf_checks=True)
    browser.force_login(User.objects.create_superuser("root"))
    before = rows()
    for route, view in api():
        if not route.startswith("GET "):
            assert ask(route, view, {}, undo=False, browser=browser).status_code == 403, route
    assert rows() == before


def test_nobody_ends_or_sees_the_tokens_of_others(house: World) -> None:
    theirs = services.issue_token(house.otto, "theirs")[0]
    who = token_for(house.mallory)
    assert Browser().delete(f"/{API_ROOT}tokens/{theirs.pk}/", headers=who).status_code == 404
    listed = Browser().get(f"/{API_ROOT}tokens/", headers=who).json()["results"]
    assert [row["name"] for row in listed] == list(house.mallory.api_tokens.values_list("name", flat=True))
    assert Browser().get(f"/{API_ROOT}me/", headers=who).json()["username"] == "mallory"


# --- pages for people -------------------------------------------------------------------------------------------------


def visit(route: str, house: World, browser: Browser, who: Credentials) -> Any:
    method, _, path = route.partition(" ")
    for name, value in page_parameters(house).items():
        path = path.replace(name, value)
    with transaction.atomic():
        answer = getattr(browser, method.lower())(f"/{path}", FORMS.get(route, dict)(), headers=who)
        transaction.set_rollback(True)
    return answer


def test_strangers_are_sent_to_the_login(house: World) -> None:
    """A token of the API is no login, whoever it belongs to."""
    good = "a token that is good in the API"
    known = strangers(house) | {good: token_for(User.objects.create_superuser("boss"))}
    before = rows()
    for route in PAGES:
        for name, who in known.items():
            answer = visit(route, house, Browser(), who)
            assert answer.status_code == 302, (route, name)
            assert answer["Location"].startswith("/login/"), (route, name)
    for address in addresses():
        for name in (good, "an ended login"):  # with nothing at all: tests/fleet/test_admin_sweep.py
            answer = Browser().get(address, headers=known[name])
            assert answer.status_code == 302, (address, name)
            assert "/login/?next=" in answer["Location"], (address, name)
    assert rows() == before


def test_pages_of_another_site_are_not_there_and_those_of_ones_own_need_the_right(house: World) -> None:
    theirs, ours = Browser(), Browser()
    theirs.force_login(house.mallory)
    ours.force_login(house.vera)
    for route, right in PAGES.items():
        if not isinstance(right, Right):
            continue
        assert visit(route, house, theirs, {}).status_code == 404, route
        if without := lacking(right):
            house.vera.memberships.update(role=without)
            answer = visit(route, house, ours, {})
            assert answer.status_code == 403, (route, answer.status_code)
        house.vera.memberships.update(role=next(role for role in Role if right in RIGHTS[role]))
        answer = visit(route, house, ours, {})
        assert answer.status_code not in (403, 404, 405), (route, answer.status_code)


def test_no_page_takes_a_form_from_elsewhere(house: World) -> None:
    browser = Browser(enforce_csrf_checks=True)
    browser.force_login(User.objects.create_superuser("root"))
    for route in PAGES:
        if route.startswith("POST "):
            assert visit(route, house, browser, {}).status_code == 403, route


def test_what_is_open_says_the_same_to_everybody_and_nothing_of_a_site(house: World, settings: Settings) -> None:
    settings.METRICS_TOKEN = "m" * 40
    known = strangers(house) | {"an organiser": token_for(house.otto), "a superuser": token_for(person_root())}
    for route, allowed in OPEN.items():
        method, _, path = route.partition(" ")
        for name, who in known.items():
            cache.clear()
            answer = getattr(Browser(), method.lower())(f"/{path.replace('<path:path>', 'nowhere')}", headers=who)
            assert answer.status_code in allowed, (route, name, answer.status_code)
            if path != "api/schema/":  # whose examples speak of a gamer, as anybody would
                assert not TRACES.search(answer.getvalue().decode()), (route, name)


def person_root() -> User:
    return User.objects.create_superuser("boss")


def test_there_are_no_metrics_until_they_have_a_token(house: World, settings: Settings) -> None:
    settings.METRICS_TOKEN = ""
    for who in ({}, bearer(""), token_for(house.otto)):
        assert Browser().get("/metrics", headers=who).status_code == 404
    settings.METRICS_TOKEN = "m" * 40
    assert Browser().get("/metrics", headers=bearer("m" * 40)).status_code == 200
