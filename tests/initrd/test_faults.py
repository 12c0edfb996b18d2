"""What a client does when the network, the server or what it sends is not as it should be.

The initrd is the real one, in a real virtual PC; only the gateway is scripted.
"""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet.signing import Signer
from tests.initrd.conftest import Booting, boot
from tests.lab import Pc

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.build, pytest.mark.root]

UP_S = 120.0
UP = "ROOT IS UP as process 1$"


def changed(plan: str, **values: object) -> str:
    """The boot plan with some lines changed."""
    lines = dict(line.split("=", 1) for line in plan.splitlines())
    return "".join(f"{key}={value}\n" for key, value in {**lines, **values}.items())


def never_mounted(pc: Pc) -> bool:
    return "ROOT IS UP" not in pc.text


def test_a_client_reports_its_facts_and_leaves_what_the_daemon_reads(booting: Booting) -> None:
    with booting() as (gateway, pc):
        boot(gateway, pc)
        pc.wait_for(UP, UP_S)
        pc.wait_off(20)
    (asked,) = gateway.asked
    assert asked["pci"] == "0000:00:03.0,1013:00b8,1af4:1100,030000;0000:00:04.0,1002:5046,1af4:1100,030000"
    assert asked["mac"] == pc.mac
    assert asked["token"] == "a" * 32
    assert int(asked["memory_kib"]) in range(400_000, 524_288)
    assert int(asked["uptime_ms"]) in range(500, 60_000)
    assert gateway.troubles == []
    said = pc.text
    for line in gateway.version.boot_plan().splitlines():
        assert f"plan:{line}\n" in said
    stages = [line.removeprefix("boot:") for line in said.splitlines() if line.startswith("boot:")]
    times = [int(stage.partition("=")[2]) for stage in stages]
    assert [stage.partition("_ms=")[0] for stage in stages] == [
        "kernel",
        "initrd",
        "network",
        "plan",
        "root",
        "handover",
    ]
    assert times == sorted(times)
    for line in (
        "user:user=player",
        "network:interface=eth0",
        "resolv.conf:nameserver 10.0.2.3",
        "600 /run/fleet/plan",
        "644 /run/fleet/user",
        "750 /home/player",
        "/etc/hostname:seat-7",
        "/etc/machine-id:0f8fad5bd9cb469fa16570867728950e",
        "/etc/hosts:127.0.1.1 seat-7",
        "/home/player/greeting:hello from the template",
        "CAN WRITE",
        "CANNOT WRITE THE SHARE",
    ):
        assert f"{line}\n" in said
    assert "127.0.1.1 client" not in said
    assert "fleet-agent.service -> ../fleet-agent.service" in said
    assert "usr -> /.ro/usr" in said
    assert "root / tmpfs rw" in said  # the root is a tmpfs of its own, which pivot_root can leave


def test_a_broken_transfer_goes_on_where_it_stopped(booting: Booting) -> None:
    with booting() as (gateway, pc):
        root = gateway.version.digests["root"]
        gateway.spoil[root] = ["cut", 503, "cut"]
        boot(gateway, pc)
        pc.wait_for(UP, UP_S)
    ranges = [asked for path, asked in gateway.downloads if path == f"/store/{root}"]
    half = gateway.version.root.stat().st_size // 2
    assert ranges[0] == ""
    assert ranges[1:3] == [f"bytes={half}-"] * 2  # nothing came with the 503
    assert int(ranges[3].removeprefix("bytes=").rstrip("-")) > half
    assert gateway.troubles == []


def test_a_transfer_that_stands_still_is_taken_up_again(booting: Booting) -> None:
    with booting() as (gateway, pc):
        root = gateway.version.digests["root"]
        gateway.spoil[root] = ["slow"]
        boot(gateway, pc)
        pc.wait_for(UP, UP_S + 45)
    assert [path for path, _ in gateway.downloads].count(f"/store/{root}") == 2


def test_what_was_damaged_on_its_way_is_fetched_once_more(booting: Booting) -> None:
    with booting() as (gateway, pc):
        gateway.spoil = {digest: ["bend"] for digest in gateway.version.digests.values()}
        boot(gateway, pc)
        for part in ("root", "root plan", "home template"):
            pc.wait_for(f"The {part} that came is not the one of the boot plan", UP_S)
        pc.wait_for(UP, UP_S)
    assert gateway.troubles == []


def test_a_root_with_another_digest_is_never_mounted_and_the_client_starts_over(booting: Booting) -> None:
    with booting() as (gateway, pc):
        root = gateway.version.digests["root"]
        gateway.spoil[root] = ["bend"] * 9
        boot(gateway, pc)
        pc.wait_for("THIS PC CANNOT START: The root of gamer-7 is damaged", UP_S)
        trouble = gateway.wait_for_trouble()
        assert (trouble["stage"], trouble["error"]) == ("verify", "digest-mismatch")
        assert trouble["mac"] == pc.mac
        assert "another hash" in trouble["detail"]
        assert [path for path, _ in gateway.downloads].count(f"/store/{root}") == 2
        pc.wait_for("Linux version", 90)  # after the delay
        assert never_mounted(pc)


def test_a_server_that_has_less_than_the_plan_says_is_trouble(booting: Booting) -> None:
    with booting() as (gateway, pc):
        gateway.spoil[gateway.version.digests["home"]] = ["short"]
        boot(gateway, pc)
        pc.wait_for("THIS PC CANNOT START: The home template has", UP_S + 90)
        trouble = gateway.wait_for_trouble()
        assert (trouble["stage"], trouble["error"]) == ("fetch", "short")
        assert never_mounted(pc)


def test_a_client_waits_as_it_is_told_and_then_boots(booting: Booting) -> None:
    wait = "protocol=1\naction=wait\nreason=A volunteer has to admit this PC.\nretry_s=1\n"
    with booting() as (gateway, pc):
        gateway.plans = [503, wait, 429, *gateway.plans]
        boot(gateway, pc)
        pc.wait_for("does not answer .*503", UP_S)
        pc.wait_for("Waiting: A volunteer has to admit this PC", UP_S)
        pc.wait_for("does not answer .*429", UP_S)
        pc.wait_for(UP, UP_S)
    assert [asked["token"] for asked in gateway.asked] == ["a" * 32] * 4
    assert gateway.troubles == []


def test_a_client_restarts_when_another_kernel_is_needed(booting: Booting) -> None:
    with booting(["protocol=1\naction=restart\nreason=Another kernel is released.\n"]) as (gateway, pc):
        boot(gateway, pc)
        pc.wait_for("Restarting: Another kernel is released", UP_S)
        pc.wait_for("Linux version", 90)
        assert gateway.troubles == []


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("protocol=1\naction=refuse\nreason=This token was used before.\n", "This token was used before"),
        (403, "The server refuses this boot"),
    ],
    ids=["action", "status"],
)
def test_a_refused_client_says_why_and_reports_it(booting: Booting, answer: str | int, sentence: str) -> None:
    with booting([answer]) as (gateway, pc):
        boot(gateway, pc)
        pc.wait_for(f"THIS PC CANNOT START: {sentence}", UP_S)
        trouble = gateway.wait_for_trouble()
        assert (trouble["stage"], trouble["error"]) == ("plan", "refused")
        assert sentence in trouble["detail"]
        pc.wait_for("starts over in 30 seconds", 60)
        assert len(gateway.asked) == 1


@pytest.mark.parametrize(
    ("change", "stage", "error"),
    [
        ({"root": "../../../etc/passwd"}, "plan", "other"),
        ({"root_bytes": str(10 << 30)}, "fetch", "no-space"),
    ],
    ids=["path", "memory"],
)
def test_a_plan_that_cannot_be_followed_is_trouble(
    booting: Booting, change: dict[str, str], stage: str, error: str
) -> None:
    with booting() as (gateway, pc):
        gateway.plans = [changed(gateway.version.boot_plan(), **change)]
        boot(gateway, pc)
        pc.wait_for("THIS PC CANNOT START", UP_S)
        trouble = gateway.wait_for_trouble()
        assert (trouble["stage"], trouble["error"]) == (stage, error)
        assert never_mounted(pc)


def test_the_lease_of_the_firmware_saves_a_dhcp_request(booting: Booting) -> None:
    lease = "fleet.ip=10.0.2.77 fleet.netmask=255.255.255.0 fleet.router=10.0.2.2 fleet.dns=10.0.2.3"
    with booting() as (gateway, pc):
        boot(gateway, pc, lease)
        pc.wait_for("network:address=10.0.2.77", UP_S)


def test_a_lease_of_the_firmware_that_leads_nowhere_is_replaced(booting: Booting) -> None:
    lease = "fleet.ip=192.0.2.7 fleet.netmask=255.255.255.0 fleet.router= fleet.dns="
    with booting() as (gateway, pc):
        boot(gateway, pc, lease)
        pc.wait_for("does not answer", UP_S)
        pc.wait_for("network:address=10.0.2.15", UP_S + 60)


def test_a_client_without_the_expected_network_card_says_so(booting: Booting) -> None:
    with booting() as (gateway, pc):
        boot(gateway, pc, mac="52:54:00:00:00:01")
        pc.wait_for("THIS PC CANNOT START: No network card with address 52:54:00:00:00:01", UP_S)
        pc.wait_for("could not be told", 60)


def test_a_pulled_cable_is_named(booting: Booting) -> None:
    with booting() as (gateway, pc):
        boot(gateway, pc)
        pc.unplug()
        pc.wait_for("No link on eth0, round 1 of 5: look at the cable", UP_S)
        pc.plug()
        pc.wait_for(UP, UP_S)


def test_a_plan_that_is_not_signed_by_a_key_the_client_started_with_is_not_obeyed(booting: Booting) -> None:
    with booting() as (gateway, pc):
        gateway.signer = Signer("another", Ed25519PrivateKey.generate())
        boot(gateway, pc)
        trouble = gateway.wait_for_trouble()
        assert (trouble["stage"], trouble["error"]) == ("plan", "bad-signature")
        assert gateway.downloads == []
        assert never_mounted(pc)


def test_there_is_a_shell_only_for_the_one_who_asks_on_the_command_line(booting: Booting) -> None:
    with booting([403]) as (gateway, pc):
        boot(gateway, pc, "fleet.debug")
        pc.wait_for("a shell on the console", UP_S)
        pc.console.send("echo shell''here $((6 * 7))\n")
        pc.wait_for("shellhere 42", 60)
