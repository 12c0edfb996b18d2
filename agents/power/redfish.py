"""Redfish (DMTF DSP0266): management controllers that switch a system on by ``ComputerSystem.Reset``."""

from collections.abc import Mapping
from typing import Any

from agents.power.web import Away, Reply, Web
from fleet.exceptions import SiteError

SYSTEMS = "/redfish/v1/Systems"
_RESET = "#ComputerSystem.Reset"
# What means "on" to a system that is off, the best first; each lists those it knows.
_ON = ("On", "ForceOn", "PushPowerButton")
_PATH = 200  # characters of an address within the controller


class Redfish:
    """One system behind a controller: ``outlet`` is its id, which may be left out where there is one only."""

    def __init__(self, web: Web, outlet: str) -> None:
        self._web = web
        self._outlet = outlet

    def is_on(self) -> bool:
        return _is_on(self._system()[1].content)

    def on(self) -> str:
        path, system = self._system()
        if _is_on(system.content):
            raise SiteError(
                f"{self._web.address} says that it is on, and yet it is not heard of.",
                hint="Look at its screen, or have its controller reset it.",
            )
        return self._reset(path, system, _ON)

    def off(self) -> None:
        self._reset(*self._system(), ("ForceOff",))

    def _system(self) -> tuple[str, Reply]:
        """Where the system is within the controller, and what that says of it."""
        path = f"{SYSTEMS}/{self._outlet}" if self._outlet else self._only()
        return path, self._ask("GET", path)

    def _only(self) -> str:
        members = _at(self._ask("GET", SYSTEMS).content, "Members")
        paths = [_at(member, "@odata.id") for member in members] if isinstance(members, list) else []
        if len(paths) != 1 or not _is_path(paths[0]):
            names = ", ".join(sorted(str(path).rpartition("/")[2][:40] for path in paths[:8])) or "none"
            raise SiteError(
                f"{self._web.address} has several systems, or none: {names}.", hint="Enter the id of one as its outlet."
            )
        return str(paths[0])

    def _reset(self, path: str, system: Reply, wanted: tuple[str, ...]) -> str:
        action = _at(_at(system.content, "Actions"), _RESET)
        target = _at(action, "target")
        if not _is_path(target):
            target = f"{path}/Actions/ComputerSystem.Reset"
        known = _at(action, "ResetType@Redfish.AllowableValues")
        kinds = [kind for kind in wanted if not isinstance(known, list) or kind in known]
        if not kinds:
            raise SiteError(
                f"{self._web.address} knows no reset of the kind {wanted[0]}.", hint="Use another way for it."
            )
        body = {"ResetType": kinds[0]}
        # Actions need no precondition, and some controllers refuse one (412); others refuse an action without (428, 412).
        answer = self._web.ask("POST", target, body)
        tag = system.headers.get("ETag") or _at(system.content, "@odata.etag")
        if answer.status in (412, 428) and isinstance(tag, str):
            answer = self._web.ask("POST", target, body, {"If-Match": tag})
        self._judge(answer, target)
        return f"{self._web.address} took the reset {kinds[0]}"

    def _ask(self, method: str, path: str) -> Reply:
        answer = self._web.ask(method, path, headers={"OData-Version": "4.0"})
        self._judge(answer, path)
        if not isinstance(answer.content, dict):
            raise SiteError(
                f"{self._web.address} speaks no Redfish: {path} is no JSON object.", hint="Look at its address."
            )
        return answer

    def _judge(self, answer: Reply, path: str) -> None:
        """Raises what a status means for whoever can act."""
        status, where = answer.status, self._web.address
        if 200 <= status < 300:
            return
        said = _said(answer.content)
        if status in (401, 403):
            raise SiteError(
                f"{where} does not take its credential ({status}).{said}",
                hint="Look whether user and password are right there, and that the user may switch power.",
            )
        if status == 404:
            raise SiteError(f"{where} has no {path}.{said}", hint="Look at the outlet: it is the id of a system there.")
        if status in (429, 500, 502, 503, 504):
            raise Away(f"{where} cannot do it now ({status}).{said}", hint="Try again in a minute.")
        raise SiteError(f"{where} refuses it ({status}).{said}", hint="Look what the controller's own page says.")


def _is_on(system: object) -> bool:
    return _at(system, "PowerState") in ("On", "PoweringOn", "Paused")


def _is_path(value: object) -> bool:
    return (
        isinstance(value, str)
        and value.startswith("/redfish/")
        and len(value) <= _PATH
        and value.isascii()
        and value.isprintable()
        and " " not in value
    )


def _at(value: object, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _said(content: object) -> str:
    """What the controller says of its error, where it says it in the way of Redfish."""
    error = _at(content, "error")
    more = _at(error, "@Message.ExtendedInfo")
    words = [_at(entry, "Message") for entry in more if _at(entry, "Message")] if isinstance(more, list) else []
    text = str(words[0] if words else _at(error, "message") or "")
    printable = "".join(char if char.isprintable() else " " for char in text)[:120].strip()
    return f" It says: {printable}" if printable else ""
