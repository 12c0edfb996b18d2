"""What only the server says: many envelopes under one signature, each of which proves itself alone."""

import dataclasses
import uuid
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import speaking
from agents.daemon import ed25519, protocol
from fleet import signing
from fleet.signing import Signer

SIGNER = Signer("command-1", Ed25519PrivateKey.generate())
BODIES = st.lists(st.binary(max_size=40), min_size=1, max_size=70)


@settings(deadline=None, max_examples=60)
@given(BODIES)
def test_the_way_of_each_leads_to_the_top_of_all(bodies: list[bytes]) -> None:
    top, ways = speaking.tree(bodies)
    assert [protocol.top(body, way) for body, way in zip(bodies, ways, strict=True)] == [top] * len(bodies)
    height = (len(bodies) - 1).bit_length()
    assert all(len(way) <= 33 * height for way in ways)


def test_the_tree_is_that_of_rfc_9162() -> None:
    """Section 2.1.1, for the seven leaves of its example: MTH(0..7) = H(1, MTH(0..4), MTH(4..7)), and the last one stands alone."""
    bodies = [b"d%d" % number for number in range(7)]
    leaves = [sha256(b"\0" + body).digest() for body in bodies]

    def node(left: bytes, right: bytes) -> bytes:
        return sha256(b"\1" + left + right).digest()

    left = node(node(leaves[0], leaves[1]), node(leaves[2], leaves[3]))
    right = node(node(leaves[4], leaves[5]), leaves[6])
    top, ways = speaking.tree(bodies)
    assert top == node(left, right)
    assert ways[6] == b"\0" + node(leaves[4], leaves[5]) + b"\0" + left
    assert ways[2] == b"\1" + leaves[3] + b"\0" + node(leaves[0], leaves[1]) + b"\1" + right
    assert speaking.tree([b"one"]) == (sha256(b"\0one").digest(), [b""])


@settings(deadline=None, max_examples=60)
@given(BODIES, st.data())
def test_no_way_leads_there_from_anything_else(bodies: list[bytes], data: st.DataObject) -> None:
    """Another body, another's way, a way with a bit changed, cut off or longer."""
    top, ways = speaking.tree(bodies)
    mine = data.draw(st.integers(0, len(bodies) - 1))
    body, way = bodies[mine], ways[mine]
    stranger = data.draw(st.binary(max_size=40).filter(lambda other: other not in bodies))
    assert protocol.top(stranger, way) != top
    assert protocol.top(body, way + b"\0" + sha256(body).digest()) != top
    assert protocol.top(body, way + b"\0") != top
    if way:
        cut = data.draw(st.integers(0, len(way) - 1))
        assert protocol.top(body, way[:cut]) != top
        at = data.draw(st.integers(0, len(way) - 1))
        if at % 33:  # of the side it counts only whether it is 0
            assert protocol.top(body, way[:at] + bytes([way[at] ^ 1]) + way[at + 1 :]) != top


def command(number: int) -> protocol.Command:
    pk, client, boot = (str(uuid.uuid4()) for _ in range(3))
    return protocol.Command(pk, client, boot, number, "restart", {}, 1000, 2000)


@pytest.mark.parametrize("number", [1, 2, 31, 32, 33, 70])
def test_many_envelopes_share_a_signature_and_each_is_believed_by_itself(number: int) -> None:
    commands = [command(place) for place in range(number)]
    bodies = [speaking.encode(one) for one in commands]
    signatures = speaking.sign(SIGNER, bodies, protocol.VERSION)
    assert len({signature[:64] for signature in signatures}) == -(-number // speaking.TOGETHER)
    keys = {SIGNER.key_id: SIGNER.public}
    for one, body, signature in zip(commands, bodies, signatures, strict=True):
        wrapped = speaking.envelope(body, signature, SIGNER.key_id)
        assert protocol.authenticate(wrapped, keys, one.client, one.boot, 3, signing.verify) == one
        with pytest.raises(protocol.Refused, match="wrong-boot"):
            protocol.authenticate(wrapped, keys, one.client, "another", 3, signing.verify)


def test_an_envelope_is_not_believed_by_the_signature_of_another_of_its_group() -> None:
    bodies = [speaking.encode(command(place)) for place in range(4)]
    signatures = speaking.sign(SIGNER, bodies, protocol.VERSION)
    for place in range(1, 4):
        wrapped = speaking.envelope(bodies[0], signatures[place], SIGNER.key_id)
        with pytest.raises(protocol.Refused, match="bad-signature"):
            protocol.authenticate(wrapped, {SIGNER.key_id: SIGNER.public}, "x", "y", verify=signing.verify)


@pytest.mark.parametrize("version", [1, 2])
def test_older_daemons_get_a_signature_of_their_envelope_alone(version: int) -> None:
    one = dataclasses.replace(command(1), version=version)
    bodies = [speaking.encode(one, version), speaking.encode(command(2), version)]
    assert speaking.sign(SIGNER, bodies, version) == [SIGNER.sign(body) for body in bodies]
    wrapped = speaking.envelope(bodies[0], SIGNER.sign(bodies[0]), SIGNER.key_id)
    assert protocol.authenticate(wrapped, {SIGNER.key_id: SIGNER.public}, one.client, one.boot) == one


def test_the_signature_of_a_group_is_for_nothing_else() -> None:
    """What is signed begins with a word that begins no envelope, no permit and no head of the log."""
    body = speaking.encode(command(1))
    (signature,) = speaking.sign(SIGNER, [body], protocol.VERSION)
    assert ed25519.verify(SIGNER.public, b"fleet commands 3\n" + sha256(b"\0" + body).digest(), signature)
    assert not ed25519.verify(SIGNER.public, body, signature)
