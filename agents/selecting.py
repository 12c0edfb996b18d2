"""Whom a campaign is for: clients of one site by class, tag, row of seats, state, or one by one."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Exists, OuterRef, Q, QuerySet, Subquery
from django.utils import timezone

from agents.models import BootSession, Command, SessionStatus, Verb
from agents.seats import natural
from fleet.exceptions import OperatorError
from fleet.models import Admission, Client, ClientClass, ClientState, Site, Tag, row_of

MOST_CLIENTS = 20_000  # of one campaign
MOST_NAMED = 5  # of what is wrong, in one sentence
_NOT_YET_OR_NO_MORE = (Admission.PENDING, Admission.RETIRED)


@dataclass(frozen=True)
class Selection:
    """Who has one of the named classes, and one of the tags, and sits in one of the rows, and so on; a kind that names nothing leaves
    nobody out. An empty selection is the whole site.

    As JSON: ``{"classes": [slugs], "tags": [names], "rows": ["A"], "states": ["ready"], "clients": [ids]}``, each of which may be missing.
    """

    classes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    clients: tuple[UUID, ...] = ()

    @classmethod
    def from_json(cls, said: object) -> "Selection":
        """The selection that ``said`` describes. Raises OperatorError naming what is wrong; what exists where is not asked yet."""
        if not isinstance(said, Mapping):
            raise OperatorError("A selection is an object.", hint=_FORM)
        if strange := sorted(str(kind) for kind in said.keys() - set(KINDS)):
            raise OperatorError(f"Clients are not selected by {', '.join(strange[:MOST_NAMED])}.", hint=_FORM)
        named = {kind: _names(kind, said.get(kind, ())) for kind in KINDS}
        if strange := [state for state in named["states"] if state not in ClientState.values]:
            raise OperatorError(
                f"{_listed(strange)} is no state of a client.", hint=f"States are {', '.join(ClientState.values)}."
            )
        clients = tuple(map(_uuid, named.pop("clients")))
        return cls(**named, clients=clients)

    def to_json(self) -> dict[str, list[str]]:
        """What ``from_json`` takes: the kinds that name something."""
        return {kind: [str(name) for name in getattr(self, kind)] for kind in KINDS if getattr(self, kind)}

    def __str__(self) -> str:
        """For people: ``class gamer, row A or B``."""
        words = [
            f"{word} {' or '.join(getattr(self, kind))}"
            for kind, word in (("classes", "class"), ("tags", "tag"), ("rows", "row"), ("states", "state"))
            if getattr(self, kind)
        ]
        if number := len(self.clients):
            words.append(f"{number} PC{'' if number == 1 else 's'} by name")
        return ", ".join(words) or "the whole site"

    def check(self, site: Site) -> None:
        """Raises OperatorError naming what ``site`` does not have."""
        seats = (
            Client.objects.filter(site=site).exclude(admission__in=_NOT_YET_OR_NO_MORE).values_list("seat", flat=True)
        )
        there: Mapping[str, Iterable[Any]] = {
            "classes": ClientClass.objects.filter(site=site).values_list("slug", flat=True) if self.classes else (),
            "tags": Tag.objects.filter(site=site).values_list("name", flat=True) if self.tags else (),
            "rows": map(row_of, seats) if self.rows else (),
            "clients": Client.objects.filter(site=site).values_list("pk", flat=True) if self.clients else (),
        }
        for kind, known in there.items():
            present = set(known)
            if unknown := [name for name in getattr(self, kind) if name not in present]:
                raise OperatorError(
                    f"{site} has no {_WORDS[kind]} {_listed(unknown)}.",
                    hint="Look at what the site has, and choose of that.",
                )

    def resolve(self, site: Site) -> QuerySet[Client]:
        """The clients of ``site`` that fit now and are admitted."""
        found = Client.objects.filter(site=site).exclude(admission__in=_NOT_YET_OR_NO_MORE)
        if self.classes:
            found = found.filter(client_class__slug__in=self.classes)
        if self.tags:
            found = found.filter(pk__in=Client.objects.filter(tags__site=site, tags__name__in=self.tags).values("pk"))
        if self.rows:
            found = found.filter(_in_rows(self.rows))
        if self.states:
            found = found.filter(state__in=self.states)
        if self.clients:
            found = found.filter(pk__in=self.clients)
        return found


KINDS = tuple(field.name for field in fields(Selection))
_WORDS = {"classes": "class", "tags": "tag", "rows": "row", "clients": "PC"}
_FORM = f"It may name {', '.join(KINDS)}, each a list."


def _names(kind: str, names: object) -> tuple[str, ...]:
    if not isinstance(names, Sequence) or isinstance(names, str | bytes):
        raise OperatorError(f"{kind} is no list.", hint=_FORM)
    if len(names) > MOST_CLIENTS:
        raise OperatorError(f"{kind} names {len(names)}.", hint=f"Name {MOST_CLIENTS} or fewer.")
    for name in names:
        if not isinstance(name, str) or not name or len(name) > 40 or not name.isprintable():
            raise OperatorError(f"{kind} holds {str(name)[:40]!r}, which is no name.", hint=_FORM)
    return tuple(dict.fromkeys(names))


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise OperatorError(f"{text!r} is no id of a client.", hint="Clients are named by their ids.") from None


def _listed(names: Sequence[object]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(str(name) for name in names[:MOST_NAMED]) + more


def _in_rows(rows: Iterable[str]) -> Q:
    """Seats of which ``row_of`` makes one of ``rows``. Row 2-1 has the seat 2-1/4, and not 2-14, which is of row 2."""
    return Q(
        *(Q(seat__regex=rf"^{re.escape(row)}[-. /]{'+' if row[-1:].isdigit() else '*'}[0-9]*$") for row in rows),
        _connector=Q.OR,
    )


@dataclass(frozen=True, slots=True)
class Chosen:
    """A client that is selected, as things stand: what decides about its turn."""

    pk: UUID
    called: str
    row: str
    state: str
    session: str  # the status of its live session; "" when it has none
    busy: str  # the verb of what it carries out; "" when it is free
    hold: str  # why it must be left alone, and until when; ""

    @property
    def connected(self) -> bool:
        return self.session == SessionStatus.OPEN

    def able(self, verb: str) -> bool:
        """Whether there is something to do: only who is off can be woken, and only who is connected can do the rest."""
        return not self.session if verb == Verb.WAKE else self.connected


def choose(selection: Selection, site: Site) -> list[Chosen]:
    """The clients that ``selection`` fits now, in the order people read them. One query, however many."""
    rows = (
        selection.resolve(site)
        .annotate(session=Subquery(live_session().values("status")), busy=Subquery(open_command().values("verb")))
        .order_by()
        .values_list("pk", "seat", "name", "state", "hold_reason", "hold_until", "session", "busy")
    )
    now = timezone.now()
    chosen = [
        Chosen(pk, seat or name, row_of(seat), state, session or "", busy or "", _hold(reason, until, now))
        for pk, seat, name, state, reason, until, session, busy in rows
    ]
    return sorted(chosen, key=lambda client: natural(client.called))


def live_session(client: str = "pk") -> QuerySet[BootSession]:
    """Of rows whose ``client`` is a client's key: its boot of now, at most one."""
    return BootSession.objects.filter(client=OuterRef(client), status__in=BootSession.LIVE).order_by()


def able(verb: str, client: str = "pk") -> Q:
    """Of rows whose ``client`` is a client's key: those that ``Chosen.able`` says yes of."""
    if verb == Verb.WAKE:
        return ~Q(Exists(live_session(client)))
    return Q(Exists(live_session(client).filter(status=SessionStatus.OPEN)))


def open_command(client: str = "pk") -> QuerySet[Command]:
    """Of rows whose ``client`` is a client's key: what it carries out, at most one."""
    return Command.objects.open().filter(client=OuterRef(client)).order_by()


def _hold(reason: str, until: datetime | None, now: datetime) -> str:
    return f"{reason} until {until:%H:%M}" if until and until > now else ""
