"""Two versions beside each other: packages, sizes, what is volatile; and the files of their roots, which takes a look into the store."""

from collections.abc import Mapping
from dataclasses import dataclass

from images.builder.errors import BuildError
from images.builder.manifest import Manifest
from images.builder.squashfs import files
from images.builder.store import Store


@dataclass(frozen=True)
class Changed:
    """A package or a figure in the one and in the other; "" where there is none."""

    name: str
    old: str
    new: str


@dataclass(frozen=True)
class Comparison:
    """What is different; ``sizes`` in bytes: name, old, new, new less old."""

    packages: tuple[Changed, ...]
    sizes: tuple[tuple[str, int, int, int], ...]
    volatile: tuple[tuple[str, int, int, int], ...]
    kernel: Changed | None
    same_home: bool


def compare(old: Manifest, new: Manifest) -> Comparison:
    """By what the manifests say: no artefact is read."""
    kernels = (old.kernel_release, new.kernel_release)
    return Comparison(
        packages=_changes(_packages(old), _packages(new)),
        sizes=_figures(old.sizes, new.sizes),
        volatile=_figures(old.volatile, new.volatile),
        kernel=Changed("kernel", *kernels) if kernels[0] != kernels[1] else None,
        same_home=old.home_digest == new.home_digest,
    )


def _packages(manifest: Manifest) -> dict[str, str]:
    """Versions by name, those of one name together: two architectures, or two kernels."""
    found: dict[str, list[str]] = {}
    for package in manifest.packages:
        found.setdefault(package.name, []).append(package.version)
    return {name: ", ".join(sorted(set(versions))) for name, versions in found.items()}


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[Changed, ...]:
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return tuple(Changed(name, old.get(name, ""), new.get(name, "")) for name in names)


def _figures(old: Mapping[str, int], new: Mapping[str, int]) -> tuple[tuple[str, int, int, int], ...]:
    names = [*old, *(name for name in new if name not in old)]
    rows = ((name, old.get(name, 0), new.get(name, 0)) for name in names)
    return tuple((name, before, after, after - before) for name, before, after in rows)


@dataclass(frozen=True)
class Files:
    """Paths of the root: in the new one only, in the old one only, and those whose type, mode, owner or size differ."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


def compare_files(old: Manifest, new: Manifest, store: Store) -> Files:
    """By the directories of the two roots. Raises BuildError when one is not in the store (archived, forgotten)."""
    if old.root.sha256 == new.root.sha256:
        return Files((), (), ())
    before, after = (_listed(manifest, store) for manifest in (old, new))
    added, removed = after.keys() - before.keys(), before.keys() - after.keys()
    changed = (path for path in after.keys() & before.keys() if after[path] != before[path])
    return Files(tuple(sorted(added)), tuple(sorted(removed)), tuple(sorted(changed)))


def _listed(manifest: Manifest, store: Store) -> dict[str, str]:
    root = store.path(manifest.root.sha256)
    if not root.is_file():
        raise BuildError(
            f"the root {manifest.root.sha256[:12]} is not in the store: restore its version, or build it again"
        )
    return files(root, manifest.epoch)
