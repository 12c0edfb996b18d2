"""Power ports: what can switch a client on from outside. Each kind is a class that speaks with one such thing.

To add one: a value of ``PortKind``, a class with the methods of ``Port``, and its line in ``KINDS``.
"""

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from django.conf import settings

from agents.models import PortKind, PowerPort
from agents.power.redfish import Redfish
from agents.power.web import Web
from fleet.exceptions import SiteError


class Port(Protocol):
    """One power port. Methods raise SiteError, which says what to do; ``web.Away`` where the same may work a little later."""

    def is_on(self) -> bool: ...

    def on(self) -> str:
        """Switch it on; what was done, in words. SiteError where it is on already: then that is not what it lacks."""

    def off(self) -> None:
        """Take its power away, as pulling the plug would."""


@dataclass(frozen=True)
class Credential:
    """Who one is at a port. ``fingerprint`` is the SHA-256 of its certificate, where no authority vouches for that."""

    user: str = ""
    password: str = field(default="", repr=False)
    fingerprint: str = ""


KINDS: dict[PortKind, Callable[[Web, str], Port]] = {PortKind.REDFISH: Redfish}
_SLUG = re.compile(r"[-a-zA-Z0-9_]{1,50}").fullmatch
_LINES = re.compile(r"(user|password|fingerprint)=(.*)").fullmatch


def port_of(row: PowerPort) -> Port:
    """What speaks with a client's power port. For the sender: it reads the password. Raises SiteError."""
    known = credential(row.client.site.slug, row.credential) if row.credential else Credential()
    web = Web(row.address, known.user, known.password, known.fingerprint)
    return KINDS[PortKind(row.kind)](web, row.outlet)


def credential(site: str, name: str) -> Credential:
    """The credential ``name`` of a site: lines ``user=``, ``password=``, ``fingerprint=``. A site cannot name another's.

    Raises SiteError where it is missing, is none, or can be read by others.
    """
    path = settings.POWER_CREDENTIALS / site / name
    if not (_SLUG(site) and _SLUG(name)):  # whoever has the database must not get from one site's to another's
        raise SiteError(f"{name!r} of {site!r} is no credential's name.", hint="Letters, digits, - and _ make one.")
    try:
        with path.open(encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise SiteError(f"The credential {path} can be read by others.", hint=f"chmod 600 {path}")
            matches = [_LINES(line) for line in file.read().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SiteError(
            f"The credential {path} cannot be read: {why}.",
            hint="Write it there for the sender's user: user=, password= (docs/power.md).",
        ) from None
    if not all(matches):
        raise SiteError(
            f"The credential {path} has a line that is none.", hint="Its lines are user=, password=, fingerprint=."
        )
    known = {match[1]: match[2].strip() for match in matches if match}
    known["fingerprint"] = known.get("fingerprint", "").replace(":", "").lower()
    return Credential(**known)
