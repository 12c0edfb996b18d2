"""A gateway on loopback for one client: real HTTP, real signatures, and faults on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agents import speaking
from agents.daemon import protocol
from fleet.signing import Signer


class Key:
    """An Ed25519 key pair with its id."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.secret = Ed25519PrivateKey.generate()
        self.public = self.secret.public_key().public_bytes_raw()

    def envelope(self, body: bytes, version: int = protocol.VERSION) -> dict[str, str]:
        """Signed as the sender signs envelopes of that version."""
        (signature,) = speaking.sign(Signer(self.name, self.secret), [body], version)
        return speaking.envelope(body, signature, self.name)


def gone(connection: socket.socket) -> bool:
    """Whether the other end has closed."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


class Gateway:
    """Speaks docs/protocol.md, section 2. `fault` may answer a request in its place: (method, path) to bytes."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0, hold_s: float = 20) -> None:
        self.client, self.session, self.bearer = str(uuid.uuid4()), str(uuid.uuid4()), "b" * 64
        self.command_key, self.session_key = Key("command-1"), Key("session-1")
        self.hold_s, self.clock_ms = hold_s, 0.0
        self.boot_id, self.facts = "", dict[str, Any]()
        self.protocol = protocol.VERSION  # that it answers sessions in
        self.sequence = 0
        self.waiting: list[dict[str, str]] = []  # envelopes
        self.handed: list[dict[str, str]] = []  # those of them that a poll was answered with last
        self.reports: list[dict[str, Any]] = []
        self.rejected: set[str] = set()
        self.polls: list[tuple[float, str]] = []  # (when, state)
        self.byes: list[str] = []
        self.sessions = 0
        self.artefacts: dict[str, bytes] = {}
        self.uploads: list[tuple[str, bytes]] = []  # path and body of each PUT, whole or not
        self.arrives: Callable[[int], None] = lambda size: None  # told how much of a PUT is here
        self.pages: dict[str, Callable[[bytes], bytes]] = {}  # other paths: answers to a body
        self.fault: Callable[[str, str], bytes | None] = lambda method, path: None
        self.changed = threading.Condition()
        self.server = ThreadingHTTPServer((address, port), self.handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def now_ms(self) -> int:
        return round(time.time() * 1000 + self.clock_ms)

    # What a test orders

    def command(self, verb: str, args: dict[str, Any] | None = None, **changes: Any) -> protocol.Command:
        """The next command for this client; `changes` are what is wrong with it."""
        self.sequence += 1
        now = self.now_ms()
        fields = {
            "command": str(uuid.uuid4()),
            "client": self.client,
            "boot": self.boot_id,
            "sequence": self.sequence,
            "verb": verb,
            "args": args or {},
            "not_before_ms": now - 1000,
            "expires_ms": now + 60_000,
        }
        return protocol.Command(**{**fields, **changes})

    def wrap(self, command: protocol.Command, key: Key | None = None) -> dict[str, str]:
        """Signed as the worker would, but also where `speaking.encode` would refuse."""
        key = key or self.command_key
        fields = dict(command.__dict__)
        version = fields.pop("version")
        return key.envelope(json.dumps({"v": version, **fields}, separators=(",", ":")).encode(), version)

    def send(self, *envelopes: dict[str, str]) -> None:
        with self.changed:
            self.waiting += envelopes
            self.changed.notify_all()

    def wait(self, happened: Callable[[], Any], seconds: float = 30) -> Any:
        """What `happened` returns as soon as that is true; AssertionError when time is up."""
        with self.changed:
            if not self.changed.wait_for(happened, seconds):
                raise AssertionError(f"Not within {seconds} s; polls: {self.polls[-9:]}; reports: {self.reports}")
            return happened()

    def told(self, command: str, *states: str) -> dict[str, Any] | None:
        """The first report on a command in one of these states."""
        return next((r for r in self.reports if r["command"] == command and r["state"] in states), None)

    # What it answers

    def unheard(self, cursor: int) -> list[dict[str, str]]:
        """What went out with an answer that the daemon was no longer there for, as its cursor tells."""
        handed, self.handed = self.handed, []
        heard = {report["command"] for report in self.reports}
        bodies = [(one, json.loads(base64.b64decode(one["envelope"]))) for one in handed if "envelope" in one]
        return [one for one, body in bodies if body["sequence"] > cursor and body["command"] not in heard]

    def answer(
        self, method: str, path: str, query: dict[str, list[str]], body: bytes, connection: socket.socket
    ) -> tuple[int, bytes, dict[str, str]]:
        if path == "/agent/v1/session":
            asked = json.loads(body)
            with self.changed:
                self.boot_id, self.facts, self.sessions = asked["boot_id"], asked["facts"], self.sessions + 1
                self.changed.notify_all()
            keys = speaking.format_keys({self.command_key.name: self.command_key.public})
            said = {
                "session": self.session,
                "client": self.client,
                "nonce": asked["nonce"],
                "server_time_ms": self.now_ms(),
                "hold_s": self.hold_s,
                "spread_s": 0,
                "keys": keys,
                "protocol": self.protocol,
            }
            exact = json.dumps(said).encode()
            signature = base64.b64encode(self.session_key.secret.sign(exact)).decode()
            return 200, exact, {"Fleet-Signature": f"{self.session_key.name}:{signature}"}
        if path == "/agent/v1/next":
            with self.changed:
                self.polls.append((time.monotonic(), query["state"][0]))
                mine = len(self.polls)
                self.changed.notify_all()
                self.waiting = [*self.unheard(int(query["cursor"][0])), *self.waiting]
                self.changed.wait_for(lambda: self.waiting or len(self.polls) > mine, self.hold_s)
                # A poll that the daemon gave up must take nothing.
                commands = self.waiting if len(self.polls) == mine and not gone(connection) else []
                if commands:
                    self.waiting, self.handed = [], commands
            if not commands:
                return 204, b"", {"Fleet-Time": str(self.now_ms())}
            return 200, json.dumps({"commands": commands, "server_time_ms": self.now_ms()}).encode(), {}
        if path == "/agent/v1/reports":
            with self.changed:
                told = json.loads(body)["reports"]
                self.reports += told
                self.changed.notify_all()
            ids = [report["command"] for report in told]
            rejected = [{"command": one, "reason": "no"} for one in ids if one in self.rejected]
            return 200, json.dumps({"accepted": ids, "rejected": rejected}).encode(), {}
        if path == "/agent/v1/bye":
            with self.changed:
                self.byes.append(json.loads(body)["reason"])
                self.changed.notify_all()
            return 204, b"", {}
        if path == "/agent/v1/capture":
            with self.changed:
                self.uploads.append((f"{path}?command={query['command'][0]}", body))
                self.changed.notify_all()
            said = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
            return 200, json.dumps(said).encode(), {}
        if path.startswith("/store/") and path[7:] in self.artefacts:
            return 200, self.artefacts[path[7:]], {}
        if path in self.pages:
            return 200, self.pages[path](body), {}
        return 404, b"", {}

    def store(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.artefacts[digest] = content
        return digest

    def handler(self) -> type[BaseHTTPRequestHandler]:
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def serve(self) -> None:
                parts = urlsplit(self.path)
                body = b"".join(self.pieces())
                fault = gateway.fault(self.command, parts.path)
                if fault is not None:
                    self.wfile.write(fault)
                    self.close_connection = True
                    return
                wrong = self.headers.get("Authorization") != f"Bearer {gateway.bearer}"
                if parts.path.startswith("/agent/") and wrong:
                    status, content, headers = 401, b"", dict[str, str]()
                else:
                    status, content, headers = gateway.answer(
                        self.command, parts.path, parse_qs(parts.query), body, self.connection
                    )
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = serve

            def pieces(self) -> Iterator[bytes]:
                """The body, chunked or of a length that is told; ValueError where a chunked one breaks off."""
                if self.headers.get("Transfer-Encoding") != "chunked":
                    yield self.rfile.read(int(self.headers.get("Content-Length", "0")))
                    return
                total = 0
                while size := int(self.rfile.readline(), 16):
                    yield self.rfile.read(size)
                    self.rfile.readline()
                    total += size
                    gateway.arrives(total)
                self.rfile.readline()

            def handle(self) -> None:
                try:
                    super().handle()
                except (ConnectionError, ValueError):  # the daemon ended a parked poll, or died
                    self.close_connection = True

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        return Handler
