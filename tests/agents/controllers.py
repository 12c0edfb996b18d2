"""Management controllers: sushy-tools' emulator, which answers as real ones do, and one that plays what that never does."""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import bcrypt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.services import Service, free_port, start, wait_for

SYSTEM = "27946b59-9e44-4fa7-8e91-f3527a1ef094"
USER, PASSWORD = "operator", "correct horse"


@dataclass
class Controller:
    """One that listens at ``address``; ``log`` has a line for each request that got as far as HTTP."""

    service: Service
    address: str
    fingerprint: str = ""

    @property
    def requests(self) -> list[str]:
        return [line for line in self.service.log.splitlines() if "HTTP/1.1" in line]


@contextmanager
def controller(
    directory: Path, *, systems: Sequence[str] = (SYSTEM,), tls: bool = False, closed: bool = False, notify: str = ""
) -> Iterator[Controller]:
    """A controller of ``systems``, which are off. ``closed``: it asks for USER and PASSWORD. ``notify``: a URL that is PUT when one changes."""
    port = free_port()
    fake = [
        {"uuid": key, "name": f"system-{number}", "power_state": "Off", "nics": [], "external_notifier": bool(notify)}
        for number, key in enumerate(systems)
    ]
    config = {
        "SUSHY_EMULATOR_FAKE_SYSTEMS": fake,
        "SUSHY_EMULATOR_STATE_DIR": str(directory / "state"),
        "EXTERNAL_NOTIFICATION_URL": notify,
    }
    if closed:
        known = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
        (directory / "users").write_text(f"{USER}:{known}\n")
        config["SUSHY_EMULATOR_AUTH_FILE"] = str(directory / "users")
    fingerprint = ""
    if tls:
        fingerprint = _certificate(directory)
        config["SUSHY_EMULATOR_SSL_CERT"] = str(directory / "bmc.pem")
        config["SUSHY_EMULATOR_SSL_KEY"] = str(directory / "bmc.key")
    (directory / "config.py").write_text("".join(f"{name} = {value!r}\n" for name, value in config.items()))
    emulator = Path(sys.executable).parent / "sushy-emulator"
    argv = [str(emulator), "--fake", "--config", str(directory / "config.py"), "--interface", "127.0.0.1"]
    service = start([*argv, "--port", str(port)], directory / "controller.log")
    try:
        wait_for(lambda: _listens(service), "the controller listens")
        yield Controller(service, f"{'https' if tls else 'http'}://127.0.0.1:{port}", fingerprint)
    finally:
        service.stop()


def _listens(service: Service) -> bool:
    assert service.process.poll() is None, f"sushy-emulator ended:\n{service.log}"
    return "Running on" in service.log


def _certificate(directory: Path) -> str:
    """A certificate that vouches for itself, as controllers have; its fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bmc")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (directory / "bmc.pem").write_bytes(certificate.public_bytes(pem))
    (directory / "bmc.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


Answers = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def odd(answers: Answers) -> Iterator[str]:
    """The address of a controller whose every request ``answers`` takes, whatever it does with it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers(self)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
