"""Sessions of daemons: opened, seen, closed. What the gateway writes about who is there."""

import re
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from agents.daemon import protocol
from agents.evidence import silence
from agents.models import BootSession, SessionStatus
from agents.observing import observe
from fleet.exceptions import WrongState
from fleet.models import Client, ClientState
from fleet.transitions import move

_STATES = {
    protocol.BOOTING: ClientState.BOOTING,
    protocol.READY: ClientState.READY,
    protocol.IN_USE: ClientState.IN_USE,
    protocol.CYCLING: ClientState.CYCLING,
}
_STAGE = re.compile(r"[a-z]{1,20}").fullmatch


class BadFacts(ValueError):
    """The facts of a daemon do not have the form of docs/protocol.md."""


def clean_facts(facts: object) -> dict[str, Any]:
    """The known facts in their right form. BadFacts names the first that is not."""
    if not isinstance(facts, dict):
        raise BadFacts("The facts are not an object.")
    clean: dict[str, Any] = {}
    for key in ("memory_kib", "cpus"):
        if type(facts.get(key)) is not int or not 0 <= facts[key] < 1 << 40:
            raise BadFacts(f"{key} is not a count.")
        clean[key] = facts[key]
    for key in ("kernel", "class", "version_digest", "product", "serial"):
        value = facts.get(key, "")
        if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
            raise BadFacts(f"{key} is not a short text.")
        clean[key] = value
    times = facts.get("boot_ms", {})
    if not isinstance(times, dict) or len(times) > 20:
        raise BadFacts("boot_ms is not an object of stages.")
    for stage, value in times.items():
        if not _STAGE(stage) or type(value) not in (int, float) or not 0 <= value < 1 << 40:
            raise BadFacts("boot_ms holds something that is no stage and time.")
    clean["boot_ms"] = {stage: round(value) for stage, value in times.items()}
    adapters = facts.get("adapters", [])
    ids = ("address", "vendor", "device", "subvendor", "subdevice", "class")
    if not isinstance(adapters, list) or len(adapters) > 16:
        raise BadFacts("adapters is not a list of at most 16.")
    for adapter in adapters:
        if not isinstance(adapter, dict) or any(
            not isinstance(adapter.get(key), str) or len(adapter[key]) > 20 for key in ids
        ):
            raise BadFacts("An adapter lacks one of its ids.")
    clean["adapters"] = [{key: adapter[key] for key in ids} for adapter in adapters]
    return clean


@transaction.atomic
def open_session(session: BootSession, boot_id: str, facts: Mapping[str, Any]) -> None:
    """The daemon is up. Raises WrongState for a session that was superseded, or opened by another boot."""
    session.refresh_from_db()
    if str(session.boot_id) != boot_id:
        raise WrongState(f"The {session} is another boot's.")
    move(
        session,
        SessionStatus.OPEN,
        opened_at=session.opened_at or timezone.now(),
        facts=dict(facts),
        last_seen=timezone.now(),
    )
    client = Client.objects.get(pk=session.client_id)
    if client.state != ClientState.CYCLING:
        observe(client, ClientState.BOOTING if client.state == ClientState.BOOTING else ClientState.READY, trouble="")


def says_state(session_id: UUID, state: str) -> None:
    """The daemon says in what state its client is. A session that counted as lost is open again: it was late."""
    session = BootSession.objects.select_related("client").get(pk=session_id)
    if session.status == SessionStatus.LOST:
        try:
            with transaction.atomic():
                move(session, SessionStatus.OPEN, last_seen=timezone.now(), ended_at=None)
        except WrongState:
            return
    if session.status == SessionStatus.OPEN:
        observe(session.client, _STATES[state])


@transaction.atomic
def close_session(session: BootSession) -> None:
    """The system goes down and says so."""
    session.refresh_from_db()
    if session.status in BootSession.LIVE:
        move(session, SessionStatus.CLOSED, ended_at=timezone.now())
        silence(session, "the client said that it goes down")
        observe(session.client, ClientState.OFF)


def seen(sessions: Iterable[UUID]) -> list[UUID]:
    """Note the time for all these sessions at once; those that counted as lost, for ``says_state``."""
    now = timezone.now()
    ids = list(sessions)
    late: list[UUID] = []
    for start in range(0, len(ids), 500):
        part = BootSession.objects.filter(pk__in=ids[start : start + 500])
        part.update(last_seen=now)
        late += part.filter(status=SessionStatus.LOST).values_list("pk", flat=True)
    return late
