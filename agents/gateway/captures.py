"""Takes the homes that clients send: streamed to a file, counted and hashed, and gone again unless all of it came."""

import asyncio
import hashlib
import logging
from uuid import UUID

from django.conf import settings

from agents import capturing
from agents.gateway.database import Database
from agents.gateway.http import Answer, Problem, Request, Upload
from agents.models import BootSession
from fleet.exceptions import WrongState

log = logging.getLogger(__name__)
PATIENCE_S = 30.0  # for the next piece


async def take(request: Request, session: BootSession, database: Database) -> Answer:
    """Receive what the body of ``request`` is to the capture that its query names. Raises Problem, and then leaves nothing."""
    try:
        command = UUID(request.query.get("command", ""))
    except ValueError:
        raise Problem(400, "The query names no command.") from None
    assert request.upload is not None
    try:
        most = await database.read(capturing.begin, session, command)
        size, sha256 = await _received(request.upload, command, most)
    except WrongState as error:
        raise Problem(409, error.message) from None
    archive = capturing.archive_of(command)
    part = archive.with_suffix(".part")
    try:
        archive.hardlink_to(part)  # before it is noted, so that no row names what is not there; never over another's
    except FileExistsError:
        raise Problem(409, "That home has arrived already.") from None
    finally:
        part.unlink(missing_ok=True)
    try:
        await database.write(capturing.received, session, command, size, sha256)
    except BaseException as error:
        archive.unlink(missing_ok=True)
        if isinstance(error, WrongState):
            raise Problem(409, error.message) from None
        raise
    return Answer.json({"bytes": size, "sha256": sha256})


async def _received(upload: Upload, command: UUID, most: int) -> tuple[int, str]:
    """Length and SHA-256 of the body, which lies in a .part file then."""
    archive = capturing.archive_of(command)
    archive.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = archive.with_suffix(".part")
    try:
        file = part.open("xb")
    except FileExistsError:
        raise Problem(409, "That home is being received already.") from None
    size, seen = 0, hashlib.sha256()
    try:
        with file:
            async with asyncio.timeout(settings.CAPTURE_LIMIT):
                while piece := await upload.pieces(PATIENCE_S):
                    size += len(piece)
                    if size > most:
                        raise Problem(413, f"The home is larger than {most} bytes.")
                    seen.update(piece)
                    await asyncio.to_thread(file.write, piece)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, TimeoutError):
            raise Problem(408, "The home did not come in time.") from None
        if isinstance(error, OSError):
            log.error("The home of command %s cannot be written: %s", command, error)
            raise Problem(507, "The server has no room for the home; its log says why.") from None
        raise
    return size, seen.hexdigest()
