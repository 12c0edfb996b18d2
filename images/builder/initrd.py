"""Packs the one initrd of all classes: busybox, our scripts, network drivers and the daemon.

Only the kernel decides what is in it: the modules come from the tree it will boot, closed over their
dependencies by depmod's own data. Everything else (class, version, user) is asked for at boot.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from images.builder.cpio import Archive
from images.builder.errors import BuildError
from images.builder.run import Runner

SCRIPTS = Path(__file__).resolve().parent.parent / "initrd"
DIRECTORIES = (
    "bin", "dev", "fleet", "fleet/agent", "lib", "lib/firmware", "lib/modules",
    "proc", "root", "run", "sbin", "sys",
)  # fmt: skip
# What our scripts call. The kernel itself calls /sbin/modprobe for protocols and PHY drivers.
APPLETS = (
    "cat", "chmod", "chown", "chroot", "cp", "cpio", "cut", "dd", "find", "grep", "insmod", "ip", "kill", "ln", "losetup",
    "mkdir", "mount", "mv", "reboot", "rm", "rmdir", "setsid", "sh", "sha256sum", "sleep", "stat", "switch_root", "sync", "timeout", "tr",
    "udhcpc", "umount", "uname", "unxz", "usleep", "wget",
)  # fmt: skip
# Each of the Debian package of its name: the one that tells the kernel of a hash tree (DM_TABLE_LOAD), the one that checks
# the signature of the boot plan.
PROGRAMS = ("dmsetup", "signify-openbsd")
# For the kernel that starts it. Its algorithms were tested by those who built it; at each boot that costs more than a second
# (cryptomgr's tests, and crypto_kdf108_init, which is nothing but one).
KERNEL_WORDS = "quiet cryptomgr.notests initcall_blacklist=crypto_kdf108_init"
_LIBRARY = re.compile(r"(/\S+) \(0x")  # of ldd: libm.so.6 => /lib/…/libm.so.6 (0x00007f…), or the loader alone
_FIRMWARE = re.compile(rb"\0firmware=([!-~]+)\0")


@dataclass(frozen=True)
class Initrd:
    """What was packed: module names in load order, and the size of the result in bytes."""

    modules: tuple[str, ...]
    bytes: int


def build(tree: Path, kernel_release: str, daemon: Path, output: Path, run: Runner) -> Initrd:
    """Write the initrd for the kernel `kernel_release` of `tree` to `output`: zstd, always the same bytes.

    `daemon` is the directory of the daemon; it and those beside it that belong to it land in the initrd's /fleet/agent.
    """
    modules_dir = tree / "lib/modules" / kernel_release
    if not (modules_dir / "modules.dep").is_file():
        raise BuildError(f"{modules_dir} has no modules.dep: install kernel {kernel_release} and run depmod.")
    listing = (SCRIPTS / "modules").read_text()
    modules = closure(kernel_release, modules_dir, listing)
    with tempfile.TemporaryDirectory(prefix="initrd-", dir=output.parent) as scratch:
        plain = Path(scratch, "initrd.cpio")
        with plain.open("wb") as stream, Archive(stream) as archive:
            for name in DIRECTORIES:
                archive.directory(name)
            _pack_programs(archive, run)
            for part in with_hands(daemon):
                archive.directory(f"fleet/agent/{part.name}")
                _pack_tree(archive, part, f"fleet/agent/{part.name}")
            _pack_modules(archive, modules_dir, kernel_release, modules, loaded_always(modules, listing))
            _pack_firmware(archive, tree, modules_dir, modules)
        run(["zstd", "--quiet", "--force", "-9", str(plain), "-o", str(output)])
    return Initrd(tuple(_name(path) for path in modules), output.stat().st_size)


def with_hands(daemon: Path) -> list[Path]:
    """The daemon, what does its work on a client, and the units of both; `daemon` itself is where the others lie too."""
    return [daemon, daemon.with_name("hands"), daemon.with_name("units")]


@dataclass(frozen=True)
class Wanted:
    """A line of `images/initrd/modules`: whether a boot cannot do without the module, and whether each loads it."""

    name: str
    required: bool
    always: bool


def fingerprint(tree: Path, kernel_release: str, daemon: Path, run: Runner) -> str:
    """SHA-256 (hex) of all that `build` would read: the same fingerprint, the same initrd."""
    modules_dir = tree / "lib/modules" / kernel_release
    modules = closure(kernel_release, modules_dir, (SCRIPTS / "modules").read_text())
    read = {f"module {path}": modules_dir / path for path in modules}
    read |= {f"table {name}": modules_dir / name for name in ("modules.dep", "modules.alias", "modules.softdep")}
    read |= {f"firmware {name}": path for name, path in _firmware(tree, modules_dir, modules).items()}
    read |= {f"program {name}": path for name, path in _programs(run).items()}
    read |= {"program busybox": _busybox(run), "this": Path(__file__)}
    for top in (SCRIPTS, *with_hands(daemon)):
        read |= {f"{path.relative_to(top.parent)}": path for path in top.rglob("*") if "__pycache__" not in path.parts}
    digest = hashlib.sha256(kernel_release.encode())
    for name, path in sorted(read.items()):
        if path.is_file():
            digest.update(
                f"\0{name} {path.stat().st_mode & 0o100}\0".encode() + hashlib.sha256(path.read_bytes()).digest()
            )
    return digest.hexdigest()


def wanted(listing: str) -> list[Wanted]:
    lines = (line.strip() for line in listing.splitlines())
    found = []
    for line in lines:
        if line and not line.startswith("#"):
            name = line.lstrip("!+")
            marks = line[: -len(name)]
            found.append(Wanted(name, "!" in marks, "+" in marks))
    return found


def closure(release: str, modules_dir: Path, listing: str) -> dict[str, list[str]]:
    """Path of each module (below `modules_dir`) → what must be loaded before it, in load order.

    Follows depmod's modules.dep and the "pre" part of its modules.softdep, which busybox's modprobe ignores.
    The keys are in load order too. Raises BuildError for a module marked "!" that this kernel does not have.
    """
    needs: dict[str, list[str]] = {}
    for line in (modules_dir / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()[::-1]  # modules.dep lists what comes first last
    paths = {_canonical(_name(path)): path for path in needs}
    built_in = {_canonical(_name(line)) for line in (modules_dir / "modules.builtin").read_text().splitlines()}
    soft = _soft_dependencies(modules_dir / "modules.softdep")
    found: dict[str, list[str]] = {}

    def visit(path: str) -> None:
        if path in found:
            return
        before = [paths[name] for name in soft.get(_canonical(_name(path)), ()) if name in paths]
        order: dict[str, None] = {}
        for other in [*needs[path], *before]:
            visit(other)
            order.update(dict.fromkeys([*found[other], other]))
        found[path] = list(order)

    for module in wanted(listing):
        name = _canonical(module.name)
        if name in paths:
            visit(paths[name])
        elif module.required and name not in built_in:
            raise BuildError(f"Kernel {release} has no module {module.name}, which no client can boot without.")
    return found


def loaded_always(modules: dict[str, list[str]], listing: str) -> list[str]:
    """Of what `closure` gave, the paths that every boot loads, in load order."""
    names = {_canonical(module.name) for module in wanted(listing) if module.always}
    first = {other for path, needs in modules.items() if _canonical(_name(path)) in names for other in (path, *needs)}
    return [path for path in modules if path in first]


def _soft_dependencies(path: Path) -> dict[str, list[str]]:
    """Canonical module name → canonical names to load before it (lines "softdep r8169 pre: realtek")."""
    result: dict[str, list[str]] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        words = line.split()
        if words[:1] == ["softdep"] and "pre:" in words:
            rest = words[words.index("pre:") + 1 :]
            names = rest[: rest.index("post:")] if "post:" in rest else rest
            result[_canonical(words[1])] = [_canonical(name) for name in names]
    return result


def _name(path: str) -> str:
    return Path(path).name.partition(".ko")[0]


def _canonical(name: str) -> str:
    return name.replace("-", "_")


def _pack_programs(archive: Archive, run: Runner) -> None:
    """busybox with a link per applet, and the scripts: `init` at the root, the others in /fleet."""
    archive.file("bin/busybox", _busybox(run), 0o755)
    for applet in APPLETS:
        archive.symlink(f"bin/{applet}", "busybox")
    archive.symlink("sbin/modprobe", "../fleet/modprobe")
    programs = _programs(run)
    for name in _parents(programs):
        if name not in DIRECTORIES:
            archive.directory(name)
    for name, path in sorted(programs.items()):
        archive.file(name, path.read_bytes(), 0o755)
    for script in sorted(SCRIPTS.iterdir()):
        if script.name == "init":
            archive.file("init", script, 0o755)
        elif script.name != "modules" and not script.name.startswith("."):
            archive.file(f"fleet/{script.name}", script, 0o755 if script.read_bytes()[:2] == b"#!" else 0o644)


def _busybox(run: Runner) -> Path:
    found = shutil.which("busybox")
    if found is None or not _is_static(Path(found)):
        raise BuildError("The initrd needs a static busybox: install the Debian package busybox-static.")
    missing = set(APPLETS) - set(run([found, "--list"]).split())
    if missing:
        raise BuildError(f"{found} has no applet {', '.join(sorted(missing))}: install Debian's busybox-static.")
    return Path(found)


def _programs(run: Runner) -> dict[str, Path]:
    """What busybox has no applet for, and the libraries it is linked with: their names in the initrd, where they are here."""
    found: dict[str, Path] = {}
    for name in PROGRAMS:
        program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is None:
            raise BuildError(f"The initrd needs {name}: install the Debian package {name}.")
        libraries = _LIBRARY.findall(run(["ldd", program]))
        found |= {f"bin/{name}": Path(program)} | {path.removeprefix("/"): Path(path) for path in libraries}
    return found


def _is_static(program: Path) -> bool:
    """An ELF file for 64 bit, little endian, that asks for no interpreter (no PT_INTERP program header)."""
    content = program.read_bytes()
    if content[:6] != b"\x7fELF\x02\x01":
        return False
    (offset,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    return all(struct.unpack_from("<I", content, offset + i * size) != (3,) for i in range(count))


def _pack_tree(archive: Archive, source: Path, name: str) -> None:
    """A directory of plain files, without what Python caches beside them; `name` exists already."""
    for path in sorted(source.iterdir()):
        if path.name == "__pycache__":
            continue
        if path.is_symlink():
            archive.symlink(f"{name}/{path.name}", str(path.readlink()))
        elif path.is_dir():
            archive.directory(f"{name}/{path.name}")
            _pack_tree(archive, path, f"{name}/{path.name}")
        else:
            archive.file(f"{name}/{path.name}", path, 0o755 if path.stat().st_mode & 0o100 else 0o644)


def _pack_modules(
    archive: Archive, modules_dir: Path, release: str, modules: dict[str, list[str]], first: list[str]
) -> None:
    """Each module with the two tables busybox's modprobe reads.

    Those that each boot loads as they are, listed in /fleet/root-modules; the others as xz files (images/initrd/modprobe).
    """
    base = f"lib/modules/{release}"
    archive.directory(base)
    for name in _parents(modules):
        archive.directory(f"{base}/{name}")
    for path in sorted(modules):
        content = _decompressed(modules_dir / path)
        if path in first:
            archive.file(f"{base}/{_plain(path)}", content)
        else:
            archive.file(f"{base}/{_plain(path)}.xz", lzma.compress(content, check=lzma.CHECK_CRC32))
    archive.file("fleet/root-modules", "".join(f"/{base}/{_plain(path)}\n" for path in first).encode())
    dependencies = "".join(
        f"{_plain(path)}: {' '.join(_plain(first) for first in reversed(modules[path]))}".rstrip() + "\n"
        for path in sorted(modules)
    )
    archive.file(f"{base}/modules.dep", dependencies.encode())
    names = {_canonical(_name(path)) for path in modules}
    aliases = (modules_dir / "modules.alias").read_text().splitlines(keepends=True)
    kept = [line for line in aliases if _canonical(line.split()[-1]) in names and line.startswith("alias ")]
    archive.file(f"{base}/modules.alias", "".join(kept).encode())


def _firmware(tree: Path, modules_dir: Path, modules: dict[str, list[str]]) -> dict[str, Path]:
    """The firmware files these modules name (section .modinfo), as far as the tree has them."""
    named = {name for path in modules for name in _FIRMWARE.findall(_decompressed(modules_dir / path))}
    present: dict[str, Path] = {}
    for name in sorted(raw.decode() for raw in named):
        for suffix in ("", ".xz", ".zst"):  # the kernel looks for the compressed ones itself
            path = tree / "lib/firmware" / (name + suffix)
            if path.is_file():
                present[name + suffix] = path
    return present


def _pack_firmware(archive: Archive, tree: Path, modules_dir: Path, modules: dict[str, list[str]]) -> None:
    present = _firmware(tree, modules_dir, modules)
    for directory in _parents(present):
        archive.directory(f"lib/firmware/{directory}")
    for name, path in present.items():
        archive.file(f"lib/firmware/{name}", path.read_bytes())


def _parents(names: Iterable[str]) -> list[str]:
    """All directories above these relative names, each after its own parent."""
    return sorted({str(parent) for name in names for parent in Path(name).parents if str(parent) != "."})


def _plain(path: str) -> str:
    return path.partition(".ko")[0] + ".ko"


def _decompressed(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(content)
    if path.suffix == ".gz":
        return gzip.decompress(content)
    if path.suffix == ".zst":
        return subprocess.run(
            ["zstd", "--decompress", "--stdout", "--quiet", path], check=True, capture_output=True
        ).stdout
    if path.suffix != ".ko":
        raise BuildError(f"{path} is packed in a way the builder cannot read ({path.suffix}).")
    return content
