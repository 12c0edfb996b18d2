"""Kernel and initrd of a version, looked at before a firmware is sent to them.

What comes after is checked by the initrd, against the signed boot plan. The firmware checks nothing, so the server does.
"""

import time
from functools import lru_cache
from pathlib import Path

from django.conf import settings

from images.builder.store import Artefact
from images.models import ImageVersion

_AGAIN_S = 600  # a disk may lose a bit of a file that nobody writes to


def fault(version: ImageVersion) -> str:
    """Why no client should start with what the store has; "" when kernel and initrd are what the manifest names.

    One that is missing is none of this: a client that asks for it is told so.
    """
    manifest, objects = version.contents, settings.STORE / "objects"  # not a Store: the gateway may only read
    assert manifest is not None
    for part in ("kernel", "initrd"):
        artefact = manifest.artefacts()[part]
        path = objects / artefact.sha256[:2] / artefact.sha256
        try:
            status = path.stat()
            file = (status.st_ino, status.st_mtime_ns, status.st_size)
            if not _is_whole(path, artefact.sha256, file, int(time.time() // _AGAIN_S)):
                return f"its {part} is damaged in the store"
        except FileNotFoundError:
            continue
    return ""


@lru_cache(maxsize=256)  # 20 ms for the two: once for ten thousand clients that start together
def _is_whole(path: Path, sha256: str, _file: tuple[int, ...], _period: int) -> bool:
    return Artefact.of(path).sha256 == sha256
