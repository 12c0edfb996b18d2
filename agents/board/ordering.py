"""Orders from the board: what would happen to whom, the order itself, and taking it back. Only POST; GET answers 405.

A script of ours says ``X-Requested-With: fetch`` and gets the dialog's HTML, or JSON: ``{"said": …}`` when done, else problem
details (RFC 9457). Without one the same addresses answer with whole pages.
"""

from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import AnonymousUser, User
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST

from agents import rollouts, services
from agents.board.visiting import may_operate, visible_site
from agents.models import BootSession, Command, Order, Rollout, SessionStatus, Verb
from agents.seats import natural, seat_of
from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import Admission, Client, ClientClass, ClientState, Site

REASONS = ("Next person", "Between two rounds", "Does not respond", "New version", "End of the evening")
EFFECTS = {
    Verb.CYCLE: "Every process of the user is killed, the home is restored from its template, and the user is logged in again. "
    "What was saved there is gone.",
    Verb.RESTART: "They go down and boot anew, with what is released to their class by then. What was saved there is gone.",
    Verb.POWEROFF: "They go down and stay off until somebody switches them on. What was saved there is gone.",
    Verb.WAKE: "They are switched on over the network, and boot what is released to their class by then.",
    Verb.CAPTURE: "What is in the user's home is sent to the server, and becomes a template once it was looked at and accepted.",
}


@dataclass(frozen=True)
class Plan:
    """What an order would do: ``clients`` in the order people read them, and those left out: ``busy``, or ``on`` already."""

    verb: Verb
    clients: list[Client]
    busy: list[Command]
    absent: list[str]
    on: list[str]

    @property
    def effect(self) -> str:
        return EFFECTS[self.verb]

    @property
    def counts(self) -> list[tuple[str, str, int]]:
        """State, its word, how many."""
        states = Counter(client.state for client in self.clients)
        return [(state.value, str(state.label), states[state]) for state in ClientState if states[state]]

    @property
    def whom(self) -> str:
        return seat_of(self.clients[0]) if len(self.clients) == 1 else f"{len(self.clients)} PCs"

    @property
    def seats(self) -> list[str]:
        return [seat_of(client) for client in self.clients]

    @property
    def in_use(self) -> list[str]:
        return [seat_of(client) for client in self.clients if client.state == ClientState.IN_USE]

    @property
    def left_out(self) -> list[str]:
        return [f"{seat_of(command.client)} ({command.get_verb_display().lower()})" for command in self.busy]


@require_POST
@never_cache
@login_required
def orders(request: HttpRequest, slug: str) -> HttpResponse:
    """``verb`` and ``client``s without ``reason``: what that would do. With ``reason``: the order.

    404 for a client that is not at this site, 400 for rubbish, 403 without the right, 409 while one is busy.
    """
    site = visible_site(request, slug)
    asked = "reason" not in request.POST
    try:
        verb, clients = _chosen(request, site)
        if asked:
            return _ask(request, site, _plan(verb, clients))
        order = services.order(verb, clients, request.POST["reason"], _person(request))
    except OperatorError as error:
        return _refused(request, site, error)
    whom = seat_of(clients[0]) if len(clients) == 1 else f"{len(clients)} PCs"
    return _done(request, site, f"Ordered: {order.get_verb_display().lower()} of {whom}.", HTTPStatus.CREATED)


@require_POST
@never_cache
@login_required
def cancel(request: HttpRequest, slug: str, order: UUID) -> HttpResponse:
    """Take back what of an order was not sent yet. 409 once all of it is on its way."""
    site = visible_site(request, slug)
    row = get_object_or_404(Order, pk=order, site=site)
    try:
        number = services.cancel_order(row, _person(request))
    except OperatorError as error:
        return _refused(request, site, error)
    return _done(request, site, f"Taken back: {number} command{'' if number == 1 else 's'}.", HTTPStatus.OK)


@require_POST
@never_cache
@login_required
def rollout(request: HttpRequest, slug: str, client_class: int) -> HttpResponse:
    """Have the clients of a class that are behind restarted when they are idle. 409 when none is, or it runs already."""
    site = visible_site(request, slug)
    kind = get_object_or_404(ClientClass, pk=client_class, site=site)
    try:
        row = rollouts.start(kind, _person(request), request.POST.get("reason", ""))
    except OperatorError as error:
        return _refused(request, site, error)
    said = f"PCs of {kind} are restarted when nobody uses them, {row.at_once} at a time."
    return _done(request, site, said, HTTPStatus.CREATED)


@require_POST
@never_cache
@login_required
def stop_rollout(request: HttpRequest, slug: str, row: UUID) -> HttpResponse:
    """Restart no more of them. 409 once it has ended."""
    site = visible_site(request, slug)
    running = get_object_or_404(Rollout.objects.select_related("client_class"), pk=row, client_class__site=site)
    try:
        rollouts.stop(running, _person(request))
    except OperatorError as error:
        return _refused(request, site, error)
    return _done(request, site, f"No more PCs of {running.client_class} are restarted.", HTTPStatus.OK)


def _person(request: HttpRequest) -> User | AnonymousUser:
    assert isinstance(request.user, User | AnonymousUser)
    return request.user


def _chosen(request: HttpRequest, site: Site) -> tuple[Verb, list[Client]]:
    """Verb and clients of the form. OperatorError for what cannot be one, Http404 for what is not here."""
    if not may_operate(request, site):
        raise Forbidden(f"You may not order anything at {site}.", hint="A volunteer of the site may.", site=site)
    verb = request.POST.get("verb", "")
    if verb not in Verb.values:
        raise OperatorError("That is no order.", hint=f"Choose one of {', '.join(Verb.values)}.")
    try:
        keys = {UUID(key) for key in request.POST.getlist("client")}
    except ValueError:
        raise OperatorError("That is no PC.", hint="Reload the page and choose again.") from None
    if not keys:
        raise OperatorError("No PC is chosen.", hint="Choose at least one.")
    if len(keys) > services.MOST_CLIENTS:
        raise OperatorError(
            f"{len(keys)} PCs are more than one order takes.", hint=f"Choose {services.MOST_CLIENTS} or fewer."
        )
    clients = list(Client.objects.filter(site=site, pk__in=keys).exclude(admission=Admission.RETIRED))
    if len(clients) < len(keys):
        raise Http404
    return Verb(verb), sorted(clients, key=lambda client: natural(seat_of(client)))


def _plan(verb: Verb, clients: list[Client]) -> Plan:
    busy = Command.objects.open().filter(client__in=clients).select_related("client")
    open_commands = sorted(busy, key=lambda command: natural(seat_of(command.client)))
    taken = {command.client_id for command in open_commands}
    free = [client for client in clients if client.pk not in taken]
    sessions = BootSession.objects.filter(client__in=free, status=SessionStatus.OPEN)
    connected = set(sessions.values_list("client_id", flat=True))
    absent = [client for client in free if client.pk not in connected]
    if verb == Verb.WAKE:
        return Plan(verb, absent, open_commands, [], [seat_of(client) for client in free if client.pk in connected])
    return Plan(verb, free, open_commands, [seat_of(client) for client in absent], [])


def _by_script(request: HttpRequest) -> bool:
    return request.headers.get("X-Requested-With") == "fetch"


def _ask(
    request: HttpRequest, site: Site, plan: Plan | None, problem: OperatorError | None = None, status: int = 200
) -> HttpResponse:
    context = {
        "site": site,
        "plan": plan,
        "reasons": REASONS,
        "reason": request.POST.get("reason", ""),
        "problem": problem,
    }
    template = "board/ask.html" if _by_script(request) else "board/confirm.html"
    return render(request, template, context, status=status)


def _refused(request: HttpRequest, site: Site, error: OperatorError) -> HttpResponse:
    """The error as a problem for a script, else as a page that keeps what was typed."""
    status = (
        HTTPStatus.CONFLICT
        if isinstance(error, WrongState)
        else HTTPStatus.FORBIDDEN
        if isinstance(error, Forbidden)
        else HTTPStatus.BAD_REQUEST
    )
    if _by_script(request):
        body = {"title": status.phrase, "status": status.value, "detail": error.message, "hint": error.hint}
        return JsonResponse(body, status=status, content_type="application/problem+json")
    try:
        plan = _plan(*_chosen(request, site))
    except OperatorError:
        plan = None
    return _ask(request, site, plan, error, status)


def _done(request: HttpRequest, site: Site, said: str, status: HTTPStatus) -> HttpResponse:
    if _by_script(request):
        return JsonResponse({"said": said}, status=status)
    messages.success(request, said)
    return redirect("board", slug=site.slug)
