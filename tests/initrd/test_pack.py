"""What is packed into the initrd, and in which form."""

from __future__ import annotations

import lzma
import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import pytest

from images.builder import initrd
from images.builder.cpio import Archive
from images.builder.errors import BuildError
from images.builder.run import Runner
from tests.builder.images import Recorded

RELEASE = "6.1.0-test-amd64"


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """Depmod's data of a kernel with few modules; virtio is made of layers, r8169 has a soft dependency."""
    directory = tmp_path / "tree/lib/modules" / RELEASE
    tables = {
        "modules.dep": (
            "kernel/virtio.ko:\n"
            "kernel/virtio_ring.ko:\n"
            "kernel/virtio_pci.ko: kernel/virtio.ko kernel/virtio_ring.ko\n"
            "kernel/net/virtio_net.ko: kernel/virtio.ko kernel/virtio_ring.ko\n"
            "kernel/net/libphy.ko:\n"
            "kernel/net/realtek.ko: kernel/net/libphy.ko\n"
            "kernel/net/r8169.ko: kernel/net/libphy.ko\n"
            "kernel/sound/unwanted.ko:\n"
        ),
        "modules.softdep": "# Soft dependencies\nsoftdep r8169 pre: realtek post: unwanted\n",
        "modules.builtin": "kernel/loop.ko\nkernel/dm-mod.ko\nkernel/dm-verity.ko\nkernel/squashfs.ko\nkernel/overlay.ko\n",
        "modules.alias": (
            "# Aliases\n"
            "alias pci:v000010ECd00008168sv*sd*bc*sc*i* r8169\n"
            "alias virtio:d00000001v* virtio_net\n"
            "alias pci:v00001234* unwanted\n"
        ),
    }
    (directory / "kernel/net").mkdir(parents=True)
    (directory / "kernel/sound").mkdir()
    for name, content in tables.items():
        (directory / name).write_text(content)
    for line in tables["modules.dep"].splitlines():
        (directory / line.partition(":")[0]).write_bytes(b"a module\0firmware=net/a.fw\0firmware=net/missing.fw\0")
    return directory


def listing(modules: Path, *names: str) -> dict[str, list[str]]:
    return initrd.closure(RELEASE, modules, "# a comment\n\n" + "\n".join(names))


def test_what_a_module_needs_is_loaded_before_it_in_depmods_order(modules: Path) -> None:
    found = listing(modules, "virtio-net")
    assert list(found) == ["kernel/virtio_ring.ko", "kernel/virtio.ko", "kernel/net/virtio_net.ko"]
    assert found["kernel/net/virtio_net.ko"] == ["kernel/virtio_ring.ko", "kernel/virtio.ko"]


def test_a_soft_dependency_comes_too_but_not_one_for_later(modules: Path) -> None:
    found = listing(modules, "r8169")
    assert found["kernel/net/r8169.ko"] == ["kernel/net/libphy.ko", "kernel/net/realtek.ko"]
    assert "kernel/sound/unwanted.ko" not in found


def test_a_module_built_into_the_kernel_is_there_already(modules: Path) -> None:
    assert listing(modules, "!loop", "!squashfs") == {}


def test_a_driver_this_kernel_does_not_have_is_left_out_but_not_one_a_boot_needs(modules: Path) -> None:
    assert listing(modules, "tg3") == {}
    with pytest.raises(BuildError, match=f"Kernel {RELEASE} has no module nvme"):
        listing(modules, "!nvme")


def test_a_tree_without_depmods_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"has no modules\.dep"):
        initrd.build(tmp_path, RELEASE, tmp_path, tmp_path / "initrd", Runner(Recorded("initrd", "")))


def unpacked(packed: Path, target: Path) -> Path:
    target.mkdir()
    plain = subprocess.run(["zstd", "-dcq", str(packed)], capture_output=True, check=True).stdout
    subprocess.run(["cpio", "-idm", "--quiet"], cwd=target, input=plain, check=True)
    return target


@pytest.fixture
def daemon(tmp_path: Path) -> Path:
    directory = tmp_path / "agents/daemon"
    (directory / "__pycache__").mkdir(parents=True)
    (directory.with_name("hands")).mkdir()
    (directory.with_name("hands") / "home.py").write_text("print('hands')\n")
    (directory.with_name("units") / "multi.d").mkdir(parents=True)
    (directory / "__main__.py").write_text("print('here')\n")
    (directory / "__pycache__/old.pyc").write_text("")
    (directory.with_name("units") / "multi.d/a.conf").write_text("[Unit]\n")
    return directory


def test_the_initrd_holds_scripts_daemon_modules_and_their_tables(modules: Path, daemon: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "lib/firmware/net").mkdir(parents=True)
    (tree / "lib/firmware/net/a.fw").write_text("microcode")
    (tree / "lib/firmware/net/unwanted.fw").write_text("another card's")
    run = Runner(Recorded("initrd", ""))
    built = initrd.build(tree, RELEASE, daemon, tmp_path / "initrd", run)
    root = unpacked(tmp_path / "initrd", tmp_path / "root")
    assert built.bytes == (tmp_path / "initrd").stat().st_size
    assert built.modules[-1] == "r8169"
    assert (root / "init").stat().st_mode & 0o777 == 0o755  # switch_root panics without a regular /init
    assert (root / "fleet/mkroot").read_bytes() == (initrd.SCRIPTS / "mkroot").read_bytes()
    assert (root / "fleet/agent/daemon/__main__.py").read_text() == "print('here')\n"
    assert (root / "fleet/agent/hands/home.py").is_file()
    assert (root / "fleet/agent/units/multi.d/a.conf").is_file()
    assert not list(root.rglob("__pycache__"))
    assert [path.name for path in (root / "lib/firmware/net").iterdir()] == ["a.fw"]
    tables = root / "lib/modules" / RELEASE
    assert (tables / "modules.dep").read_text().splitlines()[-1] == "kernel/virtio_ring.ko:"
    assert "kernel/net/r8169.ko: kernel/net/realtek.ko kernel/net/libphy.ko\n" in (tables / "modules.dep").read_text()
    assert (tables / "modules.alias").read_text().count("\n") == 2
    assert sorted(path.name for path in tables.rglob("*.ko*")) == [
        *("libphy.ko.xz", "r8169.ko.xz", "realtek.ko.xz", "virtio.ko.xz", "virtio_net.ko.xz", "virtio_pci.ko.xz"),
        "virtio_ring.ko.xz",
    ]


def test_what_every_boot_loads_is_listed_in_load_order_and_packed_ready_to_load(
    modules: Path, daemon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(initrd.SCRIPTS, tmp_path / "scripts")
    (tmp_path / "scripts/modules").write_text("!virtio_pci\n+no_such_module\n!+r8169\n")
    monkeypatch.setattr(initrd, "SCRIPTS", tmp_path / "scripts")
    initrd.build(tmp_path / "tree", RELEASE, daemon, tmp_path / "initrd", Runner(Recorded("initrd", "")))
    root = unpacked(tmp_path / "initrd", tmp_path / "root")
    listed = (root / "fleet/root-modules").read_text().split()
    assert [Path(path).name for path in listed] == ["libphy.ko", "realtek.ko", "r8169.ko"]
    assert all((root / path.lstrip("/")).read_bytes().startswith(b"a module") for path in listed)
    packed = {path.name for path in root.rglob("*.ko.xz")}
    assert packed == {"virtio.ko.xz", "virtio_ring.ko.xz", "virtio_pci.ko.xz"}


def test_the_same_input_gives_the_same_bytes(modules: Path, daemon: Path, tmp_path: Path) -> None:
    run = Runner(Recorded("initrd", ""))
    shutil.copytree(tmp_path / "tree", tmp_path / "later/tree")
    initrd.build(tmp_path / "tree", RELEASE, daemon, tmp_path / "one", run)
    initrd.build(tmp_path / "later/tree", RELEASE, daemon, tmp_path / "two", run)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".zst"])
def test_modules_that_a_distribution_packed_are_packed_as_busybox_unpacks_them(
    modules: Path, daemon: Path, tmp_path: Path, suffix: str
) -> None:
    """Other distributions compress each module; their tables name them so."""
    packer = {".xz": ["xz"], ".gz": ["gzip"], ".zst": ["zstd", "--quiet", "--rm"]}[suffix]
    for path in modules.rglob("*.ko"):
        subprocess.run([*packer, str(path)], check=True)
    table = modules / "modules.dep"
    table.write_text(table.read_text().replace(".ko", f".ko{suffix}"))
    initrd.build(tmp_path / "tree", RELEASE, daemon, tmp_path / "initrd", Runner(Recorded("initrd", "")))
    root = unpacked(tmp_path / "initrd", tmp_path / "root")
    module = root / "lib/modules" / RELEASE / "kernel/net/r8169.ko.xz"
    assert lzma.decompress(module.read_bytes()).startswith(b"a module")
    assert suffix not in (root / "lib/modules" / RELEASE / "modules.dep").read_text()


def test_cpio_reads_every_kind_of_entry(tmp_path: Path) -> None:
    stream = BytesIO()
    source = tmp_path / "source"
    source.write_bytes(b"\x00odd")
    with Archive(stream, mtime=1_700_000_000) as archive:
        archive.directory("d", 0o2750, uid=3, gid=4)
        archive.file("d/f", source, 0o4755)
        archive.symlink("d/l", "näher/dran")
    target = tmp_path / "target"
    target.mkdir()
    subprocess.run(["cpio", "-idm", "--quiet", "--no-preserve-owner"], cwd=target, input=stream.getvalue(), check=True)
    assert (target / "d/f").read_bytes() == b"\x00odd"
    assert (target / "d/f").stat().st_mode & 0o7777 == 0o4755
    assert str((target / "d/l").readlink()) == "näher/dran"
    said = subprocess.run(
        ["cpio", "-itv", "--numeric-uid-gid", "--quiet"],
        input=stream.getvalue(),
        capture_output=True,
        check=True,
    )
    assert b"drwxr-s---   2 3        4               0 Nov 14  2023 d" in said.stdout
