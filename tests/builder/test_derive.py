"""Derived versions: what a change makes of a version, that the version is not touched, and what is left when it goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from images.builder import maintenance
from images.builder.change import Change
from images.builder.chroot import debian, furnish, inside
from images.builder.director import Context, derive, provenance
from images.builder.errors import RecipeError
from images.builder.initrd import with_hands
from images.builder.manifest import Manifest
from images.builder.recipe import Hook, RecipeFile
from images.builder.run import Runner
from images.builder.store import Store
from images.builder.trees import Trees
from tests.builder.images import CACHE, DAEMON, PROJECT, SMALL, Recorded, Silent, built_image

pytestmark = [pytest.mark.build, pytest.mark.slow, pytest.mark.root]

HELLO = Change.of(
    SMALL,
    install=("hello",),
    remove=("tmux",),
    files=(RecipeFile("/etc/motd", "Changed.\n"),),
    script="cp /bin/true /usr/local/bin/capable\nsetcap cap_net_raw+ep /usr/local/bin/capable\n",
)


@pytest.fixture(scope="module")
def version() -> tuple[Manifest, Store]:
    return built_image()


@pytest.fixture
def place(version: tuple[Manifest, Store], tmp_path: Path) -> Context:
    """A store of the test's own with the version in it, on the file system where versions are built."""
    shutil.copytree(version[1].root, tmp_path / "store", copy_function=os.link)
    return Context(tmp_path / "work", Store(tmp_path / "store"), DAEMON)


@pytest.fixture(scope="module")
def parent_tree(version: tuple[Manifest, Store]) -> Iterator[Path]:
    """The parent's root, unpacked."""
    shutil.rmtree(CACHE / "derive", ignore_errors=True)
    (CACHE / "derive").mkdir(parents=True)
    subprocess.run(
        ["unsquashfs", "-q", "-n", "-d", CACHE / "derive/tree", version[1].require(version[0].root)], check=True
    )
    yield CACHE / "derive/tree"
    shutil.rmtree(CACHE / "derive")


def unpacked(manifest: Manifest, store: Store, target: Path, *paths: str) -> Path:
    """Some files of a version's root."""
    argv = ["unsquashfs", "-q", "-n", "-d", str(target), str(store.require(manifest.root)), *paths]
    subprocess.run(argv, check=True)
    return target


def test_a_change_makes_a_version_and_leaves_its_parent_as_it_was(
    place: Context, version: tuple[Manifest, Store]
) -> None:
    parent, steps = version[0], Silent()
    derived = derive(parent.digest, SMALL, HELLO, place, steps)
    assert Manifest.load(place.store, derived.digest) == derived
    assert Manifest.load(place.store, parent.digest) == parent
    assert list(place.store.verify()) == []
    before, after = ({package.name for package in manifest.packages} for manifest in (parent, derived))
    assert (after - before, "tmux" in before, "tmux" in after) == ({"hello"}, True, False)
    assert (derived.parent, derived.change) == (parent.digest, HELLO.to_dict())
    assert derived.initrd == parent.initrd
    assert derived.home_digest == parent.home_digest
    assert derived.epoch >= parent.epoch
    root = unpacked(
        derived, place.store, place.work / "look", "etc/motd", "usr/bin", "usr/local/bin", "var", "usr/sbin", "boot"
    )
    assert (root / "etc/motd").read_text() == "Changed.\n"
    assert (root / "usr/bin/hello").is_file()
    assert not (root / "usr/bin/tmux").exists()
    # vfs_cap_data, revision 2 (linux/capability.h): valid for root of the client, not for that of a namespace.
    assert os.getxattr(root / "usr/local/bin/capable", "security.capability")[3] == 2
    assert list((root / "var/cache/apt").iterdir()) == list((root / "var/lib/apt/lists").iterdir()) == []
    assert not (root / "usr/sbin/policy-rc.d").exists()
    assert list((root / "boot").glob("vmlinuz*")) == []
    fetched, packed = steps.steps[1], steps.steps[6]
    assert fetched.done[-1] == (1, 1)
    assert fetched.bytes[-1][0] == fetched.bytes[-1][1] > 10_000
    assert packed.bytes[-1] == (derived.unpacked_bytes, derived.unpacked_bytes)
    assert steps.names == [
        "open",
        "packages",
        "configure",
        "script",
        "finish",
        "list",
        "root",
        "plan",
        "home",
        "initrd",
        "store",
    ]


def test_the_same_change_gives_the_same_digest_whether_the_parent_lay_unpacked_or_not(
    place: Context, version: tuple[Manifest, Store]
) -> None:
    one = derive(version[0].digest, SMALL, HELLO, place, Silent())
    again = derive(version[0].digest, SMALL, HELLO, place, Silent())
    two = Change.of(SMALL, script="echo more >>/etc/motd\n")
    from_layers = derive(one.digest, SMALL, two, place, Silent())
    shutil.rmtree(place.work)
    from_store = derive(one.digest, SMALL, two, place, Silent())
    assert again == one
    assert from_store == from_layers
    trees = Trees(place.work)
    with trees.layers(from_store.root, place.store, Runner(Recorded("look", ""))) as layers:
        assert [layer.name for layer in layers] == ["upper", "tree"]
        assert trees.prune(0) == []  # somebody works with them
    assert sorted(trees.prune(0)) == sorted({one.root.sha256, from_store.root.sha256})


def test_where_the_kernel_has_no_overlay_the_parent_is_copied(place: Context, version: tuple[Manifest, Store]) -> None:
    """An overlay cannot lie on an overlay, as in a container."""
    with_overlay = derive(version[0].digest, SMALL, HELLO, place, Silent())
    shutil.rmtree(place.work)
    top = place.work.parent
    order = {"recipe": SMALL.to_dict(), "parent": version[0].digest, "change": HELLO.to_dict()}
    (top / "order.json").write_text(json.dumps(order))
    builder = f"{sys.executable} -m images.builder {top}/order.json --store={top}/store --work={top}/over/work"
    script = (
        f"mkdir {top}/low {top}/up {top}/over {top}/wd && mount -t tmpfs tmpfs {top}/wd && mkdir {top}/wd/up {top}/wd/wd &&"
        f"mount -t overlay -o lowerdir={top}/low,upperdir={top}/wd/up,workdir={top}/wd/wd overlay {top}/over && {builder}"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "cp --archive --reflink=auto" in done.stderr
    assert json.loads(done.stdout)["digest"] == with_overlay.digest


def test_a_package_that_does_not_exist_is_named_and_nothing_is_left(
    place: Context, version: tuple[Manifest, Store]
) -> None:
    before = sorted(place.store.root.rglob("*"))
    wrong = Change.of(SMALL, install=("no-such-game",))
    steps = Silent()
    with pytest.raises(RecipeError, match=r"bookworm .* has no package no-such-game") as caught:
        derive(version[0].digest, SMALL, wrong, place, steps)
    assert caught.value.field == "install"
    assert [step.name for step in steps.steps if step.failed] == ["packages"]
    assert sorted(place.store.root.rglob("*")) == before
    assert list(place.work.glob("scratch-*")) == []


def test_what_is_not_installed_cannot_be_removed(place: Context, version: tuple[Manifest, Store]) -> None:
    with pytest.raises(RecipeError, match="cowsay cannot be removed: it is not installed") as caught:
        derive(version[0].digest, SMALL, Change.of(SMALL, remove=("cowsay",)), place, Silent())
    assert caught.value.field == "remove"


def test_a_builder_killed_in_mid_change_leaves_no_process_and_no_mount(
    place: Context, version: tuple[Manifest, Store]
) -> None:
    slow = Change.of(SMALL, script="sleep 1000\n")
    order = {"recipe": SMALL.to_dict(), "parent": version[0].digest, "change": slow.to_dict()}
    program = (
        "import json, sys; from pathlib import Path; from images.builder.__main__ import *; from images.builder.director import derive\n"
        "order = json.load(sys.stdin); recipe = Recipe.from_dict(order['recipe'])\n"
        f"context = Context(Path({str(place.work)!r}), Store(Path({str(place.store.root)!r})), DAEMON)\n"
        "derive(order['parent'], recipe, Change.from_dict(recipe, order['change']), context, Terminal(verbose=False))\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT, stdin=subprocess.PIPE, text=True)
    try:
        assert worker.stdin is not None
        with worker.stdin:
            json.dump(order, worker.stdin)
        until(lambda: any("sleep 1000" in words for words in command_lines()), 90)
        assert str(place.work) in mounts()
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    until(
        lambda: str(place.work) not in mounts() and not any(str(place.work) in words for words in command_lines()), 10
    )


def test_a_script_sees_and_reaches_nothing_of_the_host(parent_tree: Path) -> None:
    """Own processes, own IPC, own host name, no network; and what is root in there is not root of the host."""
    step = Recorded("script", "A script")
    script = f"""
        for process in /proc/[0-9]*; do echo "process $(cat $process/comm)"; done
        kill -9 {os.getpid()} || echo "cannot kill"
        hostname elsewhere
        for name in $(tail -n +3 /proc/net/dev | cut -d: -f1); do echo "interface $name"; done
        mknod /tmp/disk b 8 0 || echo "cannot make devices"
        echo 1 >/proc/sys/kernel/sysrq || echo "cannot change the kernel"
        echo owner >/etc/owned; chown player:player /etc/owned
    """
    furnish.hook(Hook("look", script), parent_tree, Runner(step))
    lines = [line.strip() for line in step.lines]
    assert {line for line in lines if line.startswith("process")} <= {"process sh", "process cat"}
    assert {"cannot kill", "cannot make devices", "cannot change the kernel"} <= set(lines)
    assert {line for line in lines if line.startswith("interface")} <= {"interface lo"}
    assert os.uname().nodename != "elsewhere"
    assert (parent_tree / "etc/owned").stat().st_uid == 1000


def test_services_that_package_scripts_start_do_not_start(parent_tree: Path) -> None:
    step = Recorded("script", "A script")
    script = (
        "invoke-rc.d --force dbus start || echo refused $?; systemctl start dbus || true; ls /run/dbus 2>&1 || true"
    )
    furnish.hook(Hook("start", script), parent_tree, Runner(step))
    assert "policy-rc.d denied execution of start" in "".join(step.lines)
    assert not any("dbus-daemon" in words and str(parent_tree) in words for words in command_lines())


def test_of_two_kernels_the_older_one_goes(parent_tree: Path) -> None:
    run = Runner(Recorded("look", ""))
    [release] = [path.name for path in (parent_tree / "lib/modules").iterdir()]
    (parent_tree / "boot" / f"vmlinuz-{release}").touch()
    assert debian._older_kernels(parent_tree, run) == []
    (parent_tree / "boot/vmlinuz-99.0.0-1-amd64").touch()
    assert debian._older_kernels(parent_tree, run) == [f"linux-image-{release}"]
    for kernel in (parent_tree / "boot").glob("vmlinuz-*"):
        kernel.unlink()


def test_a_maintenance_shell_changes_a_copy_and_a_version_is_made_of_it(
    place: Context, version: tuple[Manifest, Store]
) -> None:
    parent = version[0]
    opened = place.work / "opened"
    opened.mkdir(parents=True)
    typed = "echo 'by hand' >/etc/motd; rm /usr/bin/tmux; id -un; exit\n"
    program = (
        "import sys; from pathlib import Path; from images.builder import maintenance; from tests.builder.images import SMALL\n"
        "maintenance.open_shell(Path(sys.argv[1]), sys.argv[2], SMALL, sys.argv[3:])\n"
    )
    argv = [sys.executable, "-c", program, str(opened), parent.digest, *place.arguments()]
    done = subprocess.run(argv, input=typed, capture_output=True, text=True, cwd=PROJECT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "root"
    assert maintenance.changed(opened) == ["-/usr/bin/tmux", "/etc/motd"]
    assert str(opened) not in mounts()
    derived = derive(parent.digest, SMALL, Change(by_hand=True), place, Silent(), opened)
    root = unpacked(derived, place.store, place.work / "look", "etc/motd", "usr/bin")
    assert (root / "etc/motd").read_text() == "by hand\n"
    assert not (root / "usr/bin/tmux").exists()
    assert Manifest.load(place.store, parent.digest) == parent


def test_a_recipe_that_would_give_the_same_is_known_without_a_build(place: Context, tmp_path: Path) -> None:
    now = provenance(SMALL, place)
    assert len(now) == 64
    assert provenance(SMALL, place) == now
    assert provenance(replace(SMALL, packages=()), place) != now
    assert provenance(replace(SMALL, mirror="http://127.0.0.1:9"), place) == ""
    for part in with_hands(DAEMON):
        shutil.copytree(part, tmp_path / part.name)
    assert provenance(SMALL, Context(place.work, place.store, tmp_path / "daemon")) == now
    (tmp_path / "daemon/agent.py").write_text("print('another')\n")
    assert provenance(SMALL, Context(place.work, place.store, tmp_path / "daemon")) != now


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({}, "install", "the change is empty"),
        ({"install": ("Not A Package",)}, "install", "Not A Package"),
        ({"remove": ("-o", "x")}, "remove", "-o"),
        ({"install": ("tmux",), "remove": ("tmux",)}, "remove", "tmux is to be installed, too"),
        ({"files": (RecipeFile("/etc/../motd", ""),)}, "files", "'..'"),
        ({"files": (RecipeFile("/proc/x", ""),)}, "files", "mounted over"),
    ],
)
def test_what_cannot_be_changed_is_refused_by_field(values: dict[str, object], field: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        Change.of(SMALL, **values)
    assert caught.value.field == field


def test_a_change_is_the_same_as_json_and_back() -> None:
    assert Change.from_dict(SMALL, json.loads(json.dumps(HELLO.to_dict()))) == HELLO
    assert str(HELLO) == "remove tmux · install hello · put /etc/motd · run a script"
    with pytest.raises(RecipeError, match="packages: unknown; a change has by_hand, files, install"):
        Change.from_dict(SMALL, {"packages": ["tmux"]})


def test_a_path_in_the_tree_is_entered_with_the_words_a_person_can_paste(parent_tree: Path) -> None:
    done = subprocess.run(
        [*inside.entering(parent_tree), "cat", "/etc/hostname"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "client\n"


def until(condition: object, seconds: float) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.1)


def mounts() -> str:
    """The mount tables of all processes, so of all namespaces."""
    return "".join(readable("mountinfo"))


def command_lines() -> list[str]:
    return [words.replace("\0", " ") for words in readable("cmdline")]


def readable(name: str) -> list[str]:
    found = []
    for path in Path("/proc").glob(f"[0-9]*/{name}"):
        try:
            found.append(path.read_text(errors="replace"))
        except OSError:
            continue
    return found
