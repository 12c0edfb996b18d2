"""The rows that restores of homes leave: one for each cycle that ended, whoever says how, sealed into its site's chain."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from django.db import IntegrityError, transaction
from django.utils import timezone

from agents import metrics
from agents.models import Command, HomeRestore, RestoreResult
from fleet import audit
from fleet.models import Client, Site
from fleet.rows import insert_rows

PHASES = ("kill", "unmount", "restore", "verify", "login", "total")
# Of the command, its order, its client and its boot: what a row tells, and what it is told by.
_TELLING = (
    *("pk", "order", "order__site", "order__reason", "order__ordered_by__username", "args"),
    *("client", "client__name", "client__seat", "client__client_class__name"),
    *("session", "session__client_class__name"),
)
_OWN = (
    *("client", "command", "client_name", "class_name", "asked_by", "reason", "result", "explanation"),
    *("template", "expected", "before", "after", "files", "bytes", "killed", "phases_ms"),
)


class Outcome(NamedTuple):
    """How a cycle ended; ``result`` is what the client measured (docs/protocol.md), in its right form."""

    restore: RestoreResult
    explanation: str
    result: Mapping[str, Any]


def record(outcomes: Mapping[UUID, Outcome]) -> None:
    """Write down the restores of these commands and seal them, within the present transaction."""
    if not outcomes:
        return
    rows = Command.objects.filter(pk__in=outcomes).order_by("pk").values_list(*_TELLING)
    by_site: dict[int, list[HomeRestore]] = {}
    orders: dict[UUID, str] = {}
    for row in rows:
        told = dict(zip(_TELLING, row, strict=True))
        restore = _of(told, outcomes[told["pk"]])
        by_site.setdefault(told["order__site"], []).append(restore)
        orders[told["pk"]] = str(told["order"])
    for site in Site.objects.in_bulk(by_site).values():
        _seal(site, by_site[site.pk], orders)


def _of(told: Mapping[str, Any], outcome: Outcome) -> HomeRestore:
    measured = outcome.result
    phases = measured.get("phases_ms", {})
    by = "session__client_class__name" if told["session"] else "client__client_class__name"
    return HomeRestore(
        site_id=told["order__site"],
        client_id=told["client"],
        command_id=told["pk"],
        client_name=str(Client(name=told["client__name"], seat=told["client__seat"]))[:100],
        class_name=told[by] or "",
        asked_by=told["order__ordered_by__username"] or audit.actor_name(None),
        reason=told["order__reason"],
        result=outcome.restore,
        explanation=outcome.explanation[:300],
        template=measured.get("template", ""),
        expected=told["args"].get("home_digest", ""),
        before=measured.get("before", ""),
        after=measured.get("after", ""),
        files=measured.get("files"),
        bytes=measured.get("bytes"),
        killed=measured.get("killed"),
        phases_ms={name: phases[name] for name in PHASES if name in phases},
    )


def _seal(site: Site, restores: list[HomeRestore], orders: Mapping[UUID, str]) -> None:
    """Store the rows of a site, all at the same moment, and an entry for each."""
    now = timezone.now()
    rows = ([getattr(restore, f"{name}_id" if name in _KEYS else name) for name in _OWN] for restore in restores)
    if insert_rows(HomeRestore(site=site, at=now), _OWN, rows) != len(restores):
        raise IntegrityError("One of these restores was written down before.")
    keys = dict(HomeRestore.objects.filter(command__in=orders).values_list("command", "pk"))
    events = []
    for restore in restores:
        restore.pk, restore.at = keys[restore.command_id], now
        detail = {"result": str(restore.result), "order": orders[restore.command_id]}
        events.append(audit.Event("restore", restore, restore.asked_by, detail))
    audit.record_many(site, events)
    transaction.on_commit(partial(metrics.restored, restores))


_KEYS = ("client", "command")
