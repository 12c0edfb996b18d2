"""Clients that boot: a released version, the script, the plan, and the session the daemon opens with it."""

import re
import uuid
from pathlib import Path
from typing import Any

from agents import attendance, plans, scripts
from agents.daemon import protocol
from agents.models import BootSession
from fleet.models import Client, ClientClass
from images.models import HomeTemplate, Release
from tests.images.versions import make_image, make_version

CIRRUS = "0000:00:02.0,1013:00b8,1af4:1100,030000"
ATI = "0000:00:03.0,1002:5046,1af4:1100,030000"
KERNEL = "6.1.0-1-amd64"  # of tests.images.versions
FACTS: dict[str, Any] = {
    "adapters": [],
    "memory_kib": 1_000_000,
    "cpus": 2,
    "clock_ms": 1_700_000_000_000,
    "kernel": KERNEL,
    "version_digest": "",
    "class": "gamer",
    "boot_ms": {"kernel": 900, "daemon": 4200.4},
    "product": "OptiPlex",
    "serial": "1",
}


def make_release(client_class: ClientClass, **fields: Any) -> Release:
    """What the class boots from now on."""
    version = make_version(make_image(client_class.site, client_class.slug), **fields)
    home = HomeTemplate.objects.get(image=version.image)
    return Release.objects.create(client_class=client_class, version=version, home=home)


def token_of(mac: str, **query: str) -> str:
    """The boot token in the script of ``mac``; AssertionError shows a script without one."""
    script = scripts.client_script({"mac": mac, **query})
    found = re.search(r"fleet\.token=([0-9a-f]{32})", script)
    assert found, script
    return found[1]


def form(token: str, mac: str, pci: str = CIRRUS, **fields: str) -> dict[str, str]:
    """What an initrd asks with."""
    values = {"boot_id": str(uuid.uuid4()), "kernel": KERNEL, "memory_kib": "1048576", "uptime_ms": "2100"}
    return {"token": token, "mac": mac, "pci": pci, **values, **fields}


def plan_of(client: Client, pci: str = CIRRUS, **fields: str) -> dict[str, str]:
    """The boot plan of one more boot of ``client``."""
    return protocol.parse_plan(plans.boot_plan(form(token_of(client.mac), client.mac, pci, **fields)))


def boot(client: Client, pci: str = CIRRUS) -> BootSession:
    """A boot of ``client`` as far as its daemon's open session."""
    session = BootSession.objects.get(pk=plan_of(client, pci)["session"])
    attendance.open_session(session, str(session.boot_id), attendance.clean_facts(FACTS))
    session.refresh_from_db()
    return session


def command_keys(directory: Path) -> dict[str, bytes]:
    """The public command keys, as a daemon reads them."""
    return protocol.parse_keys((directory / "command.pub").read_text().strip())
