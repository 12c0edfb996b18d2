"""Which envelopes are commands, and which boot plans can be read."""

import base64
import dataclasses
import json
import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import speaking
from agents.daemon import protocol
from agents.daemon.protocol import Command, Refused
from tests.daemon.gateway import Key

KEY = Key("command-1")
KEYS = {KEY.name: KEY.public}
CYCLE = {"home": "a" * 64, "home_bytes": 4096, "home_digest": "b" * 64}
COMMAND = Command(str(uuid.uuid4()), str(uuid.uuid4()), str(uuid.uuid4()), 7, "cycle", CYCLE, 1000, 2000)


def wrap(body: bytes, key: Key = KEY) -> dict[str, str]:
    """Signed as its version wants it, or as the oldest where it has none."""
    try:
        version = json.loads(body)["v"]
    except (KeyError, TypeError, ValueError, RecursionError):
        version = 1
    return key.envelope(body, version if type(version) is int else 1)


def authenticate(wrapped: object, floor: int = 1) -> Command:
    return protocol.authenticate(wrapped, KEYS, COMMAND.client, COMMAND.boot, floor)


def refusal(wrapped: object) -> tuple[str, str]:
    """(reason, named command) of a refusal."""
    with pytest.raises(Refused) as caught:
        authenticate(wrapped)
    return caught.value.reason, caught.value.command


def test_a_signed_command_arrives_as_it_was_sent() -> None:
    assert authenticate(wrap(speaking.encode(COMMAND))) == COMMAND


def test_an_envelope_of_version_1_is_what_it_always_was() -> None:
    body = speaking.encode(COMMAND, 1)
    assert wrap(body) == speaking.envelope(body, KEY.secret.sign(body), KEY.name)
    fields = [(name, value) for name, value in COMMAND.__dict__.items() if name != "version"]
    assert list(json.loads(body).items()) == [("v", 1), *fields]
    assert authenticate(wrap(body)) == dataclasses.replace(COMMAND, version=1)


def test_no_version_below_the_floor_is_obeyed_however_well_it_is_signed() -> None:
    assert authenticate(wrap(speaking.encode(COMMAND)), floor=2) == COMMAND
    with pytest.raises(Refused) as caught:
        authenticate(wrap(speaking.encode(COMMAND, 1)), floor=2)
    assert (caught.value.reason, caught.value.command) == ("old-protocol", COMMAND.command)


def test_an_unknown_key_is_named_as_such() -> None:
    stranger = Key("command-2")
    assert refusal(wrap(speaking.encode(COMMAND), stranger)) == ("unknown-key", COMMAND.command)


def test_another_secret_under_a_known_key_id_is_a_bad_signature() -> None:
    assert refusal(wrap(speaking.encode(COMMAND), Key(KEY.name))) == ("bad-signature", COMMAND.command)


def test_the_signature_covers_the_bytes_as_received_not_their_meaning() -> None:
    wrapped = wrap(speaking.encode(COMMAND))
    respelled = json.dumps(json.loads(base64.b64decode(wrapped["envelope"]))).encode()
    wrapped["envelope"] = base64.b64encode(respelled).decode()
    assert refusal(wrapped) == ("bad-signature", COMMAND.command)


@pytest.mark.parametrize(("field", "reason"), [("client", "wrong-client"), ("boot", "wrong-boot")])
def test_a_command_for_somebody_else_is_refused(field: str, reason: str) -> None:
    elsewhere: dict[str, Any] = {field: str(uuid.uuid4())}
    other = dataclasses.replace(COMMAND, **elsewhere)
    assert refusal(wrap(speaking.encode(other))) == (reason, COMMAND.command)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 4},
        {"v": 0},
        {"v": True},
        {"v": "2"},
        {"v": None},
        {"version": 2},
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
    fields = {**json.loads(speaking.encode(COMMAND)), **change}
    assert refusal(wrap(json.dumps(fields).encode()))[0] == "bad-arguments"


def test_a_frame_that_lacks_a_field_is_refused() -> None:
    fields = json.loads(speaking.encode(COMMAND))
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
        ({"args": {**CYCLE, "more": 13}}, "bad-arguments"),
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


SLEEPER = {"mac": "52:54:00:12:34:56", "secure": ""}
ARGUMENTS: dict[str, dict[str, Any]] = {
    protocol.RESTART: {},
    protocol.POWEROFF: {},
    protocol.CYCLE: CYCLE,
    protocol.CAPTURE: {"most_bytes": 1},
    protocol.MESSAGE: {"text": "Das Spiel beginnt: kommt herein, große Halle!", "seconds": 60},
    protocol.RELAY: {"macs": [SLEEPER, {"mac": "52:54:00:AB:CD:EF", "secure": "00:01:02:03:04:05"}], "packets": 3},
}
WARNING = {"warn_s": 600, "text": "The hall closes.", "more": 2, "force": True}


def admit(verb: str, args: object, version: int = protocol.VERSION) -> str:
    """The reason of the refusal, '' where there is none."""
    changes: dict[str, Any] = {"verb": verb, "args": args, "version": version}
    try:
        protocol.admit(dataclasses.replace(COMMAND, **changes), 6, 1500)
    except Refused as refusal:
        return refusal.reason
    return ""


def test_each_verb_with_its_arguments_is_admitted() -> None:
    assert protocol.VERBS[3] == protocol.VERBS[2]
    assert [admit(verb, ARGUMENTS[verb]) for verb in protocol.VERBS[2]] == [""] * 6
    assert [admit(verb, ARGUMENTS[verb], 1) for verb in protocol.VERBS[1]] == [""] * 4


@pytest.mark.parametrize("verb", [protocol.RESTART, protocol.POWEROFF, protocol.CYCLE])
def test_a_user_may_be_warned_by_any_of_what_belongs_to_a_warning(verb: str) -> None:
    for chosen in ({}, *({name: value} for name, value in WARNING.items()), WARNING):
        assert admit(verb, {**ARGUMENTS[verb], **chosen}) == ""
        assert admit(verb, {**ARGUMENTS[verb], **chosen}, 1) == ("bad-arguments" if chosen else "")


def test_a_capture_may_be_forced_but_nobody_is_warned_of_it() -> None:
    assert admit(protocol.CAPTURE, {"most_bytes": 1, "force": True}) == ""
    assert admit(protocol.CAPTURE, {"most_bytes": 1, "warn_s": 60}) == "bad-arguments"


@pytest.mark.parametrize("verb", [protocol.MESSAGE, protocol.RELAY])
def test_version_1_knows_no_messages_and_no_relays(verb: str) -> None:
    assert admit(verb, ARGUMENTS[verb], 1) == "unknown-verb"
    with pytest.raises(ValueError, match="version 1"):
        speaking.encode(dataclasses.replace(COMMAND, verb=verb, args=ARGUMENTS[verb]), 1)


@pytest.mark.parametrize(
    ("verb", "change"),
    [
        (protocol.RESTART, {"warn_s": 0}),
        (protocol.RESTART, {"warn_s": 3601}),
        (protocol.RESTART, {"warn_s": True}),
        (protocol.RESTART, {"warn_s": 1.5}),
        (protocol.RESTART, {"more": 13}),
        (protocol.RESTART, {"force": False}),
        (protocol.RESTART, {"force": 1}),
        (protocol.RESTART, {"text": ""}),
        (protocol.RESTART, {"seconds": 1}),
        (protocol.MESSAGE, {"text": "x" * 301}),
        (protocol.MESSAGE, {"text": "two\nlines"}),
        (protocol.MESSAGE, {"text": "\x1b[2J"}),
        (protocol.MESSAGE, {"text": "\x9b2J"}),
        (protocol.MESSAGE, {"text": "\u202etxt.exe"}),
        (protocol.MESSAGE, {"text": "\ud800"}),
        (protocol.MESSAGE, {"seconds": 0}),
        (protocol.MESSAGE, {"force": True}),
        (protocol.RELAY, {"macs": []}),
        (protocol.RELAY, {"macs": [SLEEPER] * 33}),
        (protocol.RELAY, {"macs": ["52:54:00:12:34:56"]}),
        (protocol.RELAY, {"macs": [{"mac": "52:54:00:12:34:56"}]}),
        (protocol.RELAY, {"macs": [{**SLEEPER, "mac": "52:54:00:12:34:5"}]}),
        (protocol.RELAY, {"macs": [{**SLEEPER, "secure": "secret"}]}),
        (protocol.RELAY, {"packets": 11}),
    ],
)
def test_an_argument_out_of_its_bounds_is_refused(verb: str, change: dict[str, Any]) -> None:
    assert admit(verb, {**ARGUMENTS[verb], **change}) == "bad-arguments"


def test_the_longest_commands_fit_into_an_envelope() -> None:
    macs = [{"mac": "52:54:00:12:34:56", "secure": "00:01:02:03:04:05"}] * 32
    longest = {protocol.RELAY: {"macs": macs, "packets": 10}, protocol.MESSAGE: {"text": "🎮" * 300, "seconds": 3600}}
    for verb, args in longest.items():
        command = dataclasses.replace(COMMAND, verb=verb, args=args)
        assert authenticate(wrap(speaking.encode(command))) == command


@pytest.mark.parametrize("change", [{"verb": "format"}, {"args": {}}, {"sequence": -1}, {"client": ""}])
def test_the_server_cannot_encode_what_a_daemon_would_refuse(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not in the protocol"):
        speaking.encode(dataclasses.replace(COMMAND, **change))


def test_a_plan_reads_back_as_it_was_written() -> None:
    plan = {"protocol": "1", "name": "seat-7", "command_keys": speaking.format_keys(KEYS), "reason": ""}
    assert protocol.parse_plan(speaking.format_plan(plan)) == plan
    assert protocol.parse_keys(plan["command_keys"]) == KEYS


@pytest.mark.parametrize("value", ["a\nuid=0", "$(reboot)", "`id`", "é", "'"])
def test_a_plan_holds_nothing_that_a_shell_could_misread(value: str) -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        speaking.format_plan({"name": value})


@pytest.mark.parametrize("text", ["name", "=x", "Name=x", "name=$x", "\n"])
def test_a_line_that_is_no_pair_makes_the_plan_unreadable(text: str) -> None:
    with pytest.raises(ValueError, match="not key=value"):
        protocol.parse_plan("protocol=1\n" + text)


@pytest.mark.parametrize("value", ["", "k", "k:", ":" + "A" * 43 + "=", "k:AAAA", "k:" + "A" * 43 + "=,"])
def test_what_is_no_public_key_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        protocol.parse_keys(value)
