"""Somebody has the web process: its environment, its files, its Redis, and all of the database. What that is not enough for.

On PostgreSQL its database user may do less than these tests do (test_grants.py); here they have all that the owner of the database
has, as whoever has SQLite's file does.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.core.management import CommandError, call_command
from django.utils import timezone
from pytest_django.fixtures import Settings

from agents import services, speaking, tasks, witnessing
from agents.book import Book
from agents.daemon import protocol
from agents.models import BootSession, Cap, Command, CommandStatus, Freeze, Order, Verb
from agents.sending import CHANNEL
from fleet import audit, checkpoints
from fleet.models import AuditCheckpoint, AuditHead, Client, Site
from fleet.signing import Signer, make_keys
from tests.agents.boots import boot, make_release, plan_of
from tests.agents.gateways import Gateway, daemon, gateway
from tests.agents.restores import make_envelope
from tests.agents.rooms import Room, make_room
from tests.fleet.test_deploy import PROCFILE, unit_of
from tests.services import PROJECT, Service, celery_sends_to, redis_server, wait_for
from tests.trust.forging import remove_signed, rewrite, unguarded
from tests.world import World, make_client

WEB, SENDER, GATEWAY = 64001, 64002, 64003  # users of nobody's


# --- what the process is given, and what lies about ---------------------------------------------------------------------


def test_its_environment_has_no_key_and_not_the_book() -> None:
    """As the unit and the Procfile give it."""
    for name in ("web", "work", "clock"):
        unit = (PROJECT / f"deploy/fleet-{name}.service").read_text()
        given = re.findall(r"(?m)^Environment=(FLEET_\w+)=", unit) + [
            word.partition("=")[0] for word in PROCFILE[name] if word.startswith("FLEET_")
        ]
        assert not [setting for setting in given if setting.endswith("_KEY") or "BOOK" in setting], name
        files = re.findall(r"(?m)^EnvironmentFile=-?(\S+)", unit)
        assert set(files) <= {"/etc/fleet/env", f"/etc/fleet/env-{name}", "/etc/fleet/env-web"}, name


@contextmanager
def server() -> Iterator[Path]:
    """The files of a server as docs/deploy.md has them made, below one directory."""
    with tempfile.TemporaryDirectory(prefix="fleet-server-") as directory:
        root = Path(directory)
        root.chmod(0o755)
        private, public, data, book = (
            *(root / "etc/fleet/keys", root / "etc/fleet/public", root / "var/lib/fleet"),
            root / "var/lib/fleet-sender",
        )
        make_keys(public)
        private.mkdir(parents=True)
        owners = {"command": SENDER, "session": GATEWAY, "image": 0}
        for kind, owner in owners.items():
            (public / f"{kind}.key").rename(private / f"{kind}.key")
            os.chown(private / f"{kind}.key", owner, owner)
        data.mkdir(parents=True)
        os.chown(data, WEB, WEB)
        (root / "etc/fleet/env").write_text("FLEET_SECRET_KEY=x\n")
        (root / "etc/fleet/env").chmod(0o600)
        with Book.at(book / "book.sqlite3") as open_book:
            open_book.note("poweroff", 1, 500)
        for path in (book, *book.iterdir()):
            os.chown(path, SENDER, SENDER)
        book.chmod(0o700)
        yield root


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_it_finds_no_private_key_and_replaces_neither_public_keys_nor_the_book() -> None:
    unit = unit_of("deploy/fleet-web.service")
    settings = {name.upper(): value for name, value in unit.items() if name.startswith("fleet_")}
    with server() as root:
        public = {path.read_text().strip().partition(":")[2] for path in (root / "etc/fleet/public").glob("*.pub")}
        script = (PROJECT / "tests/trust/attack.py").read_text()
        argv = ["setpriv", f"--reuid={WEB}", f"--regid={WEB}", "--clear-groups", "/usr/bin/python3", "-I", "-c", script]
        ran = subprocess.run(
            [*argv, str(root)], env={"PATH": "/usr/bin", **settings}, capture_output=True, text=True, check=True
        )
        found = json.loads(ran.stdout)
        assert found["environment"] == ["FLEET_PUBLIC_KEYS"]
        assert settings["FLEET_PUBLIC_KEYS"] == "/etc/fleet/public"
        assert set(found["secrets"]) == public, "what it can read of keys is public"
        own = str(root / "var/lib/fleet")
        beyond = [path for _, path in found["wrote"] if not f"{path}/".startswith(f"{own}/") or path == own]
        assert beyond == [], "it changes nothing but what is its own"
        with Book.at(root / "var/lib/fleet-sender/book.sqlite3") as book:
            assert book.signed("poweroff") == 500


# --- forging ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(django_db_setup: None) -> Iterator[tuple[Gateway, Service]]:
    with redis_server() as queue, gateway(queue.url, poll_hold=1) as gate:
        yield gate, queue


@pytest.fixture
def room(transactional_db: None, served: tuple[Gateway, Service], settings: Settings) -> Iterator[Room]:
    with make_room(served[0], served[1].url, settings) as room:
        yield room


# The daemon's own code, which says what it thinks of each envelope, and does not keep off a gateway that sends it rubbish.
TELLS = """
from agents.daemon import agent, link
receive = agent.Agent.receive
def told(self, wrapped):
    good = receive(self, wrapped)
    print("judged", good, flush=True)
    return good
agent.Agent.receive = told
link.Link.pause_s = lambda *_: 0.1
"""


@dataclasses.dataclass
class Attacker:
    """Who writes what they like into the database, and wakes whom they like. ``genuine`` is a command that was obeyed."""

    room: Room
    session: BootSession
    genuine: Command
    own: Ed25519PrivateKey = dataclasses.field(default_factory=Ed25519PrivateKey.generate)
    sequence: int = 1 << 45  # above all that the sender gives

    def body(self, **changes: Any) -> bytes:
        """An envelope as the sender would write it."""
        self.sequence += 1
        now = round(timezone.now().timestamp() * 1000)
        fields: dict[str, Any] = {
            "command": str(uuid.uuid4()),
            "client": str(self.session.client_id),
            "boot": str(self.session.boot_id),
            "sequence": self.sequence,
            "verb": "poweroff",
            "args": {},
            "not_before_ms": now - 1000,
            "expires_ms": now + 600_000,
        }
        return json.dumps({"v": protocol.VERSION, **fields, **changes}, separators=(",", ":")).encode()

    def sign(self, body: bytes, secret: Ed25519PrivateKey | None = None) -> bytes:
        """As the sender would, by a key that is not the sender's."""
        (signature,) = speaking.sign(Signer("x", secret or self.own), [body], protocol.VERSION)
        return signature

    def named(self, body: bytes) -> uuid.UUID:
        """The id in an envelope, so that a refusal of it ends the row; another where that is taken."""
        with contextlib.suppress(ValueError):
            if not Command.objects.filter(pk=(key := json.loads(body)["command"])).exists():
                return uuid.UUID(key)
        return uuid.uuid4()

    def plant(self, body: bytes, signature: bytes, key: str) -> Command:
        """A row as if the sender had sent it, and a nudge for whom it is."""
        Command.objects.filter(client=self.session.client, status__in=Command.OPEN).update(status=CommandStatus.LOST)
        self.sequence += 1
        row = Command.objects.create(
            pk=self.named(body),
            order=Order.objects.create(site=self.room.world.clubroom, verb=Verb.POWEROFF, reason="mine"),
            client=self.session.client,
            verb=Verb.POWEROFF,
            status=CommandStatus.SENT,
            sent_at=timezone.now(),
            expires_at=timezone.now() + timedelta(minutes=10),
        )
        make_envelope(row, self.session, sequence=self.sequence, body=body, signature=signature, key_id=key)
        with redis.Redis.from_url(self.room.redis_url) as nudges:
            nudges.publish(CHANNEL, json.dumps({"clients": [str(self.session.client_id)]}))
        return row


def own_key_under_the_right_name(me: Attacker) -> Command:
    body = me.body()
    return me.plant(body, me.sign(body), me.genuine.envelope.key_id)


def own_key_under_its_own_name(me: Attacker) -> Command:
    body = me.body()
    return me.plant(body, me.sign(body), "command-00000000")


def the_public_key_as_a_secret(me: Attacker) -> Command:
    public = base64.b64decode((me.room.gate.keys / "command.pub").read_text().strip().partition(":")[2])
    body = me.body()
    return me.plant(body, me.sign(body, Ed25519PrivateKey.from_private_bytes(public)), me.genuine.envelope.key_id)


def the_signature_of_another_envelope(me: Attacker) -> Command:
    return me.plant(me.body(), bytes(me.genuine.envelope.signature), me.genuine.envelope.key_id)


def a_genuine_envelope_with_another_verb(me: Attacker) -> Command:
    changed = bytes(me.genuine.envelope.body).replace(b'"capture"', b'"poweroff"')
    assert changed != bytes(me.genuine.envelope.body)
    return me.plant(changed, bytes(me.genuine.envelope.signature), me.genuine.envelope.key_id)


def an_own_leaf_on_a_genuine_tree(me: Attacker) -> Command:
    """A way of its own making, to a top that was signed: by whatever stands beside the genuine envelope."""
    genuine, signature = bytes(me.genuine.envelope.body), bytes(me.genuine.envelope.signature)
    beside = hashlib.sha256(b"\0" + genuine).digest()
    return me.plant(me.body(), signature[:64] + b"\1" + beside + signature[64:], me.genuine.envelope.key_id)


def a_genuine_signature_of_an_older_kind(me: Attacker) -> Command:
    """What is signed for a group, taken for a signature of one envelope by itself."""
    return me.plant(me.body(v=2), bytes(me.genuine.envelope.signature)[:64], me.genuine.envelope.key_id)


def a_genuine_envelope_once_more(me: Attacker) -> Command:
    """For this client and boot, in its time, and signed: but it was obeyed already."""
    return me.plant(bytes(me.genuine.envelope.body), bytes(me.genuine.envelope.signature), me.genuine.envelope.key_id)


def a_genuine_envelope_of_another_client(me: Attacker) -> Command:
    other, visitor = me.room.running(7)
    theirs = me.room.send(other).envelope
    visitor.close()
    return me.plant(bytes(theirs.body), bytes(theirs.signature), theirs.key_id)


def no_signature_at_all(me: Attacker) -> Command:
    return me.plant(me.body(), b"", "")


def a_key_of_another_kind(me: Attacker) -> Command:
    """The session's public key is known to the client, too, and so is its name."""
    body = me.body()
    return me.plant(body, me.sign(body), (me.room.gate.keys / "session.pub").read_text().partition(":")[0])


def a_signed_head_of_the_log(me: Attacker) -> Command:
    """The command key signs something else, too."""
    audit.record("test", "x", site=me.room.world.clubroom, actor="x")
    witnessing.witness()
    head = AuditCheckpoint.objects.order_by("pk").last()
    assert head is not None
    said = checkpoints.checkpoint_bytes(head.chain, head.sequence, head.digest, head.at)
    return me.plant(said, bytes(head.signature), head.key_id)


FORGERIES: list[Callable[[Attacker], Command]] = [
    own_key_under_the_right_name,
    own_key_under_its_own_name,
    the_public_key_as_a_secret,
    an_own_leaf_on_a_genuine_tree,
    a_genuine_signature_of_an_older_kind,
    the_signature_of_another_envelope,
    a_genuine_envelope_with_another_verb,
    a_genuine_envelope_once_more,
    a_genuine_envelope_of_another_client,
    no_signature_at_all,
    a_key_of_another_kind,
    a_signed_head_of_the_log,
]


@pytest.fixture
def running(room: Room) -> Iterator[tuple[BootSession, Service]]:
    """The daemon's own code behind a real gateway, its session open. A capture is the one command that this machine survives."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    plan = plan_of(room.client(), boot_id=boot_id)
    with daemon(plan, room.gate.url, TELLS) as process:
        session = BootSession.objects.get(pk=plan["session"])

        def is_open() -> bool:
            session.refresh_from_db()
            return session.status == "open"

        wait_for(is_open, "the daemon has opened its session")
        yield session, process


def captured(room: Room, session: BootSession) -> Command:
    """A genuine command, and what became of it: there is no home to capture, but it was obeyed."""
    with celery_sends_to("redis://127.0.0.1:1/0"):
        command = services.order(Verb.CAPTURE, [session.client], "why", room.world.otto).commands.get()
    tasks.send_order(str(command.order_id))

    def ended() -> bool:
        command.refresh_from_db()
        return command.status not in Command.OPEN

    wait_for(ended, f"the daemon has reported on {command.pk}", 60)
    return command


@pytest.mark.slow
def test_a_daemon_obeys_nothing_that_was_not_signed_for_it(room: Room, running: tuple[BootSession, Service]) -> None:
    """Each forgery reaches the daemon, which refuses it and lives on to obey the sender."""
    session, process = running
    genuine = captured(room, session)
    assert genuine.accepted_at is not None
    assert process.log.count("judged True") == 1
    me = Attacker(room, session, genuine)
    for forge in FORGERIES:
        before = process.log.count("judged False")
        row = forge(me)
        wait_for(
            lambda before=before: process.log.count("judged False") > before,  # type: ignore[misc]
            f"the daemon has judged {forge.__name__}: {process.log}",
            60,
        )
        row.refresh_from_db()
        assert row.accepted_at is None, forge.__name__
    assert process.log.count("judged True") == 1
    assert process.process.poll() is None, "power-offs that it had obeyed would have ended it"
    Command.objects.filter(client=session.client, status__in=Command.OPEN).update(status=CommandStatus.LOST)
    assert captured(room, session).accepted_at is not None
    assert process.log.count("judged True") == 2


@pytest.mark.slow
def test_a_session_that_is_made_to_speak_an_older_protocol_obeys_nothing(
    room: Room, running: tuple[BootSession, Service]
) -> None:
    """The sender believes the database of what a session speaks; the daemon believes its signed boot plan."""
    session, _ = running
    BootSession.objects.update(protocol=1)
    command = captured(room, session)
    assert json.loads(bytes(command.envelope.body))["v"] == 1
    assert (command.status, command.reason, command.accepted_at) == (CommandStatus.REFUSED, "old-protocol", None)


# --- more than the site bears -------------------------------------------------------------------------------------------


@pytest.fixture
def hall(world: World, keys: Path, settings: Settings) -> list[Client]:
    """Forty clients that are on, and a sender that signs ten power-downs a minute at the most."""
    settings.CEILING = {**settings.CEILING, Verb.POWEROFF: 10}
    make_release(world.gamer)
    clients = [make_client(world.clubroom, f"52:54:00:00:01:{number:02x}") for number in range(40)]
    for client in clients:
        boot(client)
    BootSession.objects.update(protocol=protocol.VERSION)
    return clients


@pytest.fixture
def signed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """All envelopes that the command key signs, alone or in groups."""
    seen, sign, sign_all = list[bytes](), Signer.sign, speaking.sign

    def alone(self: Signer, body: bytes) -> bytes:
        seen.extend([body] if body.startswith(b"{") else [])
        return sign(self, body)

    def together(signer: Signer, bodies: Sequence[bytes], version: int) -> list[bytes]:
        seen.extend(bodies if version >= protocol.TREES else [])
        return sign_all(signer, bodies, version)

    monkeypatch.setattr(Signer, "sign", alone)
    monkeypatch.setattr(speaking, "sign", together)
    return seen


def order_all(world: World, clients: Sequence[Client], **fields: Any) -> None:
    """Rows as no service would write them."""
    order = Order.objects.create(
        site=world.clubroom, verb=Verb.POWEROFF, reason="mine", ordered_by=world.vera, **fields
    )
    life = timezone.now() + timedelta(days=1)
    Command.objects.filter(client__in=clients, status__in=Command.OPEN).update(status=CommandStatus.LOST)
    Command.objects.bulk_create(
        Command(order=order, client=client, verb=Verb.POWEROFF, expires_at=life, queued_at=life - timedelta(days=9))
        for client in clients
    )


def forget_what_was_sent() -> None:
    """As if nothing had been signed yet."""
    remove_signed()
    unguarded("DELETE FROM fleet_auditentry", "DELETE FROM fleet_audithead", "DELETE FROM fleet_auditcheckpoint")


def many_sites(world: World, clients: Sequence[Client]) -> None:
    """A ceiling for each site would be none."""
    for number, client in enumerate(clients):
        site = Site.objects.create(slug=f"s{number}", name="x")
        Client.objects.filter(pk=client.pk).update(site=site)
        order = Order.objects.create(site=site, verb=Verb.POWEROFF, reason="mine")
        Command.objects.filter(client=client).update(order=order)


@pytest.mark.parametrize("tries", [1, 5])
def test_it_cannot_have_more_signed_than_the_ceiling(
    world: World, hall: list[Client], signed: list[bytes], tries: int
) -> None:
    Freeze.objects.all().delete()
    Cap.objects.create(site=world.clubroom, verb=Verb.POWEROFF, per_minute=10**6, at_once=10**6)
    for number in range(tries):
        order_all(world, hall, beyond_cap=True, approved_by=world.otto, approved_at=timezone.now())
        if number == 1:
            many_sites(world, hall)
        if number == 2:
            Command.objects.update(verb=Verb.RESTART)  # what is signed is the command's verb, not its order's
            Command.objects.update(verb=Verb.POWEROFF)
        tasks.send_due()
        forget_what_was_sent()
        tasks.send_due()
    off = [body for body in signed if json.loads(body)["verb"] == "poweroff"]
    assert len(off) == 10, "a minute's worth, however the rows look"


def test_what_is_ordered_under_a_harmless_name_is_counted_as_what_it_is(
    world: World, hall: list[Client], signed: list[bytes]
) -> None:
    """An order for messages, of which many go at once, whose commands are power-downs; and the other way round."""
    order_all(world, hall)
    Order.objects.update(verb=Verb.MESSAGE, args={"text": "x", "seconds": 5})
    with contextlib.suppress(Exception):  # it may refuse what makes no sense
        tasks.send_due()
    Order.objects.update(verb=Verb.POWEROFF, args={})
    with contextlib.suppress(Exception):
        tasks.send_due()
    off = [body for body in signed if json.loads(body)["verb"] == "poweroff"]
    assert len(off) <= 10


def test_it_cannot_lift_what_the_book_says_by_setting_times(world: World, hall: list[Client]) -> None:
    order_all(world, hall)
    tasks.send_due()
    assert Command.objects.filter(status=CommandStatus.SENT).count() == 10
    long_ago = timezone.now() - timedelta(days=30)
    Command.objects.update(sent_at=long_ago, queued_at=long_ago)
    unguarded(f"UPDATE agents_envelope SET signed_at = '{long_ago}'")
    unguarded("UPDATE fleet_auditentry SET at = '2020-01-01 00:00:00+00:00'")
    tasks.send_due()
    assert Command.objects.filter(status=CommandStatus.SENT).count() == 10


# --- the log ------------------------------------------------------------------------------------------------------------


def by_hand(chain: str) -> None:
    unguarded(f"UPDATE fleet_auditentry SET actor = 'nobody' WHERE chain = '{chain}' AND sequence = 2")


def removed(chain: str) -> None:
    unguarded(f"DELETE FROM fleet_auditentry WHERE chain = '{chain}' AND sequence = 2")


def put_in_another_order(chain: str) -> None:
    where = f"WHERE chain = '{chain}' AND sequence ="
    unguarded(*(f"UPDATE fleet_auditentry SET sequence = {to} {where} {of}" for of, to in ((2, 99), (3, 2), (99, 3))))


def written_anew(chain: str) -> None:
    rewrite(chain, lambda entry: entry.sequence != 2)


def written_anew_with_heads_of_its_own(chain: str) -> None:
    """And signed, by a key that the attacker has."""
    rewrite(chain, lambda entry: entry.sequence != 2)
    unguarded(f"DELETE FROM fleet_auditcheckpoint WHERE chain = '{chain}'")
    head = AuditHead.objects.get(chain=chain)
    own, at = Ed25519PrivateKey.generate(), timezone.now()
    said = checkpoints.checkpoint_bytes(chain, head.sequence, head.digest, at)
    fields = {"digest": head.digest, "at": at, "signature": own.sign(said)}
    key_id = AuditCheckpoint.objects.values_list("key_id", flat=True).first() or "command-00000000"
    AuditCheckpoint.objects.create(chain=chain, sequence=head.sequence, key_id=key_id, **fields)


def all_of_it_gone(chain: str) -> None:
    unguarded(
        *(f"DELETE FROM {table} WHERE chain = '{chain}'" for table in ("fleet_auditentry", "fleet_audithead")),
        f"DELETE FROM fleet_auditcheckpoint WHERE chain = '{chain}'",
    )


@pytest.mark.parametrize(
    "tamper",
    [by_hand, removed, put_in_another_order, written_anew, written_anew_with_heads_of_its_own, all_of_it_gone],
    ids=lambda tamper: tamper.__name__,
)
def test_the_log_cannot_be_changed_unseen(
    world: World, keys: Path, settings: Settings, tamper: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        audit.record("test", f"thing {number}", site=world.clubroom, actor=world.vera)
    witnessing.witness()
    book = ["audit", "verify", "--book", str(settings.SENDER_BOOK)]
    call_command(*book)
    chain = f"site-{world.clubroom.pk}"
    tamper(chain)
    with pytest.raises(CommandError, match="fault"):
        call_command(*book)
    assert chain in capsys.readouterr().out
    audit.record("test", "business as usual", site=world.clubroom, actor=world.vera)
    witnessing.witness()
    with pytest.raises(CommandError, match="fault"):
        call_command(*book)
