"""Windows in which a site admits clients that were never seen before without asking. They close by themselves."""

from datetime import timedelta

from django.contrib.auth.models import AnonymousUser, User
from django.db import transaction
from django.utils import timezone

from fleet import audit
from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import Site
from fleet.roles import Right

LONGEST_MIN = 7 * 24 * 60  # what stands open for longer is no window


@transaction.atomic
def open_for(site: Site, minutes: int, actor: User | AnonymousUser) -> None:
    """Admit new clients from now on, for so many minutes; a window that is open ends then instead.

    Raises Forbidden without the right MANAGE, OperatorError for no such time.
    """
    row = _manageable(site, actor)
    if not 1 <= minutes <= LONGEST_MIN:
        raise OperatorError(
            f"Enrolment cannot be open for {minutes} minutes.", hint=f"Choose 1 to {LONGEST_MIN}, which is a week."
        )
    row.enrolment_until = site.enrolment_until = timezone.now() + timedelta(minutes=minutes)
    row.save(update_fields=["enrolment_until"])
    audit.record("enrolment.opened", row, site=row, actor=actor, until=row.enrolment_until.isoformat(), minutes=minutes)


@transaction.atomic
def close(site: Site, actor: User | AnonymousUser) -> None:
    """Have new clients wait from now on. Raises Forbidden without the right MANAGE, WrongState where no window is open."""
    row = _manageable(site, actor)
    if not row.enrolment_open:
        raise WrongState(f"Enrolment at {row} is not open.", hint="New clients wait to be admitted already.")
    row.enrolment_until = site.enrolment_until = None
    row.save(update_fields=["enrolment_until"])
    audit.record("enrolment.closed", row, site=row, actor=actor)


def _manageable(site: Site, actor: User | AnonymousUser) -> Site:
    row = Site.objects.select_for_update().visible_to(actor, Right.MANAGE).filter(pk=site.pk).first()
    if row is None:
        raise Forbidden(f"You may not open or close enrolment at {site}.", hint="Ask a site admin.", site=site)
    return row
