"""The freeze switch on the board: while it is on, nothing is signed at the site. Only POST; GET answers 405."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST

from agents import freezing
from agents.board.visiting import may_operate, may_release, person, status_of, visible_site
from agents.models import Freeze
from fleet.exceptions import OperatorError, WrongState
from fleet.models import Site


@require_POST
@never_cache
@login_required
def freeze(request: HttpRequest, slug: str) -> HttpResponse:
    """Sign nothing more at the site. 400 without a reason, 403 without the right, 409 while one stands."""
    site = visible_site(request, slug)
    try:
        freezing.freeze(site, request.POST.get("reason", ""), person(request))
    except OperatorError as error:
        return _refused(request, site, error)
    messages.success(request, f"{site} is frozen: nothing is signed until somebody lifts that.")
    return redirect("board", slug=site.slug)


@require_POST
@never_cache
@login_required
def lift(request: HttpRequest, slug: str) -> HttpResponse:
    """Sign again. 403 without the right, 409 when the site has no freeze of its own."""
    site = visible_site(request, slug)
    try:
        row = Freeze.objects.filter(site=site, lifted_at=None).first()
        if row is None:
            raise WrongState(f"{site} is not frozen.", hint="Reload the page to see how it stands.")
        freezing.lift(row, person(request))
    except OperatorError as error:
        return _refused(request, site, error)
    messages.success(request, "Commands are signed again.")
    return redirect("board", slug=site.slug)


def _refused(request: HttpRequest, site: Site, error: OperatorError) -> HttpResponse:
    context = {"site": site, "problem": error, "reason": request.POST.get("reason", "")} | switch(request, site)
    return render(request, "board/frozen.html", context, status=status_of(error))


def switch(request: HttpRequest, site: Site) -> dict[str, object]:
    """What templates show of it: the freeze that stands, and what this person may do about it."""
    standing = freezing.standing(site)
    return {
        "freeze": standing,
        "may_freeze": standing is None and may_operate(request, site),
        "may_lift": standing is not None and standing.site_id == site.pk and may_release(request, site),
    }
