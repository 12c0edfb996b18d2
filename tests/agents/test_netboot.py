"""What a booting client is answered: its script, its plan, and what it is told when there is none."""

import re
import subprocess
import uuid
from datetime import timedelta
from pathlib import Path

import pytest
import time_machine
from django.utils import timezone
from pytest_django.fixtures import Settings

from agents import netboot, plans, scripts
from agents.daemon import protocol
from agents.models import BootSession, BootToken, SessionStatus
from agents.netboot import Refusal
from fleet.models import (
    Admission,
    AuditEntry,
    Client,
    ClientClass,
    ClientState,
    HardwareRule,
    HomeKind,
    RootFetch,
    RootKind,
    Site,
    UnknownHardware,
)
from fleet.signing import make_keys
from images.builder.store import Store
from images.models import HomeTemplate, Release
from tests.agents.boots import ATI, CIRRUS, KERNEL, form, make_release, plan_of, token_of
from tests.images.stored import flip_a_bit, paths, stored_version
from tests.images.versions import make_image, make_manifest
from tests.services import PROJECT
from tests.world import World, make_client

MAC = "52:54:00:00:00:01"
UNKNOWN = "0000:00:02.0,1234:1111,1af4:1100,030000"


@pytest.fixture
def release(world: World, keys: Path) -> Release:
    return make_release(world.gamer)


@pytest.fixture
def client(world: World, release: Release) -> Client:
    return make_client(world.clubroom)


def refusal(query: dict[str, str]) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        scripts.client_script(query)
    return caught.value.status, caught.value.text


def plan(token: str, mac: str = MAC, pci: str = CIRRUS, **fields: str) -> dict[str, str]:
    return protocol.parse_plan(plans.boot_plan(form(token, mac, pci, **fields)))


def plan_refusal(token: str, mac: str = MAC, **fields: str) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        plans.boot_plan(form(token, mac, **fields))
    return caught.value.status, caught.value.text


# --- the script -------------------------------------------------------------------------------------------------------


def test_a_known_mac_gets_kernel_initrd_and_a_token(client: Client, release: Release, settings: Settings) -> None:
    script = scripts.client_script({"mac": MAC.upper(), "product": "OptiPlex 7010", "serial": "ab\n#!x${y}"})
    manifest = release.version.manifest
    assert manifest is not None
    lines = script.splitlines()
    assert lines[0] == "#!ipxe"
    assert lines[1].startswith(f"kernel {settings.GATEWAY_URL}/store/{manifest['kernel']['sha256']} initrd=initrd ")
    assert f"fleet.server={settings.GATEWAY_URL} fleet.mac={MAC} fleet.token=" in lines[1]
    assert lines[2:] == [f"initrd --name initrd {settings.GATEWAY_URL}/store/{manifest['initrd']['sha256']}", "boot"]
    client.refresh_from_db()
    assert (client.product, client.serial) == ("OptiPlex 7010", "ab   x  y")
    assert client.state == ClientState.BOOTING
    token = BootToken.objects.get()
    assert token.digest not in script, "only the hash is kept, and only the token is told"
    assert token.kernel == KERNEL


def test_an_unknown_mac_becomes_a_pending_client_of_the_site_named(world: World, release: Release) -> None:
    mac = "52:54:00:ab:cd:ef"
    token_of(mac, site="clubroom")
    client = Client.objects.get(mac=mac)
    assert (client.name, client.site, client.admission) == ("pc-abcdef", world.clubroom, Admission.PENDING)
    assert AuditEntry.objects.get(action="client.seen").detail == {"mac": mac, "admission": "pending"}
    token_of(mac, site="school")
    assert Client.objects.filter(mac=mac).count() == 1, "it is known, wherever it says it is"


def test_while_enrolment_is_open_an_unknown_mac_is_in_service(world: World, release: Release) -> None:
    Site.objects.update(enrolment_until=timezone.now() + timedelta(hours=1))
    token_of("52:54:00:ab:cd:ef", site="clubroom")
    assert Client.objects.get().admission == Admission.IN_SERVICE


def test_where_the_short_name_is_taken_the_whole_mac_is_the_name(world: World, release: Release) -> None:
    for mac in ("52:54:00:ab:cd:ef", "52:54:01:ab:cd:ef"):
        token_of(mac, site="clubroom")
    assert sorted(Client.objects.values_list("name", flat=True)) == ["pc-525401abcdef", "pc-abcdef"]


@pytest.mark.parametrize("mac", ["", "52:54:00:00:00", "52-54-00-00-00-01", "52:54:00:00:00:01\n", "x" * 5000, "\0"])
def test_what_is_no_mac_is_refused(world: World, mac: str) -> None:
    assert refusal({"mac": mac}) == (400, "The mac must look like 52:54:00:12:34:56.")
    assert not Client.objects.exists()


@pytest.mark.parametrize(
    ("site", "says"),
    [
        ("nowhere", "There is no site 'nowhere'."),
        ("", "The DHCP file name must end in ?site= and a site."),
        ("a\0b", "A site is named by letters, digits, - and _."),
        ("x" * 51, "A site is named by letters, digits, - and _."),
    ],
)
def test_an_unknown_mac_of_no_known_site_is_refused(world: World, site: str, says: str) -> None:
    assert refusal({"mac": MAC, "site": site}) == (404, says)
    assert not Client.objects.exists()


def test_where_there_is_one_site_nobody_needs_to_name_it(world: World, release: Release) -> None:
    world.school.delete()
    token_of(MAC)
    assert Client.objects.get().site == world.clubroom


def test_a_flood_of_invented_macs_ends(world: World, release: Release) -> None:
    Client.objects.bulk_create(
        Client(site=world.clubroom, mac=f"02:00:00:00:{n >> 8:02x}:{n & 255:02x}", name=f"x-{n}")
        for n in range(scripts.MOST_PENDING - 1)
    )
    token_of("52:54:00:00:00:01", site="clubroom")
    status, text = refusal({"mac": "52:54:00:00:00:02", "site": "clubroom"})
    assert (status, text) == (429, "Club room has 500 clients that nobody admitted; admit or delete some first.")
    token_of("52:54:00:00:00:01", site="clubroom")


@pytest.mark.parametrize("admission", [Admission.RETIRED, Admission.MAINTENANCE])
def test_a_client_out_of_service_is_told_so_and_gets_no_token(client: Client, admission: Admission) -> None:
    Client.objects.update(admission=admission, name="pc-01", seat="Äsch; reboot ${x}")
    script = scripts.client_script({"mac": MAC})
    assert "kernel" not in script
    shown = script.splitlines()[1]
    assert (
        shown
        == f"echo  sch; reboot   x  (pc-01) is {admission.label.lower()}. A volunteer of Club room can change that."
    )
    assert "chain --replace" in script
    assert "&site=clubroom" in script
    assert not BootToken.objects.exists()


def test_without_any_release_the_screen_says_so(world: World, keys: Path) -> None:
    make_client(world.clubroom)
    assert "No version is released at Club room yet." in scripts.client_script({"mac": MAC})


def test_the_kernel_is_of_the_clients_last_class_else_of_the_sites_default(world: World, client: Client) -> None:
    def kernel() -> str:
        found = re.search(r"kernel \S+/store/(\w+)", scripts.client_script({"mac": MAC}))
        assert found
        return found[1]

    of = {c.slug: (make_release(c) if c == world.contest else None) for c in (world.contest,)}["contest"]
    assert of is not None
    assert of.version.manifest is not None
    contest = of.version.manifest["kernel"]["sha256"]
    assert kernel() == contest, "the younger release, for want of anything better"
    world.clubroom.default_class = world.gamer
    world.clubroom.save()
    assert kernel() != contest
    Client.objects.update(client_class=world.contest)
    assert kernel() == contest


def test_the_first_script_names_a_site_only_if_it_is_one() -> None:
    assert "&site=clubroom\n" in netboot.start_script("clubroom")
    for rubbish in ("", "a b", "x\nboot", "${x}", "a" * 51):
        assert "site" not in netboot.start_script(rubbish)


def test_tokens_a_day_past_their_time_are_thrown_away(client: Client) -> None:
    token_of(MAC)
    with time_machine.travel(timezone.now() + timedelta(days=2), tick=False):
        token_of(MAC)
    assert BootToken.objects.count() == 1


# --- the token --------------------------------------------------------------------------------------------------------


def test_a_token_is_used_once(client: Client) -> None:
    token = token_of(MAC)
    assert plan(token)["action"] == "boot"
    assert plan_refusal(token) == (403, "The boot token was used already.")
    assert BootSession.objects.count() == 1


def test_a_token_is_good_no_more_when_a_younger_one_was_used(client: Client) -> None:
    older, younger = token_of(MAC), token_of(MAC)
    assert plan(younger)["action"] == "boot"
    assert plan_refusal(older) == (403, "A younger boot token of this client was used.")
    assert BootSession.objects.get().status == SessionStatus.BOOTING


def test_a_token_ends_with_its_time(client: Client, settings: Settings) -> None:
    token = token_of(MAC)
    now = timezone.now()
    with time_machine.travel(now + timedelta(seconds=settings.BOOT_TOKEN_LIFE + 1), tick=False):
        assert plan_refusal(token) == (403, "The boot token has expired.")
    with time_machine.travel(now + timedelta(seconds=settings.BOOT_TOKEN_LIFE - 5), tick=False):
        assert plan(token)["action"] == "boot"


@pytest.mark.parametrize("mac", [MAC, "rubbish\0"])
def test_a_refusal_is_written_down_for_the_client_whose_token_it_was(client: Client, mac: str) -> None:
    asked = form(token_of(MAC), MAC)
    plans.boot_plan(asked)
    with pytest.raises(Refusal) as caught:
        plans.boot_plan(asked)
    netboot.note(caught.value, {**asked, "mac": mac})
    entry = AuditEntry.objects.get(action="boot.refused")
    assert (entry.subject_id, entry.site) == (str(client.pk), client.site)
    assert entry.detail == {"why": "The boot token was used already.", "mac": mac if mac == MAC else "none"}


def test_the_refusal_of_a_stranger_is_nobodys_and_not_written_down(client: Client) -> None:
    netboot.note(Refusal(403, "The boot token is unknown."), {})
    assert not AuditEntry.objects.filter(action="boot.refused").exists()


def test_a_token_of_another_mac_is_refused(client: Client) -> None:
    other = make_client(client.site, "52:54:00:00:00:02")
    token = token_of(MAC)
    assert plan_refusal(token, other.mac) == (403, "The boot token belongs to another client.")
    assert plan(token)["action"] == "boot", "its owner can use it still"


@pytest.mark.parametrize("token", ["", "0" * 32, "x" * 5000, "\0", "ü"])
def test_an_unknown_token_is_refused(client: Client, token: str) -> None:
    assert plan_refusal(token) == (403, "The boot token is unknown.")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("boot_id", ""),
        ("boot_id", "not-one"),
        ("kernel", "6.1\n"),
        ("kernel", ""),
        ("memory_kib", "-1"),
        ("memory_kib", "9" * 13),
        ("memory_kib", "x"),
        ("pci", "rubbish"),
        ("pci", ";".join([CIRRUS] * 17)),
        ("pci", "0000:00:02.0,1013:00b8"),
    ],
)
def test_rubbish_is_refused_and_does_not_use_up_the_token(client: Client, field: str, value: str) -> None:
    token = token_of(MAC)
    with pytest.raises(Refusal) as caught:
        plans.boot_plan({**form(token, MAC), field: value})
    assert caught.value.status == 400
    assert plan(token)["action"] == "boot"


# --- the class --------------------------------------------------------------------------------------------------------


def class_of(client: Client, pci: str) -> str | None:
    said = plan_of(client, pci)
    client.refresh_from_db()
    assert said.get("class") == (client.client_class.slug if client.client_class and said["action"] == "boot" else None)
    return said.get("class")


@pytest.fixture
def both(world: World, client: Client) -> Client:
    """A client for whose two classes there are releases."""
    make_release(world.contest)
    return client


def test_vendor_and_device_or_the_vendor_alone_decide(both: Client) -> None:
    assert class_of(both, CIRRUS) == "gamer"
    assert class_of(both, ATI) == "contest"
    assert class_of(both, CIRRUS.replace("00b8", "00b9")) is None
    assert AuditEntry.objects.filter(action="client.classified").count() == 3


def test_of_two_adapters_the_rule_with_the_lowest_number_decides(both: Client) -> None:
    assert class_of(both, f"{ATI};{CIRRUS}") == "gamer"
    HardwareRule.objects.filter(vendor="1002").update(priority=5)
    assert class_of(both, f"{CIRRUS};{ATI}") == "contest"


def test_subsystem_ids_decide_where_a_rule_names_them(world: World, both: Client) -> None:
    HardwareRule.objects.create(
        site=world.clubroom,
        client_class=world.contest,
        vendor="1013",
        device="00b8",
        subvendor="1af4",
        subdevice="1100",
        priority=10,
    )
    assert class_of(both, CIRRUS) == "contest", "among equals the more exact rule"
    assert class_of(both, CIRRUS.replace("1af4", "1043")) == "gamer"


def test_what_is_no_display_controller_decides_nothing(both: Client) -> None:
    assert class_of(both, CIRRUS.replace("030000", "020000")) is None


def test_rules_of_another_site_decide_nothing(world: World, both: Client) -> None:
    HardwareRule.objects.update(site=world.school)
    assert class_of(both, CIRRUS) is None


def test_a_pinned_class_stays_whatever_the_rules_say(world: World, both: Client) -> None:
    Client.objects.update(client_class=world.contest, class_pinned=True)
    assert class_of(both, CIRRUS) == "contest"
    assert class_of(both, "") == "contest"


def test_what_no_rule_matches_gets_the_default_class_or_waits_as_the_site_chooses(world: World, both: Client) -> None:
    Site.objects.update(default_class=world.contest)
    boot_id = str(uuid.uuid4())
    said = plan_of(both, UNKNOWN, boot_id=boot_id)
    assert said == {
        "protocol": "1",
        "boot": boot_id,
        "action": "wait",
        "reason": "No rule of Club room knows the adapter 1234:1111  a volunteer can give it a class.",
        "retry_s": "10",
    }
    assert "(none)".strip("()") in plan_of(both, "")["reason"]
    Site.objects.update(unknown_hardware=UnknownHardware.DEFAULT)
    assert class_of(both, UNKNOWN) == "contest"
    Site.objects.update(default_class=None)
    assert class_of(both, UNKNOWN) is None


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_plan_holds_what_the_protocol_says(client: Client, release: Release, keys: Path) -> None:
    said = plan_of(client)
    manifest = release.version.manifest
    assert manifest is not None
    session = BootSession.objects.get()
    expected = {
        "protocol": "1",
        "action": "boot",
        "session": str(session.pk),
        "client": str(client.pk),
        "name": "pc-01",
        "class": "gamer",
        "version": str(release.version),
        "digest": release.version.digest,
        "home": release.home.sha256,
        "home_bytes": str(release.home.bytes),
        "home_digest": release.home.tree_digest,
        "user": "player",
        "uid": "1000",
        "kind": "symlink",
        "home_kind": "overlay",
        "tmpfs_percent": "50",
        "home_percent": "50",
        "command_keys": (keys / "command.pub").read_text().strip(),
        "session_keys": (keys / "session.pub").read_text().strip(),
    }
    for part in ("root", "plan"):
        expected |= {part: manifest[part]["sha256"], f"{part}_bytes": str(manifest[part]["bytes"])}
    assert {key: said[key] for key in expected} == expected
    assert re.fullmatch(r"[0-9a-f]{64}", said["bearer"])
    assert session.bearer_digest != said["bearer"]
    assert (session.status, session.release) == (SessionStatus.BOOTING, release)
    client.refresh_from_db()
    assert (client.state, client.memory_kib, client.trouble) == (ClientState.BOOTING, 1_048_576, "")


@pytest.mark.parametrize("kind", RootKind.values)
def test_the_initrd_makes_the_kind_of_root_that_the_class_has(client: Client, release: Release, kind: str) -> None:
    ClientClass.objects.filter(pk=release.client_class_id).update(root_kind=kind)
    text = plans.boot_plan(form(token_of(MAC), MAC))
    script = 'fail() { echo "$@"; exit 1; }; . images/initrd/plan.sh; . images/initrd/share.sh; read_plan && check_plan && echo "$make_root"'
    shell = subprocess.run(
        ["busybox", "sh", "-c", script], input=text, capture_output=True, text=True, check=False, cwd=PROJECT
    )
    made = shell.stdout.strip()
    assert made == {"symlink": "mkroot"}.get(kind, f"mkroot-{kind}")
    assert (PROJECT / "images/initrd" / made).is_file()


@pytest.mark.parametrize("kind", HomeKind.values)
def test_the_initrd_makes_the_kind_of_home_that_the_class_has(client: Client, release: Release, kind: str) -> None:
    ClientClass.objects.filter(pk=release.client_class_id).update(home_kind=kind)
    text = plans.boot_plan(form(token_of(MAC), MAC))
    script = 'fail() { echo "$@"; exit 1; }; . images/initrd/plan.sh; . images/initrd/share.sh; read_plan && check_plan && echo "$plan_home_kind"'
    for said, answer in (
        (text, kind),
        (text.replace(f"home_kind={kind}\n", ""), "overlay"),
        (text.replace(f"home_kind={kind}", "home_kind=disk"), "home of the kind disk, which this initrd cannot make"),
    ):
        shell = subprocess.run(
            ["busybox", "sh", "-c", script], input=said, capture_output=True, text=True, check=False, cwd=PROJECT
        )
        assert answer in shell.stdout.strip()


@pytest.mark.parametrize("fetch", RootFetch.values)
def test_the_plan_says_how_the_root_is_fetched_and_the_initrd_takes_it(
    client: Client, release: Release, settings: Settings, fetch: str
) -> None:
    settings.NFS_SHARE = "nfs://10.20.0.1:2050/srv/fleet/objects"
    ClientClass.objects.filter(pk=release.client_class_id).update(root_fetch=fetch)
    manifest = release.version.manifest
    assert manifest is not None
    root, size = manifest["root"]["sha256"], manifest["root"]["bytes"]
    script = """
fail() { echo "$@"; exit 1; }
. images/initrd/plan.sh
. images/initrd/share.sh
read_plan && check_plan && echo "$plan_fetch $root_memory $share_host $share_port $share_path"
"""
    text = plans.boot_plan(form(token_of(MAC), MAC))
    shell = subprocess.run(
        ["busybox", "sh", "-c", script], input=text, capture_output=True, text=True, check=False, cwd=PROJECT
    )
    share = ["10.20.0.1", "2050", f"/srv/fleet/objects/{root[:2]}/{root}"] if fetch != "http" else []
    assert shell.stdout.split() == [fetch, "0" if fetch == "nfs" else str(size), *share], shell.stderr


@pytest.mark.parametrize(
    "share", ["", "nfs://server:2049/s/f", "nfs://10.0.0.1:x/s/f", "nfs://10.0.0.1/s/f", "nfs://10.0.0.1:1/f"]
)
def test_the_initrd_takes_no_share_that_it_could_not_mount(share: str) -> None:
    script = (
        'bad_plan() { echo "bad $1"; exit 1; }; . images/initrd/share.sh; plan_fetch=nfs plan_root_bytes=1; '
        f"plan_share={share}; check_share; echo good"
    )
    shell = subprocess.run(["busybox", "sh", "-c", script], capture_output=True, text=True, check=False, cwd=PROJECT)
    assert shell.stdout == "bad share\n"


def test_a_client_waits_where_its_class_needs_a_share_that_the_server_lost(
    client: Client, release: Release, settings: Settings
) -> None:
    settings.NFS_SHARE = ""
    ClientClass.objects.filter(pk=release.client_class_id).update(root_fetch=RootFetch.NFS)
    said = plan_of(client)
    assert said["action"] == "wait"
    assert "FLEET_NFS_SHARE" in said["reason"]


def test_the_initrd_takes_the_plan(client: Client) -> None:
    text = plans.boot_plan(form(token_of(MAC), MAC))
    script = """
fail() { echo "$@"; exit 1; }
. images/initrd/plan.sh
. images/initrd/share.sh
read_plan && check_plan && echo "$plan_client $plan_name $plan_class $plan_root $plan_home_bytes $plan_user"
"""
    shell = subprocess.run(
        ["busybox", "sh", "-c", script], input=text, capture_output=True, text=True, check=False, cwd=PROJECT
    )
    said = protocol.parse_plan(text)
    words = [said[key] for key in ("client", "name", "class", "root", "home_bytes", "user")]
    assert (shell.returncode, shell.stdout.split()) == (0, words), shell.stderr


def test_a_second_boot_supersedes_the_first(client: Client) -> None:
    first, second = plan_of(client), plan_of(client)
    statuses = dict(BootSession.objects.values_list("pk", "status"))
    assert {str(pk): status for pk, status in statuses.items()} == {
        first["session"]: SessionStatus.SUPERSEDED,
        second["session"]: SessionStatus.BOOTING,
    }
    assert first["bearer"] != second["bearer"]


@pytest.mark.parametrize("admission", [Admission.PENDING, Admission.MAINTENANCE, Admission.RETIRED])
def test_a_client_that_is_not_in_service_waits_and_keeps_its_token(client: Client, admission: Admission) -> None:
    token = token_of(MAC)
    Client.objects.update(admission=admission)
    for _ in range(2):
        said = plan(token)
        assert (said["action"], said["retry_s"]) == ("wait", "10")
        assert "pc-01" in said["reason"]
    Client.objects.update(admission=Admission.IN_SERVICE)
    assert plan(token)["action"] == "boot"


@pytest.mark.parametrize("part", ["kernel", "initrd"])
def test_a_damaged_kernel_or_initrd_is_not_sent_and_the_board_says_so(
    world: World, client: Client, settings: Settings, tmp_path: Path, part: str
) -> None:
    settings.STORE = tmp_path / "store"
    store = Store(settings.STORE)
    version = stored_version(make_image(client.site, "stored"), store)
    home = HomeTemplate.objects.get(image=version.image)
    Release.objects.update(current=False)
    Release.objects.create(client_class=world.gamer, version=version, home=home)
    assert "/store/" in scripts.client_script({"mac": MAC})
    flip_a_bit(paths(store, version)[part])
    script = scripts.client_script({"mac": MAC})
    assert f"stored-1 is not started: its {part} is damaged in the store." in script
    assert "/store/" not in script
    client.refresh_from_db()
    assert f"its {part} is damaged" in client.trouble


def test_a_version_that_no_trusted_builder_signed_is_not_started(client: Client, keys: Path) -> None:
    token = token_of(MAC)
    make_keys(keys / "other")
    (keys / "other/image.pub").replace(keys / "image.pub")
    said = plan(token)
    assert said["action"] == "wait"
    assert re.match("gamer-1 is not started: it is signed by the key image-[0-9a-f]{8}, which this", said["reason"])
    assert "gamer-1 is not started" in scripts.client_script({"mac": MAC})


def test_a_class_without_a_release_waits(client: Client) -> None:
    token = token_of(MAC)
    said = plan(token, pci=ATI)
    assert (said["action"], said["reason"]) == ("wait", "No version is released to Paper contest yet.")
    assert plan(token)["action"] == "boot"


def test_a_class_with_another_kernel_restarts_once_and_then_has_the_right_one(world: World, client: Client) -> None:
    make_release(world.contest, manifest={**make_manifest("other").to_dict(), "kernel_release": "6.9.9-other"})
    Client.objects.update(client_class=world.gamer)
    token = token_of(MAC)
    said = plan(token, pci=ATI)
    assert said.pop("boot")
    assert said == {"protocol": "1", "action": "restart", "reason": "Paper contest needs another kernel"}
    assert plan_refusal(token)[1] == "The boot token was used already."
    again = token_of(MAC)
    assert plan(again, pci=ATI, kernel="6.9.9-other")["action"] == "boot"


def test_a_kernel_that_was_not_the_one_offered_does_not_restart_for_ever(client: Client) -> None:
    token = token_of(MAC)
    status, text = plan_refusal(token, kernel="5.10.0-own")
    assert (status, text) == (403, f"The kernel 5.10.0-own is not the one offered, {KERNEL}.")


def test_reasons_are_shown_as_a_shell_may_read_them(world: World, client: Client) -> None:
    Site.objects.filter(pk=world.clubroom.pk).update(name="`reboot` $(x) 'Ü\nx")
    reason = plan_of(client, UNKNOWN)["reason"]
    assert re.fullmatch(r"[A-Za-z0-9._:/+=,@ -]+", reason)
    assert "reboot" in reason


# --- trouble ----------------------------------------------------------------------------------------------------------


def complaint(token: str, **fields: str) -> dict[str, str]:
    words = {"stage": "verify", "error": "digest-mismatch", "detail": "root: expected ab, got cd"}
    return {"token": token, "mac": MAC, **words, **fields}


@pytest.mark.parametrize("used", [False, True])
def test_a_client_that_cannot_boot_says_why_on_the_board_and_in_the_log(client: Client, used: bool) -> None:
    token = token_of(MAC)
    if used:
        plan(token)
    netboot.trouble(complaint(token))
    client.refresh_from_db()
    assert client.trouble == "verify: digest-mismatch. root: expected ab, got cd"
    assert client.state == ClientState.BOOTING, "it starts over by itself"
    assert AuditEntry.objects.get(action="boot.failed").detail == {
        "stage": "verify",
        "error": "digest-mismatch",
        "detail": "root: expected ab, got cd",
    }
    assert [*BootSession.objects.values_list("status", flat=True)] == [SessionStatus.LOST] * used
    plan_of(client)
    client.refresh_from_db()
    assert client.trouble == "", "until it boots"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"stage": "lunch"}, 400),
        ({"error": "unheard-of"}, 400),
        ({"stage": ""}, 400),
        ({"token": "0" * 32}, 403),
        ({"token": ""}, 403),
        ({"mac": "52:54:00:00:00:02"}, 403),
    ],
)
def test_a_complaint_that_is_none_changes_nothing(client: Client, fields: dict[str, str], status: int) -> None:
    token = token_of(MAC)
    with pytest.raises(Refusal) as caught:
        netboot.trouble(complaint(token) | fields)
    assert caught.value.status == status
    client.refresh_from_db()
    assert client.trouble == ""
    assert not AuditEntry.objects.filter(action="boot.failed").exists()


def test_the_detail_is_cut_and_printable(client: Client) -> None:
    netboot.trouble(complaint(token_of(MAC), detail="\0\x1b[2J<script>" + "x" * 600))
    client.refresh_from_db()
    assert client.trouble.startswith("verify: digest-mismatch. [2J<script>xxx")
    assert len(client.trouble) <= 500
    assert client.trouble.isprintable()


def test_a_late_complaint_does_not_touch_a_session_that_runs(client: Client) -> None:
    token = token_of(MAC)
    session = plan(token)["session"]
    BootSession.objects.update(status=SessionStatus.OPEN)
    netboot.trouble(complaint(token))
    assert BootSession.objects.get(pk=uuid.UUID(session)).status == SessionStatus.OPEN
