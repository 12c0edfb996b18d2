"""A virtual PC that booted a real image, and whose daemon talks to the scripted gateway."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from agents import speaking
from agents.daemon import protocol
from fleet.signify import signify, signify_key
from fleet.signing import Signer
from images.builder.manifest import Manifest
from images.builder.recipe import Hook, Recipe, RecipeFile
from images.builder.store import Store
from tests.daemon.gateway import Gateway
from tests.daemon.stubborn import STUBBORN
from tests.lab import Lab, Pc
from tests.lab.recipe import ROOT_LOGIN, ROOT_SHELL

_HOME = """cd /home/player
ln -s settings .config/game/current
ln -s /nowhere dangling
mkfifo -m 620 pipe
chmod 2750 .config/game
chgrp games .config/game/settings
python3 -c 'import os; os.setxattr(".profile", "user.origin", b"template")'
"""
RECIPE = Recipe(
    name="test-cycle",
    suite="bookworm",
    packages=("tmux", "procps"),
    files=(ROOT_SHELL, RecipeFile("/usr/local/bin/stubborn", STUBBORN, 0o755)),
    hooks=(Hook("a home with more than plain files", _HOME),),
    home_files=(
        RecipeFile(".profile", "PATH=/usr/games:$PATH\n"),
        RecipeFile(".config/game/settings", "volume=11\n"),
        RecipeFile(".config/game/run", "#!/bin/sh\n", 0o750),
    ),
)


class Machine:
    """The PC, its gateway, and the arguments of a cycle that gives the version's own home back."""

    def __init__(self, gateway: Gateway, pc: Pc, manifest: Manifest) -> None:
        self.gateway, self.pc = gateway, pc
        self.home: dict[str, Any] = {
            "home": manifest.home.sha256,
            "home_bytes": manifest.home.bytes,
            "home_digest": manifest.home_digest,
        }

    def wait_for_state(self, state: str, since: int = 0, seconds: float = 120) -> float:
        """When (monotonic) the first poll after the first `since` ones said so."""

        def polled() -> float:
            return next((when for when, said in self.gateway.polls[since:] if said == state), 0.0)

        return float(self.gateway.wait(polled, seconds))

    def sessions(self) -> set[str]:
        """The user's sessions, as logind has them."""
        return set(self.pc.sh("loginctl --no-legend list-sessions | awk '$3 == \"player\" {print $1}'").split())

    def wait_for_report(self, command: protocol.Command, *states: str, seconds: float = 120) -> dict[str, Any]:
        """The daemon's report on a command in one of `states`, without which a terminal one."""
        wanted = states or (protocol.SUCCEEDED, protocol.FAILED, protocol.REFUSED)
        return dict(self.gateway.wait(lambda: self.gateway.told(command.command, *wanted), seconds))


@contextmanager
def machine(manifest: Manifest, store: Store, memory_mib: int = 1024) -> Iterator[Machine]:
    """Boots, by direct kernel start over QEMU's user network, until the user is logged in."""
    gateway = Gateway()
    paths = {name: store.path(part.sha256) for name, part in manifest.artefacts().items()}
    plan: dict[str, object] = {
        "protocol": protocol.PLAN_VERSION,
        "daemon": protocol.VERSION,
        "action": "boot",
        "session": gateway.session,
        "bearer": gateway.bearer,
        "client": gateway.client,
        "name": "seat-7",
        "class": "gamer",
        "version": "gamer-7",
        "digest": manifest.digest,
        "root_hash": manifest.root_hash,
        "root_blocks": manifest.root_blocks,
        "check": "read",
        "home_digest": manifest.home_digest,
        "user": "player",
        "uid": 1000,
        "tmpfs_percent": 50,
        "home_percent": 50,
        "command_keys": speaking.format_keys({gateway.command_key.name: gateway.command_key.public}),
        "session_keys": speaking.format_keys({gateway.session_key.name: gateway.session_key.public}),
    }
    for name in ("root", "plan", "home"):
        artefact = manifest.artefacts()[name]
        gateway.artefacts[artefact.sha256] = paths[name].read_bytes()
        plan |= {name: artefact.sha256, f"{name}_bytes": artefact.bytes}

    def answer(body: bytes) -> bytes:
        gateway.boot_id = dict(urllib.parse.parse_qsl(body.decode()))["boot_id"]
        text = speaking.format_plan({**plan, "boot": gateway.boot_id}).encode()
        return text + b"signature=%s\n" % signify(signer, text).encode()

    signer = Signer(gateway.session_key.name, gateway.session_key.secret)
    gateway.pages["/boot/v1/plan"] = answer
    try:
        with Lab(gateway.server.server_address[1], network="user") as lab:
            pc = lab.pc("seat-7", memory_mib=memory_mib)
            words = f"console=ttyS0 fleet.server={lab.url} fleet.mac={pc.mac} fleet.token={'a' * 32}"
            words += f" fleet.keys={signify_key(gateway.session_key.public)}"
            pc.boot(paths["kernel"], paths["initrd"], words)
            pc.wait_for(ROOT_LOGIN, 180)
            booted = Machine(gateway, pc, manifest)
            try:
                booted.wait_for_state(protocol.READY, seconds=60)
            except AssertionError as error:
                log = pc.sh("journalctl -b -u fleet-agent -u getty@tty1 --no-pager | tail -40; loginctl --no-pager")
                raise AssertionError(f"The user was not logged in; the PC's journal:\n{log}") from error
            yield booted
    finally:
        gateway.close()
