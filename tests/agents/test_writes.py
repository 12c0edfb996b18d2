"""What clients tell of their writes: taken as findings where no rule names them, refused where it is rubbish."""

from collections.abc import Iterator
from typing import Any

import pytest
from pytest_django.fixtures import Settings

from agents import writes
from agents.models import BootSession
from images.builder.recipe import Recipe
from images.builder.volatile import Verb, parse_rules, verb_of
from images.finding_models import FindingKind, FindingSource
from images.models import ImageVersion
from tests.agents.boots import boot, make_release
from tests.agents.gateways import gateway
from tests.agents.rooms import Room, make_room
from tests.services import redis_server
from tests.world import World, make_client

GAME = {"path": "/opt/game", "files": 2, "bytes": 8192, "examples": ["/opt/game/save/1"]}


def entry(**changes: Any) -> dict[str, Any]:
    return {**GAME, **changes}


@pytest.fixture
def session(world: World) -> BootSession:
    make_release(world.gamer)
    return boot(make_client(world.clubroom))


def version_of(session: BootSession) -> ImageVersion:
    assert session.release is not None
    return session.release.version


def test_what_no_rule_names_is_a_finding_with_the_rule_it_lacks(session: BootSession) -> None:
    known = [entry(path=path, examples=[f"{path}/x"]) for path in ("/etc/new", "/var/lib/x", "/tmp")]
    assert writes.take(session, [entry(), *known]) == 1
    row = version_of(session).findings.get()
    assert (row.source, row.kind) == (FindingSource.OBSERVED, FindingKind.WRITTEN)
    assert (row.subject, row.rule, row.bytes) == ("/opt/game", "copy /opt/game", 8192)
    assert row.detail == "2 files in all, as /opt/game/save/1"
    assert list(row.clients.all()) == [session.client]


def test_what_a_rule_shares_on_purpose_is_told_without_a_rule_that_contradicts_it(session: BootSession) -> None:
    writes.take(session, [entry(path="/var/lib/dpkg", examples=["/var/lib/dpkg/lock"], files=1)])
    assert version_of(session).findings.get().rule == ""


def test_of_an_entry_only_what_no_rule_covers_is_told(world: World) -> None:
    recipe = Recipe(name="gamer", suite="bookworm", volatile=parse_rules("empty /opt/game/cache"))
    make_release(world.gamer, recipe=recipe.to_dict())
    session = boot(make_client(world.clubroom))
    writes.take(session, [entry(examples=["/opt/game/cache/x", "/opt/game/scores"])])
    assert version_of(session).findings.get().detail == "2 files in all, as /opt/game/scores"


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("/", ""),
        ("/usr", ""),
        ("/srv", "copy /srv"),
        ("/opt/game", "copy /opt/game"),
        ("/run/x", ""),
        ("/.ro/x", ""),
        ("/opt/a[1]", "copy /opt/a[[]1]"),
    ],
)
def test_no_rule_is_proposed_that_would_copy_the_system(path: str, rule: str) -> None:
    assert writes.rule_for(path) == rule


def test_a_session_whose_release_is_gone_tells_nothing(session: BootSession) -> None:
    session.release = None
    assert writes.take(session, [entry()]) == 0


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (None, "a list"),
        ({}, "a list"),
        ([entry()] * 51, "at most 50"),
        ([7], "nothing else"),
        ([entry(more=1)], "nothing else"),
        ([entry(path="opt")], "no path"),
        ([entry(path="/" + "x" * 200)], "no path"),
        ([entry(path="/x\n")], "no path"),
        ([entry(path="/opt/../etc")], "no path"),
        ([entry(examples=None)], "no examples"),
        ([entry(examples=[])], "no examples"),
        ([entry(examples=["/opt/game/x"] * 6)], "more than 5"),
        ([entry(examples=["/etc/x"])], "not in the path"),
        ([entry(files=-1)], "no count"),
        ([entry(bytes=1.5)], "no count"),
        ([entry(bytes=True)], "no count"),
    ],
)
def test_rubbish_is_refused_by_what_is_wrong_with_it(said: object, complaint: str) -> None:
    with pytest.raises(writes.BadWrites, match=complaint):
        writes.clean(said)


@pytest.mark.parametrize(
    ("path", "verb"),
    [
        ("/etc", Verb.COPY),
        ("/etc/a/b", Verb.COPY),
        ("/etc/ssl/x", Verb.SHARE),
        ("/etcetera", Verb.SHARE),
        ("/home/a/.cache/x", Verb.EMPTY),
        ("/home/a/b/.cache", Verb.SHARE),
        ("/", Verb.SHARE),
    ],
)
def test_rules_say_of_any_path_what_happens_to_it(path: str, verb: Verb) -> None:
    rules = parse_rules("copy /etc\nshare /etc/ssl\nempty /home/*/.cache\nshare /var\ncopy /var")
    assert verb_of(rules, path) is verb


@pytest.fixture
def room(transactional_db: None, settings: Settings) -> Iterator[Room]:
    with redis_server() as queue, gateway(queue.url, poll_hold=1) as gate, make_room(gate, queue.url, settings) as room:
        yield room


@pytest.mark.slow
def test_a_gateway_takes_them_from_a_daemon_alone(room: Room) -> None:
    session, visitor = room.running()
    for _ in range(2):
        reply = visitor.ask("PUT", "/agent/v1/writes", b'{"writes": [%s]}' % str(GAME).replace("'", '"').encode())
        assert reply.status == 204, reply.body
    assert version_of(BootSession.objects.get(pk=session.pk)).findings.get().subject == "/opt/game"
    assert visitor.ask("PUT", "/agent/v1/writes", b'{"writes": 7}').status == 400
    assert visitor.ask("PUT", "/agent/v1/writes", b"[" * 100).status == 400
    assert visitor.post("/agent/v1/writes", {"writes": []}).status == 405
    with room.gate.visitor("f" * 64) as stranger:
        assert stranger.ask("PUT", "/agent/v1/writes", b'{"writes": []}').status == 401
