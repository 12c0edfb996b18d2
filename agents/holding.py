"""Which versions clients run: the store keeps them (``images.keeping``)."""

from collections.abc import Iterator

from django.db.models import Q

from agents.models import BootSession, SessionStatus
from fleet.models import Admission


def running() -> Iterator[tuple[int, str]]:
    """The version of every client that runs or boots one.

    One that was lost may run on behind a broken switch, and read its root from the store when that is mended: it counts until
    it boots again or is retired.
    """
    lost = Q(status=SessionStatus.LOST) & ~Q(client__admission=Admission.RETIRED)
    sessions = BootSession.objects.filter(Q(status__in=BootSession.LIVE) | lost, release__isnull=False)
    for session in sessions.select_related("client", "release"):
        assert session.release is not None
        if session.status == SessionStatus.LOST:
            why = f"{session.client} may run it, last seen {session.last_seen:%Y-%m-%d} (boot it, or retire it)"
        else:
            why = f"{session.client} runs it"
        yield session.release.version_id, why
