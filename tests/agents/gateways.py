"""The gateway as the process it is, and who talks to it: plain HTTP, and the daemon's own loop."""

import asyncio
import base64
import http.client
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

from django.db import connections

from agents import speaking
from agents.daemon import ed25519, protocol
from agents.gateway.database import Database
from agents.gateway.http import Answer
from tests.agents.boots import FACTS
from tests.keys import keys_in
from tests.services import PROJECT, Service, database_url, free_port, start, wait_for


class Gateway:
    """``manage.py gateway`` on the test database. It can be stopped, killed and started anew on the same port."""

    def __init__(self, directory: Path, redis_url: str, **settings: object) -> None:
        self.port, self.directory = free_port(), directory
        self.url = f"http://127.0.0.1:{self.port}"
        self.keys, self.store = directory / "keys", directory / "store"
        self.visitors: list[Visitor] = []
        keys_in(self.keys)
        self.environment = {
            "FLEET_DATABASE_URL": database_url(),
            "FLEET_REDIS_URL": redis_url,
            "FLEET_GATEWAY_URL": self.url,
            "FLEET_PUBLIC_KEYS": str(self.keys),
            "FLEET_SESSION_KEY": str(self.keys / "session.key"),
            "FLEET_STORE": str(self.store),
            "FLEET_DATA": str(directory),
            "FLEET_POLL_SPREAD": "0",
            "FLEET_WAKE_BROADCAST": "",  # no test's packet leaves this host
            **{f"FLEET_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.start()

    def start(self) -> None:
        argv = [sys.executable, "manage.py", "gateway", "--port", str(self.port)]
        self.service: Service = start(argv, self.directory / "gateway.log", self.environment)
        wait_for(self._answers, "the gateway answers", 30)

    def stop(self) -> None:
        self.service.stop()

    def send_visitors_home(self) -> None:
        for visitor in self.visitors:
            visitor.close()
        self.visitors.clear()

    def restart(self) -> None:
        self.stop()
        self.start()

    @property
    def log(self) -> str:
        return self.service.log

    def _answers(self) -> bool:
        assert self.service.process.poll() is None, f"the gateway ended:\n{self.log}"
        try:
            with self.visitor() as visitor:
                return visitor.get("/boot/v1/start.ipxe").status == 200
        except OSError:
            return False

    def visitor(self, bearer: str = "") -> "Visitor":
        self.visitors.append(Visitor(self.port, bearer))
        return self.visitors[-1]


@contextmanager
def gateway(redis_url: str, **settings: object) -> Iterator[Gateway]:
    """A gateway for a test; ``settings`` as in ``poll_hold=1`` become its environment."""
    with tempfile.TemporaryDirectory(prefix="fleet-gateway-") as directory:
        one = Gateway(Path(directory), redis_url, **settings)
        try:
            yield one
        finally:
            one.send_visitors_home()
            one.stop()


@asynccontextmanager
async def running(database: Database) -> AsyncIterator[None]:
    """A gateway's database in this process; its connections end with it."""
    lanes = [asyncio.create_task(lane()) for lane in database.lanes()]
    try:
        yield
    finally:
        await database.write(connections.close_all)
        await database.read(connections.close_all)
        for lane in lanes:
            lane.cancel()
        database.close()


class Line:
    """Where the answers of a gateway in this process go to."""

    broken = False

    def __init__(self) -> None:
        self.answers: asyncio.Queue[Answer] = asyncio.Queue()

    def answer(self, answer: Answer) -> None:
        self.answers.put_nowait(answer)

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        raise NotImplementedError

    async def send(self, piece: bytes) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        raise NotImplementedError


class Reply:
    def __init__(self, response: http.client.HTTPResponse, head: bool = False) -> None:
        self.status, self.headers = response.status, response.headers
        self.body = b"" if head else response.read()

    @property
    def json(self) -> dict[str, Any]:
        content = json.loads(self.body)
        assert isinstance(content, dict)
        return content


class Visitor:
    """One connection to a gateway. A daemon where it has a bearer token."""

    def __init__(self, port: int, bearer: str = "") -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self.bearer = bearer

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> None:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.bearer:
            names.setdefault("Authorization", f"Bearer {self.bearer}")
        self.connection.request(method, path, body, names)

    def reply(self) -> Reply:
        return Reply(self.connection.getresponse())

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        self.send(method, path, body, **headers)
        return self.reply()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, None, **headers)

    def post(self, path: str, content: object, **headers: str) -> Reply:
        return self.ask("POST", path, json.dumps(content).encode(), **headers)

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What a daemon says

    def open(self, boot_id: str, nonce: str = "n" * 32) -> Reply:
        body = {"protocol": protocol.VERSION, "nonce": nonce, "boot_id": boot_id, "facts": FACTS}
        return self.post("/agent/v1/session", body)

    def park(self, cursor: int = 0, state: str = protocol.READY) -> None:
        """Ask for commands; ``reply()`` is the answer."""
        self.send("GET", f"/agent/v1/next?cursor={cursor}&state={state}")

    def poll(self, cursor: int = 0, state: str = protocol.READY) -> Reply:
        self.park(cursor, state)
        return self.reply()

    def report(
        self, command: object, state: str, reason: str = "", result: Mapping[str, object] | None = None
    ) -> Reply:
        report = protocol.report(str(command), state, round(time.time() * 1000), reason, result or {})
        return self.post("/agent/v1/reports", {"reports": [report]})


def is_signed(reply: Reply, keys: Path) -> bool:
    """Whether a session's answer is signed over its exact body by the gateway's key."""
    key, _, signature = reply.headers["Fleet-Signature"].partition(":")
    public = protocol.parse_keys((keys / "session.pub").read_text().strip())[key]
    return ed25519.verify(public, reply.body, base64.b64decode(signature))


@contextmanager
def daemon(plan: Mapping[str, str], server: str, before: str = "") -> Iterator[Service]:
    """The daemon's own loop as a process: a user is logged in, and what it remembers lies in a directory of its own.

    ``before`` is Python that it runs first.
    """
    with tempfile.TemporaryDirectory(prefix="fleet-daemon-") as place:
        directory = Path(place)
        (directory / "plan").write_text(speaking.format_plan(plan))
        (directory / "sessions").mkdir()
        uid = int(plan["uid"])
        (directory / "sessions" / "1").write_text(f"UID={uid}\nUSER=player\nSTATE=active\nCLASS=user\nTTY=\n")
        service = start(
            [sys.executable, "-c", before + _LOOP, place, server], directory / "log", {"PYTHONPATH": str(PROJECT)}
        )
        try:
            yield service
        finally:
            service.kill()


# It gets no command in these tests: restart and cycle would be of this very machine (tests/daemon has them in namespaces).
_LOOP = """
import sys
from pathlib import Path
from agents.daemon import agent, protocol
from agents.hands import power, session
def refuse(verb): raise SystemExit(f"{verb}: not on this machine")
power.go = refuse
place, server = sys.argv[1:]
agent.FLEET, session.SESSIONS, session.SYSTEMD = place, place + "/sessions", place
agent.Agent(protocol.parse_plan(Path(place, "plan").read_text()), server).run()
"""
