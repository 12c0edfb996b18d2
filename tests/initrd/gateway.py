"""The boot part of a gateway, scripted: it answers as docs/protocol.md says, or badly, as a test tells it.

The real one is agents/gateway; it never misbehaves, so it cannot show what an initrd does with one that does.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from fleet.signify import signify, signify_keys
from fleet.signing import Signer, make_keys
from images.builder.verity import Verity

BEARER = "b" * 64
CLIENT = "0f8fad5b-d9cb-469f-a165-70867728950e"

Form = dict[str, str]


@dataclass(frozen=True)
class Layer:
    """A driver layer by path, with the hash tree of its squashfs."""

    root: Path
    plan: Path
    verity: Verity

    def line(self) -> str:
        """As the boot plan has it."""
        sizes = (self.root.stat().st_size, self.plan.stat().st_size)
        parts = (sha256(self.root), sizes[0], self.verity.root_hash, self.verity.blocks, sha256(self.plan), sizes[1])
        return ",".join(map(str, parts))


@dataclass
class Version:
    """What a client boots: kernel and initrd by path, the artefacts by path."""

    kernel: Path
    initrd: Path
    root: Path
    plan: Path
    home: Path
    verity: Verity
    user: str = "player"
    check: str = "whole"
    kind: str = "symlink"
    home_kind: str = "overlay"
    layers: tuple[Layer, ...] = ()
    fetch: str = "http"
    share: str = ""  # URL of the root on it
    digests: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        parts = {"root": self.root, "plan": self.plan, "home": self.home}
        self.digests = {name: sha256(path) for name, path in parts.items()}

    def boot_plan(self) -> str:
        lines = {
            "protocol": "1",
            "action": "boot",
            "session": "1d2c3b4a-0000-4000-8000-000000000001",
            "bearer": BEARER,
            "client": CLIENT,
            "name": "seat-7",
            "class": "gamer",
            "version": "gamer-7",
            "digest": "d" * 64,
            "home_digest": "e" * 64,
            "user": self.user,
            "uid": "1000",
            "root_hash": self.verity.root_hash,
            "root_blocks": str(self.verity.blocks),
            "check": self.check,
            "kind": self.kind,
            "home_kind": self.home_kind,
            "fetch": self.fetch,
            "tmpfs_percent": "50",
            "home_percent": "50",
            "command_keys": "k1:" + "A" * 43 + "=",
            "session_keys": "k2:" + "B" * 43 + "=",
        }
        if self.share:
            lines["share"] = self.share
        for name in ("root", "plan", "home"):
            lines[name] = self.digests[name]
            lines[f"{name}_bytes"] = str(getattr(self, name).stat().st_size)
        if self.layers:
            lines["kind"] += "+layers"
            lines["layers"] = " ".join(layer.line() for layer in self.layers)
        return "".join(f"{key}={value}\n" for key, value in lines.items())


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


Answer = str | int | Callable[[Form], str]  # a body with 200, the status of an error, or a body for what was asked


class Gateway:
    """Listens on a free port of the loopback. `plans` are the answers in turn, the last one for ever.

    `spoil` maps an artefact's digest to what its next downloads suffer, in turn: a number is the status to
    answer with, "cut" breaks off after half of what was asked for, "bend" changes the last byte, "middle" one in
    the middle, "short" leaves
    out the end for good, and "slow" stops for ever in the middle. When the list is used up, it serves well.
    """

    def __init__(self, version: Version, plans: list[Answer] | None = None) -> None:
        self.version = version
        self.plans: list[Answer] = plans if plans is not None else [version.boot_plan()]
        self.files = {known: getattr(version, name) for name, known in version.digests.items()}
        self.files |= {sha256(path): path for layer in version.layers for path in (layer.root, layer.plan)}
        self.spoil: dict[str, list[str | int]] = {}
        self.asked: list[Form] = []
        self.troubles: list[Form] = []
        self.downloads: list[tuple[str, str]] = []  # path, Range or ""
        self.command_line = "console=tty0 console=ttyS0"
        with tempfile.TemporaryDirectory() as keys:
            make_keys(Path(keys))
            self.keys = signify_keys(Path(keys), "session")
            self.signer = Signer.load(f"{keys}/session.key", "session")
        self.come = threading.Event()
        gateway = self

        class Handler(_Handler):
            owner = gateway

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.come.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def append(self, url: str, mac: str, extra: str = "") -> str:
        """The kernel command line, `url` being this gateway's as the client sees it."""
        return f"{self.command_line} fleet.server={url} fleet.mac={mac} fleet.token={'a' * 32} fleet.keys={self.keys} {extra}".strip()

    def signed(self, plan: str, boot_id: str) -> str:
        """The plan as it goes to the boot `boot_id`."""
        plan += f"boot={boot_id}\n"
        return f"{plan}signature={signify(self.signer, plan.encode())}\n"

    def wait_for_trouble(self, number: int = 1, timeout_s: float = 120.0) -> Form:
        """The report `number`; raises AssertionError when it does not come."""
        for _ in range(int(timeout_s * 10)):
            if len(self.troubles) >= number:
                return self.troubles[number - 1]
            self.come.wait(0.1)
        raise AssertionError(f"Only {len(self.troubles)} trouble reports came within {timeout_s:g} s.")


class _Handler(BaseHTTPRequestHandler):
    owner: Gateway
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: what was asked for is in the owner's lists."""

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        base = f"http://{self.headers['Host']}"
        self.owner.downloads.append((url.path, self.headers.get("Range", "")))
        if url.path == "/boot/v1/start.ipxe":
            self._say(f"#!ipxe\nchain --replace {base}/boot/v1/client.ipxe?mac=${{netX/mac}}&uuid=${{uuid}} \n")
        elif url.path == "/boot/v1/client.ipxe":
            lease = "fleet.ip=${netX/ip} fleet.netmask=${netX/netmask} fleet.router=${netX/gateway}"
            append = self.owner.append(base, query["mac"], f"{lease} fleet.dns=${{netX/dns}}")
            self._say(
                f"#!ipxe\nkernel {base}/kernel initrd=initrd {append}\ninitrd --name initrd {base}/initrd\nboot\n"
            )
        elif url.path in ("/kernel", "/initrd"):
            self._send(getattr(self.owner.version, url.path[1:]), [])
        elif url.path.startswith("/store/"):
            digest = url.path.removeprefix("/store/")
            if path := self.owner.files.get(digest):
                self._send(path, self.owner.spoil.get(digest, []))
            else:
                self._error(404)
        else:
            self._error(404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        form = dict(urllib.parse.parse_qsl(body, strict_parsing=True))
        if self.path == "/boot/v1/plan":
            self.owner.asked.append(form)
            plans = self.owner.plans
            answer = plans.pop(0) if len(plans) > 1 else plans[0]
            if isinstance(answer, int):
                self._error(answer)
            else:
                self._say(self.owner.signed(answer(form) if callable(answer) else answer, form["boot_id"]))
        elif self.path == "/boot/v1/trouble":
            self.owner.troubles.append(form)
            self.send_response(204)
            self.end_headers()
        else:
            self._error(404)

    def _say(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def _error(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, path: Path, spoil: list[str | int]) -> None:
        fault = spoil.pop(0) if spoil else ""
        if isinstance(fault, int):
            self._error(fault)
            return
        size = path.stat().st_size
        if fault == "short":
            spoil.append(fault)
            size -= 1000
        start = 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            if start >= size:
                self._error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        end = start + (size - start) // 2 if fault in ("cut", "slow") else size
        self._copy(path, start, end, {"bend": size - 1, "middle": size // 2}.get(str(fault)))
        if fault == "slow":
            self.wfile.flush()
            self.owner.come.wait()
        if fault in ("cut", "slow"):
            self.close_connection = True

    def _copy(self, path: Path, start: int, end: int, bend: int | None) -> None:
        with path.open("rb") as file:
            file.seek(start)
            left = end - start
            try:
                while left:
                    at, block = end - left, bytearray(file.read(min(left, 1 << 18)))
                    left -= len(block)
                    if bend is not None and at <= bend < at + len(block):
                        block[bend - at] ^= 1
                    self.wfile.write(block)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
