"""A version booted in the checker's own virtual PC: what it cannot write and what fails is found, with the rule that cures it."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from images.bootplan import of
from images.builder.cpio import Archive
from images.builder.manifest import Manifest
from images.builder.store import Store
from images.checker.boot import CannotCheck, Subject, boot
from images.checker.machine import Machine
from images.models import ImageVersion
from tests.builder.images import built_image
from tests.images.stored import flip_a_bit, put
from tests.images.versions import make_image, make_version
from tests.initrd.conftest import RECIPE
from tests.services import wait_for
from tests.world import World

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.build, pytest.mark.root]

# What an image would have that was not made for a root without a disk.
UNITS = {
    "keeper.service": "[Service]\nType=oneshot\nWorkingDirectory=/srv\nExecStart=/bin/sh -c 'echo kept > ledger'\n",
    "scores.service": "[Service]\nType=oneshot\nExecStart=/bin/mkdir /usr/share/scores\n",
    "broken.service": "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo No coin in the slot.; exit 3'\n",
    "sealed.service": "[Service]\nType=oneshot\nProtectSystem=strict\nExecStart=/bin/sh -c 'echo x >> /var/lib/seal'\n",
    # One of the user's own, which the user's session starts.
    "tray-maker.service": """\
[Unit]
Before=systemd-user-sessions.service
[Service]
Type=oneshot
ExecStart=/bin/mkdir -p /run/systemd/user/default.target.wants
ExecStart=/bin/sh -c 'printf "[Service]\\\\nType=oneshot\\\\nExecStart=/usr/bin/touch /opt/tray\\\\n" >/run/systemd/user/tray.service'
ExecStart=/bin/ln -s ../tray.service /run/systemd/user/default.target.wants/
""",
    "spy.service": "[Service]\nExecStart=/run/fleet/bin/busybox timeout 5 /run/fleet/bin/busybox wget http://10.0.2.2:PORT/\n",
    "fine.service": "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo x > /var/lib/fine'\n",
}


@pytest.fixture
def service() -> Iterator[socket.socket]:
    """What the host has on its loopback beside the checker: none of a checked PC's business."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


@pytest.fixture
def version(world: World, tmp_path: Path, service: socket.socket) -> Iterator[ImageVersion]:
    """A whole Debian with the units above, which its initrd gives to systemd: no image is built for them."""
    manifest, built = built_image(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "STORE", tmp_path / "store")
        patch.setattr(settings, "BUILD_WORK", tmp_path / "work")
        patch.setattr(
            settings, "CHECK_KVM", False
        )  # the lab's PCs have none, either: it stalls in some virtual servers
        store = Store(settings.STORE)
        for part in manifest.artefacts().values():
            link = store.path(part.sha256)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(built.path(part.sha256))
        initrd = put(store, _with_units(built.path(manifest.initrd.sha256), service.getsockname()[1]))
        changed: Manifest = replace(manifest, initrd=initrd)
        put(store, changed.to_json())
        yield make_version(make_image(world.clubroom), manifest=changed.to_dict())


def _with_units(initrd: Path, port: int) -> bytes:
    place, wants = "fleet/agent/units", "multi-user.target.wants"
    stream = BytesIO()
    with Archive(stream) as archive:
        for name in ("fleet", "fleet/agent", place, f"{place}/{wants}"):
            archive.directory(name)
        for name, text in UNITS.items():
            archive.file(f"{place}/{name}", text.replace("PORT", str(port)).encode())
            archive.symlink(f"{place}/{wants}/{name}", f"../{name}")
    return stream.getvalue() + initrd.read_bytes()


def test_what_a_version_cannot_write_is_found_with_the_rule_that_cures_it(
    version: ImageVersion, service: socket.socket
) -> None:
    output = StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("image", "check", "gamer", "--version", "1", "--settle", "5", stdout=output)
    assert ended.value.code == 1
    rows = {(row.kind, row.subject): row for row in version.findings.all()}
    rules = {key: row.rule for key, row in rows.items()}
    assert rules == {
        ("erofs", "/srv/ledger"): "empty /srv",
        ("erofs", "/usr/share/scores"): "copy /usr/share/scores",
        ("erofs", "/var/lib/seal"): "",
        ("erofs", "/opt/tray"): "empty /opt",
        ("unit", "tray.service of the user"): "empty /opt",
        ("unit", "keeper.service"): "empty /srv",
        ("unit", "scores.service"): "copy /usr/share/scores",
        ("unit", "sealed.service"): "",
        ("unit", "broken.service"): "",
        ("unit", "spy.service"): "",
    }, output.getvalue()
    assert rows["erofs", "/srv/ledger"].detail == "sh (open)"
    assert rows["erofs", "/usr/share/scores"].detail.startswith("mkdir (mkdir)")
    assert "sandbox" in rows["erofs", "/var/lib/seal"].detail
    assert "No coin in the slot." in rows["unit", "broken.service"].detail
    assert "copy /usr/share/scores" in output.getvalue()
    with pytest.raises(BlockingIOError):  # the PC could not even knock
        service.accept()
    version.refresh_from_db()
    assert version.checked is not None
    assert {key: version.checked[key] for key in ("state", "found", "new", "untraced")} == {
        "state": "done",
        "found": 10,
        "new": 10,
        "untraced": [],
    }


def test_a_version_that_does_not_come_up_in_time_is_said_so_within_the_limit(version: ImageVersion) -> None:
    began = time.monotonic()
    with pytest.raises(CommandError, match=r"gamer-1 was not checked: gamer-1 sent no report within 3 s") as ended:
        call_command("image", "check", "gamer-1", "--seconds", "3", stdout=StringIO())
    assert ended.value.returncode == 2
    assert time.monotonic() - began < 15
    version.refresh_from_db()
    assert version.checked is not None
    assert version.checked["state"] == "failed"
    assert not version.findings.exists()


def test_a_version_that_came_damaged_tells_why_it_does_not_boot(version: ImageVersion, tmp_path: Path) -> None:
    manifest = version.contents
    assert manifest is not None
    store = Store(settings.STORE)
    paths = {name: store.path(part.sha256) for name, part in manifest.artefacts().items()}
    bent = tmp_path / "bent"
    shutil.copy(paths["plan"], bent)
    flip_a_bit(bent)
    plan = {**of(version), "home": manifest.home.sha256, "home_bytes": manifest.home.bytes}
    artefacts = {manifest.root.sha256: paths["root"], manifest.plan.sha256: bent, manifest.home.sha256: paths["home"]}
    with pytest.raises(CannotCheck, match=r"gamer-1 does not boot: verify: digest-mismatch. The root plan of gamer-1"):
        boot(Subject("gamer-1", paths["kernel"], paths["initrd"], plan, artefacts), patience_s=120, kvm=False)


def test_the_virtual_pc_runs_as_nobody_and_is_gone_when_it_is_left(tmp_path: Path) -> None:
    manifest, built = built_image(RECIPE)
    kernel, initrd = built.path(manifest.kernel.sha256), built.path(manifest.initrd.sha256)
    with Machine(tmp_path, kernel, initrd, "console=ttyS0", 9, 256, kvm=False) as pc:
        wait_for(
            lambda: _uids_of("qemu-system-x86_64\0-name\0check") == {pwd.getpwnam("nobody").pw_uid}, "nobody's", 10
        )
        assert pc.running
    assert _uids_of("qemu-system-x86_64\0-name\0check") == set()


def _uids_of(command: str) -> set[int]:
    """Of our children that were started by this command."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (
                command in (process / "cmdline").read_text()
                and f"PPid:\t{os.getpid()}\n" in (process / "status").read_text()
            ):
                found.add(process.stat().st_uid)
    return found
