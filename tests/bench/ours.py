"""Our own boot: the real builder's version, booted by our initrd through a gateway."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from images.builder import store as stores
from images.builder.__main__ import DAEMON, Terminal
from images.builder.director import Context, build
from images.builder.initrd import KERNEL_WORDS
from images.builder.manifest import Manifest
from images.builder.recipe import Recipe, RecipeFile
from images.builder.verity import Verity
from tests.bench import guest
from tests.bench.peers.tree import GUEST, MEASURE, SUITE
from tests.bench.report import progress
from tests.initrd.gateway import Gateway, Version

# What iPXE adds to the command line: the lease the firmware got (here: QEMU's user network).
LEASE = "fleet.ip=10.0.2.15 fleet.netmask=255.255.255.0 fleet.router=10.0.2.2 fleet.dns=10.0.2.3"
WORDS = f"{LEASE} {KERNEL_WORDS}"
# After the measurement: what lies in memory as files, the root and the image in it among them.
AFTER = RecipeFile("/usr/local/lib/bench/after", "#!/bin/sh\nexec df -k -t tmpfs --output=used,target\n", 0o755)
_SOURCES = Path(__file__).resolve().parents[2]


def built(cache: Path) -> Path:
    """The manifest of a version of the base packages; built anew when recipe, builder, initrd or daemon changed."""
    store = stores.Store(cache / "store")
    files = tuple(
        RecipeFile(target, (GUEST / name).read_text(), 0o755 if name == "getty" else 0o644)
        for name, target in MEASURE.items()
    )
    recipe = Recipe(name="bench", suite=SUITE, packages=("zstd",), files=(*files, AFTER))
    digest = hashlib.sha256(recipe.digest.encode())
    for directory in ("images/builder", "images/initrd", "agents/daemon", "agents/hands", "agents/units"):
        for path in sorted((_SOURCES / directory).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.read_bytes())
    known = cache / f"ours-{digest.hexdigest()[:16]}"
    if not known.is_file():
        progress("ours: builds")
        manifest = build(recipe, Context(cache / "work", store, DAEMON), Terminal(verbose=False))
        known.write_text(json.dumps(manifest.to_dict()))
    return known


def artefacts(cache: Path, version: Path) -> Version:
    """What the version of the manifest file `version` boots, from the cache."""
    store = stores.Store(cache / "store")
    manifest = Manifest.from_dict(json.loads(version.read_text()))
    verity = Verity(manifest.root_hash, manifest.root_blocks)
    path = {part: store.require(artefact) for part, artefact in manifest.artefacts().items()}
    return Version(path["kernel"], path["initrd"], path["root"], path["plan"], path["home"], verity, check="read")


def boot(served: Version, name: str, log: Path, idle: guest.Idle = "skip") -> guest.Measured:
    with Gateway(served) as gateway:
        gateway.command_line = ""
        append = gateway.append(f"http://{guest.HOST}:{gateway.port}", guest.MAC, WORDS)
        return guest.boot(name, guest.Boot(served.kernel, served.initrd, append), log, idle)
