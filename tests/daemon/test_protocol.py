"""Which envelopes are commands, and which boot plans can be read."""

import base64
import dataclasses
import json
import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.daemon import protocol
from agents.daemon.protocol import Command, Refused
from tests.daemon.gateway import Key

KEY = Key("command-1")
KEYS = {KEY.name: KEY.public}
CYCLE = {"home": "a" * 64, "home_bytes": 4096, "home_digest": "b" * 64}
COMMAND = Command(str(uuid.uuid4()), str(uuid.uuid4()), str(uuid.uuid4()), 7, "cycle", CYCLE, 1000, 2000)


def wrap(body: bytes, key: Key = KEY) -> dict[str, str]:
    return protocol.envelope(body, key.secret.sign(body), key.name)


def authenticate(wrapped: object) -> Command:
    return protocol.authenticate(wrapped, KEYS, COMMAND.client, COMMAND.boot)


def refusal(wrapped: object) -> tuple[str, str]:
    """(reason, named command) of a refusal."""
    with pytest.raises(Refused) as caught:
        authenticate(wrapped)
    return caught.value.reason, caught.value.command


def test_a_signed_command_arrives_as_it_was_sent() -> None:
    assert authenticate(wrap(protocol.encode(COMMAND))) == COMMAND


def test_an_unknown_key_is_named_as_such() -> None:
    stranger = Key("command-2")
    assert refusal(wrap(protocol.encode(COMMAND), stranger)) == ("unknown-key", COMMAND.command)


def test_another_secret_under_a_known_key_id_is_a_bad_signature() -> None:
    assert refusal(wrap(protocol.encode(COMMAND), Key(KEY.name))) == ("bad-signature", COMMAND.command)


def test_the_signature_covers_the_bytes_as_received_not_their_meaning() -> None:
    wrapped = wrap(protocol.encode(COMMAND))
    respelled = json.dumps(json.loads(base64.b64decode(wrapped["envelope"]))).encode()
    wrapped["envelope"] = base64.b64encode(respelled).decode()
    assert refusal(wrapped) == ("bad-signature", COMMAND.command)


@pytest.mark.parametrize(("field", "reason"), [("client", "wrong-client"), ("boot", "wrong-boot")])
def test_a_command_for_somebody_else_is_refused(field: str, reason: str) -> None:
    elsewhere: dict[str, Any] = {field: str(uuid.uuid4())}
    other = dataclasses.replace(COMMAND, **elsewhere)
    assert refusal(wrap(protocol.encode(other))) == (reason, COMMAND.command)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"v": None},
        {"sequence": "7"},
        {"sequence": -1},
        {"sequence": True},
        {"expires_ms": 1.5},
        {"args": []},
        {"verb": 1},
        {"more": 1},
        {"command": "x" * 65},
    ],
)
def test_a_frame_that_is_not_as_agreed_is_refused_though_well_signed(change: dict[str, Any]) -> None:
    fields = {**json.loads(protocol.encode(COMMAND)), **change}
    assert refusal(wrap(json.dumps(fields).encode()))[0] == "bad-arguments"


def test_a_frame_that_lacks_a_field_is_refused() -> None:
    fields = json.loads(protocol.encode(COMMAND))
    del fields["not_before_ms"]
    assert refusal(wrap(json.dumps(fields).encode())) == ("bad-arguments", COMMAND.command)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["envelope", "signature", "key", "x"]), inner),
    max_leaves=4,
)


@settings(deadline=None, max_examples=40)
@given(JSON)
def test_rubbish_is_refused_and_never_raises_anything_else(wrapped: object) -> None:
    assert refusal(wrapped)[0] == "bad-signature"


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_signed_rubbish_is_refused_and_never_raises_anything_else(body: bytes) -> None:
    assert refusal(wrap(body))[0] in ("bad-signature", "bad-arguments")


def test_an_envelope_too_large_is_refused_before_it_is_read() -> None:
    assert refusal(wrap(b"[" * 100_000))[0] == "bad-signature"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sequence": 6}, "old-sequence"),
        ({"sequence": 5}, "old-sequence"),
        ({"expires_ms": 1500}, "expired"),
        ({"not_before_ms": 1501}, "not-yet"),
        ({"verb": "format"}, "unknown-verb"),
        ({"args": {}}, "bad-arguments"),
        ({"args": {**CYCLE, "more": 1}}, "bad-arguments"),
        ({"args": {**CYCLE, "home": "A" * 64}}, "bad-arguments"),
        ({"args": {**CYCLE, "home_bytes": True}}, "bad-arguments"),
        ({"verb": "restart"}, "bad-arguments"),
    ],
)
def test_an_authentic_command_is_refused_for_what_it_asks_or_when(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused) as caught:
        protocol.admit(dataclasses.replace(COMMAND, **change), 6, 1500)
    assert (caught.value.reason, caught.value.command) == (reason, COMMAND.command)
    assert reason in protocol.REASONS


def test_each_verb_with_its_arguments_is_admitted() -> None:
    arguments: dict[str, dict[str, Any]] = {protocol.CYCLE: CYCLE, protocol.CAPTURE: {"most_bytes": 1}}
    for verb in protocol.VERBS:
        args = arguments.get(verb, {})
        protocol.admit(dataclasses.replace(COMMAND, verb=verb, args=args), 6, 1500)


@pytest.mark.parametrize("change", [{"verb": "format"}, {"args": {}}, {"sequence": -1}, {"client": ""}])
def test_the_server_cannot_encode_what_a_daemon_would_refuse(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not in the protocol"):
        protocol.encode(dataclasses.replace(COMMAND, **change))


def test_a_plan_reads_back_as_it_was_written() -> None:
    plan = {"protocol": "1", "name": "seat-7", "command_keys": protocol.format_keys(KEYS), "reason": ""}
    assert protocol.parse_plan(protocol.format_plan(plan)) == plan
    assert protocol.parse_keys(plan["command_keys"]) == KEYS


@pytest.mark.parametrize("value", ["a\nuid=0", "$(reboot)", "`id`", "é", "'"])
def test_a_plan_holds_nothing_that_a_shell_could_misread(value: str) -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        protocol.format_plan({"name": value})


@pytest.mark.parametrize("text", ["name", "=x", "Name=x", "name=$x", "\n"])
def test_a_line_that_is_no_pair_makes_the_plan_unreadable(text: str) -> None:
    with pytest.raises(ValueError, match="not key=value"):
        protocol.parse_plan("protocol=1\n" + text)


@pytest.mark.parametrize("value", ["", "k", "k:", ":" + "A" * 43 + "=", "k:AAAA", "k:" + "A" * 43 + "=,"])
def test_what_is_no_public_key_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        protocol.parse_keys(value)
