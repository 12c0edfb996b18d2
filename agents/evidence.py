"""How commands end: by evidence. Reports of the daemon, a new boot, silence, or too much time.

What thousands tell at once is judged together: their commands are locked in the order of their keys, each is judged by itself, and what
follows is written with a handful of statements. The end of the audit chain is locked last.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from django.db import transaction
from django.db.models.expressions import Combinable
from django.utils import timezone

from agents import capturing, metrics, restoring, stories, telling
from agents.daemon import protocol
from agents.models import BootSession, Command, CommandStatus, Verb, args_of
from agents.observing import observe
from fleet import audit
from fleet.columns import Epoch, Text
from fleet.exceptions import WrongState
from fleet.models import AuditEntry, Client, ClientState
from fleet.rows import update_rows
from fleet.transitions import move

_HEX = re.compile(r"[0-9a-f]{64}|").fullmatch
_MOST = 1 << 53
LONGEST_WARNING = timedelta(hours=2)  # an hour, and twelve times five minutes more
_UNDER_WAY = (CommandStatus.SENT, CommandStatus.ACCEPTED)


class End(NamedTuple):
    """How a command ends."""

    status: CommandStatus
    reason: str
    result: dict[str, Any]


@transaction.atomic
def end(command: Command, status: CommandStatus, reason: str = "", result: Mapping[str, Any] | None = None) -> None:
    """Bring ``command`` to a terminal status; a cycle leaves its HomeRestore. Raises WrongState when it ended already."""
    how = End(status, reason[:300], dict(result or {}))
    move(command, status, finished_at=timezone.now(), reason=how.reason, result=how.result)
    _follow({command.pk: how})


def _end_all(ends: Mapping[UUID, End]) -> None:
    """The same of many. The caller has locked them, and seen that they may go there."""
    now = timezone.now()
    rows = ((pk, how.status, now, how.reason[:300], how.result) for pk, how in ends.items())
    update_rows(Command, ["status", "finished_at", "reason", "result"], rows)
    _follow(ends)


def _follow(ends: Mapping[UUID, End]) -> None:
    """What else it means that commands have ended."""
    if not ends:
        return
    told = stories.of(ends)
    cycles = [story for story in told if story.verb == Verb.CYCLE and story.status in restoring.RESULTS]
    restores = restoring.record(cycles, {pk: how.result for pk, how in ends.items()})
    telling.ended((story, restores.get(story.pk)) for story in told)
    for story in told:
        if story.verb == Verb.CAPTURE and story.status != CommandStatus.SUCCEEDED:
            capturing.discard(Command(pk=story.pk))


# --- reports -----------------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """What the daemon of a client told at once: reports in the form of docs/protocol.md, checked by the caller."""

    session: UUID
    client: UUID
    reports: Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class _Standing:
    """A command as it is in the middle of being told of."""

    client: UUID
    verb: str
    status: str
    order: str
    sent_at: float | None  # in seconds since 1970
    envelope: bytes | memoryview | None = None
    ends: End | None = None
    doubt: str = ""  # why it has not come about, though its evidence said so


def take_report(session: BootSession, report: Mapping[str, Any]) -> str:
    """Apply one report of ``session``'s client; "" when taken, else why not. Taking one twice changes nothing."""
    return take_reports([Told(session.pk, session.client_id, [report])])[0][0]


@transaction.atomic
def take_reports(told: Sequence[Told]) -> list[list[str]]:
    """Apply the reports of many clients; for each "" when taken, else why not. A command of another client is not touched."""
    keys = {report["command"] for one in told for report in one.reports}
    rows = Command.objects.select_for_update(of=("self",), no_key=True).filter(pk__among=keys).order_by("pk")
    columns: list[str | Combinable] = [Text("pk"), "client", "verb", "status", Text("order"), Epoch("sent_at")]
    if any(report["state"] != protocol.ACCEPTED for one in told for report in one.reports):
        columns.append("envelope__body")  # which nobody need read of thousands that begin
    standing = {row[0]: _Standing(*row[1:]) for row in rows.values_list(*columns)}
    accepted: dict[str, UUID] = {}
    acting: dict[str, datetime] = {}
    strange: list[tuple[UUID, str]] = []
    answers: list[list[str]] = []
    for session, client, reports in told:
        answers.append([])
        for report in reports:
            key = report["command"]
            command = standing.get(key)
            if command is None or command.client != client:
                strange.append((client, key))
                answers[-1].append("not a command of this client")
                continue
            was = command.status
            answers[-1].append(_take(key, command, report))
            if was == CommandStatus.SENT and command.status == CommandStatus.ACCEPTED:
                accepted[key] = session
            if command.status == CommandStatus.ACCEPTED and _time(report["result"].get("acts_at_ms")):
                acts_at = datetime.fromtimestamp(report["result"]["acts_at_ms"] / 1000, UTC)
                acting[key] = min(acts_at, timezone.now() + LONGEST_WARNING)
    _accept(accepted, standing)
    update_rows(Command, ["acts_at"], acting.items())
    _end_all({UUID(key): command.ends for key, command in standing.items() if command.ends})
    _doubt({key: command.doubt for key, command in standing.items() if command.doubt})
    _write_down(strange)
    return answers


def _take(key: str, command: _Standing, report: Mapping[str, Any]) -> str:
    """What a report of its own client makes of a command; "" when taken, else why not."""
    if command.status == CommandStatus.QUEUED:
        return "the command was not sent yet"
    state = report["state"]
    if state == protocol.ACCEPTED:
        if command.status == CommandStatus.SENT:
            command.status = CommandStatus.ACCEPTED
        if command.status == CommandStatus.ACCEPTED or _believed(command):
            return ""
        return f"the command is {CommandStatus(command.status).label.lower()}"
    if command.status not in Command.OPEN:
        command.doubt = report["reason"] or state if _believed(command) and state != protocol.SUCCEEDED else ""
        return ""
    try:
        how = _ended(key, command, report)
    except WrongState as error:
        return str(error)
    if how is None:
        return "that is proven by a new boot or by silence, not by a word"
    command.status, command.ends = how.status, how
    return ""


def _believed(command: _Standing) -> bool:
    """Whether it ended by a silence, or a good-bye, after which its client still speaks: it may go on, and then that is true."""
    return command.verb == Verb.POWEROFF and command.status == CommandStatus.SUCCEEDED


def _doubt(doubted: Mapping[str, str]) -> None:
    """Clients say that they have not powered down, of which that was believed: said on the board, and written down once."""
    for key, why in doubted.items():
        command = _whole(key)
        if AuditEntry.objects.filter(action="command.doubted", subject_id=key).exists():
            continue
        observe(command.client, ClientState(command.client.state), trouble=f"It did not power down: {why}"[:400])
        audit.record("command.doubted", command, site=command.order.site, actor="gateway", why=why)


def _ended(key: str, command: _Standing, report: Mapping[str, Any]) -> End | None:
    """How a command ends by the word of its client; None where that is no proof."""
    state, reason = report["state"], report["reason"]
    if state == protocol.REFUSED:
        return End(CommandStatus.REFUSED, reason, {})
    if state == protocol.FAILED:
        return End(CommandStatus.FAILED, reason or "the client could not do it", clean_result(report["result"]))
    if command.verb == Verb.CYCLE:
        return _judge_cycle(args_of(command.envelope)["home_digest"], clean_result(report["result"]))
    if command.verb == Verb.CAPTURE:
        with transaction.atomic():
            return End(*capturing.judge(_whole(key), report["result"]))
    if command.verb == Verb.MESSAGE:
        shown = report["result"].get("shown")
        known = {"shown": shown} if isinstance(shown, str) and len(shown) <= 100 and shown.isprintable() else {}
        return End(CommandStatus.SUCCEEDED, "it was on the screen", known)
    if command.verb == Verb.RELAY:
        sent = report["result"].get("sent")
        return End(CommandStatus.SUCCEEDED, "wake packets sent", {"sent": sent} if _count(sent) else {})
    return None


def _judge_cycle(home_digest: str, result: dict[str, Any]) -> End:
    """A cycle has succeeded when the digest measured on the client is the one the server knows of the template."""
    if result.get("after") == home_digest:
        return End(CommandStatus.SUCCEEDED, "the home is as its template", result)
    return End(CommandStatus.FAILED, "the restored home has another digest than its template", result)


def _whole(key: str) -> Command:
    needed = ("order__site", "order__ordered_by", "client", "envelope__session__client_class")
    return Command.objects.select_related(*needed).get(pk=key)


def _accept(sessions: Mapping[str, UUID], standing: Mapping[str, _Standing]) -> None:
    """These commands are accepted, in these sessions."""
    if not sessions:
        return
    at = timezone.now()
    Command.objects.filter(pk__among=sessions, status=CommandStatus.SENT).update(
        status=CommandStatus.ACCEPTED, accepted_at=at
    )
    commands = [(standing[key], key, session) for key, session in sessions.items()]
    steps = [telling.Step(command.order, key, command.client, session) for command, key, session in commands]
    times = [(command.verb, command.sent_at) for command, _, _ in commands]
    transaction.on_commit(partial(metrics.accepted, times, at.timestamp()))
    transaction.on_commit(partial(telling.accepted, steps))


def _write_down(strange: Sequence[tuple[UUID, str]]) -> None:
    """Reports of what is not theirs."""
    clients = Client.objects.select_related("site").in_bulk({client for client, _ in strange})
    events: dict[Any, list[audit.Event]] = {}
    for client, command in strange:
        event = audit.Event("report.rejected", clients[client], "gateway", {"command": command})
        events.setdefault(clients[client].site, []).append(event)
    for site, rejected in events.items():
        audit.record_many(site, rejected)


def clean_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """What is known and of its right form in a cycle's result; a client's rubbish is left out."""
    phases = result.get("phases_ms")
    clean: dict[str, Any] = {
        key: result[key]
        for key in ("template", "expected", "before", "after")
        if isinstance(result.get(key), str) and _HEX(result[key])
    }
    clean |= {key: result[key] for key in ("files", "bytes", "killed") if _count(result.get(key))}
    clean["phases_ms"] = {
        name: phases[name] for name in restoring.PHASES if isinstance(phases, dict) and _count(phases.get(name))
    }
    session = result.get("session")
    if isinstance(session, str) and re.fullmatch(r"[0-9A-Za-z]{1,20}", session):
        clean["session"] = session
    return clean


def _time(value: object) -> bool:
    """Milliseconds since 1970 that a datetime can be made of."""
    return _count(value) and int(str(value)) < 1 << 45


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST


# --- a new boot, and silence -------------------------------------------------------------------------------------


class Boot(NamedTuple):
    client: UUID
    boot_id: UUID


@transaction.atomic
def new_boots(boots: Iterable[Boot]) -> None:
    """Boots began: what they say of the commands of the boots before. One of each client."""
    began = {boot.client: boot.boot_id for boot in boots}
    under_way = Command.objects.open(*_UNDER_WAY).filter(client__among=list(began))
    commands = under_way.select_for_update(of=("self",), no_key=True)
    rows = commands.order_by("pk").values_list("pk", "client", "verb", "status", "envelope__session__boot_id")
    _end_all(
        {
            pk: _by_new_boot(verb, status, began[client])
            for pk, client, verb, status, boot in rows
            if verb == Verb.WAKE or (boot is not None and boot != began[client])
        }
    )


def _by_new_boot(verb: str, status: str, boot_id: UUID) -> End:
    if verb == Verb.WAKE:
        return End(CommandStatus.SUCCEEDED, f"booted: {boot_id}", {"boot": str(boot_id)})
    if status == CommandStatus.SENT:
        return End(CommandStatus.EXPIRED, "the client booted anew before it accepted", {})
    if verb == Verb.CYCLE:
        return End(CommandStatus.FAILED, "the client booted anew in the middle of the cycle", {})
    if verb == Verb.CAPTURE:
        return End(CommandStatus.FAILED, "the client booted anew in the middle of the capture", {})
    if verb == Verb.RELAY:
        return End(CommandStatus.FAILED, "the client booted anew before it said that it sent the packets", {})
    if verb == Verb.MESSAGE:
        return End(CommandStatus.FAILED, "the client booted anew before it said that it showed the message", {})
    return End(CommandStatus.SUCCEEDED, f"booted anew: {boot_id}", {})


def silence(session: BootSession, how: str) -> bool:
    """A session fell silent. True when that is what a power-down was to bring about."""
    return bool(silences([session.pk], how))


@transaction.atomic
def silences(sessions: Collection[UUID], how: str) -> int:
    """The same of many; of how many it was to be so."""
    accepted = Command.objects.select_for_update(of=("self",), no_key=True).filter(
        envelope__session__among=sessions, verb=Verb.POWEROFF, status=CommandStatus.ACCEPTED
    )
    keys = list(accepted.order_by("pk").values_list("pk", flat=True))
    _end_all({key: End(CommandStatus.SUCCEEDED, how, {}) for key in keys})
    return len(keys)
