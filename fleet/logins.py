"""Logins: in the audit log, and few enough per address that passwords cannot be guessed.

Five failures of a name from one address, or thirty from one address, close that way for a quarter of an hour. Only the first
failure of a name and the closing are written down, so nobody can fill the log by failing.
"""

import hashlib
from datetime import timedelta
from ipaddress import ip_address, ip_network
from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.dispatch import receiver
from django.http import HttpRequest
from django.utils import timezone

from fleet import audit
from fleet.models import FailedLogin

WINDOW = timedelta(minutes=15)
NAME_LIMIT, ADDRESS_LIMIT = 5, 30


def _address(request: HttpRequest | None) -> str:
    return request.META.get("REMOTE_ADDR", "") if request is not None else ""


def _network(address: str) -> str:
    """Where attempts of one address are counted: there, or at its /64, for an IPv6 host has as many addresses as it likes."""
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    return address if ip.version == 4 else str(ip_network((ip, 64), strict=False))


def _limits(name: str, address: str) -> dict[str, int]:
    """The counters of a login attempt and how far each may go; that of the address first."""
    network = _network(address)
    keys = {network: ADDRESS_LIMIT, f"{name.casefold()}\0{network}": NAME_LIMIT}
    return {hashlib.sha256(key.encode()).hexdigest(): limit for key, limit in keys.items()}


def closed(name: str, address: str) -> bool:
    """True while too many logins of this name from there, or of any from there, have failed."""
    limits = _limits(name, address)
    rows = FailedLogin.objects.filter(key__in=limits, since__gt=timezone.now() - WINDOW)
    return any(row.count >= limits[row.key] for row in rows)


class ThrottledBackend(ModelBackend):
    """Django's, behind a closed door after too many failures. It asks the database: without one nobody gets in anyway."""

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **kwargs: Any
    ) -> Any:
        if request is not None and closed(username or "", _address(request)):
            raise PermissionDenied
        return super().authenticate(request, username=username, password=password, **kwargs)


class LoginForm(AuthenticationForm):
    error_messages = {
        "invalid_login": "User name and password do not match. Passwords tell capitals from small letters.",
        "inactive": "This account is closed. Ask a site admin.",
    }

    def get_invalid_login_error(self) -> ValidationError:
        if closed(self.cleaned_data.get("username", ""), _address(self.request)):
            minutes = WINDOW.seconds // 60
            return ValidationError(
                f"Too many logins have failed. Wait {minutes} minutes, then try again.", code="closed"
            )
        return super().get_invalid_login_error()


@receiver(user_logged_in)
def _logged_in(sender: object, request: HttpRequest, user: User, **_: Any) -> None:
    audit.record("login", user, site=None, actor=user, address=_address(request))
    FailedLogin.objects.filter(since__lt=timezone.now() - WINDOW).delete()


@receiver(user_logged_out)
def _logged_out(sender: object, request: HttpRequest, user: User | None, **_: Any) -> None:
    if user is not None:
        audit.record("logout", user, site=None, actor=user, address=_address(request))


@receiver(user_login_failed)
@transaction.atomic
def _failed(sender: object, credentials: dict[str, Any], request: HttpRequest | None = None, **_: Any) -> None:
    name, address = str(credentials.get("username") or "")[:150], _address(request)
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    for key, limit in _limits(name, address).items():
        FailedLogin.objects.get_or_create(key=key)
        row = FailedLogin.objects.select_for_update().get(key=key)
        if row.since < timezone.now() - WINDOW:
            row.count, row.since = 0, timezone.now()
        row.count += 1
        row.save()
        if row.count == limit:
            audit.record("login.closed", shown, site=None, actor="nobody", address=address, failures=limit)
        elif row.count == 1 and limit == NAME_LIMIT:
            audit.record("login.failed", shown, site=None, actor="nobody", address=address)
        if row.count > limit:
            return  # whoever knocks at a closed door with ever new names makes no row and no entry of each
