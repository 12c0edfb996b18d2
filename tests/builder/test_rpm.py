"""Real builds from rpm packages by dnf: what comes out, how a tree is changed, and what happens when it cannot be."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from images.builder.change import Change
from images.builder.chroot import furnish, rpm
from images.builder.chroot.family import Upgrade
from images.builder.director import Context, build, derive, pending
from images.builder.errors import RecipeError
from images.builder.manifest import Manifest
from images.builder.merge3 import merge
from images.builder.recipe import Hook, Recipe, RecipeFile
from images.builder.run import Runner
from images.builder.scratch import scratch
from images.builder.store import Store
from images.builder.verity import Verity
from tests.builder import rpms
from tests.builder.images import DAEMON, PROJECT, SMALL, Recorded, Silent
from tests.builder.person import person
from tests.builder.signer import Signer
from tests.initrd.conftest import boot
from tests.initrd.gateway import Gateway, Version
from tests.lab import Lab

pytestmark = [pytest.mark.build, pytest.mark.slow, pytest.mark.root, pytest.mark.once]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that tests may add packages to."""
    place = tmp_path_factory.mktemp("repository") / "packages"
    shutil.copytree(rpms.repository(), place)
    return place


@pytest.fixture(scope="module")
def signer() -> Iterator[Signer]:
    with Signer("maker@example.org") as signer:
        yield signer


@pytest.fixture(scope="module")
def signed(signer: Signer, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The same packages, signed, and the recipe that knows the key."""
    place = tmp_path_factory.mktemp("signed") / "packages"
    shutil.copytree(rpms.repository(), place)
    signer.sign(place)
    rpms.index(place)
    return replace(recipe, mirror=f"file://{place}", files=(_key(signer.public),))


def change(
    tree: Path, run: Runner, install: Sequence[str] = (), remove: Sequence[str] = (), upgrade: bool = False
) -> None:
    """As a derived version does it; a family's own knowledge is in the tree."""
    wanted = Change(install=tuple(install), remove=tuple(remove), upgrade=upgrade)
    rpm.change(SMALL, tree, wanted, tree.with_name("cache"), run)


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """The URL of `directory` over HTTP."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _key(public: str) -> RecipeFile:
    return RecipeFile("/etc/pki/rpm-gpg/RPM-GPG-KEY-tiny", public)


@pytest.fixture(scope="module")
def recipe(repository: Path) -> Recipe:
    return Recipe(
        name="tiny",
        suite=rpms.RELEASE,
        family="rpm",
        packages=("game",),
        mirror=f"file://{repository}",
        files=(RecipeFile("/etc/motd", "A test image.\n"),),
        home_files=(RecipeFile("greeting", "hello from the template\n"),),
        hooks=(Hook("look around", "id -u; ls /dev; cat /etc/os-release; echo x >/etc/made"),),
    )


@pytest.fixture(scope="module")
def built(recipe: Recipe) -> Iterator[tuple[Manifest, Store, Silent]]:
    """A version in a store, and the steps that led to it."""
    with scratch(rpms.CACHE / "built") as place:
        store, steps = Store(place / "store"), Silent()
        manifest = build(recipe, Context(place / "work", store, DAEMON), steps)
        assert sorted(path.name for path in (place / "work").iterdir()) == ["initrds", "trees"]
        yield manifest, store, steps


@pytest.fixture(scope="module")
def root(built: tuple[Manifest, Store, Silent]) -> Iterator[Path]:
    """The packed root, unpacked again, with room beside it."""
    manifest, store, _ = built
    with scratch(rpms.CACHE / "unpacked") as place:
        rpms.run("unsquashfs", "-quiet", "-no-progress", "-dest", place / "tree", store.require(manifest.root))
        yield place / "tree"


def test_a_version_is_complete_in_the_store(built: tuple[Manifest, Store, Silent]) -> None:
    manifest, store, steps = built
    assert Manifest.load(store, manifest.digest) == manifest
    assert list(store.verify()) == []
    assert [(package.name, package.version) for package in manifest.packages] == [
        ("bash", "1.0-1"),
        ("filesystem", "1.0-1"),
        ("game", "1.0-1"),
        ("game-data", "1.0-1"),
        ("kernel", "6.1-1"),
        ("shadow-utils", "1.0-1"),
        ("systemd", "1.0-1"),
    ]
    assert {package.architecture for package in manifest.packages} == {"noarch", "x86_64"}
    assert manifest.kernel.bytes > 5_000_000
    assert manifest.kernel_release.startswith("6.1.0-")
    assert steps.names == [
        "bootstrap",
        "configure",
        "hook-1",
        "finish",
        "list",
        "root",
        "plan",
        "home",
        "initrd",
        "store",
    ]
    assert steps.steps[0].title == "Install rpm system 7 and 1 package"


def test_progress_is_in_packages_and_ends_with_the_last(built: tuple[Manifest, Store, Silent]) -> None:
    progress = built[2].steps[0].done
    assert progress == [(number, 7) for number in range(1, 8)]


def test_the_image_has_the_packages_the_files_and_the_user(root: Path) -> None:
    assert (root / "etc/os-release").resolve().read_text().startswith("ID=tiny")
    assert (root / "etc/motd").read_text() == "A test image.\n"
    assert "player:x:1000:1000:" in (root / "etc/passwd").read_text()
    assert (root / "var/game-was-set-up").read_text() == "1.0\n"  # its script found /dev/null and /proc
    assert (root / "etc/made").read_text() == "x\n"
    assert not (root / "usr/share/doc/game").exists()
    assert list(root.glob("usr/lib/modules/*/vmlinuz")) == []


def test_the_image_has_nothing_of_the_host_and_nothing_of_the_build(root: Path) -> None:
    left = {str(path.relative_to(root)) for path in root.rglob("*")}
    assert not {name for name in left if "rpmdb" in name and "sysimage" not in name}
    assert not {name for name in left if name.endswith((".deb", "policy-rc.d", "-wal", "-shm", ".rpm.lock"))}
    assert not {name for name in left if name.startswith(("var/cache/dnf", "var/lib/dnf", "var/log/dnf"))}
    assert (root / "etc/yum.repos.d/recipe.repo").read_text().count("baseurl=") == 1


def test_a_hook_runs_as_in_every_family(built: tuple[Manifest, Store, Silent]) -> None:
    said = "".join(built[2].steps[2].lines).split("\n")
    assert said[0] == "0"
    assert {"null", "pts", "ID=tiny"} <= set(said)


def test_the_log_says_that_nobody_checks_the_signatures_of_a_local_repository(
    built: tuple[Manifest, Store, Silent],
) -> None:
    assert any(line.startswith("Signatures are NOT checked for file://") for line in built[2].steps[0].lines)


def test_the_same_recipe_gives_the_same_digest(
    built: tuple[Manifest, Store, Silent], recipe: Recipe, tmp_path: Path
) -> None:
    time.sleep(1)  # rpm counts in seconds
    assert build(recipe, Context(tmp_path / "work", Store(tmp_path / "store"), DAEMON), Silent()) == built[0]


def test_without_root_the_same_comes_out(built: tuple[Manifest, Store, Silent], recipe: Recipe) -> None:
    with person() as (as_person, place):
        local = place / "packages"
        shutil.copytree(recipe.mirror.removeprefix("file://"), local)
        there = replace(recipe, mirror=f"file://{local}")
        (place / "recipe.json").write_text(json.dumps(there.to_dict()))
        arguments = (f"{place}/recipe.json", f"--work={place}/work", f"--store={place}/store")
        done = json.loads(rpms.run(*as_person, sys.executable, "-m", "images.builder", *arguments, cwd=PROJECT))
        with scratch(rpms.CACHE / "rootless") as work:
            ours = build(there, Context(work / "work", Store(work / "store"), DAEMON), Silent())
    assert done["digest"] == ours.digest
    assert [tuple(row) for row in done["packages"]] == [
        tuple(asdict(package).values()) for package in built[0].packages
    ]


def test_packages_are_listed_from_a_read_only_root_too(root: Path) -> None:
    listed = rpms.run(
        "unshare", "--mount", "sh", "-c",
        f"mount --bind -o ro {root} {root} && mount -o remount,bind,ro {root} && rpm --root {root} "
        "--dbpath /usr/lib/sysimage/rpm -q game --qf '%{VERSION} %{INSTALLTIME}'",
    )  # fmt: skip
    version, installed = listed.split()
    assert version == "1.0"
    assert int(installed) < 1000  # steps of the transaction since SOURCE_DATE_EPOCH, no time of day


def test_a_tree_is_upgraded_and_loses_and_gets_packages_from_where_it_came(root: Path, repository: Path) -> None:
    """What a derived version is made by; the tree is a finished one."""
    (root / "etc/game.conf").write_text("speed of the site\n")
    rpms.rpm(rpms.GAME_SPEC.format(version="2.0"), repository)
    rpms.index(repository)
    step = Recorded("change", "Change")
    run = Runner(step, {"SOURCE_DATE_EPOCH": "0"})
    change(root, run, install=["toy"])
    now = {package.name: package.version for package in rpm.packages(root, run)}
    assert (now["toy"], now["game"]) == ("1.0-1", "1.0-1")
    change(root, run, remove=["toy"], upgrade=True)
    now = {package.name: package.version for package in rpm.packages(root, run)}
    assert now["game"] == "2.0-1"
    assert "toy" not in now
    assert not (root / "usr/share/toy").exists()
    assert (root / "var/game-was-set-up").read_text() == "2.0\n"
    assert (root / "etc/game.conf").read_text() == "speed of the site\n"
    rpm.finish(root, 1_000_000)
    assert "rpmdb.sqlite" in {path.name for path in (root / "usr/lib/sysimage/rpm").iterdir()}
    with pytest.raises(RecipeError, match="toy cannot be removed: it is not installed") as caught:
        change(root, run, remove=["toy"])
    assert caught.value.field == "packages"
    with pytest.raises(RecipeError, match="has no package no-such-toy"):
        change(root, run, install=["no-such-toy"])
    assert str(root) not in Path("/proc/self/mountinfo").read_text()


def test_a_version_is_derived_as_in_every_family(
    built: tuple[Manifest, Store, Silent], recipe: Recipe, tmp_path: Path
) -> None:
    context = Context(tmp_path / "work", built[1], DAEMON)
    wanted = Change.of(recipe, install=("toy",), script="echo derived >/etc/made\n")
    derived = derive(built[0].digest, recipe, wanted, context, Silent())
    assert {package.name for package in derived.packages} - {package.name for package in built[0].packages} == {"toy"}
    root = built[1].require(derived.root)
    assert rpms.run("unsquashfs", "-cat", root, "etc/made") == "derived\n"
    assert derive(built[0].digest, recipe, wanted, context, Silent()) == derived
    assert Manifest.load(built[1], built[0].digest) == built[0]


def test_a_file_that_the_site_and_an_upgrade_changed_stays_the_site_s_and_can_be_merged(
    built: tuple[Manifest, Store, Silent], recipe: Recipe, repository: Path, tmp_path: Path
) -> None:
    store, path = built[1], "/etc/game.conf"
    context = Context(tmp_path / "work", store, DAEMON)
    ours, theirs = "speed 1.0\n\n\n\ncolour red\n", "speed 2.5\n\n\n\ncolour blue\n"
    changed = Change.of(recipe, files=(RecipeFile(path, ours),))
    first = derive(built[0].digest, recipe, changed, context, Silent())
    base = store.require(first.site_files[path].original).read_text()
    assert base == theirs.replace("2.5", "1.0")
    rpms.rpm(rpms.GAME_SPEC.format(version="2.5"), repository)
    rpms.index(repository)
    second = derive(first.digest, recipe, Change.of(recipe, upgrade=True), context, Silent())
    assert set(second.site_files) == {path}
    file = second.site_files[path]
    assert (store.require(file.original).read_text(), store.require(file.site).read_text()) == (theirs, ours)
    assert file.upgraded
    root = store.require(second.root)
    assert rpms.run("unsquashfs", "-cat", root, path[1:]) == ours
    assert "rpmnew" not in rpms.run("unsquashfs", "-l", root)
    assert merge(ours, base, theirs) == ("speed 2.5\n\n\n\ncolour red\n", True)


def test_what_the_repository_has_newer_is_pending(
    built: tuple[Manifest, Store, Silent], recipe: Recipe, repository: Path, tmp_path: Path
) -> None:
    context = Context(tmp_path / "work", built[1], DAEMON)
    rpms.rpm(rpms.GAME_SPEC.format(version="3.0"), repository)
    rpms.index(repository)
    assert pending(built[0], recipe, context, Silent()) == (Upgrade("game", "1.0-1", "3.0-1", security=False),)


def test_signed_packages_are_taken_with_their_key_and_their_bytes_counted(signed: Recipe, tmp_path: Path) -> None:
    step, packages = Recorded("bootstrap", "Install"), Path(signed.mirror.removeprefix("file://"))
    with served(packages) as mirror:
        rpm.bootstrap(replace(signed, mirror=mirror), tmp_path / "tree", Runner(step))
        assert step.done[-1] == (7, 7)
        assert step.bytes[-1][0] == step.bytes[-1][1] > 15_000_000
        change(tmp_path / "tree", Runner(step), install=["toy"])
    done, total = step.bytes[-1]
    assert done == total
    assert abs(total - (packages / "toy-1.0-1.noarch.rpm").stat().st_size) < 60, "dnf rounds to tenths of a KiB"
    assert (tmp_path / "tree/usr/share/toy").exists()
    assert "game" in {package.name for package in rpm.packages(tmp_path / "tree", Runner(step))}
    assert not any("NOT checked" in line for line in step.lines)
    assert "gpgcheck=1" in (tmp_path / "tree/etc/yum.repos.d/recipe.repo").read_text()


def test_packages_signed_by_somebody_else_are_refused(signed: Recipe, tmp_path: Path) -> None:
    with Signer("stranger@example.org") as stranger:
        other = replace(signed, files=(_key(stranger.public),))
    with pytest.raises(RecipeError, match="none of the keys in /etc/pki/rpm-gpg is the package's") as caught:
        rpm.bootstrap(other, tmp_path / "tree", Runner(Recorded("bootstrap", "Install")))
    assert caught.value.field == "files"


@pytest.mark.parametrize(
    ("changed", "field", "message"),
    [
        (
            {"packages": ("game", "no-such-game")},
            "packages",
            r"file://\S+ has no package no-such-game; correct the name",
        ),
        ({"packages": ("wrong",)}, "packages", r"the POSTIN script of wrong failed"),
        ({"packages": ("lonely",)}, "packages", r"cannot be installed together: .*nothing provides a-friend needed by"),
        ({"mirror": "file:///no/such"}, "mirror", r"/no/such: a repository cannot be read: Cannot download repomd.xml"),
        (
            {"mirror": "http://127.0.0.1:9/x"},
            "files",
            r"the key of http://127.0.0.1:9/x is missing: .*/RPM-GPG-KEY-tiny",
        ),
        (
            {"mirror": "http://127.0.0.1:9/x", "files": "key"},
            "mirror",
            r"http://127.0.0.1:9/x: a repository cannot be read",
        ),
        ({"files": "key"}, "files", r"Package \S+ is not signed"),
    ],
)
def test_what_cannot_be_installed_is_a_clear_error_and_nothing_is_left(
    recipe: Recipe,
    signer: Signer,
    repository: Path,
    tmp_path: Path,
    changed: dict[str, Any],
    field: str,
    message: str,
) -> None:
    if "lonely" in changed.get("packages", ()):
        rpms.rpm(LONELY, repository)
        rpms.index(repository)
    if "files" in changed:
        changed = {**changed, "files": (_key(signer.public),)}
    store, steps = Store(tmp_path / "store"), Silent()
    with pytest.raises(RecipeError, match=message) as caught:
        build(replace(recipe, **changed), Context(tmp_path / "work", store, DAEMON), steps)
    assert caught.value.field == field
    assert [(step.name, step.failed) for step in steps.steps] == [("bootstrap", True)]
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("size", ["18m", "32m"])  # dnf sees it before it begins; rpm, when it looks closer
def test_a_full_disk_is_not_taken_for_a_wrong_recipe(recipe: Recipe, tmp_path: Path, size: str) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    words = [sys.executable, "-m", "images.builder", f"{tmp_path}/recipe.json"]
    builder = shlex.join([*words, f"--work={tmp_path}/work", f"--store={tmp_path}/store"])
    script = f"mount -t tmpfs -o size={size} tmpfs {tmp_path}/work; {builder} 2>&1; find {tmp_path}/work -type f"
    said = rpms.run("unshare", "--mount", "sh", "-c", script, cwd=PROJECT)
    assert f"the disk was full during the build ({tmp_path}/work has " in said
    assert said.splitlines()[-1].startswith("ended with exit code")


LONELY = """
Name: lonely
Version: 1.0
Release: 1
Summary: Nobody has what it needs
License: GPL-3.0-or-later
BuildArch: noarch
Requires: a-friend
%description
%{summary}.
%files
"""


def test_a_failing_hook_names_itself(root: Path) -> None:
    with pytest.raises(RecipeError, match="'fetch the game' failed"):
        furnish.hook(Hook("fetch the game", "exit 3"), root, Runner(Recorded("hook", "A hook")))


@pytest.mark.lab
def test_a_pc_boots_the_tree_up_to_its_own_first_process(built: tuple[Manifest, Store, Silent]) -> None:
    manifest, store, _ = built
    parts = {part: store.require(artefact) for part, artefact in manifest.artefacts().items()}
    verity = Verity(manifest.root_hash, manifest.root_blocks)
    version = Version(parts["kernel"], parts["initrd"], parts["root"], parts["plan"], parts["home"], verity)
    with Gateway(version) as gateway, Lab(gateway.port, network="user") as lab:
        pc = lab.pc("seat-7", memory_mib=512)
        boot(gateway, pc)
        pc.wait_for(f"ROOT IS UP: Tiny Linux 7 on {manifest.kernel_release}", 180)
        pc.wait_for("A test image", 30)
        pc.wait_for("hello from the template", 30)
        pc.wait_for("CAN WRITE", 30)
        pc.wait_for("CANNOT WRITE THE SHARE", 30)
        pc.wait_off(60)
        assert gateway.troubles == []
