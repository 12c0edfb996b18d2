"""Power ports: a real Redfish emulator is spoken with, fenced in, believed by its certificate; and what a sender makes of it."""

import ipaddress
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.core.exceptions import ValidationError
from django.utils import timezone
from pytest_django.fixtures import Settings

from agents import schedule, services, tasks
from agents.models import Command, CommandStatus, PowerPort, Verb, Wake, Way
from agents.power import ports, pressing, web
from agents.power.redfish import Redfish
from agents.power.web import Away, Web
from fleet.exceptions import SiteError
from fleet.models import AuditEntry, Client
from tests.agents.boots import make_release, plan_of
from tests.agents.controllers import PASSWORD, SYSTEM, USER, Controller, controller, odd
from tests.services import celery_sends_to, free_port, wait_for
from tests.world import World, make_client, make_world

OTHER = "00000000-0000-4000-8000-000000000002"


@pytest.fixture(autouse=True)
def reachable(settings: Settings) -> None:
    settings.POWER_NETWORKS = [ipaddress.ip_network("127.0.0.0/8")]


@pytest.fixture(scope="module")
def bmc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    """One with TLS that asks for a password, as they come."""
    with controller(tmp_path_factory.mktemp("bmc"), tls=True, closed=True) as one:
        yield one


def system(one: Controller, outlet: str = SYSTEM, **who: str) -> Redfish:
    known = {"user": USER, "password": PASSWORD, "fingerprint": one.fingerprint} | who
    return Redfish(Web(one.address, **known), outlet)


@pytest.mark.slow
def test_a_system_that_is_off_is_switched_on_and_then_is_on_already(tmp_path: Path) -> None:
    with controller(tmp_path, tls=True, closed=True) as one:
        port = system(one, outlet="")
        assert not port.is_on()
        assert port.on() == f"{one.address} took the reset On"
        wait_for(port.is_on, "the emulated system is on", 30)
        with pytest.raises(SiteError, match="says that it is on, and yet it is not heard of"):
            port.on()
        port.off()
        wait_for(lambda: not port.is_on(), "it is off again", 30)


@pytest.mark.slow
def test_of_several_systems_one_is_named(tmp_path: Path) -> None:
    with controller(tmp_path, systems=[SYSTEM, OTHER]) as one:
        with pytest.raises(SiteError, match=rf"has several systems, or none: {OTHER}, {SYSTEM}\. Enter the id of one"):
            Redfish(Web(one.address), "").is_on()
        assert not Redfish(Web(one.address), OTHER).is_on()
        with pytest.raises(SiteError, match=r"has no /redfish/v1/Systems/elsewhere\. It says: .*Look at the outlet"):
            Redfish(Web(one.address), "elsewhere").is_on()


@pytest.mark.parametrize("who", [{"password": "wrong"}, {"user": "nobody"}, {"user": ""}])
def test_a_credential_that_is_not_taken_is_told_without_its_password(bmc: Controller, who: dict[str, str]) -> None:
    with pytest.raises(
        SiteError, match=r"does not take its credential \(401\).*Look whether user and password"
    ) as told:
        system(bmc, **who).on()
    assert PASSWORD not in str(told.value)
    assert not isinstance(told.value, Away)


def test_a_certificate_nobody_vouches_for_is_named_by_its_fingerprint(bmc: Controller) -> None:
    before = len(bmc.requests)
    with pytest.raises(SiteError, match=rf"is not trusted: self-signed .*fingerprint {bmc.fingerprint}, write"):
        system(bmc, fingerprint="").on()
    assert len(bmc.requests) == before, "nothing was said to it"


def test_another_certificate_than_the_known_one_hears_no_password(bmc: Controller) -> None:
    before = len(bmc.requests)
    with pytest.raises(
        SiteError, match=rf"has another certificate than before: .* {bmc.fingerprint}\. .*somebody stands"
    ):
        system(bmc, fingerprint="0" * 64).on()
    assert len(bmc.requests) == before


def test_a_certificate_that_an_authority_vouches_for_needs_no_fingerprint(
    bmc: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(bmc.service.log_path.parent / "bmc.pem"))
    assert not system(bmc, fingerprint="").is_on()
    name = Web(bmc.address.replace("127.0.0.1", "localhost"), USER, PASSWORD)
    with pytest.raises(SiteError, match=r"is not trusted: Hostname mismatch"):
        Redfish(name, SYSTEM).is_on()


def test_it_goes_nowhere_but_into_the_allowed_networks(bmc: Controller, settings: Settings) -> None:
    settings.POWER_NETWORKS = [ipaddress.ip_network("10.20.9.0/24"), ipaddress.ip_network("::1/128")]
    before = len(bmc.requests)
    for address in (bmc.address, bmc.address.replace("https", "http"), "http://127.0.0.1:1"):
        with pytest.raises(SiteError, match=r"127\.0\.0\.1\) is in no network where power ports may be\. Whoever runs"):
            Redfish(Web(address, USER, PASSWORD), SYSTEM).on()
    assert len(bmc.requests) == before


def test_where_nobody_listens_it_is_away() -> None:
    with pytest.raises(Away, match=r"cannot be reached: .*refused.*Look whether it has power"):
        Redfish(Web(f"http://127.0.0.1:{free_port()}"), SYSTEM).on()
    with pytest.raises(Away, match=r"nowhere\.invalid has no address"):
        Redfish(Web("https://nowhere.invalid"), SYSTEM).on()


# What the emulator never does


def say(request: BaseHTTPRequestHandler, status: int, content: object = None, raw: bytes = b"", **headers: str) -> None:
    body = raw or (json.dumps(content).encode() if content is not None else b"")
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


OFF = {
    "PowerState": "Off",
    "Actions": {"#ComputerSystem.Reset": {"target": "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset"}},
}


def posted(request: BaseHTTPRequestHandler) -> Any:
    return json.loads(request.rfile.read(int(request.headers["Content-Length"])))


def strict(request: BaseHTTPRequestHandler) -> None:
    """As Huawei's: no action without the tag of what it changes."""
    if request.command == "GET":
        say(request, 200, OFF | {"@odata.etag": 'W/"7"'})
    else:
        posted(request)
        say(request, 204 if request.headers.get("If-Match") == 'W/"7"' else 428)


def allergic(request: BaseHTTPRequestHandler) -> None:
    """As Dell's: no action with one."""
    if request.command == "GET":
        say(request, 200, OFF, ETag='"7"')
    else:
        posted(request)
        say(request, 412 if request.headers.get("If-Match") else 204)


@pytest.mark.parametrize("kind", [strict, allergic])
def test_a_tag_is_shown_to_those_that_want_one_alone(kind: Callable[[BaseHTTPRequestHandler], None]) -> None:
    with odd(kind) as address:
        assert Redfish(Web(address), "1").on() == f"{address} took the reset On"


def test_it_asks_for_a_reset_that_the_controller_knows() -> None:
    asked: list[Any] = []

    def button(request: BaseHTTPRequestHandler) -> None:
        if request.command == "GET":
            reset = OFF["Actions"]["#ComputerSystem.Reset"] | {"ResetType@Redfish.AllowableValues": ["PushPowerButton"]}  # type: ignore[index]
            say(request, 200, OFF | {"Actions": {"#ComputerSystem.Reset": reset}})
        else:
            asked.append((request.path, posted(request)))
            say(request, 202)

    with odd(button) as address:
        Redfish(Web(address), "1").on()
        with pytest.raises(SiteError, match="knows no reset of the kind ForceOff"):
            Redfish(Web(address), "1").off()
    assert asked == [("/redfish/v1/Systems/1/Actions/ComputerSystem.Reset", {"ResetType": "PushPowerButton"})]


def test_an_action_elsewhere_than_at_the_controller_is_not_believed() -> None:
    """A controller that was taken over must not lead the sender, with its password, anywhere."""
    asked: list[str] = []

    def rogue(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        target = "http://127.0.0.1:1/redfish/x"
        say(request, 200, {"PowerState": "Off", "Actions": {"#ComputerSystem.Reset": {"target": target}}})

    with odd(rogue) as address:
        Redfish(Web(address), "1").on()
    assert asked[1] == "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset"


def test_no_redirection_is_followed() -> None:
    asked: list[str] = []

    def elsewhere(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        say(request, 307, Location="/redfish/v1/Systems/2")

    with odd(elsewhere) as address, pytest.raises(SiteError, match=r"refuses it \(307\)"):
        Redfish(Web(address), "1").on()
    assert asked == ["/redfish/v1/Systems/1"]


MESSAGE = {"error": {"@Message.ExtendedInfo": [{"Message": "The BMC is\nupdating."}], "message": "see above"}}


@pytest.mark.parametrize(
    ("status", "content", "kind", "words"),
    [
        (503, MESSAGE, Away, r"cannot do it now \(503\)\. It says: The BMC is updating\."),
        (403, MESSAGE, SiteError, r"does not take its credential \(403\)"),
        (400, {"error": {"message": "no"}}, SiteError, r"refuses it \(400\)\. It says: no"),
        (200, ["no object"], SiteError, "speaks no Redfish"),
        (500, {"error": 7}, Away, r"cannot do it now \(500\)\. Try again"),
    ],
)
def test_what_a_status_means_is_said_with_the_controllers_own_words(
    status: int, content: object, kind: type[SiteError], words: str
) -> None:
    with odd(lambda request: say(request, status, content)) as address:
        with pytest.raises(SiteError, match=words) as told:
            Redfish(Web(address), "1").on()
        assert type(told.value) is kind


@pytest.mark.parametrize("raw", [b"<html>welcome</html>", b"[" * 100_000, b"\xff\xfe\x00", b"{" + b" " * (2 << 20)])
def test_rubbish_is_no_redfish(raw: bytes) -> None:
    with (
        odd(lambda request: say(request, 200, raw=raw)) as address,
        pytest.raises(SiteError, match="speaks no Redfish"),
    ):
        Redfish(Web(address), "1").is_on()


def test_what_drips_for_ever_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "WHOLE_S", 0.5)

    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        with suppress(OSError):  # the other side has hung up
            while True:
                request.wfile.write(b" ")
                time.sleep(0.05)

    with odd(drip) as address, pytest.raises(SiteError):
        Redfish(Web(address), "1").is_on()


# Credentials


@pytest.fixture
def safe(settings: Settings, tmp_path: Path) -> Path:
    settings.POWER_CREDENTIALS = tmp_path / "power"
    (settings.POWER_CREDENTIALS / "clubroom").mkdir(parents=True)
    return Path(settings.POWER_CREDENTIALS)


def put(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_credential_is_a_file_of_its_site(safe: Path) -> None:
    put(safe / "clubroom" / "bmc", "user=root\npassword= a=b c\nfingerprint=AA:bb\n\n")
    known = ports.credential("clubroom", "bmc")
    assert (known.user, known.password, known.fingerprint) == ("root", "a=b c", "aabb")
    assert "a=b c" not in repr(known)


@pytest.mark.parametrize(
    ("site", "name", "text", "mode", "words"),
    [
        ("clubroom", "other", "user=x", 0o600, "cannot be read: No such file or directory. Write it there"),
        ("school", "bmc", "user=x", 0o600, "cannot be read: No such file"),
        ("clubroom", "../school/bmc", "user=x", 0o600, "is no credential's name"),
        ("..", "bmc", "user=x", 0o600, "is no credential's name"),
        ("clubroom", "bmc", "user=x", 0o640, "can be read by others. chmod 600"),
        ("clubroom", "bmc", "hunter2", 0o600, "has a line that is none. Its lines are"),
    ],
)
def test_a_credential_that_is_none_is_told_by_its_place(
    safe: Path, site: str, name: str, text: str, mode: int, words: str
) -> None:
    put(safe / "clubroom" / "bmc", text, mode)
    with pytest.raises(SiteError, match=words) as told:
        ports.credential(site, name)
    assert "hunter2" not in str(told.value)


# What the sender makes of it


@pytest.fixture
def committed(transactional_db: None, keys: Path, safe: Path) -> World:
    return make_world()


def ported(world: World, address: str, credential: str = "bmc", outlet: str = SYSTEM) -> Client:
    client = make_client(world.clubroom)
    PowerPort.objects.create(client=client, address=address, outlet=outlet, credential=credential)
    return client


def woken(world: World, client: Client) -> Command:
    """The command once its port was pressed."""
    with celery_sends_to("redis://127.0.0.1:1/0"):
        command = services.order(Verb.WAKE, [client], "doors open", world.vera).commands.get()
        tasks.send_order(str(command.order_id))
    pressed(command)
    return command


def pressed(command: Command) -> None:
    wait_for(lambda: not pressing._pressed, "no thread has a port in hand")
    command.refresh_from_db()


@pytest.mark.slow
def test_a_client_with_a_port_is_switched_on_by_it_and_proven_by_its_boot(
    committed: World, safe: Path, tmp_path: Path
) -> None:
    make_release(committed.gamer)
    (tmp_path / "bmc").mkdir()
    with controller(tmp_path / "bmc", tls=True, closed=True) as one:
        put(safe / "clubroom" / "bmc", f"user={USER}\npassword={PASSWORD}\nfingerprint={one.fingerprint}\n")
        client = ported(committed, one.address)
        command = woken(committed, client)
        assert (command.status, command.wake.way, command.wake.dealt) == (CommandStatus.SENT, Way.PORT, 1)
        assert command.wake.sent_at is not None
        wait_for(system(one).is_on, "the emulated system is on", 30)
        plan = plan_of(client)
    command.refresh_from_db()
    assert (command.status, command.reason) == (CommandStatus.SUCCEEDED, f"booted: {plan['boot']}")
    assert not Command.objects.filter(verb=Verb.RELAY).exists()
    assert PASSWORD not in str([*AuditEntry.objects.values_list("detail", "subject")])


def test_what_a_person_has_to_mend_ends_it_at_once(committed: World, bmc: Controller, safe: Path) -> None:
    put(safe / "clubroom" / "bmc", f"user={USER}\npassword=wrong\nfingerprint={bmc.fingerprint}\n")
    command = woken(committed, ported(committed, bmc.address))
    assert command.status == CommandStatus.FAILED
    assert "does not take its credential (401)" in command.reason
    assert Wake.objects.get().asleep is False, "that says nothing of the PC's model"


def test_one_that_is_away_is_tried_again_and_the_third_time_is_the_last(committed: World) -> None:
    command = woken(committed, ported(committed, f"http://127.0.0.1:{free_port()}", credential=""))
    for rounds, later in ((1, 0), (2, 21), (3, 82)):
        with time_machine.travel(timezone.now() + timedelta(seconds=later), tick=False):
            schedule.tick()
        tasks.send_due()
        pressed(command)
        assert Wake.objects.get().rounds == rounds
        assert command.status == (CommandStatus.SENT if rounds < 3 else CommandStatus.FAILED)
    assert "cannot be reached" in command.reason


def test_a_port_that_did_its_part_and_a_client_that_does_not_boot(committed: World) -> None:
    def answers(request: BaseHTTPRequestHandler) -> None:
        if request.command == "GET":
            say(request, 200, OFF)
        else:
            say(request, 204)

    with odd(answers) as address:
        command = woken(committed, ported(committed, address, credential=""))
    for later in (25, 90):  # a PC that takes long to its first word is not asked again: it is on
        with time_machine.travel(timezone.now() + timedelta(seconds=later), tick=False):
            schedule.tick()
    tasks.send_due()
    pressed(command)
    assert (command.status, command.wake.rounds) == (CommandStatus.SENT, 1)
    with time_machine.travel(timezone.now() + timedelta(seconds=301), tick=False):
        schedule.tick()
    command.refresh_from_db()
    assert (command.status, command.reason) == (
        CommandStatus.FAILED,
        "its power port switched it on, but it did not boot within 300 s",
    )
    assert not Wake.objects.get().asleep


def test_what_a_killed_sender_had_in_hand_is_pressed_by_the_next(
    committed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pressing._pool, "submit", lambda *_: pressing._pressed.clear())
        command = woken(committed, ported(committed, f"http://127.0.0.1:{free_port()}", credential=""))
        assert Wake.objects.get().dealt == 0
    tasks.send_due()
    pressed(command)
    assert Wake.objects.get().dealt == 1


def test_a_port_that_was_taken_away_meanwhile(committed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    client = ported(committed, "http://127.0.0.1:1", credential="")
    with monkeypatch.context() as patch:
        patch.setattr(pressing._pool, "submit", lambda *_: pressing._pressed.clear())
        command = woken(committed, client)
    PowerPort.objects.all().delete()
    pressing.press(command.pk)
    command.refresh_from_db()
    assert (command.status, command.reason) == (
        CommandStatus.FAILED,
        "Its power port was taken away meanwhile. Order it again.",
    )


@pytest.mark.parametrize(
    ("address", "networks", "complaint"),
    [
        ("https://127.0.0.9", ["127.0.0.0/8"], ""),
        ("https://bmc.example.org:8443", ["127.0.0.0/8"], ""),
        ("https://[::1]", ["::/64"], ""),
        ("https://10.0.0.1", ["127.0.0.0/8"], "reaches power ports in 127.0.0.0/8 alone"),
        ("https://10.0.0.1", [], "FLEET_POWER_NETWORKS first"),
        ("https://u:p@10.0.0.1", ["10.0.0.0/8"], "no path, no password"),
        ("https://10.0.0.1/redfish", ["10.0.0.0/8"], "no path, no password"),
        ("ftp://10.0.0.1", ["10.0.0.0/8"], "An address as in"),
    ],
)
def test_what_no_port_can_be_at_is_not_taken(
    world: World, settings: Settings, address: str, networks: list[str], complaint: str
) -> None:
    settings.POWER_NETWORKS = [ipaddress.ip_network(network) for network in networks]
    port = PowerPort(client=make_client(world.clubroom), address=address)
    if not complaint:
        port.full_clean()
        return
    with pytest.raises(ValidationError, match=complaint):
        port.full_clean()
