"""A capture: the user's home, packed by a process of the user's, is given away as it is packed; nothing of it is kept.

What was sent (its length and SHA-256) is known at the end only, and then reported: the server takes it if that is what came.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from . import pack as program
from .session import Stuck

BLOCK = 1 << 18
LIMIT_S = 900.0  # the server waits no longer either


class Capture:
    """One run. `upload` sends blocks and returns what the server says that it received; `result` is what was sent."""

    def __init__(self, home: str, uid: int, most: int, upload: Callable[[Iterator[bytes]], dict[str, Any]]) -> None:
        self.home, self.uid, self.most, self.upload = home, uid, most, upload
        self.seen, self.bytes = hashlib.sha256(), 0
        self.result: dict[str, Any] = {}

    def run(self) -> None:
        """Stuck or OSError where not all of the home arrived, and then the server keeps nothing of it."""
        packer = [sys.executable, "-E", "-s", "-S", program.__file__, self.home]
        owner = os.stat(self.home)
        if owner.st_uid != self.uid:
            raise Stuck(f"{self.home} is not the user's: there is no home to capture.")
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        with subprocess.Popen(
            packer, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/", env=environment,
            user=self.uid, group=owner.st_gid, extra_groups=[],
        ) as process:  # fmt: skip
            clock = threading.Timer(LIMIT_S, process.kill)  # a file system of the user's may never answer
            clock.start()
            try:
                received = self.upload(self.blocks(process))
                counts = self.counts(process)
            finally:
                clock.cancel()
                process.kill()
        sent = {"bytes": self.bytes, "sha256": self.seen.hexdigest()}
        if any(received.get(key) != value for key, value in sent.items()):
            raise Stuck(f"The server received {received.get('bytes')} bytes that are not the {self.bytes} sent.")
        self.result = {**sent, **counts}

    def account(self) -> dict[str, Any]:
        """Nothing was thrown away."""
        return {}

    def blocks(self, process: subprocess.Popen[bytes]) -> Iterator[bytes]:
        """The stream, counted. It ends by an error, and so the upload without its end, where the packer did not end well."""
        assert process.stdout is not None
        while block := process.stdout.read(BLOCK):
            self.bytes += len(block)
            if self.bytes > self.most:
                raise Stuck(f"The home is larger than {self.most >> 20} MiB: clear it up first.")
            self.seen.update(block)
            yield block
        if process.wait() != 0:
            raise Stuck(f"Packing the home ended with {process.returncode}: was the PC cycled, or its user logged out?")

    def counts(self, process: subprocess.Popen[bytes]) -> dict[str, int]:
        """Files packed and skipped, as the packer says; the user could make it say anything."""
        assert process.stderr is not None
        try:
            said = json.loads(process.stderr.read(4096).splitlines()[-1])
            return {key: int(said[key]) for key in ("files", "skipped")}
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            return {}
