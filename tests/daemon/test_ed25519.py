"""Signatures are judged as RFC 8032 and OpenSSL judge them, and stricter where those differ."""

import hashlib

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.daemon import ed25519

# RFC 8032, section 7.1: public key, message, signature.
VECTORS = {
    "empty": (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        b"",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
        "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    "one byte": (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        b"\x72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da0"
        "85ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    "two bytes": (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        b"\xaf\x82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac1"
        "8ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    "SHA(abc)": (
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        hashlib.sha512(b"abc").digest(),
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b5890"
        "9351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
}
# Every point whose order divides 8, in its canonical encoding.
SMALL = (
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
)
SECRET = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = SECRET.public_key().public_bytes_raw()


@pytest.mark.parametrize("name", VECTORS)
def test_the_vectors_of_the_rfc_hold_and_no_other_message_does(name: str) -> None:
    public, message, signature = VECTORS[name]
    assert ed25519.verify(bytes.fromhex(public), message, bytes.fromhex(signature))
    assert not ed25519.verify(bytes.fromhex(public), message + b"\0", bytes.fromhex(signature))


@settings(deadline=None, max_examples=40)
@given(secret=st.binary(min_size=32, max_size=32), message=st.binary(max_size=2000))
def test_what_cryptography_signs_is_accepted(secret: bytes, message: bytes) -> None:
    key = Ed25519PrivateKey.from_private_bytes(secret)
    assert ed25519.verify(key.public_key().public_bytes_raw(), message, key.sign(message))


@settings(deadline=None, max_examples=150)
@given(message=st.binary(min_size=1, max_size=300), part=st.integers(0, 2), bit=st.integers(0, 8 * 300))
def test_one_flipped_bit_anywhere_is_refused(message: bytes, part: int, bit: int) -> None:
    parts = [PUBLIC, message, SECRET.sign(message)]
    flipped = bytearray(parts[part])
    flipped[bit // 8 % len(flipped)] ^= 1 << bit % 8
    parts[part] = bytes(flipped)
    assert not ed25519.verify(*parts)


@settings(deadline=None, max_examples=40)
@given(public=st.binary(min_size=32, max_size=32), signature=st.binary(min_size=64, max_size=64))
def test_rubbish_is_judged_as_cryptography_judges_it(public: bytes, signature: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, b"message")
        good = True
    except InvalidSignature:
        good = False
    assert ed25519.verify(public, b"message", signature) is good


def test_a_signature_with_s_above_the_order_is_refused() -> None:
    signature = SECRET.sign(b"message")
    s = int.from_bytes(signature[32:], "little") + ed25519.ORDER
    assert not ed25519.verify(PUBLIC, b"message", signature[:32] + s.to_bytes(32, "little"))


def times_base(scalar: int) -> ed25519.Point:
    point = ed25519.NEUTRAL
    for bit in f"{scalar:b}":
        point = ed25519.double(point)
        point = ed25519.add(point, ed25519.BASE) if bit == "1" else point
    return point


def test_a_key_of_small_order_accepts_nothing() -> None:
    # R = S·B fits every message that its key takes no part in: all of them for the neutral element, an eighth of them
    # for the others. OpenSSL accepts these.
    s = 12345
    signature = ed25519.encode(times_base(s)) + s.to_bytes(32, "little")
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(SMALL[0])).verify(signature, b"message")
    for public in map(bytes.fromhex, SMALL):
        assert ed25519.decode(public) is not None
        assert not any(ed25519.verify(public, bytes([message]), signature) for message in range(64))


def test_a_signature_with_r_of_small_order_is_refused_though_its_sum_is_right() -> None:
    clamped = bytearray(hashlib.sha512(bytes(range(32))).digest()[:32])
    clamped[0] &= 248
    clamped[31] = clamped[31] & 63 | 64
    r = bytes.fromhex(SMALL[0])
    challenge = int.from_bytes(hashlib.sha512(r + PUBLIC + b"message").digest(), "little")
    s = challenge * int.from_bytes(clamped, "little") % ed25519.ORDER
    signature = r + s.to_bytes(32, "little")
    SECRET.public_key().verify(signature, b"message")  # OpenSSL lets it pass
    assert not ed25519.verify(PUBLIC, b"message", signature)


@pytest.mark.parametrize(
    "data",
    [
        (2**255 - 19).to_bytes(32, "little"),  # y = p, another way to write 0
        (2**255 - 18).to_bytes(32, "little"),  # y = p + 1
        (1 | 1 << 255).to_bytes(32, "little"),  # x = 0 with a sign
        (2).to_bytes(32, "little"),  # no x belongs to this y
        b"",
        bytes(33),
    ],
)
def test_what_is_not_the_canonical_encoding_of_a_point_is_none(data: bytes) -> None:
    assert ed25519.decode(data) is None


@pytest.mark.parametrize("cut", [(31, 64), (32, 63), (33, 64), (32, 65)])
def test_other_lengths_are_refused(cut: tuple[int, int]) -> None:
    public, signature = (PUBLIC + b"\0")[: cut[0]], (SECRET.sign(b"") + b"\0")[: cut[1]]
    assert not ed25519.verify(public, b"", signature)
