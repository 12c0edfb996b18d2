"""A client's home on its way to a template: who may ask for it, what arrives, and the evidence that it is what was sent.

The archive lies among the uploads under the command's id from its first byte on. It stays there only when the client reports
the very bytes that came (``judge``); then a worker packs it as any upload. However else the command ends, it is removed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from django.db import transaction

from agents.daemon import protocol
from agents.models import BootSession, Command, CommandStatus, SessionStatus, Verb
from fleet.exceptions import OperatorError, WrongState
from fleet.models import Client
from fleet.roles import Right
from images import homebuilds, homes, services
from images.models import Image


def may_order(clients: Sequence[Client], actor: User | AnonymousUser) -> None:
    """Refuse a capture that could only fail. Raises OperatorError, WrongState, or Forbidden without the right to its image."""
    if len(clients) != 1:
        raise OperatorError(
            f"{len(clients)} homes cannot be captured by one order.", hint="Choose the one PC whose home is to be kept."
        )
    image = image_of(BootSession.objects.filter(client=clients[0], status=SessionStatus.OPEN).first())
    if image is None:
        raise WrongState(f"{clients[0]} is not connected.", hint="Boot it, and prepare the home on it.")
    services.require(actor, Right.BUILD, image)
    homebuilds.compared_with(image)


def image_of(session: BootSession | None) -> Image | None:
    """What a session's client booted; None without a session, or where the release is gone."""
    return session.release.version.image if session and session.release else None


def archive_of(command: UUID) -> Path:
    uploads: Path = settings.UPLOADS
    return uploads / str(command)


def begin(session: BootSession, key: UUID) -> int:
    """The most bytes that may come for the command ``key`` now. Raises WrongState for any but an accepted capture of this boot."""
    return int(_waiting(session, key).envelope.args["most_bytes"])


@transaction.atomic
def received(session: BootSession, key: UUID, size: int, sha256: str) -> None:
    """Note what came; the file stands already. Raises WrongState when the command ended meanwhile."""
    command = _waiting(session, key)
    changed = Command.objects.filter(pk=key, status=CommandStatus.ACCEPTED, result={})
    if not changed.update(result={"bytes": size, "sha256": sha256}):
        raise WrongState(f"The {command} ended meanwhile.")


def _waiting(session: BootSession, key: UUID) -> Command:
    mine = Command.objects.filter(client=session.client_id, verb=Verb.CAPTURE, envelope__session=session)
    command = mine.filter(pk=key).first()
    if command is None:
        raise WrongState(f"{key} is no capture of this client's in this boot.")
    if command.status != CommandStatus.ACCEPTED:
        raise WrongState(f"The {command} is {command.get_status_display().lower()}: nothing is awaited for it.")
    if command.result:
        raise WrongState(f"The home of the {command} has arrived already.")
    return command


def judge(command: Command, said: Mapping[str, Any]) -> tuple[CommandStatus, str, dict[str, Any]]:
    """How a capture ends that its client calls a success: by the digest of what came, within the caller's transaction."""
    came = command.result
    if not came:
        return CommandStatus.FAILED, "no home arrived", {}
    if (said.get("bytes"), said.get("sha256")) != (came["bytes"], came["sha256"]):
        return CommandStatus.FAILED, "what arrived is not what the client says it sent", {}
    image = image_of(command.envelope.session)
    if image is None:
        return CommandStatus.FAILED, "its release is gone, and with it the image whose home it would be", {}
    counts = {key: said[key] for key in ("files", "skipped") if protocol.count(said.get(key))}
    order = command.order
    row = homes.captured(
        image, command.pk, str(command.client), order.ordered_by, order.reason, order=str(order.pk), **came, **counts
    )
    return (
        CommandStatus.SUCCEEDED,
        f"its home arrived: {came['sha256'][:12]}",
        {**came, **counts, "home_template": row.pk},
    )


def discard(command: Command) -> None:
    """Remove what came of a capture that ends without success."""
    transaction.on_commit(lambda: archive_of(command.pk).unlink(missing_ok=True), robust=True)
