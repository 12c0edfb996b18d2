"""Rubbish at every endpoint of the gateway: it is refused in words, never with 5xx, and the gateway lives on."""

import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_django.fixtures import Settings

from agents.models import Command, CommandStatus
from fleet.models import AuditEntry
from tests.agents.boots import FACTS
from tests.agents.gateways import Gateway, Visitor, gateway
from tests.agents.rooms import Room, make_room
from tests.services import Service, redis_server

pytestmark = pytest.mark.slow
CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()
EMPTY = hashlib.sha256(b"").hexdigest()


def put(store: Path, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    path = store / "objects" / digest[:2] / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def served(django_db_setup: None) -> Iterator[tuple[Gateway, Service]]:
    with redis_server() as queue, gateway(queue.url, poll_hold=1) as gate:
        put(gate.store, CONTENT)
        put(gate.store, b"")
        yield gate, queue


@pytest.fixture
def room(transactional_db: None, served: tuple[Gateway, Service], settings: Settings) -> Iterator[Room]:
    with make_room(served[0], served[1].url, settings) as room:
        yield room


@pytest.fixture
def visitor(room: Room) -> Iterator[Visitor]:
    """A daemon with an open session; afterwards the gateway serves as before."""
    _, visitor = room.running()
    yield visitor
    with room.gate.visitor(visitor.bearer) as other:
        assert other.get("/boot/v1/start.ipxe").status == 200
        assert len(other.report(GOOD_REPORT["command"], "failed").json["rejected"]) == 1


def raw(gate: Gateway, request: bytes, seconds: float = 3) -> bytes:
    """All that comes back for these bytes until the gateway closes, or for ``seconds``."""
    with socket.create_connection(("127.0.0.1", gate.port), seconds) as wire:
        wire.settimeout(seconds)
        came = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            wire.sendall(request)
            while chunk := wire.recv(65536):
                came += chunk
        return came


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


# --- paths, methods, queries ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/boot/v1/start.ipxe", 405),
        ("GET", "/boot/v1/plan", 405),
        ("DELETE", "/agent/v1/next", 405),
        ("PUT", "/agent/v1/reports", 405),
        ("GET", "/agent/v1/bye", 405),
        ("POST", f"/store/{DIGEST}", 405),
        ("DELETE", f"/store/{DIGEST}", 405),
        ("OPTIONS", "*", 404),
        ("GET", "/", 404),
        ("GET", "/agent/v1/next/", 404),
        ("GET", "/admin/", 404),
        ("GET", "//boot/v1/start.ipxe", 404),
        ("GET", "/%00", 404),
        ("GET", "/%ff%fe", 404),
        ("GET", "/" + "x" * 20_000, 404),
        ("GET", "/boot/v1/client.ipxe", 400),
        ("GET", "/boot/v1/client.ipxe?mac=%00", 400),
        ("GET", "/boot/v1/client.ipxe?mac=52:54:00:00:00:77&site=%00", 404),
        ("GET", "/boot/v1/client.ipxe?mac=52:54:00:00:00:77&site=nowhere", 404),
        ("GET", "/boot/v1/client.ipxe?mac=52:54:00:00:00:77&site=clubroom&product=%00%ff%ed%a0%80&serial=%0a", 200),
        ("GET", "/boot/v1/client.ipxe?" + "&".join(f"a{n}=1" for n in range(21)), 400),
        ("GET", "/boot/v1/start.ipxe?" + "&" * 5000, 400),
        ("GET", "/agent/v1/next?cursor=-1&state=ready", 400),
        ("GET", "/agent/v1/next?cursor=x&state=ready", 400),
        ("GET", "/agent/v1/next?cursor=1e3&state=ready", 400),
        ("GET", "/agent/v1/next?cursor=" + "9" * 17 + "&state=ready", 400),
        ("GET", "/agent/v1/next?cursor=%C2%B2&state=ready", 400),
        ("GET", "/agent/v1/next?cursor=0&state=asleep", 400),
        ("GET", "/agent/v1/next?cursor=0", 400),
        ("GET", "/agent/v1/next?cursor=" + "9" * 16 + "&state=ready", 204),
    ],
)
def test_what_there_is_not_is_refused(visitor: Visitor, method: str, path: str, status: int) -> None:
    reply = visitor.ask(method, path)
    assert reply.status == status, reply.body
    if status == 405:
        assert reply.headers["Allow"] in ("GET", "POST", "GET, HEAD")


@pytest.mark.parametrize(
    "path",
    [
        "/store/",
        "/store/..",
        "/store/../keys/session.key",
        "/store/../../etc/passwd",
        "/store/%2e%2e/%2e%2e/etc/passwd",
        "/store/..%2f..%2fetc%2fpasswd",
        "/store//etc/passwd",
        f"/store/{DIGEST}/",
        f"/store/{DIGEST}%00",
        f"/store/{DIGEST}%0a",
        f"/store/{DIGEST.upper()}",
        f"/store/./{DIGEST}",
        f"/store/{DIGEST[:2]}/{DIGEST}",
        "/store/" + "0" * 64,
        "/store/" + "g" * 64,
        "/../keys/session.key",
    ],
)
def test_the_store_has_artefacts_and_nothing_else(room: Room, path: str) -> None:
    answer = raw(room.gate, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert statuses(answer) == [404]
    assert b"root:" not in answer
    assert b"session-" not in answer


# --- bodies -----------------------------------------------------------------------------------------------------------

NONSENSE = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"x"',
    b"7",
    b"\xff\xfe",
    b"{}" * 2,
    b"[" * 60_000,
    b'{"a":' * 10_000,
    b'{"reports": ' + b"9" * 5000 + b"}",
    b"\0",
    b"NaN",
]


@pytest.mark.parametrize("body", NONSENSE, ids=range(len(NONSENSE)))
def test_what_is_no_json_object_is_refused(visitor: Visitor, body: bytes) -> None:
    for path in ("session", "reports", "bye"):
        assert visitor.ask("POST", f"/agent/v1/{path}", body).status == 400
    for path in ("plan", "trouble"):
        assert visitor.ask("POST", f"/boot/v1/{path}", body).status in (400, 403)


GOOD_REPORT = {
    "command": "12345678-1234-1234-1234-123456789abc",
    "state": "failed",
    "reason": "",
    "at_ms": 1,
    "result": {},
}


@pytest.mark.parametrize(
    "change",
    [
        {"command": 7},
        {"command": "not-one"},
        {"command": None},
        {"command": "12345678-1234-1234-1234-123456789ABC"},
        {"state": "done"},
        {"state": ["failed"]},
        {"state": {}},
        {"reason": None},
        {"reason": "x" * 301},
        {"reason": "\0"},
        {"reason": "\ud800"},
        {"result": []},
        {"result": "x"},
    ],
)
def test_a_report_of_another_form_is_refused_with_all_its_batch(visitor: Visitor, change: dict[str, object]) -> None:
    reply = visitor.post("/agent/v1/reports", {"reports": [GOOD_REPORT, {**GOOD_REPORT, **change}]})
    assert reply.status == 400
    assert not AuditEntry.objects.filter(action="report.rejected").exists()


@pytest.mark.parametrize("reports", [None, {}, [], "x", [GOOD_REPORT] * 51, [None]])
def test_reports_are_a_list_of_one_to_fifty(visitor: Visitor, reports: object) -> None:
    assert visitor.post("/agent/v1/reports", {"reports": reports}).status == 400
    assert len(visitor.post("/agent/v1/reports", {"reports": [GOOD_REPORT] * 50}).json["rejected"]) == 50


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"protocol": 99}, 400),
        ({"protocol": "1"}, 400),
        ({"nonce": ""}, 400),
        ({"nonce": "x" * 65}, 400),
        ({"nonce": "a b c d e f"}, 400),
        ({"nonce": 7}, 400),
        ({"boot_id": 7}, 400),
        ({"boot_id": "\ud800\0"}, 409),
        ({"facts": None}, 400),
        ({"facts": {**FACTS, "product": "\ud800"}}, 400),
        ({"facts": {**FACTS, "cpus": -1}}, 400),
    ],
)
def test_a_session_of_another_form_is_refused(room: Room, change: dict[str, object], status: int) -> None:
    session, visitor = room.boot(room.client())
    body = {"protocol": 1, "nonce": "n" * 32, "boot_id": str(session.boot_id), "facts": FACTS}
    assert visitor.post("/agent/v1/session", {**body, **change}).status == status
    assert visitor.post("/agent/v1/session", body).status == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def test_no_json_at_all_makes_it_trip(room: Room) -> None:
    session, visitor = room.running()
    base: dict[str, dict[str, object]] = {
        "session": {"protocol": 1, "nonce": "n" * 32, "boot_id": str(session.boot_id), "facts": FACTS},
        "reports": {"reports": [GOOD_REPORT]},
    }

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(["session", "reports", "facts", "report", "result"]), st.text(max_size=8), JSON)
    def check(where: str, name: str, value: object) -> None:
        names = {
            "session": ["nonce", "boot_id", "facts", "protocol"],
            "reports": ["reports"],
            "facts": list(FACTS),
            "report": list(GOOD_REPORT),
            "result": ["after", "phases_ms", "files", "session"],
        }
        body = json.loads(json.dumps(base["session" if where in ("session", "facts") else "reports"]))
        target = {"session": body, "reports": body, "facts": body.get("facts")}.get(where)
        if target is None:
            target = body["reports"][0] if where == "report" else body["reports"][0]["result"]
        target[names[where][len(name) % len(names[where])]] = value
        path = "session" if where in ("session", "facts") else "reports"
        assert visitor.post(f"/agent/v1/{path}", body).status in (200, 400, 409, 413)

    check()


def test_a_body_larger_than_the_limit_is_refused_however_it_comes(room: Room, visitor: Visitor) -> None:
    assert visitor.ask("POST", "/agent/v1/bye", b" " * (64 * 1024 + 1)).status == 413
    head = b"POST /boot/v1/plan HTTP/1.1\r\nHost: x\r\n"
    assert statuses(raw(room.gate, head + b"Content-Length: 99999999999\r\n\r\n" + b"x" * 70_000, 0.5))[0] == 413
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    assert statuses(raw(room.gate, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 3, 0.5))[0] == 413


@pytest.mark.parametrize(
    "request_head",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        b"Content-Length: 4\r\nContent-Length: 40\r\n",
        b"Content-Length: -4\r\n",
        b"Content-Length: +4\r\n",
        b"Content-Length: 4, 4\r\n",
        b"Content-Length: 0x4\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Content-Length: 4\r\n Transfer-Encoding: chunked\r\n",
    ],
)
def test_a_second_request_cannot_be_smuggled_in_the_body_of_a_first(room: Room, request_head: bytes) -> None:
    session, visitor = room.running()
    inner = b"POST /agent/v1/bye HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + visitor.bearer.encode()
    body = b"0\r\n\r\n" + inner + b"\r\nContent-Length: 2\r\n\r\n{}"
    answer = raw(room.gate, b"POST /boot/v1/plan HTTP/1.1\r\nHost: x\r\n" + request_head + b"\r\n" + body, 0.5)
    got = statuses(answer)
    assert all(status < 500 for status in got), answer
    assert len(got) <= 1, "one request, whatever it says of its length"
    session.refresh_from_db()
    assert session.status == "open"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: \0\r\n\r\n",
        b"GET / HTTP/1.1\r\n: empty\r\n\r\n",
        b"GET http://elsewhere/ HTTP/1.1\r\nHost: elsewhere\r\nConnection: close\r\n\r\n",
        b"GET /agent/v1/next HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /boot/v1/plan HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /boot/v1/plan HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
    ],
    ids=range(12),
)
def test_bytes_that_are_no_request_do_it_no_harm(room: Room, visitor: Visitor, request_bytes: bytes) -> None:
    assert all(status < 500 for status in statuses(raw(room.gate, request_bytes, 0.5)))


@pytest.mark.once
def test_who_sends_slowly_is_cut_off_and_keeps_nobody_waiting(room: Room, visitor: Visitor) -> None:
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(socket.create_connection(("127.0.0.1", room.gate.port), 15)) for _ in range(50)]
        for wire in wires:
            wire.sendall(b"POST /boot/v1/plan HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\ntoken=")
        start = time.monotonic()
        assert visitor.get("/boot/v1/start.ipxe").status == 200
        assert time.monotonic() - start < 8  # they are cut off after 10
        assert statuses(wires[0].recv(4096)) == [408]
        assert time.monotonic() - start < 60


def test_too_much_at_once_is_told_when_to_come_again(room: Room, visitor: Visitor) -> None:
    request = b"POST /boot/v1/trouble HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n\xff"
    answer = raw(room.gate, request * 500, 1)
    got = statuses(answer)
    assert set(got) == {400, 429}
    assert got.count(400) >= 200
    refused = answer[answer.index(b"HTTP/1.1 429") :].split(b"\r\n\r\n")[0].lower()
    assert b"\r\nretry-after: 1" in refused
    assert visitor.get("/boot/v1/start.ipxe").status == 200, "the other routes have limits of their own"


# --- artefacts --------------------------------------------------------------------------------------------------------


def test_an_artefact_is_served_whole_or_in_part(room: Room) -> None:
    with room.gate.visitor() as visitor:
        whole = visitor.get(f"/store/{DIGEST}")
        assert (whole.status, whole.body) == (200, CONTENT)
        assert whole.headers["ETag"] == f'"{DIGEST}"'
        assert whole.headers["Accept-Ranges"] == "bytes"
        for asked, first, last in (
            ("0-0", 0, 0),
            ("1000-1999", 1000, 1999),
            ("1048000-", 1_048_000, 1_048_575),
            ("-10", 1_048_566, 1_048_575),
            ("-9999999", 0, 1_048_575),
            ("1048575-9999999", 1_048_575, 1_048_575),
        ):
            part = visitor.get(f"/store/{DIGEST}", Range=f"bytes={asked}")
            assert (part.status, part.body) == (206, CONTENT[first : last + 1])
            assert part.headers["Content-Range"] == f"bytes {first}-{last}/{len(CONTENT)}"


@pytest.mark.parametrize(
    "asked",
    [
        *("bytes=", "bytes=-", "bytes=-0", "bytes=1048576-", "bytes=5-2", "bytes=0-1,5-6", "bytes=a-b", "items=0-1"),
        *("bytes=" + "9" * 5000 + "-", "bytes=-" + "9" * 5000, "bytes=\xb2-"),
    ],
)
def test_a_range_that_cannot_be_had_says_how_much_there_is(room: Room, asked: str) -> None:
    with room.gate.visitor() as visitor:
        reply = visitor.get(f"/store/{DIGEST}", Range=asked)
        assert (reply.status, reply.headers["Content-Range"]) == (416, f"bytes */{len(CONTENT)}")


def test_a_broken_fetch_goes_on_where_it_stopped_but_not_with_another_artefact(room: Room) -> None:
    with room.gate.visitor() as visitor:
        visitor.send("GET", f"/store/{DIGEST}")
        begun = visitor.connection.getresponse().read(300_000)
    with room.gate.visitor() as visitor:
        rest = visitor.get(f"/store/{DIGEST}", Range=f"bytes={len(begun)}-", If_Range=f'"{DIGEST}"')
        assert rest.status == 206
        assert begun + rest.body == CONTENT
        other = visitor.get(f"/store/{DIGEST}", Range="bytes=5-", If_Range=f'"{EMPTY}"')
        assert (other.status, other.body) == (200, CONTENT)


def test_head_and_a_known_etag_cost_no_body(room: Room) -> None:
    with room.gate.visitor() as visitor:
        head = visitor.ask("HEAD", f"/store/{DIGEST}")
        assert (head.status, head.headers["Content-Length"], head.body) == (200, str(len(CONTENT)), b"")
        known = visitor.get(f"/store/{DIGEST}", If_None_Match=f'"{DIGEST}"')
        assert (known.status, known.body) == (304, b"")
        assert visitor.get(f"/store/{DIGEST}", If_None_Match=f'"{EMPTY}"').status == 200
        assert visitor.ask("HEAD", "/store/" + "0" * 64).status == 404


def test_an_empty_artefact_is_one(room: Room) -> None:
    with room.gate.visitor() as visitor:
        assert (visitor.get(f"/store/{EMPTY}").status, visitor.get(f"/store/{EMPTY}").body) == (200, b"")
        assert visitor.get(f"/store/{EMPTY}", Range="bytes=0-").status == 416


def test_who_breaks_off_keeps_nobody_from_the_store(room: Room) -> None:
    for _ in range(20):
        with room.gate.visitor() as visitor:
            visitor.send("GET", f"/store/{DIGEST}")
            visitor.connection.getresponse().read(10)
    with room.gate.visitor() as visitor:
        assert visitor.get(f"/store/{DIGEST}").body == CONTENT


def test_a_report_with_rubbish_in_its_result_ends_the_command_without_it(room: Room) -> None:
    session, visitor = room.running()
    command = room.send(session)
    visitor.report(command.pk, "accepted")
    reply = visitor.report(command.pk, "failed", "no power", {"files": "x" * 9000, "after": ["\ud800"], "\0": None})
    assert reply.json["accepted"] == [str(command.pk)]
    ended = Command.objects.get(pk=command.pk)
    assert (ended.status, ended.reason, ended.result) == (CommandStatus.FAILED, "no power", {"phases_ms": {}})
