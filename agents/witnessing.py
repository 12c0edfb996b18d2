"""The sender as a witness of the audit log: it signs how far each chain goes, and remembers it in its book."""

import logging

from django.conf import settings

from agents.book import Book
from fleet import checkpoints
from fleet.exceptions import SiteError
from fleet.signing import Signer

log = logging.getLogger(__name__)
tampered: dict[
    str, str
] = {}  # chains that did not go on from what was seen, when they were last looked at, and what of each is told


def witness() -> int:
    """Sign the heads that moved since the last time; of how many chains. A chain that was tampered with is told of each time.

    Raises SiteError without the key or the book.
    """
    signer = Signer.load(settings.COMMAND_KEY, "command")
    with Book.at(settings.SENDER_BOOK) as book:
        seen, signed = book.heads(), 0
        tampered.clear()
        for chain in checkpoints.due(seen):
            try:
                reached = checkpoints.sign(signer, chain, seen.get(chain, checkpoints.BEGIN))
            except SiteError as error:
                log.error("%s", error)
                tampered[chain] = str(error)
            else:
                book.saw_head(chain, *reached)
                signed += 1
    return signed
