"""What server and client say to each other (docs/protocol.md): both import this file, neither copies it."""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from . import ed25519

VERSION = 1
RESTART, POWEROFF, CYCLE, CAPTURE = "restart", "poweroff", "cycle", "capture"
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
    "busy",  # a cycle or a capture runs
    "cancelled",  # the server did not take the acceptance
)
ENVELOPE_BYTES = 8192  # an honest one has less than 1,000

SHA256 = re.compile(r"[0-9a-f]{64}").fullmatch
NAME = re.compile(r"[0-9A-Za-z._:-]{1,64}").fullmatch
PLAN_LINE = re.compile(r"([a-z_]+)=([A-Za-z0-9._:/+=,@ -]*)").fullmatch


def digest(value: object) -> bool:
    return isinstance(value, str) and SHA256(value) is not None


def count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def name(value: object) -> bool:
    return isinstance(value, str) and NAME(value) is not None


# What each verb takes, all of it and nothing else, and the test that each argument must pass.
VERBS: dict[str, dict[str, Any]] = {
    RESTART: {},
    POWEROFF: {},
    CYCLE: {"home": digest, "home_bytes": count, "home_digest": digest},
    CAPTURE: {"most_bytes": count},
}
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


def good(value: object, tests: Mapping[str, Any]) -> bool:
    """Whether `value` is an object with exactly these keys, each passing its test."""
    return isinstance(value, dict) and value.keys() == tests.keys() and all(tests[k](value[k]) for k in tests)


def encode(command: Command) -> bytes:
    """The bytes to sign; ValueError for a command that no daemon would take."""
    if not good(asdict(command), FRAME) or not good(command.args, VERBS.get(command.verb, FRAME)):
        raise ValueError(f"{command} is not in the protocol.")
    return json.dumps({"v": VERSION, **asdict(command)}, separators=(",", ":")).encode()


def envelope(body: bytes, signature: bytes, key: str) -> dict[str, str]:
    """The signed bytes as they travel."""
    return {"envelope": b64encode(body).decode(), "signature": b64encode(signature).decode(), "key": key}


def authenticate(wrapped: object, keys: Mapping[str, bytes], client: str, boot: str) -> Command:
    """The command of an envelope, proved to be meant for this client in this boot; else Refused."""
    try:
        if not isinstance(wrapped, dict) or len(wrapped["envelope"]) > ENVELOPE_BYTES:
            raise Refused("bad-signature")
        body = b64decode(wrapped["envelope"], validate=True)
        signature = b64decode(wrapped["signature"], validate=True)
        fields = json.loads(body)
        claimed = fields["command"] if name(fields["command"]) else ""
    except (KeyError, TypeError, ValueError, RecursionError):
        raise Refused("bad-signature") from None
    public = keys.get(str(wrapped.get("key")))
    if public is None:
        raise Refused("unknown-key", claimed)
    if not ed25519.verify(public, body, signature):
        raise Refused("bad-signature", claimed)
    if fields.pop("v", None) != VERSION or not good(fields, FRAME):
        raise Refused("bad-arguments", claimed)
    if fields["client"] != client:
        raise Refused("wrong-client", claimed)
    if fields["boot"] != boot:
        raise Refused("wrong-boot", claimed)
    return Command(**fields)


def admit(command: Command, last_sequence: int, now_ms: int) -> None:
    """Refused, unless an authentic command is new, in its time, and one of ours."""
    for reason, wrong in (
        ("old-sequence", command.sequence <= last_sequence),
        ("expired", now_ms >= command.expires_ms),
        ("not-yet", now_ms < command.not_before_ms),
        ("unknown-verb", command.verb not in VERBS),
        ("bad-arguments", not good(command.args, VERBS.get(command.verb, FRAME))),
    ):
        if wrong:
            raise Refused(reason, command.command)


def report(command: str, state: str, at_ms: int, reason: str, result: Mapping[str, object]) -> dict[str, Any]:
    """What became of a command; `at_ms` is when that was by the server's clock, not when it is sent."""
    return {"command": command, "state": state, "reason": reason, "at_ms": at_ms, "result": dict(result)}


def format_plan(plan: Mapping[str, object]) -> str:
    """The lines of a boot plan; ValueError names a value that a shell could not read safely."""
    lines = [f"{key}={value}" for key, value in plan.items()]
    for line in lines:
        if not PLAN_LINE(line):
            raise ValueError(f"The boot plan cannot hold {line!r}: a character is not allowed there.")
    return "".join(line + "\n" for line in lines)


def parse_plan(text: str) -> dict[str, str]:
    """A boot plan by key; ValueError names the line that is none."""
    matches = {line: PLAN_LINE(line) for line in text.splitlines()}
    for line, match in matches.items():
        if not match:
            raise ValueError(f"The boot plan has a line that is not key=value: {line[:80]!r}.")
    return {match[1]: match[2] for match in matches.values() if match}


def format_keys(keys: Mapping[str, bytes]) -> str:
    """Public keys by id as a value of the boot plan: `id:base64,…`."""
    return ",".join(f"{key}:{b64encode(public).decode()}" for key, public in keys.items())


def parse_keys(value: str) -> dict[str, bytes]:
    """The inverse of format_keys; ValueError for a key that is not 32 bytes of base64."""
    pairs = (part.partition(":") for part in value.split(","))
    keys = {key: b64decode(encoded, validate=True) for key, _, encoded in pairs}
    if not all(key and len(public) == 32 for key, public in keys.items()):
        raise ValueError(f"These are not Ed25519 public keys: {value[:160]!r}.")
    return keys
