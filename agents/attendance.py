"""Sessions of daemons: opened, seen, closed. What the gateway writes about who is there."""

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from agents import holds, judging
from agents.daemon import protocol
from agents.evidence import silences
from agents.models import BootSession, SessionStatus
from agents.observing import locked, locked_all, observe, observe_all
from fleet.exceptions import WrongState
from fleet.models import Client, ClientState
from fleet.rows import update_rows

STRAY = timedelta(seconds=10)  # what was under way when a daemon said good-bye may still arrive
_STATES = {
    protocol.BOOTING: ClientState.BOOTING,
    protocol.READY: ClientState.READY,
    protocol.IN_USE: ClientState.IN_USE,
    protocol.CYCLING: ClientState.CYCLING,
}
_STAGE = re.compile(r"[a-z]{1,20}").fullmatch
_ADAPTER_ID = re.compile(r"[0-9a-f:.]{1,20}").fullmatch


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
    if (clock := facts.get("clock_ms")) is not None:
        if type(clock) is not int or not 0 <= clock < 1 << 53:
            raise BadFacts("clock_ms is no time.")
        clean["clock_ms"] = clock
    for key in ("kernel", "class", "version_digest", "product", "serial"):
        value = facts.get(key, "")
        if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
            raise BadFacts(f"{key} is not a short text.")
        clean[key] = value
    if (network := facts.get("network")) is not None:
        if network != "" and not _is_network(network):
            raise BadFacts("network is no IPv4 network.")
        clean["network"] = network
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
            not isinstance(adapter.get(key), str) or not _ADAPTER_ID(adapter[key]) for key in ids
        ):
            raise BadFacts("An adapter lacks one of its ids.")
    clean["adapters"] = [{key: adapter[key] for key in ids} for adapter in adapters]
    return clean


def _is_network(value: object) -> bool:
    """Whether it is an IPv4 network in its one spelling: clients of one LAN must say the same."""
    try:
        return isinstance(value, str) and str(ipaddress.IPv4Network(value)) == value
    except ValueError:
        return False


class Known(NamedTuple):
    """A session, as its bearer shows it."""

    pk: UUID
    client_id: UUID
    status: str
    command_keys: str


def sessions_by(bearers: Sequence[str]) -> list[Known | None]:
    """The sessions of bearers, which are told by their hashes."""
    rows = BootSession.objects.filter(bearer_digest__among=bearers).order_by()
    known = {row[0]: Known(*row[1:]) for row in rows.values_list("bearer_digest", *Known._fields)}
    over = _replaced([one.pk for one in known.values() if one.status == SessionStatus.CLOSED])
    superseded = {pk: one._replace(status=SessionStatus.SUPERSEDED) for pk, one in known.items() if one.pk in over}
    known |= superseded
    return [known.get(bearer) for bearer in bearers]


def _replaced(closed: Collection[UUID]) -> set[UUID]:
    """Which of these, that have closed, a younger boot of the same client has followed."""
    if not closed:
        return set()
    younger = BootSession.objects.filter(client=OuterRef("client"), planned_at__gt=OuterRef("planned_at"))
    return set(
        BootSession.objects.filter(Exists(younger), pk__among=list(closed)).order_by().values_list("pk", flat=True)
    )


def told_keys(session: UUID) -> str:
    """The ids of the command keys that the daemon of a session was told last."""
    return BootSession.objects.values_list("command_keys", flat=True).get(pk=session)


def session_of(bearer: str) -> BootSession:
    """All of one that is known."""
    return BootSession.objects.select_related("client__site").get(bearer_digest=bearer)


class Opening(NamedTuple):
    """A daemon is up. ``speaks`` is its protocol, ``command_keys`` the ids of the keys that it is told now."""

    session: UUID
    client: UUID
    boot_id: str
    facts: Mapping[str, Any]
    speaks: int = 1
    command_keys: str = ""


def open_session(
    session: BootSession, boot_id: str, facts: Mapping[str, Any], *, speaks: int = 1, command_keys: str = ""
) -> None:
    """The daemon is up. Raises WrongState for a session that was superseded or revoked, or opened by another boot."""
    (error,) = open_sessions([Opening(session.pk, session.client_id, boot_id, facts, speaks, command_keys)])
    if error is not None:
        raise error


@transaction.atomic
def open_sessions(openings: Sequence[Opening]) -> list[WrongState | None]:
    """The daemons are up; the WrongState of each session that was superseded or revoked, or opened by another boot.

    One that has closed is open again: who opens a session runs.
    """
    states = locked_all({opening.client for opening in openings})
    rows = BootSession.objects.filter(pk__among=[opening.session for opening in openings]).order_by()
    before = {row[0]: row[1:] for row in rows.values_list("pk", "boot_id", "status", "opened_at", "command_keys")}
    over = _replaced([pk for pk, (_, status, *_) in before.items() if status == SessionStatus.CLOSED])
    now = timezone.now()
    opened: dict[UUID, Opening] = {}
    outcomes: list[WrongState | None] = []
    for opening in openings:
        boot_id, status, *_ = before[opening.session]
        wrong = str(boot_id) != opening.boot_id or status not in BootSession.TRANSITIONS[SessionStatus.OPEN]
        wrong |= opening.session in over
        outcomes.append(_not_opened(opening) if wrong else None)
        if not wrong:
            opened[opening.session] = opening
    holds.forget(opening.client for opening in opened.values() if before[opening.session][2] is None)
    changes = []
    for pk, opening in opened.items():
        *_, opened_at, command_keys = before[pk]
        keys = opening.command_keys or command_keys
        changes.append((pk, SessionStatus.OPEN, opened_at or now, None, dict(opening.facts), opening.speaks, keys, now))
    columns = ["status", "opened_at", "ended_at", "facts", "protocol", "command_keys", "last_seen"]
    update_rows(BootSession, columns, changes)
    for network, those in _by(lambda one: one.facts.get("network"), opened.values()).items():
        if network:  # an old daemon says none
            moved = Client.objects.filter(pk__among=[one.client for one in those]).exclude(network=network)
            moved.update(network=network)
    for shown, clients in _by(lambda client: states[client], {one.client for one in opened.values()}).items():
        if shown != ClientState.CYCLING:
            observe_all(clients, shown if shown == ClientState.BOOTING else ClientState.READY, trouble="")
    return outcomes


def _not_opened(opening: Opening) -> WrongState:
    session = BootSession.objects.select_related("client").get(pk=opening.session)
    if str(session.boot_id) != opening.boot_id:
        return WrongState(f"The {session} is another boot's.")
    return WrongState(f"The {session} cannot be opened: it is {session.get_status_display().lower()}.")


@transaction.atomic
def refuse_old(session: BootSession, speaks: int) -> str:
    """A daemon speaks an older protocol than FLEET_PROTOCOL_FLOOR: noted as its client's trouble, in the words returned."""
    least = settings.PROTOCOL_FLOOR
    why = f"Its daemon speaks protocol {speaks}, and this server wants {least} at least: boot it with a newer version."
    client = locked(session.client_id)
    if client.trouble != why:
        observe(client, ClientState(client.state), trouble=why)
    return why


class Says(NamedTuple):
    """A daemon says in what state its client is."""

    session: UUID
    client: UUID
    state: str


def says_state(session_id: UUID, state: str) -> None:
    """The daemon says in what state its client is. A session that counted as lost is open again: it was late.

    So is one that has closed, unless it speaks at once: that was under way before.
    """
    client = BootSession.objects.values_list("client_id", flat=True).get(pk=session_id)
    say_states([Says(session_id, client, state)])


@transaction.atomic
def say_states(words: Sequence[Says]) -> list[None]:
    """The same of many; what a daemon said last is what is shown."""
    last = {word.session: word for word in words}
    locked_all(
        {word.client for word in words}
    )  # or the clock, which calls one lost at this moment, would have the last word
    sessions = BootSession.objects.filter(pk__among=last).order_by()
    now = timezone.now()
    closed = sessions.filter(status=SessionStatus.CLOSED, ended_at__lt=now - STRAY)
    late = set(closed.values_list("pk", flat=True))
    late -= _replaced(late)
    again = sessions.filter(Q(status=SessionStatus.LOST) | Q(pk__in=late))
    again.update(status=SessionStatus.OPEN, last_seen=now, ended_at=None)
    is_open = set(sessions.filter(status=SessionStatus.OPEN).values_list("pk", flat=True))
    said = [word for session, word in last.items() if session in is_open]
    for state, those in _by(lambda word: word.state, said).items():
        observe_all([word.client for word in those], _STATES[state])
    up = (protocol.READY, protocol.IN_USE)
    judging.ready({word.session for word in words if word.state in up and word.session in is_open})
    return [None] * len(words)


class Bye(NamedTuple):
    session: UUID
    client: UUID


def close_session(session: BootSession) -> None:
    """The system goes down and says so."""
    close_sessions([Bye(session.pk, session.client_id)])


@transaction.atomic
def close_sessions(byes: Sequence[Bye]) -> list[None]:
    """The same of many."""
    locked_all({bye.client for bye in byes})
    alive = BootSession.objects.filter(
        pk__among=[bye.session for bye in byes], status__in=BootSession.TRANSITIONS[SessionStatus.CLOSED]
    ).order_by()
    ended = dict(alive.values_list("pk", "client_id"))
    BootSession.objects.filter(pk__among=ended).update(status=SessionStatus.CLOSED, ended_at=timezone.now())
    silences(ended, "the client said that it goes down")
    observe_all(ended.values(), ClientState.OFF)
    return [None] * len(byes)


T = TypeVar("T")
K = TypeVar("K")


def _by(kind: Callable[[T], K], members: Iterable[T]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = {}
    for member in members:
        groups.setdefault(kind(member), []).append(member)
    return groups


@dataclass(frozen=True, slots=True)
class Said:
    """What a daemon said last ("" as long as it only opened its session), and when."""

    state: str
    at: datetime


def seen(present: Mapping[UUID, Said]) -> None:
    """Note the time for all these sessions at once, and mend what the board has otherwise than their daemons say.

    That is so after a session counted as lost, or closed, and came late, and where somebody asked for a boot script with the MAC of a
    client that runs. What was observed after the daemon spoke stays: the client may well have been reset.
    """
    ids = sorted(present)
    # First what locks clients: the clock, too, locks them before it looks at their sessions.
    rows = BootSession.objects.filter(_otherwise(ids, present), pk__among=ids).order_by()
    wrong = [
        Says(session, client, present[session].state or protocol.READY)
        for session, client, status, since, ended_at in rows.values_list(
            "pk", "client_id", "status", "client__since", "ended_at"
        )
        if status == SessionStatus.LOST or (ended_at + STRAY if ended_at else since) <= present[session].at
    ]
    if wrong:
        say_states(wrong)
    BootSession.objects.filter(pk__among=ids).update(last_seen=timezone.now())


def _otherwise(sessions: Sequence[UUID], present: Mapping[UUID, Said]) -> Q:
    """Those that are shown in another state than their daemon said, or as gone."""
    lost = Q(status__in=(SessionStatus.LOST, SessionStatus.CLOSED))
    for state, those in _by(lambda session: present[session].state, sessions).items():
        if state in _STATES:
            lost |= Q(pk__among=those, status=SessionStatus.OPEN) & ~Q(client__state=_STATES[state])
    return lost
