"""Files that the site and an upgrade have both changed: found when a version becomes ready; who decides: merge_orders.py.

The builder leaves the site's file in the image and says what the package has (``images.builder.sitefiles``). Against the version
before, that tells whether the package's changed.
"""

import difflib
import logging
from collections.abc import Iterator

from images import volatility
from images.builder.errors import BuildError
from images.builder.manifest import Manifest
from images.builder.merge3 import merge
from images.builder.store import Artefact, Store
from images.merge_models import FileMerge
from images.models import ImageVersion

log = logging.getLogger(__name__)
MOST_BYTES = 64 * 1024  # of a text that a person reads in a page


def find(version: ImageVersion, manifest: Manifest, store: Store) -> list[FileMerge]:
    """What there is to decide, unsaved. A file that cannot be read or shown is left to the site's: a version is not lost by it."""
    before = volatility.predecessor(version)
    known = before.contents.site_files if before and before.contents else {}
    found = []
    for path, file in manifest.site_files.items():
        old = known.get(path)
        if old.original == file.original if old else not file.upgraded:
            continue
        try:
            base = _text(store, old.original) if old else None
            site, package = _text(store, file.site), _text(store, file.original)
            merged, clean = merge(site, base, package) if base is not None else ("", False)
        except (BuildError, OSError, ValueError) as error:
            log.warning(
                "%s of %s was changed by the site and by an upgrade; it cannot be merged: %s", path, version, error
            )
            continue
        found.append(FileMerge(version=version, path=path, mode=file.mode, base=base, site=site, package=package,
                               merged=merged, is_clean=clean))  # fmt: skip
    return found


def _text(store: Store, artefact: Artefact) -> str:
    """Raises ValueError for what is no text, or too much of it."""
    if artefact.bytes > MOST_BYTES:
        raise ValueError(f"it has {artefact.bytes} bytes")
    return store.require(artefact).read_bytes().decode()


def sides(row: FileMerge) -> Iterator[tuple[str, list[str]]]:
    """For the page: what each side changed, as lines of a unified diff. Without a base, the one against the other."""

    def lines(old: str, new: str) -> list[str]:
        return list(difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=2))[2:]

    if row.base is None:
        yield "The package's file against yours", lines(row.site, row.package)
    else:
        yield "What you changed", lines(row.base, row.site)
        yield "What the upgrade changed", lines(row.base, row.package)
