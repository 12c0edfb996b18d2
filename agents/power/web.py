"""HTTP to a power port: fenced in, bounded in time and size, and told nothing before it has shown its certificate.

The address comes from a person of one site; the server's own network lies open to the sender. So it goes nowhere but into the networks
of FLEET_POWER_NETWORKS, connects to the very address it has looked at, and follows no redirection.
"""

import hashlib
import hmac
import http.client
import ipaddress
import json
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

from fleet.exceptions import SiteError

CONNECT_S = 5.0
WHOLE_S = 15.0  # of one question, however slowly it is answered
MOST_BYTES = 1 << 20


class Away(SiteError):
    """Nobody answers there, or not now: the same may work a little later."""


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Message
    content: Any  # JSON; None where it is none


class Web:
    """One address, ``https://host`` or ``https://host:port``, and who we are there. Each question is a connection of its own."""

    def __init__(self, address: str, user: str = "", password: str = "", fingerprint: str = "") -> None:
        self.address = address.rstrip("/")
        parts = urlsplit(self.address)
        self._secure, self._host = parts.scheme == "https", parts.hostname or ""
        self._port = parts.port or (443 if self._secure else 80)
        self._fingerprint = fingerprint
        known = b64encode(f"{user}:{password}".encode()).decode()
        self._known = {"Authorization": f"Basic {known}"} if user else {}

    def ask(self, method: str, path: str, body: object = None, headers: Mapping[str, str] = {}) -> Reply:
        """The answer, whatever its status. Raises SiteError: the address is not allowed, or its certificate not the right one; Away."""
        connected = self._connect()
        # A read has a limit only from byte to byte: what drips for ever is hung up on.
        hang_up = threading.Timer(WHOLE_S, _hang_up, [connected])
        hang_up.start()
        connection = http.client.HTTPConnection(self._host, self._port)
        connection.sock = connected
        try:
            content = None if body is None else json.dumps(body).encode()
            kind = {"Content-Type": "application/json"} if content is not None else {}
            connection.request(method, path, content, {"Accept": "application/json", **self._known, **kind, **headers})
            answer = connection.getresponse()
            said = answer.read(MOST_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise Away(
                f"{self.address} does not answer as it should: {error or type(error).__name__}.",
                hint="Look whether it is well, and whether that is its address.",
            ) from None
        finally:
            hang_up.cancel()
            connection.close()
        try:
            parsed = json.loads(said)
        except (ValueError, RecursionError):
            parsed = None
        return Reply(answer.status, answer.headers, parsed)

    def _connect(self) -> socket.socket:
        try:
            raw = socket.create_connection((self._allowed(), self._port), timeout=CONNECT_S)
        except OSError as error:
            raise Away(
                f"{self.address} cannot be reached: {error}.",
                hint="Look whether it has power and network, and whether that is its address.",
            ) from None
        if not self._secure:
            return raw
        try:
            return self._proved(raw)
        except OSError as error:
            raw.close()
            raise Away(
                f"{self.address} speaks no TLS with us: {error}.", hint="Look whether that is its port."
            ) from None
        except SiteError:
            raw.close()
            raise

    def _allowed(self) -> str:
        """The IP address to connect to; SiteError where it lies in no network that is allowed."""
        try:
            found = [entry[4][0] for entry in socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)]
        except OSError:
            raise Away(f"{self._host} has no address.", hint="Look whether its name is right.") from None
        for address in map(str, found):
            if any(ipaddress.ip_address(address) in network for network in settings.POWER_NETWORKS):
                return address
        raise SiteError(
            f"{self.address} ({', '.join(map(str, found))}) is in no network where power ports may be.",
            hint="Whoever runs the server can add that network to FLEET_POWER_NETWORKS.",
        )

    def _proved(self, raw: socket.socket) -> socket.socket:
        """TLS, with a certificate that an authority vouches for, or the very one whose fingerprint is known."""
        context = ssl.create_default_context()
        if self._fingerprint:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            secured = context.wrap_socket(raw, server_hostname=self._host)
        except ssl.SSLCertVerificationError as error:
            shown = _fingerprint_of(self._allowed(), self._port)
            raise SiteError(
                f"The certificate of {self.address} is not trusted: {error.verify_message}.",
                hint=f"If it is the one with the SHA-256 fingerprint {shown}, write fingerprint= into its credential.",
            ) from None
        shown = hashlib.sha256(secured.getpeercert(binary_form=True) or b"").hexdigest()
        if self._fingerprint and not hmac.compare_digest(shown, self._fingerprint):
            secured.close()
            raise SiteError(
                f"{self.address} has another certificate than before: its SHA-256 fingerprint is {shown}.",
                hint="If it was given a new one, write that into its credential; else somebody stands between.",
            )
        return secured


def _fingerprint_of(address: str, port: int) -> str:
    """For the error's hint: of the certificate that is shown there, which nobody believes yet."""
    try:
        shown = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((address, port), timeout=CONNECT_S))
    except (OSError, ValueError):
        return "(unknown)"
    return hashlib.sha256(shown).hexdigest()


def _hang_up(connected: socket.socket) -> None:
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
