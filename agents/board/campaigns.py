"""A site's campaigns: all of them, a new one, each with bars that move, and what people do with one that runs.

A script of ours says ``X-Requested-With: fetch`` and gets the part of the page that moves. Without one a link loads it anew.
"""

from collections.abc import Callable, Sequence
from uuid import UUID, uuid4

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import AnonymousUser, User
from django.db import IntegrityError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from agents import campaigns, targets
from agents.board.asking import CampaignForm
from agents.board.freezes import switch
from agents.board.progress import read_progress
from agents.board.visiting import may_operate, may_release, person, status_of, visible_site
from agents.models import Campaign, CampaignStatus
from agents.previewing import Preview, preview
from agents.selecting import Selection
from fleet.exceptions import Forbidden, OperatorError
from fleet.models import Site

ACTS: dict[str, tuple[str, Callable[[Campaign, User | AnonymousUser], object]]] = {
    "approve": ("It is approved.", campaigns.approve),
    "pause": ("It is paused: nothing more is ordered for now.", campaigns.pause),
    "resume": ("It goes on.", campaigns.resume),
    "stop": ("It is stopped: whoever has not accepted does nothing.", campaigns.stop),
}
_BUTTONS: dict[str, tuple[tuple[str, str], ...]] = {
    CampaignStatus.AWAITING: (("approve", "Approve"), ("stop", "Stop now")),
    CampaignStatus.SCHEDULED: (("stop", "Stop now"),),
    CampaignStatus.RUNNING: (("pause", "Pause"), ("stop", "Stop now")),
    CampaignStatus.PAUSED: (("resume", "Go on"), ("stop", "Stop now")),
}
_OWN = ("csrfmiddlewaretoken", "confirmed")  # fields that are not the campaign's
RECENT = 20  # that have ended
_MOST_NAMES, _MOST_WAVES = 40, 50


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@login_required
def all_of(request: HttpRequest, slug: str) -> HttpResponse:
    """A site's campaigns and the form of a new one. POST tells what that would do; with ``confirmed`` it starts.

    ``confirmed`` is the key that the campaign will have: whoever presses twice has started one. A POST without ``reason`` only brings PCs
    that were chosen on the board. 400 for what does not fit, 403 without the right; both keep what was typed.
    """
    site = visible_site(request, slug)
    if request.method != "POST":
        return _list(request, site, CampaignForm(site))
    form = CampaignForm(site, request.POST if "reason" in request.POST else None, request.POST.getlist("client"))
    try:
        if not may_operate(request, site):
            raise Forbidden(f"You may not order anything at {site}.", hint="A volunteer of the site may.", site=site)
        if "reason" not in request.POST:
            return _list(request, site, form)
        row = form.plan(person(request))
        if "confirmed" not in request.POST:
            return _list(request, site, form, preview(row))
        return _start(request, site, row)
    except OperatorError as error:
        return _list(request, site, form, problem=error)


def _start(request: HttpRequest, site: Site, row: Campaign) -> HttpResponse:
    try:
        key = UUID(request.POST["confirmed"])
    except ValueError:
        raise OperatorError("That is no key of a campaign.", hint="Look at it again, and start it then.") from None
    if not Campaign.objects.filter(pk=key, order__site=site).exists():
        row.order.pk = key
        try:
            campaigns.start(row, person(request))
        except IntegrityError:  # it was pressed twice at the same moment
            _campaign(site, key)
        else:
            messages.success(request, "It is started." if not row.order.beyond_cap else "It awaits its second person.")
    return redirect("board-campaign", slug=site.slug, campaign=key)


def _list(
    request: HttpRequest,
    site: Site,
    form: CampaignForm,
    look: Preview | None = None,
    problem: OperatorError | None = None,
) -> HttpResponse:
    rows = Campaign.objects.filter(order__site=site).select_related("order__ordered_by")
    known = [*rows.filter(ended_at=None), *rows.exclude(ended_at=None)[:RECENT]]
    counts = targets.tallies(known)
    context = {
        "site": site,
        "lines": [(row, Selection.from_json(row.selection), targets.told(counts.get(row.pk, {}))) for row in known],
        "form": form,
        "preview": look,
        "said": [(name, value) for name, values in request.POST.lists() if name not in _OWN for value in values],
        "key": uuid4(),
        "problem": problem,
        "may_operate": may_operate(request, site),
    }
    if look:
        context |= {
            "notes": [
                (word, len(names), _some(names))
                for word, names in (
                    ("Not connected", look.offline),
                    ("Busy", look.busy),
                    ("Local hold", look.held),
                    ("Somebody sits at", look.in_use),
                )
                if names
            ],
            "waves": [(wave.number, wave.size, _some(wave.names)) for wave in look.waves[:_MOST_WAVES]],
            "more_waves": max(0, len(look.waves) - _MOST_WAVES),
            "takes": _lasts(look.takes_s),
        }
    return render(request, "board/campaigns.html", context | switch(request, site), status=status_of(problem))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _lasts(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{round(seconds / 60)} min"


@require_safe
@never_cache
@login_required
def campaign(request: HttpRequest, slug: str, campaign: UUID) -> HttpResponse:
    """A campaign's page, or for a script the part of it that moves."""
    site = visible_site(request, slug)
    return _page(request, site, _campaign(site, campaign))


@require_POST
@never_cache
@login_required
def act(request: HttpRequest, slug: str, campaign: UUID, what: str) -> HttpResponse:
    """Approve, pause, resume or stop it. 403 without the right, 409 when it is in no state for that."""
    site = visible_site(request, slug)
    row = _campaign(site, campaign)
    if what not in ACTS:
        raise Http404
    said, do = ACTS[what]
    try:
        do(row, person(request))
    except OperatorError as error:
        return _page(request, site, _campaign(site, campaign), error)
    messages.success(request, said)
    return redirect("board-campaign", slug=site.slug, campaign=row.pk)


def _campaign(site: Site, key: UUID) -> Campaign:
    rows = Campaign.objects.select_related("order__site", "order__ordered_by", "order__approved_by")
    return get_object_or_404(rows, pk=key, order__site=site)


def _page(request: HttpRequest, site: Site, row: Campaign, problem: OperatorError | None = None) -> HttpResponse:
    context = {
        "site": site,
        "campaign": row,
        "whom": Selection.from_json(row.selection),
        "progress": read_progress(row),
        "live": row.ended_at is None,
        "buttons": _allowed(request, site, row),
        "problem": problem,
    }
    by_script = request.headers.get("X-Requested-With") == "fetch"
    template = "board/progress.html" if by_script else "board/campaign.html"
    return render(request, template, context | switch(request, site), status=status_of(problem))


def _allowed(request: HttpRequest, site: Site, row: Campaign) -> list[tuple[str, str]]:
    """What this person may do with it as it stands: nobody approves their own, and forced ones go on by an organiser's word."""
    if not may_operate(request, site):
        return []
    organiser = may_release(request, site)
    cannot = set()
    if not organiser or row.order.ordered_by == request.user:
        cannot.add("approve")
    if row.order.force and not organiser:
        cannot.add("resume")
    return [button for button in _BUTTONS.get(row.status, ()) if button[0] not in cannot]
