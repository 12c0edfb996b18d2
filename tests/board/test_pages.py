"""The board as it is first served: what is on it, for whom, and at what price."""

from collections.abc import Callable

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.db import connection
from django.http import Http404, HttpRequest, HttpResponse
from django.test import Client as Visitor
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from django.views import defaults

from agents.board.facts import BuildLine, OrderLine, RestoreLine, Tile
from agents.board.reading import admin_url, read
from agents.models import CommandStatus, Verb
from fleet.models import Site
from tests.board.rows import SEATS, advance, cycled, make_night, make_order
from tests.world import World, make_client

BOARD = "/sites/clubroom/"


def visit(user: User, address: str) -> tuple[int, str]:
    visitor = Visitor()
    visitor.force_login(user)
    answer = visitor.get(address, follow=True)
    return answer.status_code, answer.content.decode()


def tiles(site: Site) -> dict[str, Tile]:
    return {fact.title: fact for fact in read(site).sections["clients"] if isinstance(fact, Tile)}


def orders(site: Site) -> list[OrderLine]:
    return [fact for fact in read(site).sections["commands"] if isinstance(fact, OrderLine)]


def test_every_pc_is_on_the_board_in_the_order_people_count(world: World) -> None:
    make_night(world.clubroom, world.vera)
    status, page = visit(world.vera, BOARD)
    assert status == 200
    shown = list(tiles(world.clubroom))
    assert len(shown) == len(SEATS)
    assert shown[:10] == [f"A{number}" for number in range(1, 11)]
    assert all(f'data-title="{title}"' in page for title in shown)


def test_a_tile_says_all_that_is_known_of_its_pc(world: World) -> None:
    make_night(world.clubroom, world.vera)
    board = tiles(world.clubroom)
    running, broken, pending = board["A5"], board["R2"], board["pc-k3"]
    assert (running.version, running.memory, running.connected, running.heard) == ("gamer-12", "32.0 GiB", True, None)
    assert "GeForce GTX 1060" in running.adapter
    assert running.last is not None
    assert (running.last.verb_word, running.last.status, running.last.by) == ("Cycle", "succeeded", "vera")
    assert "SHA-256" in broken.trouble
    assert broken.heard is not None
    assert pending.mark is None
    page = visit(world.vera, BOARD)[1]
    for text in ("GeForce GTX 1060", "32.0 GiB", "did not match its SHA-256", "52:54:00:20:04:01"):
        assert text in page


def test_an_order_shows_how_many_ended_and_which_failed_why(world: World) -> None:
    clients = [make_client(world.clubroom, f"52:54:00:00:00:{number:02x}") for number in (1, 2, 3, 10)]
    commands = make_order(Verb.CYCLE, clients, "Between two rounds", world.vera)
    cycled(commands[0], 10, 2048, 900)
    advance(commands[3], CommandStatus.SENT, CommandStatus.REFUSED, reason="the signature is wrong")
    (line,) = orders(world.clubroom)
    assert (line.whom, line.total, line.ended, line.succeeded, line.failed, line.waiting) == ("4 PCs", 4, 2, 1, 1, 2)
    assert [(fate.seat, fate.status, fate.explanation) for fate in line.fates] == [
        ("A10", "refused", "the signature is wrong")
    ]
    assert line.running == (("Queued", "A2, A3"),)
    page = visit(world.vera, BOARD)[1]
    assert "2 of 4 ended" in page
    assert "Cancel 2 waiting" in page


def test_an_order_to_one_pc_shows_its_way_and_then_its_phases(world: World) -> None:
    command = make_order(Verb.CYCLE, [make_client(world.clubroom)], "Next person", world.vera)[0]
    advance(command, CommandStatus.SENT)
    assert [word for word, reached in orders(world.clubroom)[0].steps if reached] == ["Queued", "Sent"]
    command.refresh_from_db()
    cycled_again = make_order(Verb.CYCLE, [make_client(world.clubroom, "52:54:00:00:00:02")], "Next", world.vera)[0]
    cycled(cycled_again, 10, 2048, 1000)
    ended = orders(world.clubroom)[-1]
    assert [phase.name for phase in ended.phases] == ["kill", "restore", "verify", "unmount", "login"]
    assert ended.total_ms == sum(phase.ms for phase in ended.phases) == 1000


def test_builds_and_restores_show_how_far_and_what(world: World) -> None:
    make_night(world.clubroom, world.vera)
    sections = read(world.clubroom).sections
    building = next(fact for fact in sections["builds"] if isinstance(fact, BuildLine) and fact.step)
    assert (building.name, building.step, building.status) == ("gamer-13", "Compress the root", "building")
    assert (building.said, building.number) == ("146 of 231 MB", 6)
    assert 40 < building.percent < 100
    restore = next(
        fact for fact in sections["restores"] if isinstance(fact, RestoreLine) and fact.client == "A5 (pc-a5)"
    )
    assert (restore.files, restore.bytes, restore.total_ms, restore.result) == (1893, 312_000_000, 1204, "restored")
    assert "1893 files, 297.5" in visit(world.vera, BOARD)[1]


def test_links_lead_only_to_pages_the_admin_has(world: World) -> None:
    pc = make_client(world.clubroom)
    assert admin_url("fleet_client", pc.pk) == f"/admin/fleet/client/{pc.pk}/change/"
    assert admin_url("fleet_nothing", pc.pk) == ""


def test_the_number_of_queries_does_not_grow_with_the_pcs(world: World) -> None:
    make_night(world.clubroom, world.vera)
    with CaptureQueriesContext(connection) as few:
        read(world.clubroom)
    more = [make_client(world.clubroom, f"52:54:00:00:01:{number:02x}", name=f"more-{number}") for number in range(40)]
    for client in more[:20]:
        make_order(Verb.RESTART, [client], "New version", world.vera)
    with CaptureQueriesContext(connection) as many:
        read(world.clubroom)
    assert len(many) == len(few) <= 17


@pytest.mark.parametrize(
    ("query", "shown"),
    [("state=lost", {"B5"}), ("class=kiosk&state=ready", {"K2"}), ("q=matrox+in+use", {"R1"}), ("q=nowhere", set())],
)
def test_filters_work_without_a_script(world: World, query: str, shown: set[str]) -> None:
    make_night(world.clubroom, world.vera)
    page = visit(world.vera, f"{BOARD}?{query}")[1]
    visible = {line.split('data-title="')[1].split('"')[0] for line in page.splitlines() if '<li class="tile"' in line}
    assert visible == shown


def test_another_site_is_not_there(world: World) -> None:
    for address in (BOARD, f"{BOARD}events", "/sites/nowhere/"):
        status, page = visit(world.mallory, address)
        assert status == 404
        assert "There is nothing here" in page


def test_names_from_outside_are_text(world: World) -> None:
    make_client(world.clubroom, trouble='<script>alert("x")</script>', product="<img src=x>")
    page = visit(world.vera, BOARD)[1]
    assert "<script>alert" not in page
    assert "<img" not in page


def test_one_site_is_gone_to_at_once_and_several_are_listed(world: World) -> None:
    assert "Club room" in visit(world.vera, "/")[1]
    root = User.objects.create_superuser("root")
    page = visit(root, "/")[1]
    assert "Club room" in page
    assert "School" in page


@pytest.mark.parametrize(
    ("view", "status", "says"),
    [
        (lambda request: defaults.bad_request(request, SuspiciousOperation()), 400, "did not make sense"),
        (lambda request: defaults.permission_denied(request, PermissionDenied()), 403, "may not do that"),
        (lambda request: defaults.page_not_found(request, Http404()), 404, "nothing here"),
        (defaults.server_error, 500, "Something broke"),
    ],
)
def test_errors_have_pages_of_the_same_look(
    rf: RequestFactory, view: Callable[[HttpRequest], HttpResponse], status: int, says: str
) -> None:
    request = rf.get("/")
    request.user = AnonymousUser()
    answer = view(request)
    assert answer.status_code == status
    assert says in answer.content.decode()
    assert "/static/fleet/base.css" in answer.content.decode()


def test_browsers_that_ask_for_an_icon_find_one(client: Visitor) -> None:
    assert client.get("/favicon.ico").headers["Location"] == "/static/fleet/icon.svg"
