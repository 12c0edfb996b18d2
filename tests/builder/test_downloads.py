"""Progress in bytes: read from lines that apt, dnf and mksquashfs really print."""

import random
import subprocess
from pathlib import Path

import pytest

from images.builder import squashfs
from images.builder.chroot.debian import _Progress as AptProgress
from images.builder.chroot.downloads import Apt, Dnf
from images.builder.chroot.rpm import _Progress as DnfProgress
from images.builder.run import Runner
from tests.builder.images import Recorded

APT = """\
Get:1 http://deb.debian.org/debian bookworm InRelease [151 kB]
Get:6 http://security.debian.org/debian-security bookworm-security/main amd64 Packages [378 kB]
Fetched 9417 kB in 1s (10.5 MB/s)
Reading package lists...
0 upgraded, 4 newly installed, 0 to remove and 0 not upgraded.
Need to get 4.6 MB of archives.
After this operation, 109 MB of additional disk space will be used.
Get:1 http://deb.debian.org/debian bookworm/main amd64 gcc-12-base amd64 12.2.0-14+deb12u1 [37.6 kB]
Get:2 http://security.debian.org/debian-security bookworm-security/main amd64 liblzma5 amd64 5.4.1-1+deb12u2 [206 kB]
Get:3 http://deb.debian.org/debian bookworm/main amd64 libc6 amd64 2.36-9+deb12u14 [2759 kB]
Get:4 http://security.debian.org/debian-security bookworm-security/main amd64 perl-base amd64 5.36.0-7+deb12u4 [1610 kB]
Fetched 4613 kB in 3s (9871 kB/s)
"""
DPKG = """\
Selecting previously unselected package gcc-12-base:amd64.
Unpacking gcc-12-base:amd64 (12.2.0-14+deb12u1) ...
Unpacking libc6:amd64 (2.36-9+deb12u14) ...
Setting up gcc-12-base:amd64 (12.2.0-14+deb12u1) ...
Setting up libc6:amd64 (2.36-9+deb12u14) ...
"""
DNF = """\
Total download size: 15 M
Installed size: 31 M
Downloading Packages:
(1/5): filesystem-1.0-1.x86_64.rpm              1.3 MB/s | 7.8 kB     00:00    \n\
(2/5): bash-1.0-1.x86_64.rpm                     52 MB/s | 1.0 MB     00:00    \n\
(5/5): kernel-6.1-1.x86_64.rpm                  154 MB/s |  14 MB     00:00    \n\
--------------------------------------------------------------------------------
Total                                           129 MB/s |  15 MB     00:00     \n\
  Installing       : filesystem-1.0-1.x86_64                                1/5 \n\
"""


@pytest.fixture
def step() -> Recorded:
    return Recorded("bootstrap", "Install")


def test_a_file_that_apt_begins_is_done_when_the_next_of_its_archive_begins() -> None:
    downloads = Apt()
    seen = [(downloads.done, downloads.total) for line in APT.splitlines(keepends=True) if downloads(line)]
    assert seen == [(0, 4_600_000)] * 3 + [(37_600, 4_600_000), (243_600, 4_600_000), (4_600_000, 4_600_000)]


def test_several_runs_of_apt_add_up_and_what_it_has_already_is_not_fetched() -> None:
    downloads = Apt()
    for line in (*APT.splitlines(), "Need to get 1000 kB/31.2 MB of archives.", "Need to get 0 B/123 MB of archives."):
        downloads(line)
    assert (downloads.done, downloads.total) == (4_600_000, 5_600_000)
    assert not downloads("Get:1 http://deb.debian.org/debian bookworm InRelease [151 kB]"), "no package"


def test_more_than_was_said_is_not_more_than_all() -> None:
    downloads = Apt()
    for line in (
        "Need to get 10 kB of archives.",
        *(f"Get:{n} copy:/srv x/main amd64 a amd64 1 [9 kB]" for n in "123"),
    ):
        downloads(line)
    assert (downloads.done, downloads.total) == (10_000, 10_000)


def test_apt_s_progress_has_packages_and_bytes(step: Recorded) -> None:
    follow = AptProgress(Runner(step))
    for line in (APT + DPKG).splitlines(keepends=True):
        follow(line)
    assert step.done[-4:] == [(0, 4), (1, 4), (1, 4), (2, 4)], "unpacked is half the way"
    assert step.bytes[0] == (0, 4_600_000)
    assert step.bytes[-1] == (4_600_000, 4_600_000)


def test_dnf_tells_of_packages_that_came_and_then_of_those_in_place(step: Recorded) -> None:
    follow = DnfProgress(Runner(step))
    for line in DNF.splitlines(keepends=True):
        follow(line)
    kib, mib = 1024, 1 << 20
    sums = [0, round(7.8 * kib), round(7.8 * kib) + mib, 15 * mib, 15 * mib, 15 * mib]
    assert step.bytes == [(done, 15 * mib) for done in sums]
    assert step.done == [(0, 0), (0, 5), (0, 5), (0, 5), (0, 5), (1, 5)]


def test_one_package_alone_has_no_number() -> None:
    downloads = Dnf()
    assert downloads("Total download size: 6.2 k\n")
    assert downloads("game-1.0-1.noarch.rpm                           303 kB/s | 6.2 kB     00:00    \n")
    assert (downloads.packages, downloads.done, downloads.total) == (1, 6349, 6349)
    assert not downloads("Total size: 15 M\n"), "of packages that lie on this host"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[=======/                    ] 1618/3236  50%\n", [(500, 1000)]),
        ("[=============================|] 1618/1618 100%", [(1000, 1000)]),
        ("[-                           ] 0/0   0%\n", []),
        ("\n", []),
    ],
)
def test_the_bar_of_mksquashfs_is_told_in_bytes_and_not_kept(
    step: Recorded, line: str, told: list[tuple[int, int]]
) -> None:
    assert squashfs.Bar(step, 1000)(line)
    assert step.bytes == told


def test_what_is_no_bar_stays_in_the_log(step: Recorded) -> None:
    assert not squashfs.Bar(step, 1000)("FATAL ERROR: Failed to write to output filesystem\n")
    assert step.bytes == []


def test_packing_tells_its_bytes_and_leaves_no_bar_behind(step: Recorded, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/noise").write_bytes(random.Random(1).randbytes(3_000_000))
    squashfs.pack(tmp_path / "tree", tmp_path / "root", Runner(step), 0, 3_000_000)
    assert step.bytes[-1] == (3_000_000, 3_000_000)
    assert step.lines == []
    listed = subprocess.run(["unsquashfs", "-l", tmp_path / "root"], check=True, capture_output=True, text=True)
    assert "squashfs-root/noise" in listed.stdout
