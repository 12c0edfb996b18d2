"""Whom a selection fits: or within a kind, and between kinds; what is no selection, and what a site does not have, is said."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from agents import services
from agents.models import BootSession, SessionStatus, Verb
from agents.selecting import MOST_CLIENTS, Selection, choose
from fleet.exceptions import OperatorError
from fleet.models import Admission, Client, Site, Tag, row_of
from tests.world import World, make_client


def hall(world: World) -> dict[str, Client]:
    """Six PCs in rows A and B, and one of the other site in the same row."""
    seats: dict[str, dict[str, Any]] = {
        "A1": {"client_class": world.gamer, "state": "ready"},
        "A2": {"client_class": world.gamer, "state": "in-use"},
        "A10": {"client_class": world.contest, "state": "ready"},
        "B1": {"client_class": world.gamer, "state": "off"},
        "B2": {"client_class": None, "state": "lost"},
        "": {"client_class": world.contest, "state": "ready"},
    }
    made = {
        seat: make_client(world.clubroom, f"52:54:00:00:00:{number:02x}", seat=seat, **fields)
        for number, (seat, fields) in enumerate(seats.items(), 1)
    }
    make_client(world.school, "52:54:00:00:01:01", seat="A1", state="ready")
    return made


def found(world: World, **kinds: Any) -> list[str]:
    return [client.called for client in choose(Selection.from_json(kinds), world.clubroom)]


def test_an_empty_selection_is_the_whole_site_in_the_order_people_read(world: World) -> None:
    hall(world)
    assert found(world) == ["A1", "A2", "A10", "B1", "B2", "pc-06"]
    assert found(world, rows=[], states=[]) == found(world)


@pytest.mark.parametrize(
    ("kinds", "seats"),
    [
        ({"classes": ["gamer"]}, ["A1", "A2", "B1"]),
        ({"classes": ["gamer", "contest"]}, ["A1", "A2", "A10", "B1", "pc-06"]),
        ({"rows": ["A"]}, ["A1", "A2", "A10"]),
        ({"rows": ["A", "B"], "states": ["ready", "off"]}, ["A1", "A10", "B1"]),
        ({"classes": ["gamer"], "rows": ["B"]}, ["B1"]),
        ({"tags": ["stage", "loud"]}, ["A1", "A2"]),
        ({"tags": ["loud"], "states": ["ready"]}, []),
    ],
)
def test_or_within_a_kind_and_between_kinds(world: World, kinds: dict[str, list[str]], seats: list[str]) -> None:
    pcs = hall(world)
    stage, loud = (Tag.objects.create(site=world.clubroom, name=name) for name in ("stage", "loud"))
    pcs["A1"].tags.add(stage)
    pcs["A2"].tags.add(stage, loud)
    assert found(world, **kinds) == seats


def test_clients_are_named_one_by_one_and_another_sites_are_not_reached(world: World) -> None:
    pcs = hall(world)
    stranger = Client.objects.get(site=world.school)
    assert found(world, clients=[str(pcs["B2"].pk), str(pcs["A1"].pk).upper(), str(stranger.pk)]) == ["A1", "B2"]


def test_who_is_not_admitted_yet_or_retired_is_left_out(world: World) -> None:
    pcs = hall(world)
    Client.objects.filter(pk=pcs["A1"].pk).update(admission=Admission.PENDING)
    Client.objects.filter(pk=pcs["A2"].pk).update(admission=Admission.RETIRED)
    Client.objects.filter(pk=pcs["B1"].pk).update(admission=Admission.MAINTENANCE)
    assert found(world) == ["A10", "B1", "B2", "pc-06"]


def test_a_tag_of_the_same_name_elsewhere_is_another(world: World) -> None:
    pcs = hall(world)
    pcs["A1"].tags.add(Tag.objects.create(site=world.school, name="stage"))
    assert found(world, tags=["stage"]) == []


def test_a_row_whose_name_ends_in_a_number_has_no_seats_of_another(world: World) -> None:
    for number, seat in enumerate(("2-1/4", "2-1/5", "2-14", "2-1", "12-1/4"), 1):
        make_client(world.clubroom, f"52:54:00:00:00:0{number}", seat=seat)
    assert found(world, rows=["2-1"]) == ["2-1/4", "2-1/5"]
    assert found(world, rows=["2"]) == ["2-1", "2-14"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([], "A selection is an object."),
        (None, "A selection is an object."),
        ({"class": ["gamer"]}, "Clients are not selected by class. It may name classes, tags, rows, states, clients"),
        ({"rows": "A"}, "rows is no list."),
        ({"rows": [1]}, "rows holds '1', which is no name."),
        ({"rows": [""]}, "rows holds '', which is no name."),
        ({"rows": ["A\n"]}, "which is no name"),
        ({"rows": ["A" * 41]}, "which is no name"),
        ({"states": ["ready", "broken"]}, "broken is no state of a client. States are off, booting"),
        ({"clients": ["A1"]}, "'A1' is no id of a client."),
        ({"rows": ["A"] * (MOST_CLIENTS + 1)}, f"rows names {MOST_CLIENTS + 1}. Name {MOST_CLIENTS} or fewer."),
    ],
)
def test_what_is_no_selection_is_refused_and_named(said: object, message: str) -> None:
    with pytest.raises(OperatorError) as caught:
        Selection.from_json(said)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"classes": ["gamer", "kiosk"]}, "Club room has no class kiosk."),
        ({"tags": ["stage"]}, "Club room has no tag stage."),
        ({"rows": ["A", "C", "D"]}, "Club room has no row C, D."),
        ({"clients": [str(uuid.UUID(int=7))]}, f"Club room has no PC {uuid.UUID(int=7)}."),
    ],
)
def test_what_the_site_does_not_have_is_named(world: World, kinds: dict[str, list[str]], message: str) -> None:
    hall(world)
    Tag.objects.create(site=world.school, name="stage")
    with pytest.raises(OperatorError) as caught:
        Selection.from_json(kinds).check(world.clubroom)
    assert message in str(caught.value)
    Selection.from_json({"classes": ["gamer"], "rows": ["A"]}).check(world.clubroom)


def test_it_goes_to_json_and_back_and_says_itself_in_words() -> None:
    said = {
        "rows": ["A", "B"],
        "states": ["ready"],
        "clients": [str(uuid.UUID(int=7))],
        "tags": ["stage"],
        "classes": ["x"],
    }
    selection = Selection.from_json(said)
    assert selection.to_json() == said
    assert str(selection) == "class x, tag stage, row A or B, state ready, 1 PC by name"
    assert (str(Selection()), Selection().to_json()) == ("the whole site", {})


def test_what_decides_about_a_clients_turn_is_read_in_one_query(world: World) -> None:
    pcs = hall(world)
    for seat, status in (("A1", SessionStatus.OPEN), ("A2", SessionStatus.OPEN), ("B2", SessionStatus.LOST)):
        BootSession.objects.create(client=pcs[seat], boot_id=uuid.uuid4(), bearer_digest=seat, status=status)
    services.order(Verb.RESTART, [pcs["A2"]], "x", world.vera)
    Client.objects.filter(pk=pcs["A10"].pk).update(
        hold_reason="match running", hold_until=timezone.now() + timedelta(hours=1)
    )
    Client.objects.filter(pk=pcs["B1"].pk).update(hold_reason="over", hold_until=timezone.now() - timedelta(hours=1))
    with CaptureQueriesContext(connection) as asked:
        chosen = {client.called: client for client in choose(Selection(), world.clubroom)}
    assert len(asked) == 1
    assert {seat for seat, client in chosen.items() if client.connected} == {"A1", "A2"}
    assert {seat: client.busy for seat, client in chosen.items() if client.busy} == {"A2": "restart"}
    assert [seat for seat, client in chosen.items() if client.hold] == ["A10"]
    assert chosen["A10"].hold.startswith("match running until ")
    assert chosen["A1"].able(Verb.CYCLE)
    assert not chosen["A1"].able(Verb.WAKE)
    assert chosen["B2"].able(Verb.WAKE)


SEATS = st.lists(st.text("AB1 2-./9", max_size=6).map(str.strip), min_size=1, max_size=8)


class RowsInTheDatabase(TestCase):
    """The database's idea of a row is that of ``row_of``."""

    @given(SEATS)
    def test_a_row_has_the_seats_that_people_say_it_has(self, seats: list[str]) -> None:
        site = Site.objects.create(slug="hall", name="Hall")
        for number, seat in enumerate(seats):
            make_client(site, f"52:54:00:00:02:{number:02x}", seat=seat)
        for row in {row_of(seat) for seat in seats} - {""}:
            rows = Selection(rows=(row,)).resolve(site).values_list("seat", flat=True)
            assert sorted(rows) == sorted(seat for seat in seats if row_of(seat) == row), row
