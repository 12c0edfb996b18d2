"""Shows notes on a session bus, as a desktop does: a program of its own, `desktop.py <bus> <file>`; each note is a line there.

It speaks as much D-Bus as that takes, to the real bus, so that the tests need no desktop's packages.
"""

import os
import socket
import struct
import sys
from pathlib import Path

CALL, RETURN = 1, 2


def padded(data: bytes, size: int) -> bytes:
    return data + bytes(-len(data) % size)


def string(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode() + b"\0"


def message(
    kind: int, serial: int, fields: dict[int, tuple[bytes, bytes]], body: bytes = b"", signature: str = ""
) -> bytes:
    """`fields` are the header's, by their code: signature of the value, and the value."""
    if signature:
        fields = {**fields, 8: (b"g", bytes([len(signature)]) + signature.encode() + b"\0")}
    array = b""
    for code, (kind_of_value, value) in sorted(fields.items()):
        array = padded(array, 8) + bytes([code, len(kind_of_value)]) + kind_of_value + b"\0"
        array = (padded(array, 4) if kind_of_value != b"g" else array) + value
    head = struct.pack("<cBBBIII", b"l", kind, 0, 1, len(body), serial, len(array)) + array
    return padded(head, 8) + body


def call(serial: int, member: str, body: bytes = b"", signature: str = "") -> bytes:
    target = {1: (b"o", string("/org/freedesktop/DBus")), 2: (b"s", string("org.freedesktop.DBus"))}
    target |= {3: (b"s", string(member)), 6: (b"s", string("org.freedesktop.DBus"))}
    return message(CALL, serial, target, body, signature)


class Reader:
    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def number(self) -> int:
        self.at += -self.at % 4
        self.at += 4
        return int(struct.unpack_from("<i", self.data, self.at - 4)[0])

    def string(self) -> str:
        size = self.number()
        self.at += size + 1
        return self.data[self.at - size - 1 : self.at - 1].decode()


def exactly(bus: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        got = bus.recv(size - len(data))
        if not got:
            sys.exit(0)
        data += got
    return data


def fields_of(header: bytes) -> dict[int, str]:
    """The header's fields that are text."""
    reader, found = Reader(header), {}
    while reader.at < len(header):
        reader.at += -reader.at % 8
        code, kind = header[reader.at], header[reader.at + 2 : reader.at + 3]
        reader.at += 4
        if kind in (b"s", b"o"):
            found[code] = reader.string()
        elif kind == b"g":
            reader.at += header[reader.at] + 2
        else:
            found[code] = str(reader.number())
    return found


def main(path: str, file: str, *answers: str) -> None:
    bus = socket.socket(socket.AF_UNIX)
    bus.connect(path)
    bus.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
    assert bus.recv(1000).startswith(b"OK ")
    bus.sendall(b"BEGIN\r\n" + call(1, "Hello"))
    bus.sendall(call(2, "RequestName", padded(string("org.freedesktop.Notifications"), 4) + bytes(4), "su"))
    serial, shown = 2, 0
    while True:
        head = exactly(bus, 16)
        kind, body_size, theirs, array = struct.unpack("<xBxxIII", head)
        fields = fields_of(exactly(bus, array + -array % 8)[:array])
        body = Reader(exactly(bus, body_size))
        if kind == RETURN and fields.get(5) == "2":
            Path(file).touch()  # the name is ours
        if kind != CALL or fields.get(3) != "Notify":
            continue
        name, replaces, _, _, text = body.string(), body.number(), body.string(), body.string(), body.string()
        body.number(), body.number()  # no actions, no hints
        body.at += -body.at % 8
        shown += 1
        with Path(file).open("a") as notes:
            print(name, replaces, text, body.number(), sep="|", file=notes)
        if "never" not in answers:
            serial += 1
            back = {5: (b"u", struct.pack("<I", theirs)), 6: (b"s", string(fields[7]))}
            bus.sendall(message(RETURN, serial, back, struct.pack("<I", shown), "u"))


if __name__ == "__main__":
    main(*sys.argv[1:])
