"""What the sender does, the only worker with the command key: keep to caps and freezes, audit, sign, hand over.

Commands are signed in groups of one site and verb. What a group may hold is written into the sender's book first, then the audit entry is
committed, then the signatures are made: no envelope can be abroad of which book and log know nothing. Where a sender dies between, the
next one signs the same commands under new numbers.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

import orjson
import redis
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import FilteredRelation, Q, QuerySet
from django.db.models.expressions import Combinable
from django.utils import timezone

from agents import caps, freezing, speaking, telling, waking, witnessing
from agents.book import Book
from agents.daemon import protocol
from agents.models import Command, CommandQuerySet, CommandStatus, Envelope, Order, SessionStatus, Verb
from agents.power import relays
from fleet import audit
from fleet.columns import Epoch, Text
from fleet.exceptions import SiteError
from fleet.overlap import Overlap
from fleet.rows import insert_rows
from fleet.signing import Signer
from images import homes
from images.models import HomeTemplate, Release

log = logging.getLogger(__name__)
CHANNEL = "fleet.nudge"
# Commands signed in one go. A large group costs less of each; but the first of ten thousand should be on their way soon, and the last not
# all begin at once. So groups grow, and shrink again at the end.
FIRST_GROUP, GROUP = 250, 1000
AHEAD = 10 * GROUP  # looked up at once, but for the first; each group is asked again whether it may still be signed
EARLY_MS = 1000  # a client's idea of the server's time may be so much behind


def _signer() -> Signer:
    return Signer.load(settings.COMMAND_KEY, "command")


@cache
def connection() -> redis.Redis:
    return redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=2)


def state() -> dict[str, Any]:
    """What the sender says of itself with each sign of life (``fleet.alive``): whether it could sign, its ceiling, and which chains of the audit log do not go on."""
    trouble = ""
    try:
        _signer()
        with Book.at(settings.SENDER_BOOK):
            pass
    except SiteError as error:
        trouble = str(error)
    return {"trouble": trouble, "ceiling": settings.CEILING, "tampered": witnessing.tampered}


def nudge(signed: Sequence["Signed"]) -> None:
    """Hand commands to the gateway, which answers the polls of their clients. A hint: it sweeps for what a lost one would have told."""
    try:
        connection().publish(CHANNEL, orjson.dumps({"commands": signed}, default=tuple))
    except redis.RedisError as error:
        log.warning("Redis is away, so the gateway finds the commands at its next sweep: %s", error)


def send(waiting: CommandQuerySet) -> int:
    """Sign and hand over what caps and freezes let through of the queued commands among ``waiting``; how many.

    One that has nobody to go to ends here, with the reason. Raises SiteError without the key or the book.
    """
    _signer()
    queued = waiting.open(CommandStatus.QUEUED)
    return sum(
        _send_all(site, verb, queued.filter(order__site=site, verb=verb))
        for site, verb in queued.order_by().values_list("order__site", "verb").distinct()
    )


def _send_all(site: int, verb: str, waiting: QuerySet[Command]) -> int:
    """Those of one site and verb, group by group: one is signed while the next is prepared. How many were sent."""
    size = most = FIRST_GROUP
    signing = frozenset[UUID]()
    with Book.at(settings.SENDER_BOOK) as book, Overlap[int]() as signer:
        while ahead := [one for one in caps.candidates(waiting, most) if one.key not in signing]:
            more, most = len(ahead) == most, AHEAD
            while ahead and not freezing.standing(site):
                now = min(size, max(FIRST_GROUP, len(ahead) // 2))
                keys = caps.granted(book, site, verb, ahead[:now], signing=len(signing) if signer.busy else 0)
                if not keys and signer.busy:  # which may have been counted twice
                    signer.wait()
                    continue
                if not keys:
                    break
                # Before anything else: what is written here and never signed costs a little patience, the other way round a cap.
                first = book.note(verb, site, len(keys))
                ahead, size = ahead[now:], min(2 * size, GROUP)
                if verb == Verb.WAKE:  # nothing for its client to obey: others carry it out
                    signer.do(waking.send, keys, _signer())
                elif ready := _prepare(verb, keys, first):
                    do = signer.do_meanwhile if ahead or more else signer.do
                    do(_sign_and_hand_over, site, verb, ready)
                    signing = frozenset(keys)
            if ahead:
                break
    return sum(signer.outcomes)


def _sign_and_hand_over(site: int, verb: str, ready: Sequence["Draft"]) -> int:
    """How many: none where signing was frozen meanwhile, so that a freeze need not wait for what is prepared."""
    if freezing.standing(site):
        return 0
    signed = _sign(verb, ready)
    telling.signed(verb, (one.order for one in signed))
    nudge(signed)
    return len(signed)


# Faster than an encoder: of base64 and a key's id nothing need be escaped.
_JSON = '{{"envelope": "{envelope}", "signature": "{signature}", "key": "{key}"}}'.format


class Signed(NamedTuple):
    """A command as its client gets it, all ids as text: for the gateway (``agents.gateway.daemons.Handed``). ``envelope`` is JSON."""

    client: str
    session: str
    order: str
    command: str
    sequence: int
    key: str
    state: str
    envelope: str


@dataclass(slots=True)
class Draft:
    """A command on its way to be signed: columns and no rows, of which ten thousand would take seconds to make.

    Ids are text, as which each of them is needed half a dozen times.
    """

    key: str
    client: str
    order: str
    expires_at: float
    session: str | None  # with what follows, None for a client that is not connected
    boot: str
    protocol: int
    release: int | None
    args: dict[str, Any] = field(default_factory=dict)
    sequence: int = 0


@transaction.atomic
def _prepare(verb: str, keys: Sequence[UUID], first: int) -> list[Draft]:
    """Number the commands from ``first`` on, bind each to its client's present boot, and write them down. Those that cannot be sent end."""
    # Asked again: somebody may have paused a campaign, or taken commands back, since they were looked up.
    queued = Command.objects.filter(pk__among=keys, status=CommandStatus.QUEUED).order_by()
    opened = FilteredRelation("client__sessions", condition=Q(client__sessions__status=SessionStatus.OPEN))
    queued = queued.exclude(caps.UNAPPROVED).exclude(caps.PAUSED).annotate(opened=opened)
    columns: list[str | Combinable] = [Text("pk"), Text("client"), Text("order"), Epoch("expires_at")]
    columns += [Text("opened__pk"), Text("opened__boot_id"), "opened__protocol", "opened__release"]
    if verb == Verb.RELAY:  # others have no arguments of their own
        columns.append("args")
    drafts = [Draft(*row) for row in queued.values_list(*columns)]
    found = Order.objects.select_related("site").in_bulk(map(UUID, {draft.order for draft in drafts}))
    orders = {str(pk): order for pk, order in found.items()}
    releases = Release.objects.select_related("home", "version").in_bulk({draft.release for draft in drafts} - {None})
    complete = _Completer(verb, orders, releases)

    ready, hopeless = list[Draft](), defaultdict[tuple[CommandStatus, str], list[Draft]](list)
    now = timezone.now()
    for draft in drafts:
        if draft.expires_at <= now.timestamp():
            hopeless[CommandStatus.EXPIRED, "not sent in time"].append(draft)
        elif not draft.session:
            hopeless[CommandStatus.FAILED, "the client is not connected"].append(draft)
        elif why := complete(draft):
            hopeless[CommandStatus.FAILED, why].append(draft)
        else:
            ready.append(draft)
    for number, draft in enumerate(ready, first):
        draft.sequence = number
    for (status, why), ended in hopeless.items():
        still = Command.objects.filter(pk__among=[draft.key for draft in ended], status=CommandStatus.QUEUED)
        still.update(status=status, finished_at=now, reason=why)
        telling.hopeless(status, why, (draft.order for draft in ended))
    _write_down(verb, ready, orders)
    return ready


class _Completer:
    """Gives commands their arguments, which are the same for all of an order with the same release and protocol."""

    def __init__(self, verb: str, orders: Mapping[str, Order], releases: Mapping[int, Release]) -> None:
        self._verb, self._orders, self._releases = verb, orders, releases
        self._templates = dict[int, HomeTemplate]()
        self._known = dict[tuple[str, int | None, int], dict[str, Any] | str]()

    def __call__(self, draft: Draft) -> str:
        """Give a command its arguments, for this boot of its client; else why that cannot be."""
        if self._verb == Verb.RELAY:  # what it sends is its own
            found: dict[str, Any] | str = draft.args if draft.protocol > 1 else self._too_old()
        else:
            kind = (draft.order, draft.release, draft.protocol)
            if kind not in self._known:
                self._known[kind] = self._args(self._orders[draft.order], draft.release, draft.protocol)
            found = self._known[kind]
        if isinstance(found, str):
            return found
        draft.args = found
        return ""

    def _args(self, order: Order, release: int | None, version: int) -> dict[str, Any] | str:
        args = {**order.args, **({"force": True} if order.force else {})}
        if version < 2 and (args or self._verb == Verb.MESSAGE):
            return self._too_old()
        if self._verb == Verb.CYCLE:
            if release is None or release not in self._releases:
                return "its release is gone, and with it the template"
            if release not in self._templates:
                self._templates[release] = homes.now_for(self._releases[release])
            home = self._templates[release]
            args |= {"home": home.sha256, "home_bytes": home.bytes, "home_digest": home.tree_digest}
        elif self._verb == Verb.CAPTURE:
            args["most_bytes"] = homes.MOST_BYTES
        return args

    def _too_old(self) -> str:
        what = "messages" if self._verb == Verb.MESSAGE else "warnings and holds"
        return f"its daemon speaks protocol 1, which knows no {what}: boot it with a newer version"


def _write_down(verb: str, ready: Iterable[Draft], orders: Mapping[str, Order]) -> None:
    """One entry for each order: every command of the group with its client, its boot and its number."""
    signed = defaultdict[str, list[dict[str, Any]]](list)
    for draft in ready:
        told = {"command": draft.key, "client": draft.client, "boot": draft.boot, "sequence": draft.sequence}
        signed[draft.order].append(told)
    for key, commands in signed.items():
        order = orders[key]
        audit.record("commands.signed", order, site=order.site, actor="sender", verb=verb, commands=commands)


@transaction.atomic
def _sign(verb: str, ready: Iterable[Draft]) -> list[Signed]:
    """Make the envelopes. What was taken back meanwhile has none, and goes nowhere."""
    signer, now = _signer(), timezone.now()
    write = _Scribe(verb, round(now.timestamp() * 1000))
    bodies = defaultdict[int, list[tuple[Draft, bytes]]](list)  # by version
    for draft in ready:
        try:
            bodies[min(draft.protocol, protocol.VERSION)].append((draft, write(draft)))
        except ValueError as error:  # whoever put that into the database must not keep the others from being sent
            log.warning("A command cannot be signed: %s", error)
            bad = Command.objects.filter(pk=draft.key, status=CommandStatus.QUEUED)
            bad.update(status=CommandStatus.FAILED, finished_at=now, reason="it is not in the protocol")
    rows, signed = [], []
    pattern = Envelope(key_id=signer.key_id, signed_at=now)
    for version, written in bodies.items():
        signatures = speaking.sign(signer, [body for _, body in written], version)
        for (draft, body), signature in zip(written, signatures, strict=True):
            rows.append((draft.key, draft.session, draft.sequence, body, signature))
            envelope = _JSON(**speaking.envelope(body, signature, signer.key_id))
            state = protocol.CYCLING if verb == Verb.CYCLE and not draft.args.get("warn_s") else ""
            keys = (draft.client, draft.session or "", draft.order, draft.key)
            signed.append(Signed(*keys, draft.sequence, signer.key_id, state, envelope))
    mine = Command.objects.filter(pk__among=[row[0] for row in rows])
    if mine.filter(status=CommandStatus.QUEUED).update(status=CommandStatus.SENT, sent_at=now) < len(rows):
        still = set(mine.filter(status=CommandStatus.SENT).values_list(Text("pk"), flat=True))
        rows, signed = [row for row in rows if row[0] in still], [one for one in signed if one.command in still]
    if insert_rows(pattern, ("command", "session", "sequence", "body", "signature"), rows) != len(rows):
        raise IntegrityError(
            "One of these numbers was given before: the sender's book, or its host's clock, is older than the database."
        )
    return signed


class _Scribe:
    """Writes the bytes to sign. What is the same for thousands is checked and written once."""

    def __init__(self, verb: str, now_ms: int) -> None:
        self._verb, self._now_ms = verb, now_ms
        self._ends = dict[tuple[int, float, int], tuple[dict[str, Any], str]]()

    def __call__(self, draft: Draft) -> bytes:
        """ValueError for a command that is not in the protocol."""
        version = min(draft.protocol, protocol.VERSION)
        kind = (id(draft.args), draft.expires_at, version)
        if kind not in self._ends:
            body = self._encoded(draft, version)
            # With the arguments, so that they live, and nothing else gets their id.
            self._ends[kind] = draft.args, body[body.index('"verb":') :]
            if self._begin(draft, version) + self._ends[kind][1] != body:
                raise AssertionError(f"The protocol writes commands in another way: {body}")
        return (self._begin(draft, version) + self._ends[kind][1]).encode()

    @staticmethod
    def _begin(draft: Draft, version: int) -> str:
        ids = f'"command":"{draft.key}","client":"{draft.client}","boot":"{draft.boot}"'
        return f'{{"v":{version},{ids},"sequence":{draft.sequence},'

    def _encoded(self, draft: Draft, version: int) -> str:
        command = protocol.Command(
            command=str(draft.key),
            client=str(draft.client),
            boot=draft.boot,
            sequence=draft.sequence,
            verb=self._verb,
            args=relays.permitted(draft.args) if self._verb == Verb.RELAY else draft.args,
            not_before_ms=self._now_ms - EARLY_MS,
            expires_ms=round(draft.expires_at * 1000),
        )
        return speaking.encode(command, version).decode()
