"""Real builds from Debian packages: what comes out, and what is left behind when it goes wrong."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.builder.chroot import furnish
from images.builder.director import Context, build, sweep_up
from images.builder.errors import RecipeError
from images.builder.manifest import Manifest
from images.builder.recipe import Hook, Recipe
from images.builder.run import Runner
from images.builder.scratch import scratch
from images.builder.store import Store
from tests.builder.images import CACHE, DAEMON, HANDS, PROJECT, SMALL, Recorded, Silent, built_image
from tests.builder.person import person

pytestmark = [pytest.mark.build, pytest.mark.slow, pytest.mark.root]


@pytest.fixture(scope="module")
def version() -> tuple[Manifest, Store]:
    return built_image()


@pytest.fixture(scope="module")
def root(version: tuple[Manifest, Store]) -> Iterator[Path]:
    """The packed root, unpacked again; a chroot that tests may change."""
    manifest, store = version
    with scratch(CACHE / "unpacked") as place:
        _unsquash(store.require(manifest.root), place / "tree")
        yield place / "tree"


@pytest.fixture
def home(version: tuple[Manifest, Store], tmp_path: Path) -> Path:
    manifest, store = version
    _unsquash(store.require(manifest.home), tmp_path / "home")
    return tmp_path / "home"


def _unsquash(packed: Path, target: Path) -> None:
    subprocess.run(["unsquashfs", "-quiet", "-no-progress", "-dest", target, packed], check=True)


def test_a_version_is_complete_in_the_store(version: tuple[Manifest, Store]) -> None:
    manifest, store = version
    assert Manifest.load(store, manifest.digest) == manifest
    assert list(store.verify()) == []
    assert {"tmux", "systemd-sysv", "python3", "udev"} <= {package.name for package in manifest.packages}
    assert manifest.sizes["root"] == manifest.root.bytes > 100_000_000
    assert manifest.volatile["bytes"] < 2_000_000


def test_the_image_has_what_the_recipe_says(root: Path) -> None:
    assert (root / "etc/motd").read_text() == "A test image.\n"
    assert "player:x:1000:1000:" in (root / "etc/passwd").read_text()
    assert "player:!:" in (root / "etc/shadow").read_text()
    assert list((root / "home/player").iterdir()) == []
    assert (root / "home/player").stat().st_uid == 1000


def test_the_home_is_a_template_with_the_skeleton_and_the_recipe_s_files(
    version: tuple[Manifest, Store], home: Path
) -> None:
    assert (home / ".config/game/settings").read_text() == "volume=11\n"
    assert (home / ".bashrc").is_file()
    assert {path.lstat().st_uid for path in (home, *home.rglob("*"))} == {1000}
    digest = subprocess.run(
        [sys.executable, HANDS / "home.py", "digest", home], check=True, capture_output=True, text=True
    )
    assert digest.stdout.strip() == version[0].home_digest


def test_the_image_asks_nothing_of_a_disk_at_boot(root: Path) -> None:
    for name in ("system/e2scrub_reap.service", "system-generators/systemd-gpt-auto-generator"):
        assert str((root / "etc/systemd" / name).readlink()) == "/dev/null"
    assert (root / "etc/machine-id").read_bytes() == b""
    assert not (root / "usr/sbin/update-initramfs").exists()
    assert list((root / "boot").glob("initrd*")) == []
    assert not (root / "usr/sbin/policy-rc.d").exists()
    updated = (root / "etc/.updated").stat().st_mtime
    assert (root / "usr").stat().st_mtime <= updated


def test_python_loads_what_was_compiled_without_asking_for_the_source(root: Path) -> None:
    compiled = next((root / "usr/lib").glob("python3.*/json/__pycache__/decoder.*.pyc"))
    assert compiled.read_bytes()[4:8] == b"\x01\0\0\0"  # PEP 552: hashed, not checked


def test_a_hook_runs_in_the_chroot_as_root_without_disks_and_services(root: Path) -> None:
    step = Recorded("hook", "A hook")
    script = 'id -u; pwd; ls /dev; cat /etc/motd; policy-rc.d x start || echo "policy $?"; echo x >/etc/made\n'
    furnish.hook(Hook("look around", script), root, Runner(step))
    lines = "".join(step.lines).split("\n")
    assert lines[:2] == ["0", "/"]
    assert {"null", "pts", "urandom"} <= set(lines)
    assert not any(line.startswith(("sd", "vd", "nvme", "loop")) for line in lines)
    assert "policy 101" in lines
    assert (root / "etc/made").read_text() == "x\n"
    assert not (root / "usr/sbin/policy-rc.d").exists()
    assert str(root) not in Path("/proc/self/mountinfo").read_text()


def test_a_failing_hook_names_itself_and_can_be_replayed(root: Path) -> None:
    script = Hook("fetch the game", "echo 'looking for it'\nno-such-command --now\n")
    with pytest.raises(RecipeError, match="'fetch the game' failed") as caught:
        furnish.hook(script, root, Runner(Recorded("hook", "A hook")))
    assert "no-such-command: not found" in str(caught.value)
    step = Recorded("hook", "A hook")
    with pytest.raises(RecipeError):
        furnish.hook(script, root, Runner(step))
    line = shlex.join(step.commands[-1])
    replay = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (replay.returncode, replay.stdout) == (127, "looking for it\n")


def test_the_same_recipe_gives_the_same_digest(version: tuple[Manifest, Store], tmp_path: Path) -> None:
    steps = Silent()
    again = build(SMALL, Context(CACHE / "again", Store(tmp_path / "store"), DAEMON), steps)
    assert again == version[0]
    assert sorted(path.name for path in (CACHE / "again").iterdir()) == ["initrds", "trees"]
    shutil.rmtree(CACHE / "again")
    assert steps.names == ["bootstrap", "configure", "finish", "list", "root", "plan", "home", "initrd", "store"]
    done, total = steps.steps[0].done[-1]
    assert done == total > 100


def test_a_package_that_does_not_exist_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    recipe = Recipe(name="wrong", suite="bookworm", packages=("tmux", "no-such-game"))
    store, steps = Store(tmp_path / "store"), Silent()
    with pytest.raises(RecipeError, match=r"bookworm .* has no package no-such-game") as caught:
        build(recipe, Context(tmp_path / "work", store, DAEMON), steps)
    assert caught.value.field == "packages"
    assert [(step.name, step.failed) for step in steps.steps] == [("bootstrap", True)]
    assert _files(tmp_path) == []


@pytest.mark.parametrize(("small", "size"), [("work", "200m"), ("store", "60m")])
def test_a_full_disk_is_a_clear_error_and_nothing_half_written_is_left(tmp_path: Path, small: str, size: str) -> None:
    (tmp_path / small).mkdir()
    (tmp_path / "recipe.json").write_text(json.dumps(SMALL.to_dict()))
    builder = shlex.join([sys.executable, "-m", "images.builder", *_arguments(tmp_path)])
    script = (
        f"mount -t tmpfs -o size={size} tmpfs {tmp_path / small} || exit 9\n"
        f"{builder}; code=$?\n"
        f"find {tmp_path}/work {tmp_path}/store -type f -not -path '*/work/initrds/*' >{tmp_path}/left\n"
        "exit $code\n"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "the disk was full during the build" in done.stderr
    assert str(tmp_path / small) in done.stderr
    assert (tmp_path / "left").read_text() == ""


def test_a_builder_killed_in_mid_build_leaves_no_process_no_mount_and_no_artefact(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(SMALL.to_dict()))
    builder = subprocess.Popen(
        [sys.executable, "-m", "images.builder", *_arguments(tmp_path)],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(lambda: any((tmp_path / "work").glob("scratch-*/tree/usr/bin/dpkg")), 120)
        _wait_for(lambda: str(tmp_path) in _mounts(), 60)  # packages are being installed in the chroot
    finally:
        builder.send_signal(signal.SIGKILL)
        builder.wait()
    _wait_for(lambda: str(tmp_path) not in _mounts() and not _processes_of(tmp_path), 10)
    context = Context(tmp_path / "work", Store(tmp_path / "store"), DAEMON)
    assert any(path.parent == context.work for path in sweep_up(context))
    (tmp_path / "recipe.json").unlink()
    assert _files(tmp_path) == []


def test_without_root_the_same_comes_out_and_a_kill_leaves_nothing(version: tuple[Manifest, Store]) -> None:
    with person() as (as_person, place):
        (place / "recipe.json").write_text(json.dumps(SMALL.to_dict()))
        argv = [*as_person, sys.executable, "-m", "images.builder", *_arguments(place)]
        killed = subprocess.Popen(argv, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait_for(lambda: any((place / "work").glob("scratch-*/tree/usr/bin/dpkg")), 120)
        finally:
            killed.send_signal(signal.SIGKILL)
            killed.wait()
        _wait_for(lambda: str(place) not in _mounts() and not _processes_of(place), 10)
        done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["digest"] == version[0].digest
        assert sorted(path.name for path in (place / "work").iterdir()) == ["initrds", "trees"]
        wrong = Recipe(name="wrong", suite="bookworm", packages=("no-such-game",))
        (place / "recipe.json").write_text(json.dumps(wrong.to_dict()))
        done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
        assert (done.returncode, "has no package no-such-game" in done.stderr) == (1, True), done.stderr


def _arguments(place: Path) -> list[str]:
    return [f"{place}/recipe.json", f"--work={place}/work", f"--store={place}/store"]


def _files(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if not path.is_dir()]


def _mounts() -> str:
    """The mount tables of all processes, so of all namespaces."""
    tables = set()
    for path in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            tables.add(path.read_text())
        except OSError:
            continue
    return "".join(tables)


def _processes_of(place: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes()
            at = str((path / "root").readlink()) + str((path / "cwd").readlink())
        except OSError:
            continue
        if int(path.name) != os.getpid() and (os.fsencode(place) in words or str(place) in at):
            found.append(path.name)
    return found


def _wait_for(condition: object, seconds: float) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.1)
