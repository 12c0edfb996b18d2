"""What only the server says of the protocol: envelopes and their signatures, keys, boot plans (docs/protocol.md).

Daemons read it by ``agents.daemon.protocol``, which stays the smaller for it.
"""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256

from agents.daemon import protocol
from fleet.signing import Signer

# Envelopes under one signature, which costs as much as thirty steps up its tree; and more of them would make each way longer.
TOGETHER = 32


def encode(command: protocol.Command, version: int = protocol.VERSION) -> bytes:
    """The bytes to sign, for a daemon that speaks ``version``; ValueError for a command that it would not take."""
    frame = {key: value for key, value in vars(command).items() if key != "version"}
    fits = version in protocol.VERBS and protocol.good(frame, protocol.FRAME)
    if not fits or not protocol.fits(command.verb, command.args, version):
        raise ValueError(f"{command} is not in the protocol's version {version}.")
    return json.dumps({"v": version, **frame}, separators=(",", ":")).encode()


def sign(signer: Signer, bodies: Sequence[bytes], version: int) -> list[bytes]:
    """A signature for each of these envelopes, which are of that version."""
    if version < protocol.TREES:
        return [signer.sign(body) for body in bodies]
    signatures = list[bytes]()
    for start in range(0, len(bodies), TOGETHER):
        top, ways = tree(bodies[start : start + TOGETHER])
        signature = signer.sign(protocol.TOP + top)
        signatures += [signature + way for way in ways]
    return signatures


def tree(bodies: Sequence[bytes]) -> tuple[bytes, list[bytes]]:
    """The top of the hash tree over these envelopes, and the way of each up to it, as ``protocol.top`` goes it."""
    row, ways = [sha256(b"\0" + body).digest() for body in bodies], [b""] * len(bodies)
    height = 0
    while len(row) > 1:
        pairs = len(row) // 2 * 2  # the last of an odd number goes up as it is
        steps = [(b"\0" if place % 2 else b"\1") + row[place ^ 1] for place in range(pairs)]
        for leaf in range(min(len(ways), pairs << height)):
            ways[leaf] += steps[leaf >> height]
        above = [sha256(b"\1" + row[left] + row[left + 1]).digest() for left in range(0, pairs, 2)]
        row, height = above + row[pairs:], height + 1
    return row[0], ways


def envelope(body: bytes, signature: bytes, key: str) -> dict[str, str]:
    """The signed bytes as they travel."""
    return {"envelope": b64encode(body).decode(), "signature": b64encode(signature).decode(), "key": key}


def format_plan(plan: Mapping[str, object]) -> str:
    """The lines of a boot plan; ValueError names a value that a shell could not read safely."""
    lines = [f"{key}={value}" for key, value in plan.items()]
    for line in lines:
        if not protocol.PLAN_LINE(line):
            raise ValueError(f"The boot plan cannot hold {line!r}: a character is not allowed there.")
    return "".join(line + "\n" for line in lines)


def format_keys(keys: Mapping[str, bytes]) -> str:
    """Public keys by id as a value of the boot plan: ``id:base64,…``, which ``protocol.parse_keys`` reads."""
    return ",".join(f"{key}:{b64encode(public).decode()}" for key, public in keys.items())
