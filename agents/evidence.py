"""How commands end: by evidence. Reports of the daemon, a new boot, silence, or too much time."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from django.db import transaction
from django.utils import timezone

from agents import capturing, metrics, telling
from agents.daemon import protocol
from agents.models import BootSession, Command, CommandStatus, HomeRestore, RestoreResult, Verb
from fleet import audit
from fleet.exceptions import WrongState
from fleet.transitions import move

_HEX = re.compile(r"[0-9a-f]{64}|").fullmatch
_PHASES = ("kill", "unmount", "restore", "verify", "login", "total")
_MOST = 1 << 53
LONGEST_WARNING = timedelta(hours=2)  # an hour, and twelve times five minutes more


@transaction.atomic
def end(command: Command, status: CommandStatus, reason: str = "", result: Mapping[str, Any] | None = None) -> None:
    """Bring ``command`` to a terminal status; a cycle leaves its HomeRestore. Raises WrongState when it ended already."""
    move(command, status, finished_at=timezone.now(), reason=reason[:300], result=dict(result or {}))
    if command.verb == Verb.CYCLE and status in _RESTORES:
        record_restore(command, _RESTORES[status], reason)
    telling.ended([command.pk])
    if command.verb == Verb.CAPTURE and status != CommandStatus.SUCCEEDED:
        capturing.discard(command)


_RESTORES = {
    CommandStatus.SUCCEEDED: RestoreResult.RESTORED,
    CommandStatus.FAILED: RestoreResult.FAILED,
    CommandStatus.REFUSED: RestoreResult.REFUSED,
    CommandStatus.LOST: RestoreResult.LOST,
}


def record_restore(command: Command, outcome: RestoreResult, explanation: str) -> HomeRestore:
    """Write down a restore and seal it into the site's chain, within the present transaction."""
    order, client, result = command.order, command.client, command.result
    client_class = command.session.client_class if command.session else client.client_class
    phases = result.get("phases_ms", {})
    restore = HomeRestore.objects.create(
        site=order.site,
        client=client,
        command=command,
        at=timezone.now(),
        client_name=str(client)[:100],
        class_name=str(client_class or ""),
        asked_by=audit.actor_name(order.ordered_by),
        reason=order.reason,
        result=outcome,
        explanation=explanation[:300],
        template=result.get("template", ""),
        expected=command.args.get("home_digest", ""),
        before=result.get("before", ""),
        after=result.get("after", ""),
        files=result.get("files"),
        bytes=result.get("bytes"),
        killed=result.get("killed"),
        phases_ms={name: phases[name] for name in _PHASES if name in phases},
    )
    transaction.on_commit(partial(metrics.restored, restore))
    audit.record("restore", restore, site=order.site, actor=order.ordered_by, result=outcome.value, order=str(order.pk))
    return restore


def take_report(session: BootSession, report: Mapping[str, Any]) -> str:
    """Apply one report of ``session``'s client; "" when taken, else why not. Taking one twice changes nothing.

    ``report`` has the form of docs/protocol.md, checked by the caller. A command of another client is not touched.
    """
    command = (
        Command.objects.select_related("order__site", "order__ordered_by", "client", "session__client_class")
        .filter(pk=report["command"])
        .first()
    )
    if command is None or command.client_id != session.client_id:
        audit.record(
            "report.rejected", session.client, site=session.client.site, actor="gateway", command=str(report["command"])
        )
        return "not a command of this client"
    if command.status == CommandStatus.QUEUED:
        return "the command was not sent yet"
    state, reason = report["state"], report["reason"]
    try:
        if state == protocol.ACCEPTED:
            if command.status == CommandStatus.SENT:
                at = timezone.now()
                move(command, CommandStatus.ACCEPTED, accepted_at=at)
                transaction.on_commit(partial(metrics.accepted, command, at))
                step = telling.Step(command.order_id, command.pk, command.client_id)
                transaction.on_commit(partial(telling.accepted, [step]))
            if command.status == CommandStatus.ACCEPTED and _time(report["result"].get("acts_at_ms")):
                acts_at = datetime.fromtimestamp(report["result"]["acts_at_ms"] / 1000, UTC)
                Command.objects.filter(pk=command.pk).update(acts_at=min(acts_at, timezone.now() + LONGEST_WARNING))
            return (
                ""
                if command.status == CommandStatus.ACCEPTED
                else f"the command is {command.get_status_display().lower()}"
            )
        if command.status not in Command.OPEN:
            return ""
        if state == protocol.REFUSED:
            end(command, CommandStatus.REFUSED, reason)
        elif state == protocol.FAILED:
            end(command, CommandStatus.FAILED, reason or "the client could not do it", clean_result(report["result"]))
        elif command.verb == Verb.CYCLE:
            _judge_cycle(command, clean_result(report["result"]))
        elif command.verb == Verb.CAPTURE:
            with transaction.atomic():
                end(command, *capturing.judge(command, report["result"]))
        elif command.verb == Verb.MESSAGE:
            shown = report["result"].get("shown")
            known = {"shown": shown} if isinstance(shown, str) and len(shown) <= 100 and shown.isprintable() else {}
            end(command, CommandStatus.SUCCEEDED, "it was on the screen", known)
        elif command.verb == Verb.RELAY:
            sent = report["result"].get("sent")
            end(command, CommandStatus.SUCCEEDED, "wake packets sent", {"sent": sent} if _count(sent) else {})
        else:
            return "that is proven by a new boot or by silence, not by a word"
    except WrongState as error:
        return str(error)
    return ""


def _judge_cycle(command: Command, result: dict[str, Any]) -> None:
    """A cycle has succeeded when the digest measured on the client is the one the server knows of the template."""
    if result.get("after") == command.args["home_digest"]:
        end(command, CommandStatus.SUCCEEDED, "the home is as its template", result)
    else:
        end(command, CommandStatus.FAILED, "the restored home has another digest than its template", result)


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
        name: phases[name] for name in _PHASES if isinstance(phases, dict) and _count(phases.get(name))
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


def new_boot(session: BootSession) -> None:
    """A boot began: what it says of the commands of the boot before."""
    commands = Command.objects.select_related("order__site", "order__ordered_by", "client", "session__client_class")
    for command in commands.filter(client=session.client, status__in=[CommandStatus.SENT, CommandStatus.ACCEPTED]):
        if command.verb == Verb.WAKE:
            end(command, CommandStatus.SUCCEEDED, f"booted: {session.boot_id}", {"boot": str(session.boot_id)})
            continue
        if command.session is None or command.session.boot_id == session.boot_id:
            continue
        if command.status == CommandStatus.SENT:
            end(command, CommandStatus.EXPIRED, "the client booted anew before it accepted")
        elif command.verb == Verb.CYCLE:
            end(command, CommandStatus.FAILED, "the client booted anew in the middle of the cycle")
        elif command.verb == Verb.CAPTURE:
            end(command, CommandStatus.FAILED, "the client booted anew in the middle of the capture")
        elif command.verb == Verb.RELAY:
            end(command, CommandStatus.FAILED, "the client booted anew before it said that it sent the packets")
        else:
            end(command, CommandStatus.SUCCEEDED, f"booted anew: {session.boot_id}")


def silence(session: BootSession, how: str) -> bool:
    """A session fell silent. True when that is what a power-down was to bring about."""
    command = (
        Command.objects.select_related("order__site", "order__ordered_by", "client")
        .filter(session=session, verb=Verb.POWEROFF, status=CommandStatus.ACCEPTED)
        .first()
    )
    if command is None:
        return False
    end(command, CommandStatus.SUCCEEDED, how)
    return True
