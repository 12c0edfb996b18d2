"""Errors sorted by who must act. Everything else that is raised is a bug."""

from contextvars import ContextVar
from typing import Any


class FleetError(Exception):
    """What happened and to which thing, in one sentence; ``hint`` says what to do next."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class OperatorError(FleetError):
    """The person who asked can mend it: bad input, a missing right, a name already taken."""


class Forbidden(OperatorError):
    """The person lacks the right; somebody with a higher role can do it.

    Within a request each one is noted for the audit log (``fleet.refusals``), also one that is caught and shown as a
    message. ``site`` says in whose chain, where the thing is known to belong to one.
    """

    def __init__(self, message: str, *, hint: str = "", site: Any = None) -> None:
        super().__init__(message, hint=hint)
        self.site = site
        noted.get().append(self)


class _Nowhere(list["Forbidden"]):
    """Outside a request nobody collects refusals."""

    def append(self, _: "Forbidden") -> None: ...


noted: ContextVar[list[Forbidden]] = ContextVar("noted", default=_Nowhere())  # noqa: B039 - it keeps nothing


class SiteError(FleetError):
    """Whoever runs the server or the site must act: a disk is full, a tool is missing, a mirror is away."""


class WrongState(OperatorError):
    """The thing is not in a state that allows this; the message names both."""
