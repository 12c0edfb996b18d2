"""A lean minion of Salt, run by Salt's own Python: its wire is ZeroMQ's (ZMTP 3.0, rfc.zeromq.org/spec/23), its cryptography Salt's own.

As a minion does, it signs in with its RSA key and gets the key of all publications and one of its own; keeps a subscription and
a connection for requests; and returns what it carried out, encrypted, with its token. All have one RSA key pair between them, as to make
thousands takes minutes; to the master each is a minion of its own. A publication is the same bytes for all, so it is decrypted once.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import struct
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.brokers.audience import Audience, Wire

# Not installed where these benches are checked, but where this module runs.
crypt: Any = importlib.import_module("salt.crypt")
payload: Any = importlib.import_module("salt.payload")

ALGORITHMS = {"enc_algo": "OAEP-SHA1", "sig_algo": "PKCS1v15-SHA1"}
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_MORE, _LONG, _COMMAND = 1, 2, 4


@functools.cache
def keys(directory: str) -> tuple[Any, str, bytes]:
    """The private key, the public one as text, and the token that proves the private one."""
    path = Path(directory)
    private = crypt.PrivateKey.from_file(str(path / "minion.pem"))
    return private, crypt.clean_key((path / "minion.pub").read_text()), private.encrypt(b"salt")


@functools.lru_cache(maxsize=1)
def published(key: str, message: bytes) -> dict[str, Any]:
    """What the master published."""
    load: dict[str, Any] = crypt.Crypticle({}, key).loads(payload.loads(message)["load"])
    return load


def frame(body: bytes, flags: int = 0) -> bytes:
    size = struct.pack(">BQ", flags | _LONG, len(body)) if len(body) > 255 else struct.pack("BB", flags, len(body))
    return size + body


def ready(kind: bytes) -> bytes:
    return frame(b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind, _COMMAND)


def split(data: bytes) -> tuple[int, bytes, int]:
    """Flags and body of the first frame, and how long it is; zeros while it is not whole."""
    begins = 9 if data[0] & _LONG else 2
    if len(data) < begins:
        return 0, b"", 0
    ends = begins + (struct.unpack(">Q", data[1:9])[0] if begins == 9 else data[1])
    return (data[0], data[begins:ends], ends) if len(data) >= ends else (0, b"", 0)


class Socket:
    """A connection, with what ZeroMQ says on it before and between messages. ``came`` gets the last frame of each message."""

    def __init__(self, kind: bytes, came: Callable[[bytes], None]) -> None:
        self._kind, self._came, self._greeted = kind, came, False
        self._wire = Wire(self._arrived)
        self._open = asyncio.get_running_loop().create_future()

    async def connect(self, place: dict[str, Any], port: str) -> None:
        await self._wire.connect(place, port)
        self._wire.send(_GREETING)
        await self._open

    def send(self, body: bytes) -> None:
        self._wire.send((frame(b"", _MORE) if self._kind == b"REQ" else b"") + frame(body))

    def _arrived(self, data: bytes) -> int:
        if not self._greeted:
            if len(data) < len(_GREETING):
                return 0
            self._greeted = True
            self._wire.send(ready(self._kind))
            return len(_GREETING)
        flags, body, used = split(data)
        if not used:
            return 0
        if flags & _COMMAND:
            if body.startswith(b"\x05READY"):
                self._open.set_result(None)
            elif body.startswith(b"\x04PING"):
                self._wire.send(frame(b"\x04PONG" + body[7:], _COMMAND))
        elif not flags & _MORE:
            self._came(body)
        return used


class Listener:
    ARE_ANSWERED = True  # the master answers a return when it has put it into its cache of jobs

    def __init__(self, audience: Audience, who: int, place: dict[str, Any]) -> None:
        self._audience, self._who, self._place = audience, who, place
        self._id = f"minion-{who:05}"
        self._private, self._public, self._token = keys(place["keys"])
        self._subscription = Socket(b"SUB", self._published)
        self._requests = Socket(b"REQ", self._answered)
        self._signed_in = asyncio.get_running_loop().create_future()

    async def join(self) -> None:
        await self._requests.connect(self._place, "ret_port")
        load = {"cmd": "_auth", "id": self._id, "nonce": uuid.uuid4().hex, "pub": self._public, **ALGORITHMS}
        self._requests.send(payload.dumps({"enc": "clear", "load": load, "version": 3}))
        answer = payload.loads(payload.loads(await self._signed_in)["load"])
        decrypt = functools.partial(self._private.decrypt, algorithm=ALGORITHMS["enc_algo"])
        self._key = decrypt(answer["aes"]).decode()
        self._own = crypt.Crypticle({}, decrypt(answer["session"]).decode())
        await self._subscription.connect(self._place, "publish_port")
        self._subscription.send(b"\x01")  # to everything, as minions do

    def _published(self, message: bytes) -> None:
        self._audience.received(self._who)
        job = published(self._key, message)
        load = {"cmd": "_return", "id": self._id, "jid": job["jid"], "fun": job["fun"], "fun_args": job["arg"]}
        load |= {"return": job["arg"][0], "retcode": 0, "success": True}
        load |= {"nonce": uuid.uuid4().hex, "ts": int(time.time()), "tok": self._token}
        said = {"enc": "aes", "load": self._own.dumps(load), "version": 3, "id": self._id, **ALGORITHMS}
        self._requests.send(payload.dumps(said))

    def _answered(self, message: bytes) -> None:
        if not self._signed_in.done():
            self._signed_in.set_result(message)
        elif isinstance(answer := payload.loads(message), bytes):
            self._audience.answered(self._who)
        else:
            raise RuntimeError(f"The master refuses a return: {answer!r}")
