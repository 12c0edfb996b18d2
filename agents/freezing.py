"""The freeze switch: while it is on, the sender signs nothing, for one site or for all."""

from django.contrib.auth.models import AnonymousUser, User
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from agents.models import Freeze
from fleet import audit
from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import Site
from fleet.roles import Right


def standing(site: Site | int) -> Freeze | None:
    """What keeps the commands of ``site`` from being signed, if anything does."""
    return Freeze.objects.filter(Q(site=site) | Q(site=None), lifted_at=None).order_by("site").first()


@transaction.atomic
def freeze(site: Site | None, reason: str, actor: User | AnonymousUser) -> Freeze:
    """Stop all signing at ``site``, or everywhere. Who may order may stop; everywhere, only a superuser.

    Raises Forbidden, OperatorError without a reason, WrongState when it stands already.
    """
    _require(site, Right.OPERATE, actor, "freeze")
    reason = reason.strip()[:200]
    if not reason:
        raise OperatorError("A freeze needs a reason.", hint="Say in a few words why: everybody who waits reads it.")
    try:
        with transaction.atomic():
            row = Freeze.objects.create(site=site, reason=reason, frozen_by=actor if isinstance(actor, User) else None)
    except IntegrityError:
        raise WrongState(
            f"{site or 'Everything'} is frozen already.", hint="Lift that freeze when it is over."
        ) from None
    audit.record("signing.frozen", row, site=site, actor=actor, reason=reason)
    return row


@transaction.atomic
def lift(row: Freeze, actor: User | AnonymousUser) -> None:
    """Sign again. It takes more to lift a freeze than to order: whoever froze had a reason. Raises Forbidden, WrongState."""
    _require(row.site, Right.RELEASE, actor, "lift the freeze of")
    now, person = timezone.now(), actor if isinstance(actor, User) else None
    if not Freeze.objects.filter(pk=row.pk, lifted_at=None).update(lifted_at=now, lifted_by=person):
        raise WrongState(f"The {row} was lifted already.", hint="There is nothing to do.")
    row.refresh_from_db()
    audit.record("signing.resumed", row, site=row.site, actor=actor)


def _require(site: Site | None, right: Right, actor: User | AnonymousUser, what: str) -> None:
    if site is None:
        if not (isinstance(actor, User) and actor.is_active and actor.is_superuser):
            raise Forbidden(f"You may not {what} all sites.", hint="Whoever runs the server may.")
    elif not Site.objects.filter(pk=site.pk).visible_to(actor, right).exists():
        who = "an organiser" if right == Right.RELEASE else "a volunteer"
        raise Forbidden(f"You may not {what} {site}.", hint=f"Ask {who} of that site.", site=site)
