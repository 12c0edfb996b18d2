"""Sessions of daemons: opened, seen, closed. What the gateway writes about who is there."""

import ipaddress
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from agents import holds, judging
from agents.daemon import protocol
from agents.evidence import silence
from agents.models import BootSession, SessionStatus
from agents.observing import locked, observe
from fleet.exceptions import WrongState
from fleet.models import Client, ClientState
from fleet.transitions import move

log = logging.getLogger(__name__)
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


@transaction.atomic
def open_session(
    session: BootSession, boot_id: str, facts: Mapping[str, Any], *, speaks: int = 1, command_keys: str = ""
) -> None:
    """The daemon is up. Raises WrongState for a session that was superseded or revoked, or opened by another boot.

    ``speaks`` is its protocol, ``command_keys`` the ids of the keys that it is told now.
    """
    client = locked(session.client_id)
    session.refresh_from_db()
    if str(session.boot_id) != boot_id:
        raise WrongState(f"The {session} is another boot's.")
    if session.opened_at is None:
        holds.forget(client.pk)
    move(
        session,
        SessionStatus.OPEN,
        opened_at=session.opened_at or timezone.now(),
        facts=dict(facts),
        protocol=speaks,
        command_keys=command_keys or session.command_keys,
        last_seen=timezone.now(),
    )
    if network := facts.get("network"):  # an old daemon says none
        Client.objects.filter(pk=client.pk).update(network=network)
    if client.state != ClientState.CYCLING:
        observe(client, ClientState.BOOTING if client.state == ClientState.BOOTING else ClientState.READY, trouble="")


@transaction.atomic
def refuse_old(session: BootSession, speaks: int) -> str:
    """A daemon speaks an older protocol than FLEET_PROTOCOL_FLOOR: noted as its client's trouble, in the words returned."""
    least = settings.PROTOCOL_FLOOR
    why = f"Its daemon speaks protocol {speaks}, and this server wants {least} at least: boot it with a newer version."
    client = locked(session.client_id)
    if client.trouble != why:
        observe(client, ClientState(client.state), trouble=why)
    return why


@transaction.atomic
def says_state(session_id: UUID, state: str) -> None:
    """The daemon says in what state its client is. A session that counted as lost is open again: it was late."""
    session = BootSession.objects.select_related("release").get(pk=session_id)
    client = locked(session.client_id)  # or the clock, which calls it lost at this moment, would have the last word
    session.refresh_from_db()
    if session.status == SessionStatus.LOST:
        move(session, SessionStatus.OPEN, last_seen=timezone.now(), ended_at=None)
    if session.status == SessionStatus.OPEN:
        observe(client, _STATES[state])
        if state in (protocol.READY, protocol.IN_USE):
            judging.ready(session)


@transaction.atomic
def close_session(session: BootSession) -> None:
    """The system goes down and says so."""
    client = locked(session.client_id)
    session.refresh_from_db()
    if session.status in (*BootSession.LIVE, SessionStatus.LOST):
        move(session, SessionStatus.CLOSED, ended_at=timezone.now())
        silence(session, "the client said that it goes down")
        observe(client, ClientState.OFF)


@dataclass(frozen=True)
class Said:
    """What a daemon said last ("" as long as it only opened its session), and when."""

    state: str
    at: datetime


def seen(present: Mapping[UUID, Said]) -> None:
    """Note the time for all these sessions at once, and mend what the board has otherwise than their daemons say.

    That is so after a session counted as lost and came late, and where somebody asked for a boot script with the MAC of a
    client that runs. What was observed after the daemon spoke stays: the client may well have been reset.
    """
    now = timezone.now()
    ids = list(present)
    for start in range(0, len(ids), 500):
        part = BootSession.objects.filter(pk__in=ids[start : start + 500])
        part.update(last_seen=now)
        late = part.filter(status=SessionStatus.LOST).values_list("pk", flat=True)
        wrong = [*late]
        for state, shown in _STATES.items():
            said = [session for session in ids[start : start + 500] if present[session].state == state]
            other = part.filter(pk__in=said, status=SessionStatus.OPEN).exclude(client__state=shown)
            wrong += [pk for pk, since in other.values_list("pk", "client__since") if since <= present[pk].at]
        for session in wrong:
            try:
                says_state(session, present[session].state or protocol.READY)
            except WrongState as error:
                log.info("%s", error)
