"""Pages of the board. Whatever is another site's answers 404, as if it were not there."""

from collections.abc import AsyncIterator
from typing import Any

from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.utils.safestring import SafeString, mark_safe
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from agents.board.facts import Fact, Tile
from agents.board.feed import render as render_fact
from agents.board.reading import read
from agents.board.stream import stream
from agents.board.visiting import may_operate, may_release, visible_site
from agents.models import Verb
from fleet.models import Client, ClientState, Site


@require_safe
def favicon(_request: HttpRequest) -> HttpResponse:
    """For pages without a link to it: browsers ask here by themselves."""
    return redirect(static("fleet/icon.svg"), permanent=True)


@require_safe
@never_cache
@login_required
def index(request: HttpRequest) -> HttpResponse:
    """The person's sites; with one site, that site."""
    sites = list(Site.objects.visible_to(request.user))
    if len(sites) == 1:
        return redirect("board", slug=sites[0].slug)
    cards = []
    for site in sites:
        states = list(Client.objects.filter(site=site).exclude(admission="retired").values_list("state", flat=True))
        counts = [(state.value, state.label, states.count(state.value)) for state in ClientState]
        cards.append((site, len(states), [count for count in counts if count[2]]))
    return render(request, "board/index.html", {"cards": cards})


@require_safe
@never_cache
@login_required
def board(request: HttpRequest, slug: str) -> HttpResponse:
    """A site's board as it is now. ``?state=``, ``?class=`` and ``?q=`` filter it; ``?projector`` shows it large."""
    site = visible_site(request, slug)
    reading = read(site)
    wanted = {"states": request.GET.getlist("state"), "classes": request.GET.getlist("class")}
    text = request.GET.get("q", "").strip()
    sections = {name: [_html(fact) for fact in facts] for name, facts in reading.sections.items()}
    tiles = [fact for fact in reading.sections["clients"] if isinstance(fact, Tile)]
    hidden = {tile.key for tile in tiles if not _shown(tile, text=text, **wanted)}
    context = {
        "site": site,
        "sites": Site.objects.visible_to(request.user),
        "sections": sections,
        "tiles": [
            _hide(html) if tile.key in hidden else html for tile, html in zip(tiles, sections["clients"], strict=True)
        ],
        "shown": len(tiles) - len(hidden),
        "counts": [(fact.key in wanted["states"], fact, _html(fact)) for fact in reading.sections["counts"]],
        "classes": [(fact.key in wanted["classes"], fact, _html(fact)) for fact in reading.sections["classes"]],
        "text": text,
        "filtered": bool(text or wanted["states"] or wanted["classes"]),
        "may_operate": may_operate(request, site),
        "may_freeze": may_operate(request, site),  # the page hides it while a freeze stands
        "may_release": may_release(request, site),
        "projector": "projector" in request.GET,
        "verbs": (Verb.CYCLE, Verb.RESTART, Verb.POWEROFF, Verb.WAKE),
    }
    return render(request, "board/site.html", context)


def _html(fact: Fact) -> SafeString:
    return mark_safe(render_fact(fact)[0])  # noqa: S308 - rendered by a template, which escaped what it holds


def _hide(html: SafeString) -> SafeString:
    return mark_safe(html.replace("<li ", "<li hidden ", 1))  # noqa: S308 - as above


def _shown(tile: Tile, *, states: list[str], classes: list[str], text: str) -> bool:
    return (
        (not states or tile.state in states)
        and (not classes or (tile.mark is not None and tile.mark.slug in classes))
        and all(word in tile.words for word in text.lower().split())
    )


@require_safe
@login_required
def events(request: HttpRequest, slug: str) -> StreamingHttpResponse:
    """The stream of a site's changes (text/event-stream). ``Last-Event-ID`` goes on where it broke off."""
    site = visible_site(request, slug)
    assert isinstance(request.user, User)
    body: AsyncIterator[Any] = stream(
        request.session.session_key or "", site.pk, request.headers.get("Last-Event-ID", "")
    )
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would hold events back
    return StreamingHttpResponse(body, content_type="text/event-stream", headers=headers)
