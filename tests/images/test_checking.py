"""What the kernel of a checked PC noted, and what follows of it; who may ask for a check, and when."""

import json
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client as Browser
from django.utils import timezone

from fleet.exceptions import Forbidden, WrongState
from fleet.models import AuditEntry
from images import builds, checking, services
from images.builder import rootplan
from images.builder.store import Store
from images.builder.tree import Entry
from images.builder.volatile import DEBIAN, Rule, parse_rules
from images.checker import machine
from images.checker.boot import GUEST, Report
from images.checker.cure import Root
from images.checker.probes import probes
from images.checker.reading import findings
from images.checker.trace import Refused, refused
from images.finding_models import FindingSource
from images.findings import note
from images.models import ImageVersion, VersionStatus
from tests.api import call
from tests.images.stored import store as store
from tests.images.stored import stored_version
from tests.images.versions import make_image, make_version
from tests.world import World

# Cut out of what a kernel 6.1 noted.
TRACE = """\
# tracer: nop
#
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
            cpio-203     [001] .....     9.570250: c_chown: (__x64_sys_chown+0x0/0x30) path=".ro" who="cpio"
            cpio-203     [001] .....     9.570253: r_chown: (do_syscall_64+0x5d/0xb0 <- __x64_sys_chown) ret=-30
         systemd-1       [000] .....    10.100000: sched_process_exec: filename=/sbin/init pid=1 old_pid=1
         systemd-1       [000] .....    10.200000: sched_process_fork: comm=systemd pid=1 child_comm=systemd child_pid=301
              sh-301     [000] .....    10.300000: chdir: (__x64_sys_chdir+0x0/0x100) path="/srv"
              sh-301     [000] .....    10.310000: sched_process_fork: comm=sh pid=301 child_comm=sh child_pid=302
           touch-302     [000] .....    10.400000: c_open: (do_filp_open+0x0/0x160) fd=-100 path="box/a b" flags=0x8941 who="touch"
           touch-302     [000] .....    10.400100: r_open: (do_sys_openat2+0xaf/0x170 <- do_filp_open) ret=-30
  my-own prog 1-303     [001] .....    11.000000: c_open: (do_filp_open+0x0/0x160) fd=-100 path="/var/log/good" flags=0x8241 who="my-own prog 1"
  my-own prog 1-303     [001] .....    11.100000: o_open: (do_filp_open+0x0/0x160) flags=0x8000
  my-own prog 1-303     [001] .....    11.200000: r_open: (do_sys_openat2+0xaf/0x170 <- do_filp_open) ret=-13
              rm-304     [001] .....    12.000000: c_unlink: (do_unlinkat+0x0/0x320) fd=4 path="old" who="rm"
              rm-304     [001] .....    12.000100: r_unlink: (__x64_sys_unlinkat+0x3a/0x60 <- do_unlinkat) ret=-30
             app-305     [001] .....    13.000000: c_mkdir: (do_mkdirat+0x0/0x170) fd=-100 path="/usr/../opt//app/cache" who="app"
             app-305     [001] .....    13.000100: r_mkdir: (__x64_sys_mkdir+0x44/0x60 <- do_mkdirat) ret=-30
             app-305     [001] .....    14.000000: c_open: (do_filp_open+0x0/0x160) fd=-100 path="/root/x" flags=0x8241 who="app"
             app-305     [001] .....    14.000100: r_open: (do_sys_openat2+0xaf/0x170 <- do_filp_open) ret=-13
            tool-306     [001] .....    15.000000: c_utimensat: (__x64_sys_utimensat+0x0/0xf0) fd=-100 path=(fault) who="tool"
            tool-306     [001] .....    15.000100: r_utimensat: (do_syscall_64+0x5d/0xb0 <- __x64_sys_utimensat) ret=-30
"""

FILES = {
    "/srv": "drwxr-xr-x 0/0 ",
    "/opt": "drwxr-xr-x 0/0 ",
    "/opt/app": "drwxr-xr-x 0/0 ",
    "/opt/app/run": "-rwxr-xr-x 0/0 1000",
    "/opt/app/data": "-rw-r--r-- 0/0 3000000",
    "/etc/ssl": "drwxr-xr-x 0/0 ",
    "/etc/ssl/certs": "drwxr-xr-x 0/0 ",
    "/etc": "drwxr-xr-x 0/0 ",
    "/usr": "drwxr-xr-x 0/0 ",
    "/usr/games": "drwxr-xr-x 0/0 ",
    "/usr/games/a": "-rw-r--r-- 0/0 10",
    "/opt/huge": "-rw-r--r-- 0/0 999999999",
}
ROOT = Root(FILES, DEBIAN)


def report(**parts: Any) -> Report:
    return Report(**{"state": "running", "missing": (), "trace": "", "units": "", "journal": "", **parts})


def test_refused_calls_are_named_by_their_whole_path_and_who_made_them() -> None:
    assert list(refused(TRACE)) == [
        Refused("erofs", "open", "/srv/box/a b", "touch"),
        Refused("erofs", "unlink", "…/old", "rm"),
        Refused("erofs", "mkdir", "/opt/app/cache", "app"),
        Refused("eacces", "open", "/root/x", "app"),
        Refused("erofs", "utimensat", "…/", "tool"),
    ]


def test_what_the_initrd_does_is_not_the_versions_fault() -> None:
    assert "cpio" not in {call.who for call in refused(TRACE)}


def test_a_damaged_trace_is_no_trace() -> None:
    assert not list(refused("\0\n x-1 [0]: \n" + TRACE.replace("ret=", "tre=")))


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("/srv/new", "empty /srv"),  # nothing is in it
        ("/usr/games/scores", "copy /usr/games"),  # what is in it is small
        ("/opt/app/cache", "copy /opt/app/cache"),  # what is beside it is not: the new name alone
        ("/opt/app/run", "copy /opt/app/run"),
        ("/opt/huge", ""),  # more than a client's memory is for
        ("/.ro/opt/app/run", "copy /opt/app/run"),
        ("/opt/app/[x]*", "copy /opt/app/[[]x][*]"),
        ("/etc/machine-id", ""),  # volatile already
        ("/var/lib/x", ""),
        ("/etc/ssl/certs/new", "copy /etc/ssl/certs/new"),  # an exception of a rule
        ("/etc/gone/x", ""),
        ("/proc/sys/x", ""),
        ("/run/x", ""),
        ("…/x", ""),
        ("/top", "copy /top"),
        ("/opt/app/a\nb", ""),
    ],
)
def test_the_rule_for_a_path_is_the_smallest_that_lets_it_be_written(path: str, rule: str) -> None:
    assert ROOT.cure(path) == rule


@pytest.mark.parametrize("path", ["/srv/new", "/usr/games/scores", "/opt/app/cache", "/opt/app/data"])
def test_a_root_planned_with_the_rule_lets_the_path_be_written(path: str) -> None:
    entries = [
        Entry(name, "d" if said[0] == "d" else "f", size=int(said.split()[-1]) if said[0] == "-" else 0)
        for name, said in FILES.items()
    ]
    before = rootplan.plan(entries, DEBIAN)
    after = rootplan.plan(entries, [*DEBIAN, Rule.parse(ROOT.cure(path))])
    parent = path.rpartition("/")[0]
    assert parent not in {entry.path for entry in before.directories}
    assert parent in {entry.path for entry in after.directories}
    assert path not in {entry.path for entry in after.links}


def test_rules_with_globs_say_what_is_volatile_too() -> None:
    root = Root(FILES, parse_rules("empty /opt/*/cache\nshare /opt/app/cache/fixed"))
    assert root.is_volatile("/opt/app/cache/x")
    assert not root.is_volatile("/opt/app/cache/fixed/x")
    assert not root.is_volatile("/opt/app")


def test_each_path_is_one_finding_with_who_met_it_how_often() -> None:
    found = {one.subject: one for one in findings(report(trace=TRACE + TRACE.replace("sched_process_exec", "x")), ROOT)}
    assert found["/srv/box/a b"].rule == "empty /srv"
    assert found["/srv/box/a b"].detail == "touch (open), 2 times"
    assert found["/root/x"].kind == "eacces"
    assert found["/root/x"].rule == ""
    assert "owner and mode" in found["/root/x"].detail
    assert "not known" in found["…/old"].detail


def test_names_made_up_anew_each_time_are_one_finding() -> None:
    lines = TRACE.splitlines(keepends=True)
    begun, ended = (
        next(line for line in lines if part in line) for part in ('"box/a b"', "touch-302     [000] .....    10.4001")
    )
    many = "".join(begun.replace("box/a b", f"/usr/games/.tmp{number}") + ended for number in range(5))
    (one,) = findings(report(trace=lines[6] + many), ROOT)
    assert (one.subject, one.rule, one.detail) == ("/usr/games/*", "copy /usr/games", "touch (open), 5 times")


def test_what_was_logged_is_found_without_a_trace() -> None:
    said = [
        {"MESSAGE": "touch: cannot touch '/srv/x': Read-only file system", "_COMM": "touch"},
        {"MESSAGE": "OSError: [Errno 30] Read-only file system: '/opt/app/cache'", "SYSLOG_IDENTIFIER": "game"},
        {
            "MESSAGE": "/bin/sh: 1: cannot create ledger: Read-only file system",
            "_COMM": "sh",
        },  # what path, nobody knows
        {"MESSAGE": "Failed to open /root/y: Permission denied", "_COMM": "z"},
        {"MESSAGE": [1, 2]},
        {"MESSAGE": "/srv/z: Read-only file system", "_SYSTEMD_UNIT": "fleet-check.service"},
    ]
    journal = "\n".join([*map(json.dumps, said), "no json", "3", ""])
    found = findings(report(journal=journal, missing=("all",)), ROOT)
    assert [(one.kind.value, one.subject, one.rule) for one in found] == [
        ("erofs", "/srv/x", "empty /srv"),
        ("erofs", "/opt/app/cache", "copy /opt/app/cache"),
        ("eacces", "/root/y", ""),
    ]
    assert found[1].detail.startswith("game said: OSError")


def test_what_cannot_be_shown_is_replaced(version: ImageVersion) -> None:
    said = '{"MESSAGE": "touch /srv/\\u0000\\ud800x: Read-only file system", "_COMM": "\\u001b[2J"}'
    found = findings(report(journal=said, units="system \x07.service\n    \0\n"), ROOT)
    assert note(version, FindingSource.CHECKED, found) == 2
    assert {row.subject for row in version.findings.all()} == {"/srv/\ufffd\ufffdx", "\ufffd.service"}


def test_a_failed_unit_has_the_rule_that_would_cure_it_and_what_it_said() -> None:
    units = (
        "system box.service\n    sh: 1: cannot create a b: Read-only file system\n    Failed\n"
        "system other.service\n    no coin\nuser tray.service\nsystem fleet-agent.service\n"
    )
    jobs = "starting\n101 slow.service start running\n102 later.service start waiting\n103 fleet-check.service start running\n"
    found = {
        one.subject: one for one in findings(report(trace=TRACE, units=units, state=jobs), ROOT) if one.kind == "unit"
    }
    assert set(found) == {"box.service", "other.service", "tray.service of the user", "slow.service"}
    assert found["box.service"].rule == "empty /srv"
    assert found["box.service"].detail.endswith("Failed")
    assert found["other.service"].rule == ""
    assert "still starting" in found["slow.service"].detail


def test_a_clean_boot_has_no_findings() -> None:
    assert findings(report(), ROOT) == []


def test_shellcheck_has_nothing_to_say_of_what_runs_in_the_pc() -> None:
    scripts = [str(GUEST / name) for name in ("trace", "report")]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_each_probe_that_tells_of_a_refusal_has_one_that_tells_of_the_call() -> None:
    events = [line.split()[0].partition(":")[2] for line in probes().splitlines()]
    assert len(events) == len(set(events))
    assert {name[2:] for name in events if name.startswith("r_")} == {name[2:] for name in events if name[:2] == "c_"}


@pytest.fixture
def version(world: World, store: Store) -> ImageVersion:
    return stored_version(make_image(world.clubroom), store)


def test_who_may_build_may_check_and_it_is_written_down(world: World, version: ImageVersion) -> None:
    with pytest.raises(Forbidden):
        services.request_check(version, world.mallory)
    services.request_check(version, world.vera)
    version.refresh_from_db()
    assert version.checked is not None
    assert version.checked["state"] == "asked"
    assert AuditEntry.objects.filter(action="version.check-requested").count() == 1


def test_a_version_is_checked_once_at_a_time_unless_its_worker_was_lost(world: World, version: ImageVersion) -> None:
    services.request_check(version, world.vera)
    with pytest.raises(WrongState, match="is being checked already"):
        services.request_check(version, world.vera)
    long_ago = timezone.now() - timedelta(hours=2)
    ImageVersion.objects.update(checked={"state": "running", "at": long_ago.isoformat()})
    services.request_check(version, world.vera)


@pytest.mark.parametrize("status", [VersionStatus.QUEUED, VersionStatus.FAILED])
def test_only_a_ready_version_is_checked(world: World, status: VersionStatus) -> None:
    version = make_version(make_image(world.clubroom), status)
    with pytest.raises(WrongState):
        services.request_check(version, world.vera)
    assert checking.check(version.pk) is None
    with pytest.raises(CommandError, match="not ready") as ended:
        call_command("image", "check", str(version))
    assert ended.value.returncode == 2


def test_what_is_not_signed_is_not_started(world: World, store: Store) -> None:
    version = make_version(make_image(world.clubroom), signature="")
    assert checking.check(version.pk) is None
    version.refresh_from_db()
    assert version.checked is not None
    assert "not signed" in version.checked["failure"]


def test_without_a_virtual_pc_the_package_to_install_is_named(
    version: ImageVersion, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandError, match=r"qemu-system-x86_64 is missing.*package qemu-system-x86"):
        call_command("image", "check", "gamer")
    assert machine.MAC.startswith("52:54:00:")


def test_the_page_of_a_version_asks_for_a_check_and_shows_how_the_last_one_ended(
    world: World, version: ImageVersion, client: Browser
) -> None:
    client.force_login(world.vera)
    page = f"/admin/images/imageversion/{version.pk}/change/"
    assert "Check it" in client.get(page).content.decode()
    done = client.post(f"/admin/images/imageversion/{version.pk}/order/check/", follow=True).content.decode()
    assert "A worker boots it in a virtual PC" in done
    assert "Waits for a worker" in done
    outcome = {"state": "failed", "at": "2026-11-24T02:00:00+00:00", "failure": "It panicked <here>."}
    ImageVersion.objects.filter(pk=version.pk).update(checked=outcome)
    assert "It panicked &lt;here&gt;." in client.get(page).content.decode()


def test_a_check_is_asked_for_over_the_api(world: World, version: ImageVersion) -> None:
    assert call(world.mallory, f"versions/{version.pk}/check/", {})[0] == 404
    assert call(world.vera, f"versions/{version.pk}/check/", {})[0] == 202
    assert call(world.vera, f"versions/{version.pk}/")[1]["checked"]["state"] == "asked"
    assert call(world.vera, f"versions/{version.pk}/check/", {})[0] == 409
    shared = make_version(make_image(None, "shared"))
    assert call(world.vera, f"versions/{shared.pk}/check/", {})[0] == 403


def test_two_workers_do_not_check_one_version_at_once(version: ImageVersion) -> None:
    with builds.held(f"check-{version.pk}"):
        assert checking.check(version.pk) is None
        with pytest.raises(CommandError, match="is being checked already") as ended:
            call_command("image", "check", "gamer-1")
    assert ended.value.returncode == 2
    version.refresh_from_db()
    assert version.checked is None
