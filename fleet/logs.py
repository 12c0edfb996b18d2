"""What the processes say while they run: lines for people, or JSON for machines (FLEET_LOG), on standard error.

Each line names what it is part of: the request that a person made, the order that came of it. That is carried along in the context, from the
web process through a task's message to the worker, so that one search finds the whole story. What must stay secret is taken out here at the
latest; nobody should hand it to a log at all.
"""

import json
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any

from django.db import transaction
from django.http import HttpRequest, HttpResponseBase

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default={})  # noqa: B039 - replaced, never changed
_REQUEST_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{7,63}").fullmatch
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}  # syslog's
_SECRET = re.compile(
    r"(?P<bearer>\bbearer\s+)[^\s\"',;]+"
    r"|(?P<named>\b[\w.]*(?:token|bearer|password|passwd|secret(?:_key)?|secure_?on|private_?key)[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&)}]+"
    r"|(?P<login>//[^/\s:@]*:)[^/\s@]+(?=@)"
    r"|(?P<row>failing row contains )\(.*\)",  # PostgreSQL shows all columns of what it refuses
    re.IGNORECASE,
)
_MARKS = (
    "bearer",
    "token",
    "passw",
    "secret",
    "secure",
    "private",
    "@",
    "failing row",
)  # without one nothing is looked for


@contextmanager
def about(**fields: object) -> Iterator[None]:
    """Within it each line carries these fields, as in ``order=<id>``, beside those that it carried before."""
    token = _about.set({**_about.get(), **{name: str(value) for name, value in fields.items()}})
    try:
        yield
    finally:
        _about.reset(token)


def carried() -> dict[str, str]:
    """The fields of now: for a message to a worker."""
    return dict(_about.get())


def begin(fields: Mapping[str, str]) -> None:
    """What is done from here on is part of this: a worker begins a task."""
    _about.set(fields)


def told(**fields: object) -> dict[str, Any]:
    """Fields of one line, for ``extra=``."""
    return {"fields": fields}


def once_committed(say: Callable[..., object], text: str, /, *args: object, **fields: object) -> None:
    """Log when the present transaction is committed, with the fields of now: what is rolled back has not happened."""
    transaction.on_commit(partial(copy_context().run, partial(say, text, *args, extra=told(**fields))))


def without_secrets(text: str) -> str:
    return _SECRET.sub(lambda found: f"{found[found.lastgroup or 0]}…", text)


def _suspicious(text: str) -> bool:
    """Whether it is worth to look for secrets: most lines have none, and thousands are written in a campaign."""
    low = text.lower()
    return any(mark in low for mark in _MARKS)


class _Formatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__()
        self._journal = _is_journal()

    def format(self, record: logging.LogRecord) -> str:
        given = {**_about.get(), **getattr(record, "fields", {})}
        fields = {name: value if type(value) is int else str(value) for name, value in given.items()}
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # it was to say something of a fault; better badly than not at all
            message = f"{record.msg!r} {record.args!r}"
        fault = self._fault(record)
        if _suspicious(f"{message}\n{fault}\n{fields}"):
            message, fault = without_secrets(message), without_secrets(fault)
            fields = {
                name: value if type(value) is int else without_secrets(str(value)) for name, value in fields.items()
            }
        text = self._line(record, message, fields, fault)
        if self._journal:
            level = f"<{_PRIORITY.get(record.levelno, 6)}>"
            text = level + text.replace("\n", f"\n{level}")
        return text

    def _fault(self, record: logging.LogRecord) -> str:
        parts = [self.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
        return "\n".join([*parts, self.formatStack(record.stack_info)] if record.stack_info else parts)

    def _line(self, record: logging.LogRecord, message: str, fields: Mapping[str, str | int], fault: str) -> str:
        raise NotImplementedError


class Lines(_Formatter):
    """``INFO agents.sending: signed 3 order=… request=…``: the journal, or a terminal, knows the time and the process."""

    def _line(self, record: logging.LogRecord, message: str, fields: Mapping[str, str | int], fault: str) -> str:
        words = "".join(f" {name}={_word(value)}" for name, value in fields.items())
        return f"{record.levelname} {record.name}: {_one_line(message)}{words}" + (f"\n{fault}" if fault else "")


class Json(_Formatter):
    """One object a line: ``at`` (UTC), ``level``, ``logger``, ``message``, the fields, and ``fault`` with a traceback."""

    def _line(self, record: logging.LogRecord, message: str, fields: Mapping[str, str | int], fault: str) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, str | int] = {
            "at": f"{at}.{int(record.created % 1 * 1e6):06}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": message,
        }
        for name, value in fields.items():
            line[f"{name}_" if name in line else name] = value
        if fault:
            line["fault"] = fault
        return json.dumps(line, ensure_ascii=False)


def _one_line(text: str) -> str:
    """Without line breaks and escape sequences: what a client or a stranger sent must not look like lines of ours."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _word(value: str | int) -> str:
    text = _one_line(str(value))
    return json.dumps(text, ensure_ascii=False) if not text or " " in text or '"' in text else text


def _is_journal() -> bool:
    """Whether standard error is the journal's, which takes the level of a line from its first characters (sd-daemon(3))."""
    try:
        place = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{place.st_dev}:{place.st_ino}"


class RequestIdMiddleware:
    """Gives each request an id, its own where it brings a well-formed X-Request-Id, and tells it in the answer."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        brought = request.headers.get("X-Request-Id", "")
        name = brought if _REQUEST_ID(brought) else secrets.token_hex(8)
        with about(request=name):
            response = self._get_response(request)
        response.headers["X-Request-Id"] = name
        return response
