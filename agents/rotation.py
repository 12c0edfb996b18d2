"""Keys rotate without touching clients: what each step has to wait for, and what is written down of it.

Clients know the command keys from their boot plan and learn new ones from the signed answer to their session; the gateway has them
ask for one (docs/protocol.md, ``Fleet-Time: 0``). The session keys they know from their kernel command line and plan, until they boot
anew. The image keys are the servers' own affair.
"""

from collections.abc import Iterable

from django.conf import settings
from django.db.models import QuerySet
from django.utils import timezone

from agents.models import BootSession, BootToken, Command, CommandStatus, SessionStatus
from fleet import audit
from fleet.exceptions import WrongState
from fleet.models import Site
from fleet.slots import Slots
from images import signatures

NAMED = 20  # of those that are waited for
STAGES = ("publish", "switch", "retire")


def stage_of(slots: Slots) -> str:
    """What comes next for the keys of a kind."""
    return "switch" if slots.next else "retire" if slots.old else "publish"


def advance(slots: Slots, stage: str, *, now: bool = False) -> list[str]:
    """Take one step; who is left behind by it, in words, if it is taken ``now`` instead of in time.

    Raises WrongState naming what has to be waited for, or which step comes first.
    """
    left = hindrances(slots, stage)
    if left and not now:
        raise WrongState(
            f"It is too early to {stage} the {slots.kind} key: {'; '.join(left)}.",
            hint="Wait, and try again; with --now it is done all the same, as for a key that was stolen.",
        )
    before = slots.present
    {"publish": slots.publish, "switch": slots.switch, "retire": slots.retire}[stage]()
    _write_down(slots, stage, before, left)
    return left


def hindrances(slots: Slots, stage: str) -> list[str]:
    """Why it is too early for ``stage``, each with the names it is waited for; empty when nothing is in the way."""
    if stage == "switch" and slots.next and slots.kind == "command":
        ignorant = BootSession.objects.filter(status=SessionStatus.OPEN).exclude(command_keys__contains=slots.next)
        return _waits(_clients(ignorant), f"not told of {slots.next} yet (it takes one poll)")
    if stage == "switch" and slots.next and slots.kind == "session":
        ignorant = BootSession.objects.filter(status__in=BootSession.LIVE).exclude(session_keys__contains=slots.next)
        starting = BootToken.objects.filter(
            used_at=None, expires_at__gt=timezone.now(), created_at__lt=slots.published_at
        )
        told = f"booted before {slots.next} was published, and will believe no answer by it until the next boot"
        return [
            *_waits(_clients(ignorant), told),
            *_waits(
                starting.order_by("client__name").values_list("client__name", flat=True).distinct(),
                f"starting with a command line that does not know {slots.next}",
            ),
        ]
    if stage == "retire" and slots.old and slots.kind == "command":
        flying = Command.objects.open(CommandStatus.SENT).filter(envelope__key_id=slots.old)
        return _waits((str(command) for command in flying.select_related("client")), f"sent with {slots.old}")
    if stage == "retire" and slots.old and slots.kind == "image":
        return _waits(signatures.signed_by(slots.old), f"signed by {slots.old}, and not started any more without it")
    return []


def _clients(sessions: QuerySet[BootSession]) -> Iterable[str]:
    return sessions.order_by("client__name").values_list("client__name", flat=True)


def _waits(names: Iterable[str], why: str) -> list[str]:
    found = list(names)
    if not found:
        return []
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return [f"{', '.join(found[:NAMED])}{more}: {why}"]


def _write_down(slots: Slots, stage: str, before: str, left: list[str]) -> None:
    """In the server's chain. A switch of the command key in all: so the sender signs each chain's head with the new key."""
    detail = {"before": before, "present": slots.present, "next": slots.next, "old": slots.old}
    every = stage == "switch" and slots.kind == "command"
    for site in (None, *Site.objects.order_by("pk")) if every else (None,):
        audit.record(
            f"keys.{stage}", f"{slots.kind} keys", site=site, actor="manage.py keys", **detail, left_behind=left
        )


def private_of(kind: str) -> str:
    """Where this process's settings say that the private key of a kind lies; else where `manage.py keys` makes it."""
    path: str = getattr(settings, f"{kind.upper()}_KEY")
    return path or str(settings.PUBLIC_KEYS / f"{kind}.key")
