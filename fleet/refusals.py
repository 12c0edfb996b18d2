"""Refusals in the audit log: who was told no, and to what. Written after the request, whose own transaction was rolled back."""

import logging
from collections.abc import Callable
from datetime import timedelta

from django.contrib.auth.models import User
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponseBase
from django.utils import timezone

from fleet import audit
from fleet.exceptions import Forbidden, noted
from fleet.models import AuditEntry, Site

log = logging.getLogger(__name__)
ONCE_PER = timedelta(minutes=1)
MOST = 10  # refusals of a person in that time and in one chain
LOOK_BACK = 100  # entries of a chain in which they are looked for


class RefusalMiddleware:
    """Notes what services refused during a request, and answers 403 to people who are logged in.

    The same refusal of the same person is written once a minute, and no more than ten of a person: a script that insists, or
    goes through all there is, does not fill the log. Strangers are not written down at all, they have no name.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        refusals: list[Forbidden] = []
        token = noted.set(refusals)
        try:
            response = self._get_response(request)
        finally:
            noted.reset(token)
        if not refusals and response.status_code != 403:
            return response
        # Known by session or, in the API, by token: DRF sets the user on the request it wraps.
        user = request.user
        if isinstance(user, User):
            where = f"{request.method} {request.path}"[:200]
            try:
                for refusal in refusals:
                    _record(user, refusal.message, refusal.site, where)
                if not refusals:
                    _record(user, where, None, where)
            except DatabaseError:
                log.exception("The refusal of %s to %s could not be written down", where, user)
        return response


def _record(user: User, what: str, site: Site | None, where: str) -> None:
    chain = f"site-{site.pk}" if site else audit.EVERYWHERE
    latest = AuditEntry.objects.filter(chain=chain).order_by("-sequence")[:LOOK_BACK]
    since = timezone.now() - ONCE_PER
    name = user.get_username()[:150]
    said = [e.subject for e in latest if (e.action, e.actor) == ("refused", name) and e.at > since]
    if what[:200] not in said and len(said) < MOST:
        audit.record("refused", what, site=site, actor=user, request=where)
