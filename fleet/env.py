"""Readers of the environment that refuse bad values instead of guessing.

django-environ parses URLs well, but two of its habits are dangerous and are fenced here: a value beginning with ``$`` is
taken as another variable's name, and ``env.bool`` reads the typo ``ture`` as False.
"""

import ipaddress
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}
_NFS_SHARE = re.compile(r"nfs://([0-9.]+)(?::([0-9]{1,5}))?((?:/[A-Za-z0-9._-]+)+)")
_HOST = re.compile(r"\*|\.?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")


class Env:
    """Typed access to environment variables; every error names the variable, what is wrong and what to write."""

    def __init__(self, variables: dict[str, str]) -> None:
        self._variables = variables

    @classmethod
    def load(cls, dotenv: Path) -> "Env":
        """The process environment, with ``dotenv`` (if present) filling what is not set there."""
        if dotenv.is_file():
            environ.Env.read_env(dotenv, overwrite=False)
        return cls(environ.Env.ENVIRON)

    def text(self, name: str, default: str | None = None) -> str:
        """The value as written, a leading ``$`` included."""
        value = self._variables.get(name, default)
        if value is None:
            raise ImproperlyConfigured(
                f"{name} is not set. Set it in the environment or in .env; .env.example explains it."
            )
        return value

    def secret(self, name: str, default: str | None = None, *, at_least: int = 32) -> str:
        """A secret of at least ``at_least`` characters. The error never shows it."""
        value = self.text(name, default)
        if len(value) < at_least:
            raise ImproperlyConfigured(f"{name} is too short: it needs at least {at_least} characters.")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.text(name, "1" if default else "0").strip().lower()
        if value in _TRUE:
            return True
        if value in _FALSE:
            return False
        raise ImproperlyConfigured(
            f"{name}={value!r} is neither yes nor no: write one of {', '.join(sorted(_TRUE | _FALSE))}."
        )

    def number(self, name: str, default: int, *, low: int, high: int) -> int:
        value = self.text(name, str(default)).strip()
        try:
            number = int(value)
        except ValueError:
            raise ImproperlyConfigured(f"{name}={value!r} is not a whole number.") from None
        if not low <= number <= high:
            raise ImproperlyConfigured(f"{name}={number} is out of range: it must be {low} to {high}.")
        return number

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.text(name, default).strip().lower()
        if value not in choices:
            raise ImproperlyConfigured(f"{name}={value!r} is none of {', '.join(choices)}.")
        return value

    def counts(self, name: str, default: dict[str, int]) -> dict[str, int]:
        """Whole numbers by name, as in ``restart=600,cycle=20000``; what is not named keeps its default, a strange name is refused."""
        counts = dict(default)
        for word in self.words(name):
            key, _, value = word.partition("=")
            if key not in default or not value.isdecimal() or not 0 <= int(value) <= 10**6:
                raise ImproperlyConfigured(
                    f"{name}: {word!r} is no count. Write <name>=<number>, with a name of {', '.join(default)}."
                )
            counts[key] = int(value)
        return counts

    def words(self, name: str, default: str = "") -> list[str]:
        """A comma-separated list; empty words are dropped."""
        return [word.strip() for word in self.text(name, default).split(",") if word.strip()]

    def path(self, name: str, default: Path) -> Path:
        value = Path(self.text(name, str(default)))
        if not value.is_absolute():
            raise ImproperlyConfigured(f"{name}={str(value)!r} is not an absolute path.")
        return value

    def url(self, name: str, default: str, *, schemes: tuple[str, ...]) -> str:
        """A URL with a host, or with a path for ``unix``; without the slash at its end."""
        value = self.text(name, default)
        try:
            parts = urlsplit(value)
            whole = bool(parts.path if parts.scheme == "unix" else parts.hostname)
            parts.port  # noqa: B018 - ValueError for what is no port
        except ValueError:
            whole = False
        if not whole or parts.scheme not in schemes or " " in value:
            raise ImproperlyConfigured(
                f"{name}={_without_password(value)!r} must be a URL beginning with "
                f"{' or '.join(f'{s}://' for s in schemes)}, with a host."
            )
        return value.rstrip("/")

    def nfs_share(self, name: str) -> str:
        """Empty, or ``nfs://<IPv4 address>:<port>/<path>``: what an initrd mounts, which resolves no names."""
        value = self.text(name, "").rstrip("/")
        if not value:
            return ""
        match = _NFS_SHARE.fullmatch(value)
        try:
            ipaddress.IPv4Address(match[1] if match else "")
            port = int((match and match[2]) or 2049)
        except ValueError:
            match = None
        if not match or not 0 < port < 65536:
            raise ImproperlyConfigured(
                f"{name}={value!r} is no share: write nfs://10.20.0.1/srv/fleet, with the address (no name) at which clients "
                "reach the server, and a path of letters, digits and ._/-."
            )
        return f"nfs://{match[1]}:{port}{match[3]}"

    def addresses(self, name: str, default: str = "") -> list[str]:
        """IPv4 addresses, as in ``10.20.0.255,10.30.0.255``."""
        words = self.words(name, default)
        for word in words:
            try:
                ipaddress.IPv4Address(word)
            except ValueError:
                raise ImproperlyConfigured(
                    f"{name}: {word!r} is no IPv4 address. Write addresses, with commas between: 10.20.0.255."
                ) from None
        return words

    def networks(self, name: str, default: str = "") -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """IP networks, as in ``10.20.9.0/24,fd00:9::/64``; one address alone is one, too."""
        networks = []
        for word in self.words(name, default):
            try:
                networks.append(ipaddress.ip_network(word))
            except ValueError as error:
                raise ImproperlyConfigured(
                    f"{name}: {word!r} is no network: {error}. Write networks, with commas between: 10.20.9.0/24."
                ) from None
        return networks

    def hosts(self, name: str, default: str) -> list[str]:
        """Host names or addresses as they stand in a Host header without a port; ``.example.org`` takes in subdomains."""
        hosts = self.words(name, default)
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise ImproperlyConfigured(
                    f"{name}: {host!r} is no host name. Write names alone, without scheme and port: fleet.example.org."
                )
        return hosts

    def database(self, name: str, default: str) -> dict[str, Any]:
        """A database URL as Django's settings: ``sqlite:////absolute/path`` or ``postgres://user:password@host/name``."""
        value = self.text(name, default)
        sqlite = value.startswith("sqlite:////") and len(value) > len("sqlite:////")
        if not sqlite and not value.startswith(("postgres://", "postgresql://")):
            raise ImproperlyConfigured(
                f"{name}={_without_password(value)!r} must begin with sqlite:////, followed by an absolute path, or "
                "postgres://; other databases are not supported."
            )
        try:
            settings = dict(environ.Env.db_url_config(value))
        except ValueError as error:
            raise ImproperlyConfigured(f"{name}={_without_password(value)!r} cannot be read: {error}.") from None
        if not settings["NAME"]:
            raise ImproperlyConfigured(f"{name}={_without_password(value)!r} names no database: end it with /name.")
        return settings


def _without_password(url: str) -> str:
    return re.sub(r"//[^/]*@", "//…@", url)
