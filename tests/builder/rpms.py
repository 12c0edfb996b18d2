"""A small rpm distribution, built by rpmbuild: its systemd is a shell script, kernel and programs are Debian's."""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

from images.builder import initrd
from tests.builder.images import PROJECT

CACHE = PROJECT / "var/cache/test-rpm"
RELEASE = "7"  # of the distribution

# Stands for systemd: says what it finds, and switches the PC off.
INIT = """#!/bin/busybox sh
exec >/dev/console 2>&1
echo 1 >/proc/sys/kernel/printk
. /etc/os-release
echo "ROOT IS UP: $PRETTY_NAME on $(/bin/busybox uname -r)"
/bin/busybox grep '' /etc/motd /home/player/greeting
echo changed >/etc/motd && echo CAN WRITE
echo changed >/usr/lib/os-release || echo CANNOT WRITE THE SHARE
/bin/busybox stty onlcr </dev/console # waits until all that was said is sent
/bin/busybox poweroff -f
"""

# Everything but the kernel. A package file lists what its %install put below the build root.
SPEC = f"""
%global debug_package %{{nil}}
%global __os_install_post %{{nil}}
%global _binary_payload w1.gzdio
%global _build_id_links none
Name: tiny
Version: 1.0
Release: 1
Summary: A distribution for tests
License: GPL-3.0-or-later
AutoReqProv: no

%description
%{{summary}}.

%package -n filesystem
Summary: Directories
AutoReqProv: no
Provides: system-release = {RELEASE}
Provides: setup glibc-minimal-langpack
%description -n filesystem
%{{summary}}.
%files -n filesystem
/bin
/sbin
/lib
/lib64
%dir /usr/bin
%dir /usr/sbin
%dir /usr/lib64
%dir /home
%dir /root
/usr/lib/os-release
/etc/os-release
%config /etc/passwd
%config /etc/group
%attr(0, root, root) %config /etc/shadow
%config /etc/login.defs
%dir /etc/skel
/etc/skel/.profile

%package -n bash
Summary: A shell
AutoReqProv: no
Requires(pre): filesystem
Provides: /bin/sh
%description -n bash
%{{summary}}.
%files -n bash
/usr/bin/busybox
/usr/bin/sh
/usr/bin/bash

%package -n systemd
Summary: The first process
AutoReqProv: no
Requires: filesystem bash
Provides: systemd-udev dbus kmod python3 iproute util-linux
%description -n systemd
%{{summary}}.
%files -n systemd
/usr/sbin/init

%package -n shadow-utils
Summary: Users
AutoReqProv: no
Requires: filesystem
%description -n shadow-utils
%{{summary}}.
%files -n shadow-utils
/usr/sbin/useradd
/usr/lib64/ld-linux-x86-64.so.2
/usr/lib/x86_64-linux-gnu

%package -n game-data
Summary: What the game needs
AutoReqProv: no
BuildArch: noarch
Requires: filesystem
%description -n game-data
%{{summary}}.
%files -n game-data
/usr/share/game/level
%doc /usr/share/doc/game/README

%package -n wrong
Summary: Its script fails
AutoReqProv: no
BuildArch: noarch
Requires(post): bash
%description -n wrong
%{{summary}}.
%post -n wrong
echo "no luck today"
exit 3
%files -n wrong

%package -n toy
Summary: Something small
AutoReqProv: no
BuildArch: noarch
Requires: filesystem
%description -n toy
%{{summary}}.
%files -n toy
/usr/share/toy

%install
cp -a %{{_sourcedir}}/tree/. %{{buildroot}}
"""

KERNEL_SPEC = """
%global debug_package %{{nil}}
%global __os_install_post %{{nil}}
%global _binary_payload w1.gzdio
%global _build_id_links none
Name: kernel
Version: 6.1
Release: 1
Summary: A kernel
License: GPL-2.0-only
AutoReqProv: no
Requires: filesystem
%description
%{{summary}}.
%install
mkdir -p %{{buildroot}}/usr/lib/modules
cp -a {modules} %{{buildroot}}/usr/lib/modules/
%files
/usr/lib/modules/{release}
"""

GAME_SPEC = """
Name: game
Version: {version}
Release: 1
Summary: The game
License: GPL-3.0-or-later
BuildArch: noarch
Requires: game-data
Requires(post): bash
%description
%{{summary}}.
%install
mkdir -p %{{buildroot}}/etc
printf 'speed {version}\n\n\n\ncolour blue\n' >%{{buildroot}}/etc/game.conf
%post
# What a package script may expect: a /dev that is no disk's, and /proc.
echo nothing >/dev/null && test -e /proc/self && test ! -e /dev/sda && echo {version} >/var/game-was-set-up
%files
%config(noreplace) /etc/game.conf
"""


def repository() -> Path:
    """The directory of the packages, with its metadata; built once (about 20 s) and kept until this file changes."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ready = CACHE / hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
        if not ready.is_dir():
            work = CACHE / "work"
            shutil.rmtree(work, ignore_errors=True)
            (work / "packages").mkdir(parents=True)
            _system(work / "system")
            rpm(SPEC, work / "packages", work / "system")
            modules = _kernel(work / "kernel")
            rpm(KERNEL_SPEC.format(modules=modules, release=modules.name), work / "packages")
            rpm(GAME_SPEC.format(version="1.0"), work / "packages")
            index(work / "packages")
            (work / "packages").rename(ready)
            shutil.rmtree(work)
    return ready


def rpm(spec: str, packages: Path, tree: Path | None = None) -> None:
    """Build the packages of a spec file into the directory `packages`; `tree`: what %install copies."""
    work = packages.with_name("rpmbuild")
    (work / "SOURCES").mkdir(parents=True)
    (work / "it.spec").write_text(spec)
    if tree:
        (work / "SOURCES/tree").symlink_to(tree)
    run("rpmbuild", "-bb", "--quiet", "--nodeps", "--define", f"_topdir {work}", work / "it.spec")
    for path in (work / "RPMS").rglob("*.rpm"):
        shutil.move(path, packages)
    shutil.rmtree(work)


def index(packages: Path) -> None:
    """Make or renew a directory's metadata."""
    run("createrepo_c", "--quiet", packages)


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    """Run a tool of the host; its output is in the error when it fails."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def _system(tree: Path) -> None:
    for name in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "usr/share/game", "etc/skel", "home", "root"):
        (tree / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / name).symlink_to(f"usr/{name}")
    texts = {
        "usr/lib/os-release": f'ID=tiny\nVERSION_ID={RELEASE}\nPRETTY_NAME="Tiny Linux {RELEASE}"\n',
        "usr/sbin/init": INIT,
        "etc/passwd": "root:x:0:0:root:/root:/bin/bash\n",
        "etc/group": "root:x:0:\n",
        "etc/shadow": "root:*:19000::::::\n",
        "etc/login.defs": "UID_MIN 1000\nHOME_MODE 0750\n",
        "etc/skel/.profile": "umask 022\n",
        "usr/share/game/level": "1\n",
        "usr/share/doc/game/README": "How to play.\n",
        "usr/share/toy": "A toy.\n",
    }
    for name, text in texts.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (tree / "usr/sbin/init").chmod(0o755)
    (tree / "etc/os-release").symlink_to("../usr/lib/os-release")
    busybox, useradd = shutil.which("busybox"), shutil.which("useradd", path="/usr/sbin:/sbin")
    assert busybox, "install Debian's busybox-static"
    assert useradd, "install Debian's passwd"
    shutil.copy(busybox, tree / "usr/bin/busybox")
    for name in ("sh", "bash"):
        (tree / "usr/bin" / name).symlink_to("busybox")
    shutil.copy(useradd, tree / "usr/sbin/useradd")
    for path in re.findall(r"(/lib\S+) \(0x", run("ldd", useradd)):
        (tree / f"usr{path}").parent.mkdir(exist_ok=True)
        shutil.copy(path, tree / f"usr{path}")


def _kernel(work: Path) -> Path:
    """The directory lib/modules/RELEASE of Debian's kernel: the kernel, and the modules that an initrd may want."""
    work.mkdir()
    depends = run("apt-cache", "depends", "--important", "linux-image-amd64")
    name = re.search(r"Depends: (linux-image-\S+)", depends)
    assert name, f"apt knows no kernel: {depends}"
    run("apt-get", "download", "-o", "APT::Sandbox::User=root", name[1], cwd=work)
    [package] = work.glob("*.deb")
    run("dpkg-deb", "--extract", package, work / "whole")
    [whole] = (work / "whole/lib/modules").iterdir()
    release = whole.name
    run("depmod", "-b", work / "whole", release)
    modules = work / "part/lib/modules" / release
    for path in initrd.closure(release, whole, (initrd.SCRIPTS / "modules").read_text()):
        (modules / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(whole / path, modules / path)
    for file in whole.glob("modules.*"):
        if file.name.startswith(("modules.builtin", "modules.order")):
            shutil.copy(file, modules / file.name)
    run("depmod", "-b", work / "part", release)
    shutil.copy(work / f"whole/boot/vmlinuz-{release}", modules / "vmlinuz")
    return modules
