"""The main job on the real thing: build, release, boot two PCs, deduce, cycle, restart, power down, audit, refuse a bent root."""

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from pytest_django.fixtures import Settings

from agents.models import BootSession, Command, CommandStatus, HomeRestore, RestoreResult, SessionStatus
from fleet import audit
from fleet.box import BASE_DIR, box_environment
from fleet.management.commands.up import prepare
from fleet.models import (
    ApiToken,
    AuditEntry,
    Client,
    ClientClass,
    ClientState,
    HomeKind,
    RootCheck,
    RootFetch,
    RootKind,
)
from fleet.processes import Processes, read_procfile
from images.builder.manifest import Manifest
from images.builder.store import Store
from images.models import HomeTemplate, Image, ImageFile, ImageVersion, TemplateStatus, VersionStatus
from images.services import release, request_build
from tests.lab.demo import people_and_site, seat_stations
from tests.lab.lab import Lab
from tests.lab.lan import SERVER
from tests.lab.nfs import Share
from tests.lab.pc import Pc
from tests.lab.recipe import ROOT_LOGIN, ROOT_SHELL
from tests.services import celery_sends_to, database_url, wait_for

BUILD_S, BOOT_S, COMMAND_S = 600, 240, 120
# Digest of a home by other means than ours: names, kinds, modes, owners, link targets and contents.
INDEPENDENT = (
    "cd /home/player && (find . -printf '%p %y %m %U %G %l\\n' | sort; find . -type f | sort | xargs -r sha256sum)"
    " | sha256sum"
)
# What a user can leave: processes that ignore signals, in sessions of their own, in tmux, holding files open, forking.
STUBBORN = """#!/bin/bash
cd
(trap '' TERM HUP INT; while :; do sleep 300; done) &
setsid sleep 301 &
tmux new -d 'sleep 302'
(exec 9>held; cd a; sleep 303) &
mkdir -p a/b; head -c 3000000 /dev/urandom >a/b/big; ln -sf /etc/passwd link; echo x >>.profile; chmod 700 README
forks() { while :; do (sleep 3) & (sleep 3) & wait; done; }
for i in 1 2 3 4; do forks & done
touch /tmp/left
disown -a
"""


@dataclass
class Box:
    processes: Processes
    env: dict[str, str]
    lines: list[str]
    token: str
    share: Share

    def api(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """A call as a script makes it."""
        request = urllib.request.Request(
            f"{self.env['FLEET_PUBLIC_URL']}/api/v1/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def order(self, verb: str, client: Client, reason: str) -> Command:
        """Order by the API and wait for the command's terminal state."""
        self.api("orders/", {"verb": verb, "clients": [str(client.pk)], "reason": reason})
        command = Command.objects.filter(client=client).latest("queued_at")
        self.await_end(command)
        return command

    def await_end(self, command: Command, seconds: float = COMMAND_S) -> None:
        """Wait for the terminal state of ``command``; what fell of the server is started again meanwhile."""

        def over() -> bool:
            self.processes.watch()
            return ended(command)

        try:
            wait_for(over, f"{command} ends", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {command.status}.\n{self.tail()}") from error

    def tail(self) -> str:
        return "\n".join(self.lines[-30:])


def ended(command: Command) -> bool:
    command.refresh_from_db()
    return command.status not in Command.OPEN


@pytest.fixture
def box(transactional_db: None, tmp_path: Path, settings: Settings) -> Iterator[Box]:
    """All processes of the Procfile on the test's database."""
    env = box_environment(tmp_path)
    env |= {"FLEET_DATABASE_URL": database_url(), "FLEET_GATEWAY_URL": f"http://{SERVER}:{env['GATEWAY_PORT']}"}
    objects, work = tmp_path / "store/objects", tmp_path / "share"
    objects.mkdir(parents=True)
    work.mkdir()
    share = Share(objects, work)
    env["FLEET_NFS_SHARE"] = share.url("", SERVER)
    prepare(env)
    settings.PUBLIC_KEYS = tmp_path / "keys"
    lines: list[str] = []
    processes = Processes(
        read_procfile(BASE_DIR / "Procfile", env), env, lambda name, line: lines.append(f"{name}: {line}")
    )
    people_and_site(tmp_path)
    token, digest, hint = ApiToken.generate()
    ApiToken.objects.create(user=User.objects.get(username="demo"), name="lab", digest=digest, hint=hint)
    processes.start()
    try:
        with celery_sends_to(env["FLEET_REDIS_URL"].replace("unix://", "redis+socket://")), share:
            yield Box(processes, env, lines, token, share)
    finally:
        processes.stop()


@pytest.mark.lab
@pytest.mark.build
@pytest.mark.root
@pytest.mark.slow
def test_the_main_job_on_two_virtual_pcs(box: Box, tmp_path: Path) -> None:
    version = build(box)
    with Lab(int(box.env["GATEWAY_PORT"]), directory=tmp_path / "lab") as lab:
        lab.lan.forward(box.share.port)
        gamer, contest = lab.pc("station-a1", gpu="cirrus"), lab.pc("station-b1", gpu="ati")
        ClientClass.objects.filter(slug="contest").update(root_kind=RootKind.BIND)
        seat_stations({pc.mac: pc.name for pc in lab.pcs})
        ClientClass.objects.filter(slug="contest").update(home_kind=HomeKind.COPY)
        boot(box, gamer, contest)
        says_what_it_is(box, gamer, contest, version)
        is_cycled_as_a_copy(box, contest, gamer)
        is_cycled(box, gamer)
        gives_its_home_to_its_class(box, gamer)
        is_cycled_while_the_server_falls(box, gamer)
        is_cycled_on(box, contest, "bind")
        ClientClass.objects.filter(slug="contest").update(root_kind=RootKind.OVERLAY, root_fetch=RootFetch.LAZY)
        restarts(box, contest)
        is_cycled_on(box, contest, "overlay")
        needs_the_share_no_more(box, contest)
        powers_down(box, gamer)
        proves_its_audit_log(box)
        refuses_a_bent_root(box, gamer, version, tmp_path)


def build(box: Box) -> ImageVersion:
    demo = User.objects.get(username="demo")
    image = Image.objects.create(slug="station", name="Event station", packages="tmux\n", user="player")
    for path, mode, content in (
        ("~/README", "0644", "Gone after a cycle.\n"),
        ("/usr/local/bin/stubborn", "0755", STUBBORN),
        (ROOT_SHELL.path, "0644", str(ROOT_SHELL.content)),
    ):
        ImageFile.objects.create(image=image, path=path, mode=mode, content=content)
    version = request_build(image, demo, "first light")

    def built() -> bool:
        version.refresh_from_db()
        return version.status not in (VersionStatus.QUEUED, VersionStatus.BUILDING)

    wait_for(built, "the version is built", BUILD_S)
    assert version.status == VersionStatus.READY, f"{version.failure}\n{box.tail()}"
    steps = list(version.steps.order_by("number"))
    bootstrap = next(step for step in steps if step.name == "bootstrap")
    assert "mmdebstrap" in bootstrap.command
    assert "Setting up tmux" in bootstrap.output
    assert all(step.finished_at and step.exit_code in (0, None) for step in steps), "a step is left open"
    manifest = Manifest.load(Store(Path(box.env["FLEET_DATA"]) / "store"), version.digest)
    assert "tmux" in {package.name for package in manifest.packages}
    for client_class in demo.memberships.get().site.classes.all():
        release(version, client_class, demo, "first light")
    return version


def boot(box: Box, *pcs: Pc) -> None:
    for pc in pcs:
        pc.boot()
    for pc in pcs:
        await_state(box, pc, ClientState.READY)


def await_state(box: Box, pc: Pc, *states: ClientState, seconds: float = BOOT_S) -> Client:
    """The client once it is in one of ``states``; fails with what its console said."""

    def there() -> bool:
        return Client.objects.filter(mac=pc.mac, state__in=states).exists()

    try:
        wait_for(there, f"{pc.name} is {' or '.join(states)}", seconds)
    except AssertionError as error:
        have = Client.objects.get(mac=pc.mac)
        raise AssertionError(f"{error}; it is {have.state}. {have.trouble}\n{pc.text[-3000:]}\n{box.tail()}") from error
    return Client.objects.get(mac=pc.mac)


def says_what_it_is(box: Box, gamer: Pc, contest: Pc, version: ImageVersion) -> None:
    clients = {row["mac"]: row for row in box.api("clients/")["results"]}
    for pc, slug, vendor in ((gamer, "gamer", "1013"), (contest, "contest", "1002")):
        client = Client.objects.get(mac=pc.mac)
        assert client.client_class is not None
        assert client.client_class.slug == slug
        assert [adapter["vendor"] for adapter in client.adapters] == [vendor]
        assert client.memory_kib is not None
        assert 900_000 < client.memory_kib < 1_100_000
        session = BootSession.objects.get(client=client, status=SessionStatus.OPEN)
        assert session.release is not None
        assert session.release.version == version
        assert session.facts["boot_ms"]["root"] > session.facts["boot_ms"]["plan"] > 0
        assert clients[pc.mac]["state"] == "ready"
        pc.wait_for(ROOT_LOGIN, 120)
        assert pc.sh("stat -f -c %T /").strip() == "tmpfs"
        # The root of 2004: symlinks into the read-only share; the other one has bind mounts in their places.
        assert pc.sh("readlink /usr || true").strip() == ("/.ro/usr" if pc is gamer else "")
        assert pc.sh("cat /proc/mounts | grep ' /.ro '").split()[2] == "squashfs"
        assert pc.sh("hostname").strip() == pc.name
        assert not pc.sh("ls -d /.ro/run/fleet 2>/dev/null || true").strip(), "the daemon is part of the image"


def is_cycled(box: Box, pc: Pc) -> None:
    client = Client.objects.get(mac=pc.mac)
    fresh = pc.sh(INDEPENDENT)
    pc.enter("stubborn")
    try:
        wait_for(lambda: len(processes_of_player(pc)) > 15, "the user works", 60)
    except AssertionError as error:
        raise AssertionError(f"{error}; {processes_of_player(pc)}; {pc.sh('cat /dev/vcs1')}") from error
    await_state(box, pc, ClientState.IN_USE, seconds=90)
    assert pc.sh(INDEPENDENT) != fresh
    before, old = sessions_of_player(pc), processes_of_player(pc)
    assert before

    command = box.order("cycle", client, "next player")

    assert command.status == CommandStatus.SUCCEEDED, f"{command.reason}\n{box.tail()}\n{pc.text[-2000:]}"
    assert pc.sh(INDEPENDENT) == fresh, "the home is not as its template"
    assert not old & processes_of_player(pc), "a process of the user outlived the cycle"
    assert pc.sh("ls /tmp/left 2>/dev/null || true").strip() == ""
    after = sessions_of_player(pc)
    assert after
    assert not after & before, "no new session of the user"
    restore = HomeRestore.objects.get(command=command)
    assert restore.result == RestoreResult.RESTORED
    assert (restore.asked_by, restore.reason, restore.class_name) == ("demo", "next player", "Gamer")
    assert restore.after == restore.expected != restore.before != ""
    assert restore.files is not None
    assert restore.files >= 5, "held, big, link, .profile, README"
    assert restore.bytes is not None
    assert restore.bytes >= 3_000_000
    assert {"kill", "unmount", "restore", "verify", "login", "total"} <= restore.phases_ms.keys()
    await_state(box, pc, ClientState.READY)


def is_cycled_as_a_copy(box: Box, pc: Pc, overlaid: Pc) -> None:
    """A home that is a copy begins as one that is an overlay, and a cycle makes it so again."""
    fresh, kind = pc.sh(INDEPENDENT), "stat -f -c %T /home/player"
    assert fresh == overlaid.sh(INDEPENDENT)
    assert (pc.sh(kind).strip(), overlaid.sh(kind).strip()) == ("tmpfs", "overlayfs")
    pc.sh("runuser -u player -- sh -c 'cd && rm README && echo mine >mine && echo x >>.profile'")
    command = box.order("cycle", Client.objects.get(mac=pc.mac), "next person")
    assert command.status == CommandStatus.SUCCEEDED, f"{command.reason}\n{box.tail()}\n{pc.text[-2000:]}"
    assert pc.sh(INDEPENDENT) == fresh, "the home is not as its template"
    assert pc.sh(kind).strip() == "tmpfs"
    restore = HomeRestore.objects.get(command=command)
    assert restore.after == restore.expected != restore.before != ""


def gives_its_home_to_its_class(box: Box, pc: Pc) -> None:
    """The home as it was set up on a PC is captured, looked at, given to a class, and serves from the next cycle of this boot."""
    client, boot_id = Client.objects.get(mac=pc.mac), pc.sh("cat /proc/sys/kernel/random/boot_id")
    pc.sh("runuser -u player -- sh -c 'cd && rm README && echo sharp >.tuned && mkfifo pipe'")
    command = box.order("capture", client, "tuned for the finals")
    assert command.status == CommandStatus.SUCCEEDED, f"{command.reason}\n{box.tail()}\n{pc.text[-2000:]}"
    template = HomeTemplate.objects.get(pk=command.result["home_template"])

    def packed() -> bool:
        template.refresh_from_db()
        return template.status != TemplateStatus.PACKING

    wait_for(packed, "a worker has packed what arrived", COMMAND_S)
    assert template.status == TemplateStatus.PROPOSED, template.failure
    assert {"+.tuned", "-README"} <= set(template.details["difference"]["paths"])
    assert command.result["skipped"] == 1, "the FIFO"
    box.api(f"home-templates/{template.pk}/accept/", {"reason": "seen"})
    assert client.client_class is not None
    box.api(f"home-templates/{template.pk}/use/", {"client_class": client.client_class.pk, "reason": "finals"})
    pc.sh("rm /home/player/.tuned")
    cycle = box.order("cycle", client, "next player, new template")
    assert cycle.status == CommandStatus.SUCCEEDED, f"{cycle.reason}\n{box.tail()}"
    assert HomeRestore.objects.get(command=cycle).template == template.sha256
    assert pc.sh("cat /home/player/.tuned; ls /home/player").split() == ["sharp"]
    assert pc.sh("stat -c %U:%a /home/player/.tuned").strip() == "player:644"
    assert pc.sh("cat /proc/sys/kernel/random/boot_id") == boot_id, "it booted anew"
    await_state(box, pc, ClientState.READY)


def processes_of_player(pc: Pc) -> set[str]:
    # A process that ends while find looks makes it end with 1.
    return set(pc.sh("find /proc -maxdepth 1 -user player -name '[0-9]*' 2>/dev/null || true").split())


def sessions_of_player(pc: Pc) -> set[str]:
    return set(pc.sh("loginctl --no-legend list-sessions | awk '$3 == \"player\" {print $1}'").split())


def is_cycled_while_the_server_falls(box: Box, pc: Pc) -> None:
    """The gateway and Redis are killed the moment the client has accepted; what it did arrives all the same."""
    client = Client.objects.get(mac=pc.mac)
    fresh = pc.sh(INDEPENDENT)
    pc.enter("touch gone")
    wait_for(lambda: pc.sh("ls /home/player/gone 2>/dev/null || true").strip(), "the user works", 30)
    pids = box.processes.pids()
    box.api("orders/", {"verb": "cycle", "clients": [str(client.pk)], "reason": "under fault"})
    command = Command.objects.filter(client=client).latest("queued_at")
    wait_for(lambda: left_the_queue(command), "the client has accepted", COMMAND_S)
    for name in ("gateway", "redis"):
        os.kill(pids[name], signal.SIGKILL)
    box.await_end(command)
    assert command.status == CommandStatus.SUCCEEDED, f"{command.reason}\n{box.tail()}\n{pc.text[-2000:]}"
    assert HomeRestore.objects.filter(command=command, result=RestoreResult.RESTORED).count() == 1
    assert pc.sh(INDEPENDENT) == fresh
    assert box.processes.pids().keys() == pids.keys(), "all are back"
    again = box.order("cycle", client, "and all goes on")
    assert again.status == CommandStatus.SUCCEEDED, f"{again.reason}\n{box.tail()}"
    await_state(box, pc, ClientState.READY)


def left_the_queue(command: Command) -> bool:
    command.refresh_from_db()
    return command.status not in (CommandStatus.QUEUED, CommandStatus.SENT)


def restarts(box: Box, pc: Pc) -> None:
    client = Client.objects.get(mac=pc.mac)
    before = BootSession.objects.get(client=client, status=SessionStatus.OPEN)
    box.api("orders/", {"verb": "restart", "clients": [str(client.pk)], "reason": "new image"})
    command = Command.objects.filter(client=client).latest("queued_at")
    box.await_end(command, BOOT_S)
    assert command.status == CommandStatus.SUCCEEDED, f"{command.reason}\n{box.tail()}"
    await_state(box, pc, ClientState.READY)
    after = BootSession.objects.get(client=client, status=SessionStatus.OPEN)
    assert after.boot_id != before.boot_id
    pc.wait_for(ROOT_LOGIN, 120)
    pc.console.new_shell()


def is_cycled_on(box: Box, pc: Pc, kind: str) -> None:
    """The home is restored and the user logged in again, whatever the root is made of."""
    client = Client.objects.get(mac=pc.mac)
    assert client.client_class is not None
    assert pc.sh("stat -f -c %T /").strip() == ("overlayfs" if kind == "overlay" else "tmpfs")
    fresh = pc.sh(INDEPENDENT)
    pc.enter("touch gone")
    wait_for(lambda: pc.sh("ls /home/player/gone 2>/dev/null || true").strip(), "the user works", 30)
    command = box.order("cycle", client, f"on {kind}")
    assert command.status == CommandStatus.SUCCEEDED, f"{command.reason}\n{box.tail()}\n{pc.text[-2000:]}"
    assert pc.sh(INDEPENDENT) == fresh
    await_state(box, pc, ClientState.READY)


def needs_the_share_no_more(box: Box, pc: Pc) -> None:
    """The scrub's unit has brought a lazy root to memory; from then on the PC lives without the share."""
    pc.sh("until [ -e /run/fleet/kept ]; do sleep 1; done", 200)
    before = Client.objects.get(mac=pc.mac).trouble  # a share that was slow while all of the root came is told
    box.share.kill()
    assert "nfs" not in pc.sh("cat /proc/mounts")
    pc.sh("echo 3 >/proc/sys/vm/drop_caches; tar -c /.ro/usr/share | tail -c 1", 120)  # all of it, from memory
    assert Client.objects.get(mac=pc.mac).trouble == before
    client = Client.objects.get(mac=pc.mac)
    assert box.order("cycle", client, "without the share").status == CommandStatus.SUCCEEDED


def powers_down(box: Box, pc: Pc) -> None:
    command = box.order("poweroff", Client.objects.get(mac=pc.mac), "closing time")
    assert command.status == CommandStatus.SUCCEEDED, f"{command.reason}\n{box.tail()}"
    pc.wait_off(60)
    await_state(box, pc, ClientState.OFF, seconds=60)


def proves_its_audit_log(box: Box) -> None:
    assert list(audit.verify()) == []
    actions = set(AuditEntry.objects.values_list("action", flat=True))
    assert any("restore" in action for action in actions)
    assert any("order" in action for action in actions)
    assert any("release" in action for action in actions)
    restore = HomeRestore.objects.first()
    assert restore is not None
    forge = f"UPDATE agents_homerestore SET reason = 'forged' WHERE id = {restore.pk}"
    with pytest.raises(Exception, match=r"(?i)append|never|refuse|cannot"), connection.cursor() as cursor:
        cursor.execute(forge)
    behind_its_back(forge)
    assert [fault for fault in audit.verify() if "HomeRestore" in str(fault)]
    behind_its_back(f"UPDATE agents_homerestore SET reason = '{restore.reason}' WHERE id = {restore.pk}")
    assert list(audit.verify()) == []


def behind_its_back(statement: str) -> None:
    """Run a statement as somebody with the database file would: with the triggers out of the way."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET session_replication_role = replica")
            cursor.execute(statement)
            cursor.execute("SET session_replication_role = DEFAULT")
            return
        cursor.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'agents_homerestore'")
        triggers = cursor.fetchall()
        for name, _ in triggers:
            cursor.execute(f'DROP TRIGGER "{name}"')
        cursor.execute(statement)
        for _, sql in triggers:
            cursor.execute(sql)


def refuses_a_bent_root(box: Box, pc: Pc, version: ImageVersion, directory: Path) -> None:
    """Before anything of it is mounted; tests/initrd shows what becomes of damage that is met later."""
    ClientClass.objects.filter(slug="gamer").update(root_check=RootCheck.WHOLE)
    store = Store(Path(box.env["FLEET_DATA"]) / "store")
    root = store.path(Manifest.load(store, version.digest).root.sha256)
    root.chmod(0o644)
    with root.open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)
        file.seek(50_000_000)
        file.write(bytes([byte[0] ^ 1]))
    pc.boot()
    pc.wait_for("THIS PC CANNOT START: The root of station-1 is damaged", BOOT_S)
    wait_for(lambda: Client.objects.get(mac=pc.mac).trouble, "the board knows of the trouble", 120)
    assert "root" in Client.objects.get(mac=pc.mac).trouble.lower()
    assert not BootSession.objects.filter(client__mac=pc.mac, status=SessionStatus.OPEN).exists()
    assert "login:" not in pc.text
    pc.screenshot(directory / "bent-root.png")
    pc.power_off_hard()
