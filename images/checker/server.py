"""What a checked PC talks to: one boot plan, the artefacts it names, and where the report goes. Nothing else, nobody else."""

import re
import secrets
import shutil
import tempfile
import threading
import urllib.parse
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from fleet.signify import signify, signify_keys
from fleet.signing import Signer, make_keys

PARTS = ("state", "missing", "trace", "units", "journal", "end")
MOST_BYTES = 64 << 20  # of one part of the report
_BOOT_ID = re.compile(r"[0-9a-f-]{36}").fullmatch


class Server:
    """Listens on a free port of the loopback while the context lasts; ``report`` fills, ``over`` is set at its end.

    ``asked`` is set when it asks for its boot plan, ``over`` as well when the PC says that it cannot boot: ``trouble`` says why. Whoever asks must know the token of this
    one boot, for other people of this host may ask, too.
    """

    def __init__(self, plan: Mapping[str, object], artefacts: Mapping[str, Path]) -> None:
        """``plan`` is the boot plan without what belongs to the boot itself; ``artefacts`` by their digests."""
        self.token = secrets.token_hex(16)
        self.report: dict[str, bytes] = {}
        self.trouble = ""
        self.asked, self.over = threading.Event(), threading.Event()
        self.artefacts = artefacts
        self._plan = plan
        with tempfile.TemporaryDirectory() as keys:
            make_keys(Path(keys))
            self.keys = signify_keys(Path(keys), "session")
            self._signer = Signer.load(f"{keys}/session.key", "session")
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def plan(self, boot_id: str) -> bytes:
        """The signed plan for this boot."""
        lines = "".join(f"{key}={value}\n" for key, value in {**self._plan, "boot": boot_id}.items())
        return f"{lines}signature={signify(self._signer, lines.encode())}\n".encode()

    def tell(self, trouble: str) -> None:
        """The PC cannot go on."""
        self.trouble = "".join(char if char.isprintable() else " " for char in trouble)[:500]
        self.over.set()


class _Handler(BaseHTTPRequestHandler):
    owner: Server
    timeout = 60

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the report is what counts."""

    def do_GET(self) -> None:
        path = self.owner.artefacts.get(self.path.removeprefix("/store/"))
        if path is None:
            self.send_error(404)
            return
        with path.open("rb") as file:
            self.send_response(200)
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            shutil.copyfileobj(file, self.wfile, 1 << 20)

    def do_POST(self) -> None:
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > MOST_BYTES:
            self.send_error(413)
            return
        body = self.rfile.read(int(size))
        known, _, part = self.path.removeprefix("/check/v1/").partition("/")
        if secrets.compare_digest(known, self.owner.token) and part in PARTS:
            self.owner.report[part] = body
            self._answer(b"")
            if part == "end":
                self.owner.over.set()
            return
        form = dict(urllib.parse.parse_qsl(body.decode(errors="replace")))
        if not secrets.compare_digest(form.get("token", ""), self.owner.token):
            self.send_error(403)
        elif self.path == "/boot/v1/plan" and _BOOT_ID(form.get("boot_id", "")):
            self.owner.asked.set()
            self._answer(self.owner.plan(form["boot_id"]))
        elif self.path == "/boot/v1/trouble":
            self.owner.tell(f"{form.get('stage')}: {form.get('error')}. {form.get('detail')}")
            self._answer(b"")
        else:
            self.send_error(404)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
