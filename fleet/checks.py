"""What a server must not be run with: ``manage.py check --deploy``."""

import os
import stat
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.checks import Error, Tags, Warning, register

Found = list[Error | Warning]


@register(Tags.security, deploy=True)
def secret_key(app_configs: Any, **_: Any) -> Found:
    if settings.SECRET_KEY_CONFIGURED:
        return []
    return [
        Error(
            "FLEET_SECRET_KEY is not set, so every restart ends all logins.",
            hint='Write one into .env: python3 -c "import secrets; print(secrets.token_urlsafe(50))"',
            id="fleet.E001",
        )
    ]


@register(Tags.security, deploy=True)
def debug(app_configs: Any, **_: Any) -> Found:
    if not settings.DEBUG:
        return []
    hint = "Take FLEET_DEBUG out of the environment."
    return [Error("FLEET_DEBUG is on: error pages would show settings to strangers.", hint=hint, id="fleet.E002")]


@register(Tags.security, deploy=True)
def private_keys(app_configs: Any, **_: Any) -> Found:
    """A private key given to this process must be its owner's alone."""
    found: Found = []
    for variable in ("COMMAND_KEY", "SESSION_KEY"):
        path = Path(getattr(settings, variable)) if getattr(settings, variable) else None
        if path is not None and path.is_file() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            hint = f"chmod 600 {path}"
            message = f"The private key {path} (FLEET_{variable}) can be read by others."
            found.append(Error(message, hint=hint, id="fleet.E003"))
    if settings.COMMAND_KEY and settings.SESSION_KEY:
        message = "One process has both private keys: whoever breaks into it could sign commands."
        hint = "Give FLEET_COMMAND_KEY to the sender alone and FLEET_SESSION_KEY to the gateway alone."
        found.append(Warning(message, hint=hint, id="fleet.W003"))
    return found


@register(Tags.files, deploy=True)
def store(app_configs: Any, **_: Any) -> Found:
    """The store, or the nearest directory above it that exists, must be writable."""
    place = settings.STORE
    while not place.exists():
        place = place.parent
    if os.access(place, os.W_OK):
        return []
    hint = f"Make {settings.STORE} and give it to the user that runs the server, or set FLEET_STORE."
    return [Error(f"The store {settings.STORE} cannot be written.", hint=hint, id="fleet.E004")]


@register(Tags.security, deploy=True)
def https(app_configs: Any, **_: Any) -> Found:
    if settings.HTTPS:
        return []
    hint = "Put a proxy with a certificate before the web process and set FLEET_PUBLIC_URL to its https:// address."
    message = f"People log in at {settings.PUBLIC_URL}, where passwords go over the wire as they are."
    return [Warning(message, hint=hint, id="fleet.W001")]


@register(Tags.database, deploy=True)
def database(app_configs: Any, **_: Any) -> Found:
    """SQLite serves one host; beyond two thousand clients PostgreSQL is the better place."""
    if not settings.DATABASES["default"]["ENGINE"].endswith("sqlite3") or settings.GATEWAY_URL.startswith(
        ("http://127.", "http://localhost")
    ):
        return []
    if Path(settings.DATABASES["default"]["NAME"]).parent == settings.DATA:
        return []
    hint = "Keep it on a local disk below FLEET_DATA, or use PostgreSQL: SQLite's locks do not work over a network."
    return [Warning("The SQLite database lies outside FLEET_DATA.", hint=hint, id="fleet.W002")]
