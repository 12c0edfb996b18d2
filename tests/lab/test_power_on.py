"""Power on, on the real thing: a virtual PC that is off is started by its magic packet, sent by the boot host and by another PC."""

import ipaddress
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from pytest_django.fixtures import Settings

from agents.models import BootSession, Command, CommandStatus, SessionStatus, Verb, Wake
from agents.power.redfish import Redfish
from agents.power.web import Web
from fleet import audit
from fleet.box import BASE_DIR, box_environment
from fleet.management.commands.up import prepare
from fleet.models import ApiToken, Client, ClientState
from fleet.processes import Processes, read_procfile
from tests.agents.controllers import SYSTEM, controller
from tests.lab import Lab, Pc
from tests.lab.demo import people_and_site, seat_stations
from tests.lab.lan import SERVER
from tests.lab.nfs import Share
from tests.lab.test_first_light import BOOT_S, Box, await_state, boot, build, ended, powers_down
from tests.services import celery_sends_to, database_url, wait_for

pytestmark = [pytest.mark.lab, pytest.mark.root, pytest.mark.slow]

LIMIT_S = 180  # of a boot, and so until one that sleeps on has failed
PASSWORD = "de:ad:be:ef:00:01"


@dataclass
class Hall:
    """A server whose gateway stands in the boot LAN, as a site's boot host."""

    box: Box
    lab: Lab
    gateway: list[str]
    env: dict[str, str]
    running: list[Any] = field(default_factory=list)

    def boot_host(self, broadcast: str) -> None:
        """Start sender and gateway anew, with this FLEET_WAKE_BROADCAST: empty where there is no boot host."""
        self.stop()
        env = self.env | {"FLEET_WAKE_BROADCAST": broadcast}
        sender = {"sender": read_procfile(BASE_DIR / "Procfile", env)["sender"]}
        processes = Processes(sender, env, lambda name, line: self.box.lines.append(f"{name}: {line}"))
        processes.start()
        words = [f"{name}={value}" for name, value in env.items()]
        log = self.lab.directory / "gateway.log"
        self.running = [processes, self.lab.lan.start(["env", *words, *self.gateway], log)]
        wait_for(self._listens, "the gateway listens in the LAN", 60)

    def stop(self) -> None:
        for one in reversed(self.running):
            (one.stop if isinstance(one, Processes) else one.terminate)()
            if not isinstance(one, Processes):
                one.wait()
        self.running = []

    def _listens(self) -> bool:
        assert self.running[-1].poll() is None, (self.lab.directory / "gateway.log").read_text()
        return f"{SERVER}:{self.env['GATEWAY_PORT']}" in self.lab.lan.run(["ss", "-Hltn"])


@pytest.fixture
def hall(transactional_db: None, tmp_path: Path, settings: Settings) -> Iterator[Hall]:
    """The processes of the Procfile; sender and gateway wait for ``boot_host``."""
    env = box_environment(tmp_path) | {"GATEWAY_HOST": SERVER, "FLEET_DATABASE_URL": database_url()}
    env |= {"FLEET_GATEWAY_URL": f"http://{SERVER}:{env['GATEWAY_PORT']}", "FLEET_BOOT_LIMIT": str(LIMIT_S)}
    prepare(env)
    settings.PUBLIC_KEYS = tmp_path / "keys"
    commands = read_procfile(BASE_DIR / "Procfile", env)
    gateway = commands.pop("gateway")
    del commands["sender"]
    lines: list[str] = []
    processes = Processes(commands, env, lambda name, line: lines.append(f"{name}: {line}"))
    people_and_site(tmp_path)
    token, digest, hint = ApiToken.generate()
    ApiToken.objects.create(user=User.objects.get(username="demo"), name="lab", digest=digest, hint=hint)
    processes.start()
    port = int(env["GATEWAY_PORT"])
    try:
        with (
            celery_sends_to(env["FLEET_REDIS_URL"].replace("unix://", "redis+socket://")),
            Lab(port, directory=tmp_path / "lab", gateway_inside=True) as lab,
        ):
            one = Hall(Box(processes, env, lines, token, Share(tmp_path, tmp_path)), lab, gateway, env)
            try:
                yield one
            finally:
                one.stop()
    finally:
        processes.stop()


@pytest.mark.build
def test_pcs_are_woken_by_the_boot_host_and_by_each_other(hall: Hall) -> None:
    sleeper = hall.lab.pc("station-a1", gpu="cirrus", secure_on=PASSWORD)
    neighbour = hall.lab.pc("station-b1", gpu="ati")
    deaf = hall.lab.pc("station-c1", wakes=False)
    hall.boot_host("255.255.255.255")
    build(hall.box)
    seat_stations({pc.mac: pc.name for pc in (sleeper, neighbour)})
    site = Client.objects.get(mac=sleeper.mac).site
    Client.objects.filter(mac=sleeper.mac).update(secure_on=PASSWORD)
    Client.objects.create(site=site, mac=deaf.mac, name=deaf.name, seat="C1", admission="in-service", product="Deaf 1")
    boot(hall.box, sleeper, neighbour)

    powers_down(hall.box, sleeper)
    # The neighbour stands in another network for once: nobody can relay but the boot host.
    Client.objects.filter(mac=neighbour.mac).update(network="10.99.0.0/24")
    woken = ordered(hall, sleeper, deaf)
    comes_back(hall, sleeper, woken[sleeper.mac])
    assert not Command.objects.filter(verb=Verb.RELAY).exists()

    powers_down(hall.box, sleeper)
    hall.boot_host("")
    await_state(hall.box, neighbour, ClientState.READY)
    Client.objects.filter(mac__in=[sleeper.mac, neighbour.mac]).update(network="10.77.0.0/24")
    again = ordered(hall, sleeper)
    comes_back(hall, sleeper, again[sleeper.mac])
    relay = Command.objects.filter(verb=Verb.RELAY, status=CommandStatus.SUCCEEDED).latest("queued_at")
    assert relay.client.mac == neighbour.mac
    assert relay.result["sent"] > 0
    assert PASSWORD not in str([*Command.objects.values_list("args", "result", "reason")])

    sleeps_on(hall, deaf, woken[deaf.mac])
    assert list(audit.verify()) == []


def ordered(hall: Hall, *pcs: Pc) -> dict[str, Command]:
    """The commands of one order by the API, by MAC."""
    clients = [str(Client.objects.get(mac=pc.mac).pk) for pc in pcs]
    order = hall.box.api("orders/", {"verb": "wake", "clients": clients, "reason": "doors open"})
    commands = Command.objects.filter(order=order["id"], verb=Verb.WAKE).select_related("client")
    return {command.client.mac: command for command in commands}


def comes_back(hall: Hall, pc: Pc, command: Command) -> None:
    """Started by a packet alone; the command is proven by the boot that the PC itself names."""
    hall.box.await_end(command, LIMIT_S + 60)
    relays = list(Command.objects.filter(verb=Verb.RELAY).values_list("status", "reason"))
    gateway = (hall.lab.directory / "gateway.log").read_text()[-1500:]
    assert command.status == CommandStatus.SUCCEEDED, f"{command.reason} {relays}\n{gateway}\n{hall.box.tail()}"
    assert pc.running
    client = await_state(hall.box, pc, ClientState.READY, seconds=BOOT_S)
    session = BootSession.objects.get(client=client, status=SessionStatus.OPEN)
    assert command.result == {"boot": str(session.boot_id)}
    assert command.reason == f"booted: {session.boot_id}"


def sleeps_on(hall: Hall, pc: Pc, command: Command) -> None:
    wait_for(lambda: ended(command), "the command to one that does not wake ends", LIMIT_S + 60)
    assert not pc.running
    expected = f"did not wake within {LIMIT_S} s: packets were sent by the boot host"
    assert (command.status, command.reason) == (CommandStatus.FAILED, expected)
    assert Wake.objects.get(pk=command.pk).rounds == 3
    models = {row["product"]: (row["woke"], row["asleep"]) for row in hall.box.api("wakes/models/")}
    assert models["Deaf 1"] == (0, 1)
    assert models["Virtual PC"] == (2, 0)


def test_a_management_controller_starts_a_pc(tmp_path: Path, settings: Settings) -> None:
    """The emulator tells what it switches on; what it tells starts QEMU."""
    settings.POWER_NETWORKS = [ipaddress.ip_network("127.0.0.0/8")]
    with Lab(1, network="user") as lab:
        pc = lab.pc(memory_mib=128, cpus=1)

        class Mains(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if told["power_state"] == "On" and not pc.running:
                    pc.boot()
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None: ...

        with ThreadingHTTPServer(("127.0.0.1", 0), Mains) as mains:
            threading.Thread(target=mains.serve_forever, args=(0.05,), daemon=True).start()
            with controller(tmp_path, notify=f"http://127.0.0.1:{mains.server_port}") as one:
                port = Redfish(Web(one.address), SYSTEM)
                assert not pc.running
                port.on()
                wait_for(port.is_on, "the controller says that it is on", 30)
                assert pc.running
            mains.shutdown()
