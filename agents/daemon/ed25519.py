"""Verification of Ed25519 signatures (RFC 8032, 5.1.7) in plain Python: clients have no library for it.

Strict: S below the order of the group, canonical encodings, no point of small order as key or as R. All is
public data, so nothing here need run in constant time. A point is (X, Y, Z, T): x = X/Z, y = Y/Z, x·y = T/Z.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)


Point = tuple[int, int, int, int]
NEUTRAL: Point = (0, 1, 1, 0)


def add(a: Point, b: Point) -> Point:
    """a + b; add-2008-hwcd-3 of the Explicit-Formulas Database, complete on this curve."""
    A = (a[1] - a[0]) * (b[1] - b[0]) % P
    B = (a[1] + a[0]) * (b[1] + b[0]) % P
    C = 2 * a[3] * b[3] % P * D % P
    Z = 2 * a[2] * b[2]
    E, F, G, H = B - A, Z - C, Z + C, B + A
    return (E * F % P, G * H % P, F * G % P, E * H % P)


def double(a: Point) -> Point:
    """a + a; dbl-2008-hwcd."""
    A, B = a[0] * a[0] % P, a[1] * a[1] % P
    H = A + B
    E = H - (a[0] + a[1]) ** 2 % P
    G = A - B
    F = 2 * a[2] * a[2] + G
    return (E * F % P, G * H % P, F * G % P, E * H % P)


def negative(a: Point) -> Point:
    return (-a[0], a[1], a[2], -a[3])


def small_order(a: Point) -> bool:
    """Whether 8·a is the neutral element: such a key accepts signatures that nobody made."""
    x, y, z, _ = double(double(double(a)))
    return x % P == 0 and (y - z) % P == 0


def encode(a: Point) -> bytes:
    inverse = pow(a[2], -1, P)
    x, y = a[0] * inverse % P, a[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def decode(data: bytes) -> Point | None:
    """The point of 32 bytes, None where they are not the canonical encoding of one."""
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & ((1 << 255) - 1)
    if len(data) != 32 or y >= P:
        return None
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    if v * x * x % P != u:
        x = x * ROOT_OF_MINUS_ONE % P
    if v * x * x % P != u or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return (x, y, 1, x * y % P)


def odd_multiples(a: Point) -> list[Point]:
    """a, 3a, 5a … 15a: what a window of five digits needs."""
    twice, multiples = double(a), [a]
    while len(multiples) < 8:
        multiples.append(add(multiples[-1], twice))
    return multiples


def window(scalar: int) -> list[int]:
    """Signed odd digits below 16, four zeros or more between them, lowest first (width-5 NAF)."""
    digits = []
    while scalar:
        digit = 0
        if scalar & 1:
            digit = scalar & 31
            digit -= (digit & 16) << 1
            scalar -= digit
        digits.append(digit)
        scalar >>= 1
    return digits


@lru_cache(maxsize=8)
def key_multiples(public: bytes) -> list[Point] | None:
    """Odd multiples of minus the key, None for a key that is no key; kept, as clients see few keys."""
    point = decode(public)
    return None if point is None or small_order(point) else odd_multiples(negative(point))


BASE = decode((4 * pow(5, -1, P) % P).to_bytes(32, "little")) or NEUTRAL
BASE_MULTIPLES = odd_multiples(BASE)


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` (64 bytes) of `message` was made with the secret of `public` (32 bytes)."""
    if len(public) != 32 or len(signature) != 64:
        return False
    R, S = signature[:32], int.from_bytes(signature[32:], "little")
    multiples = key_multiples(public)
    if S >= ORDER or multiples is None:
        return False
    challenge = int.from_bytes(hashlib.sha512(R + public + message).digest(), "little") % ORDER
    tables = ((window(S), BASE_MULTIPLES), (window(challenge), multiples))
    result = NEUTRAL  # S·B - challenge·A, both scalars at once, must be R
    for place in range(max(len(digits) for digits, _ in tables) - 1, -1, -1):
        result = double(result)
        for digits, table in tables:
            digit = digits[place] if place < len(digits) else 0
            if digit > 0:
                result = add(result, table[digit >> 1])
            elif digit < 0:
                result = add(result, negative(table[-digit >> 1]))
    return encode(result) == R and not small_order(result)
