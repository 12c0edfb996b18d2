"""A session that somebody wants to hear no more of: its bearer is good for nothing from this moment on."""

import json
import logging
from functools import partial
from uuid import UUID

import redis
from django.contrib.auth.models import AnonymousUser, User
from django.db import transaction
from django.utils import timezone

from agents.evidence import end
from agents.models import BootSession, Command, CommandStatus, SessionStatus
from agents.observing import locked, observe
from agents.sending import CHANNEL, connection
from fleet import audit
from fleet.exceptions import Forbidden
from fleet.models import ClientState
from fleet.roles import Right
from fleet.transitions import move

log = logging.getLogger(__name__)


@transaction.atomic
def revoke(session: BootSession, actor: User | AnonymousUser, reason: str = "") -> None:
    """Cut off a boot of a client that lives, or may come back. The client gets a new session by booting anew.

    What was sent to it and not accepted expires. Raises Forbidden without the right ENROL, WrongState for a session that has
    ended already.
    """
    if not BootSession.objects.filter(pk=session.pk).visible_to(actor, Right.ENROL).exists():
        raise Forbidden(
            f"You may not revoke the {session}.", hint="Ask a volunteer of its site.", site=session.client.site
        )
    client = locked(session.client_id)
    lives = BootSession.objects.filter(pk=session.pk, status__in=BootSession.LIVE).exists()
    move(session, SessionStatus.REVOKED, ended_at=timezone.now())
    commands = Command.objects.filter(envelope__session=session, status=CommandStatus.SENT)
    for command in commands.select_related("order__site", "order__ordered_by", "client"):
        end(command, CommandStatus.EXPIRED, "its session was revoked")
    if lives:
        observe(client, ClientState.LOST)
    detail = {"reason": reason.strip()[:200], "boot": str(session.boot_id)}
    audit.record("session.revoked", session, site=client.site, actor=actor, **detail)
    transaction.on_commit(partial(_tell, session.pk))


def _tell(session: UUID) -> None:
    """A hint: the gateways look it up, and would find it at their next sweep."""
    try:
        connection().publish(CHANNEL, json.dumps({"cut_off": [str(session)]}))
    except redis.RedisError as error:
        log.warning("Redis is away, so the gateways find the revoked session at their next sweep: %s", error)
