"""What a server must not be run with: ``manage.py check --deploy``."""

import os
import stat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import Error, Tags, Warning, register
from django.db import DatabaseError, connection
from django.http.request import validate_host

from fleet.signing import KINDS

Found = list[Error | Warning]
PRIVATE_KEYS = tuple(f"{kind.upper()}_KEY" for kind in KINDS)


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
    for variable in PRIVATE_KEYS:
        path = Path(getattr(settings, variable)) if getattr(settings, variable) else None
        if path is not None and path.is_file() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            hint = f"chmod 600 {path}"
            message = f"The private key {path} (FLEET_{variable}) can be read by others."
            found.append(Error(message, hint=hint, id="fleet.E003"))
    if sum(bool(getattr(settings, variable)) for variable in PRIVATE_KEYS) > 1:
        message = "One process has several private keys: whoever breaks into it could sign more than is its part."
        hint = "FLEET_COMMAND_KEY is for the sender alone, FLEET_SESSION_KEY for the gateway, FLEET_IMAGE_KEY for the builds."
        found.append(Warning(message, hint=hint, id="fleet.W003"))
    return found


@register(Tags.security, deploy=True)
def foreign_keys(app_configs: Any, **_: Any) -> Found:
    """Private halves beside the public ones, where every process looks."""
    own = {Path(path) for variable in PRIVATE_KEYS if (path := getattr(settings, variable))}
    return [
        Warning(
            f"This process can read the private key {path}, which was not given to it.",
            hint="Move it to where only the process that signs with it can read it; docs/deploy.md says which.",
            id="fleet.W004",
        )
        for path in sorted(settings.PUBLIC_KEYS.glob("*.key"))
        if path not in own and os.access(path, os.R_OK)
    ]


@register(Tags.security, deploy=True)
def public_keys(app_configs: Any, **_: Any) -> Found:
    return [
        Error(
            f"There is no public key {path}: nothing could be believed that the {kind} key signs.",
            hint="Run `manage.py keys`, or copy the file from the host where that was done.",
            id="fleet.E005",
        )
        for kind in KINDS
        if not (path := settings.PUBLIC_KEYS / f"{kind}.pub").is_file()
    ]


@register(Tags.security, deploy=True)
def replaceable_keys(app_configs: Any, **_: Any) -> Found:
    """Whoever may put other public keys in the place of ours decides what all clients obey."""
    directory = settings.PUBLIC_KEYS
    for place in (directory, *directory.parents):
        if place.is_dir() and _of_others(place.stat()):
            return [
                Warning(
                    f"The public keys in {directory} can be replaced by who may write to {place}: all clients would obey theirs.",
                    hint="Keep them in a directory that belongs to root, as do those above it: FLEET_PUBLIC_KEYS=/etc/fleet/public.",
                    id="fleet.W007",
                )
            ]
    return []


def _of_others(found: os.stat_result) -> bool:
    """Whether somebody else than root, or who checks, may put other files in the place of those in a directory."""
    shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX
    return bool(shared) or found.st_uid not in (0, os.geteuid())


@register(Tags.security, deploy=True)
def powerful_database_user(app_configs: Any, **_: Any) -> Found:
    """On PostgreSQL no process needs to be able to change what is written down (``manage.py grants``)."""
    if connection.vendor != "postgresql":
        return []
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT has_table_privilege('fleet_auditentry', 'DELETE'), current_user")
            may, user = cursor.fetchone()
    except DatabaseError:
        return []  # away, or empty still: others say so
    if not may:
        return []
    hint = "Give each process a user of its own: `manage.py grants` prints the SQL, docs/deploy.md says where it goes."
    message = (
        f"The database user {user} may remove entries of the audit log, and with it every process that is given it."
    )
    return [Warning(message, hint=hint, id="fleet.W006")]


@register(Tags.security, deploy=True)
def allowed_hosts(app_configs: Any, **_: Any) -> Found:
    host = urlsplit(settings.PUBLIC_URL).hostname or ""
    if validate_host(f"[{host}]" if ":" in host else host, settings.ALLOWED_HOSTS):
        return []
    message = f"People are sent to {settings.PUBLIC_URL}, which this server does not answer to."
    return [Error(message, hint=f"Add {host} to FLEET_ALLOWED_HOSTS.", id="fleet.E006")]


@register(Tags.files, deploy=True)
def store(app_configs: Any, **_: Any) -> Found:
    """The store, or the nearest directory above it that exists, must be writable for the worker of builds."""
    place = settings.STORE
    while not place.exists():
        place = place.parent
    if os.access(place, os.W_OK):
        return []
    hint = f"The worker of builds writes there: give {settings.STORE} to its user, and run this check as that user."
    return [Warning(f"The store {settings.STORE} cannot be written.", hint=hint, id="fleet.W005")]


@register(Tags.security, deploy=True)
def https(app_configs: Any, **_: Any) -> Found:
    if settings.HTTPS:
        return []
    hint = "Put a proxy with a certificate before the web process and set FLEET_PUBLIC_URL to its https:// address."
    message = f"People log in at {settings.PUBLIC_URL}, where passwords go over the wire as they are."
    return [Warning(message, hint=hint, id="fleet.W001")]


@register(Tags.database, deploy=True)
def database(app_configs: Any, **_: Any) -> Found:
    """SQLite is for one host: where the database lies elsewhere than the data, it may be on a share of several."""
    default = settings.DATABASES["default"]
    if default["ENGINE"] != "fleet.sqlite" or Path(default["NAME"]).is_relative_to(settings.DATA):
        return []
    hint = "Keep it on a local disk below FLEET_DATA, or use PostgreSQL: SQLite's locks do not work over a network."
    message = f"The SQLite database {default['NAME']} lies outside FLEET_DATA: it must not be shared by several hosts."
    return [Warning(message, hint=hint, id="fleet.W002")]
