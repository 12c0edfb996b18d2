"""Rows made by one statement: like a pattern, from values or from a query, and those that are there already left alone."""

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models import F, Value
from django.db.models.functions import Concat
from django.test.utils import CaptureQueriesContext

from fleet.models import Client, Tag
from fleet.rows import insert_rows
from tests.world import World, make_client


def test_values_become_rows_like_the_pattern_in_their_order_by_one_statement(world: World) -> None:
    names = [f"tag-{number}" for number in range(50, 0, -1)]
    with CaptureQueriesContext(connection) as asked:
        assert insert_rows(Tag(site=world.clubroom), ["name"], ((name,) for name in names)) == 50
    assert len(asked) == 1
    assert list(Tag.objects.filter(site=world.clubroom).order_by("pk").values_list("name", flat=True)) == names


def test_what_a_pattern_does_not_say_has_the_fields_default(world: World) -> None:
    odd = "a'b\"c%s ü"
    rows = [("00000000-0000-0000-0000-00000000000a", "52:54:00:00:00:0a", odd)]
    assert insert_rows(Client(site=world.clubroom, name="pc-a"), ["id", "mac", "seat"], rows) == 1
    client = Client.objects.get()
    assert (str(client.pk)[-1], client.mac, client.seat, client.name) == ("a", "52:54:00:00:00:0a", odd, "pc-a")
    assert (client.admission, client.adapters, client.sequence, client.last_seen) == ("pending", [], 0, None)
    assert client.since is not None


def test_a_query_gives_rows_too(world: World) -> None:
    for number in (1, 2, 3):
        make_client(world.clubroom, f"52:54:00:00:00:0{number}")
    names = Client.objects.filter(seat__lt="A3").values_list(Concat(F("name"), Value("-tag")))
    assert insert_rows(Tag(site=world.school), ["name"], names) == 2
    assert set(Tag.objects.values_list("site__slug", "name")) == {("school", "pc-01-tag"), ("school", "pc-02-tag")}


def test_what_is_there_already_is_left_alone_and_nothing_else_is_forgiven(world: World) -> None:
    Tag.objects.create(site=world.clubroom, name="stage")
    assert insert_rows(Tag(site=world.clubroom), ["name"], [("stage",), ("loud",), ("loud",)]) == 1
    assert Tag.objects.count() == 2
    assert insert_rows(Tag(site=world.clubroom), ["name"], []) == 0
    with pytest.raises(IntegrityError), transaction.atomic():
        insert_rows(Client(site=world.clubroom, name="x", admission="nonsense"), ["mac"], [("52:54:00:00:00:01",)])
