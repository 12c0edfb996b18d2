"""What server and client say to each other (docs/protocol.md): both import this file, neither copies it."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from . import ed25519

VERSION = 3  # of what daemon and server say; a server speaks to each session the version that it knows
TREES = 3  # the version from which on a signature is for a group of envelopes
PLAN_VERSION = 1  # of what the initrd is told: its conversation is another, and older
RESTART, POWEROFF, CYCLE, CAPTURE, MESSAGE, RELAY = "restart", "poweroff", "cycle", "capture", "message", "wake-relay"
STATES = BOOTING, READY, IN_USE, CYCLING = "booting", "ready", "in-use", "cycling"
REPORTS = ACCEPTED, SUCCEEDED, FAILED, REFUSED = "accepted", "succeeded", "failed", "refused"
REASONS = (
    "bad-signature",  # or no envelope at all
    "unknown-key",
    "wrong-client",
    "wrong-boot",
    "old-sequence",
    "expired",
    "not-yet",
    "unknown-verb",
    "bad-arguments",
    "busy",  # another command is being carried out, or the user is warned of one
    "cancelled",  # the server did not take the acceptance
    "held",  # by the user, and the command is not forced
    "old-protocol",  # older than the signed boot plan says that the server speaks
)
ENVELOPE_BYTES = 8192  # an honest one has less than 5,000
MORE_S = 300  # what a user who is warned may ask for, as often as `more` says

SHA256 = re.compile(r"[0-9a-f]{64}").fullmatch
NAME = re.compile(r"[0-9A-Za-z._:-]{1,64}").fullmatch
MAC = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}").fullmatch
PLAN_LINE = re.compile(r"([a-z_]+)=([A-Za-z0-9._:/+=,@ -]*)").fullmatch


def digest(value: object) -> bool:
    return isinstance(value, str) and SHA256(value) is not None


def count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def name(value: object) -> bool:
    return isinstance(value, str) and NAME(value) is not None


def between(low: int, high: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and low <= value <= high


def line(value: object) -> bool:
    """Text for a screen: printable, so that it can neither end its line nor be an order to a terminal."""
    return isinstance(value, str) and 1 <= len(value) <= 300 and value.isprintable()


def sleepers(value: object) -> bool:
    """PCs to wake by their MAC, `secure` the password of six bytes that some network cards ask for."""
    return isinstance(value, list) and 1 <= len(value) <= 32 and all(good(one, SLEEPER) for one in value)


def mac(value: object) -> bool:
    return isinstance(value, str) and MAC(value) is not None


SLEEPER = {"mac": mac, "secure": lambda value: value == "" or mac(value)}
# What each verb takes, and the test that each argument must pass: all of NEEDS, any of MAY, and nothing else.
NEEDS: dict[str, dict[str, Any]] = {
    RESTART: {},
    POWEROFF: {},
    CYCLE: {"home": digest, "home_bytes": count, "home_digest": digest},
    CAPTURE: {"most_bytes": count},
    MESSAGE: {"text": line, "seconds": between(1, 3600)},
    RELAY: {"macs": sleepers, "packets": between(1, 10)},
}
FORCE = {"force": lambda value: value is True}
WARNED = {"warn_s": between(1, 3600), "text": line, "more": between(1, 12), **FORCE}
MAY: dict[str, dict[str, Any]] = {RESTART: WARNED, POWEROFF: WARNED, CYCLE: WARNED, CAPTURE: FORCE}
VERBS = {1: (RESTART, POWEROFF, CYCLE, CAPTURE), 2: tuple(NEEDS), 3: tuple(NEEDS)}  # by version
FRAME = {"command": name, "client": name, "boot": name, "sequence": count, "verb": name}
FRAME |= {"args": lambda value: isinstance(value, dict), "not_before_ms": count, "expires_ms": count}


class Refused(Exception):
    """A command that must not be carried out: `reason` is one of REASONS, `command` its id or ''."""

    def __init__(self, reason: str, command: str = "") -> None:
        super().__init__(reason)
        self.reason, self.command = reason, command


@dataclass(frozen=True)
class Command:
    """One verb for one client in one boot. Times are milliseconds since 1970 by the server's clock."""

    command: str
    client: str
    boot: str
    sequence: int
    verb: str
    args: dict[str, Any]
    not_before_ms: int
    expires_ms: int
    version: int = VERSION  # of the envelope that it came in


def good(value: object, tests: Mapping[str, Any]) -> bool:
    """Whether `value` is an object with exactly these keys, each passing its test."""
    return isinstance(value, dict) and value.keys() == tests.keys() and all(tests[k](value[k]) for k in tests)


def fits(verb: str, args: Mapping[str, Any], version: int) -> bool:
    """Whether a verb takes exactly these arguments, in that version of the protocol."""
    may = MAY.get(verb, {}) if version > 1 else {}
    return verb in VERBS[version] and good(args, {**NEEDS[verb], **{k: may[k] for k in may if k in args}})


TOP = b"fleet commands 3\n"  # before the hash that is signed, so that it is no envelope: those begin with a brace


def top(body: bytes, way: bytes) -> bytes:
    """The top of the hash tree (RFC 9162, 2.1) over a group of envelopes of which `body` is one.

    `way` leads up to it: for each step a byte, 1 where the other half comes after ours, else 0, and the 32 bytes of its hash.
    """
    node = sha256(b"\0" + body).digest()
    for at in range(0, len(way), 33):
        other = way[at + 1 : at + 33]
        node = sha256(b"\1" + (node + other if way[at] else other + node)).digest()
    return node


Verify = Callable[[bytes, bytes, bytes], bool]  # of a public key, a message and its signature


def authenticate(
    wrapped: object, keys: Mapping[str, bytes], client: str, boot: str, floor: int = 1, verify: Verify = ed25519.verify
) -> Command:
    """The command of an envelope, proved to be meant for this client in this boot; else Refused.

    `floor` is the oldest version to obey: whoever has an old envelope, or a server that was made to write one, gets nothing done.
    `verify` is there for who plays ten thousand clients at once, with a library that a client has not.
    """
    try:
        if not isinstance(wrapped, dict) or len(wrapped["envelope"] + wrapped["signature"]) > ENVELOPE_BYTES:
            raise Refused("bad-signature")
        body = b64decode(wrapped["envelope"], validate=True)
        signature = b64decode(wrapped["signature"], validate=True)
        fields = json.loads(body.decode())
        claimed = fields["command"] if name(fields["command"]) else ""
    except (KeyError, TypeError, ValueError, RecursionError):
        raise Refused("bad-signature") from None
    public = keys.get(str(wrapped.get("key")))
    if public is None:
        raise Refused("unknown-key", claimed)
    version = fields.pop("v", None)
    if type(version) is int and version >= TREES:
        body, signature = TOP + top(body, signature[64:]), signature[:64]
    if not verify(public, body, signature):
        raise Refused("bad-signature", claimed)
    if type(version) is not int or version not in VERBS or not good(fields, FRAME):
        raise Refused("bad-arguments", claimed)
    if version < floor:
        raise Refused("old-protocol", claimed)
    if fields["client"] != client:
        raise Refused("wrong-client", claimed)
    if fields["boot"] != boot:
        raise Refused("wrong-boot", claimed)
    return Command(**fields, version=version)


def admit(command: Command, last_sequence: int, now_ms: int) -> None:
    """Refused, unless an authentic command is new, in its time, and one of ours."""
    for reason, wrong in (
        ("old-sequence", command.sequence <= last_sequence),
        ("expired", now_ms >= command.expires_ms),
        ("not-yet", now_ms < command.not_before_ms),
        ("unknown-verb", command.verb not in VERBS[command.version]),
        ("bad-arguments", not fits(command.verb, command.args, command.version)),
    ):
        if wrong:
            raise Refused(reason, command.command)


def report(command: str, state: str, at_ms: int, reason: str, result: Mapping[str, object]) -> dict[str, Any]:
    """What became of a command; `at_ms` is when that was by the server's clock, not when it is sent."""
    return {"command": command, "state": state, "reason": reason, "at_ms": at_ms, "result": dict(result)}


def parse_plan(text: str) -> dict[str, str]:
    """A boot plan by key; ValueError names the line that is none."""
    matches = {line: PLAN_LINE(line) for line in text.splitlines()}
    for line, match in matches.items():
        if not match:
            raise ValueError(f"The boot plan has a line that is not key=value: {line[:80]!r}.")
    return {match[1]: match[2] for match in matches.values() if match}


def parse_keys(value: str) -> dict[str, bytes]:
    """Public keys by id, from `id:base64,…` of a plan or an answer; ValueError for a key that is not 32 bytes of base64."""
    pairs = (part.partition(":") for part in value.split(","))
    keys = {key: b64decode(encoded, validate=True) for key, _, encoded in pairs}
    if not all(key and len(public) == 32 for key, public in keys.items()):
        raise ValueError(f"These are not Ed25519 public keys: {value[:160]!r}.")
    return keys
