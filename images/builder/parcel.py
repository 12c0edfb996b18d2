"""A version as one file for a store without a network: a tar with only the chunks that the other side lacks.

Members, in this order: `version.json` (what it is, what it builds on), `manifest`, `index/<sha256>` for each artefact that
differs, `chunk/<sha256>` for each chunk that is in none of the base's artefacts. Nothing of it is believed: names are compared with
what may stand there, sizes are bounded, every artefact must have its SHA-256, and only then is it put into the store.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from images.builder import chunks
from images.builder.errors import BuildError, DiskFull
from images.builder.store import Artefact, Store

FORMAT = "stateless-fleet version 1"
_MOST_TEXT = 64 << 20  # bytes of version.json and of a manifest
_MOST_CHUNK = 2 * chunks.SIZES[2]  # of a compressed chunk
_LONGEST_SIGNATURE = 128  # characters
_MEMBER = re.compile(r"(index|chunk)/([0-9a-f]{64})")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Tell = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Label:
    """What a parcel says of itself, before anything is unpacked."""

    name: str  # of the version, where it comes from
    digest: str  # of its manifest
    recipe: dict[str, Any]
    artefacts: tuple[Artefact, ...]
    base: tuple[str, ...]  # digests of artefacts that the other side must have
    signature: str  # of the manifest, by who built it


@dataclass(frozen=True, slots=True)
class Shipped:
    """What an export came to: bytes of the file, and of the version's artefacts."""

    bytes: int
    whole_bytes: int

    @property
    def ratio(self) -> float:
        return self.bytes / self.whole_bytes


def export(label: Label, store: Store, output: Path, tell: Tell = lambda _: None) -> Shipped:
    """Write the parcel to the new file `output`, which is complete or not there.

    Raises BuildError when an artefact is missing or damaged, FileExistsError when `output` is there.
    """
    known = set(label.base)
    with store.scratch() as work, output.open("xb") as file:
        try:
            there: set[str] = set()
            for sha256 in label.base:
                index = _cut(store, sha256, work / "base", work)
                there.update(digest for _, digest in chunks.chunks_of(index))
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                _add(tar, "version.json", json.dumps({"format": FORMAT, **asdict(label)}, sort_keys=True).encode())
                _add(tar, "manifest", store.path(label.digest).read_bytes())
                new: dict[str, None] = {}
                for artefact in label.artefacts:
                    if artefact.sha256 in known:
                        continue
                    tell(f"cutting {artefact.sha256[:12]}, {artefact.bytes} bytes")
                    index = _cut(store, artefact.sha256, work / "new", work)
                    _add(tar, f"index/{artefact.sha256}", index.read_bytes())
                    new.update(dict.fromkeys(digest for _, digest in chunks.chunks_of(index)))
                tell(f"writing {len(new.keys() - there)} of {len(new)} chunks")
                for digest in new:
                    if digest not in there:
                        _add(tar, f"chunk/{digest}", chunks.chunk_path(work / "new", digest).read_bytes())
        except BaseException:
            output.unlink()
            raise
    return Shipped(output.stat().st_size, sum(artefact.bytes for artefact in label.artefacts))


def _cut(store: Store, sha256: str, place: Path, work: Path) -> Path:
    """The index of an artefact, its chunks in `place`; of an archived one, too. Raises BuildError when it is not there."""
    path, index, archive = store.path(sha256), work / f"{sha256}.caibx", chunks.Archive(store)
    if not path.is_file() and archive.has(sha256):
        path = work / "restored"
        path.unlink(missing_ok=True)
        chunks.join(archive.index(sha256), path, archive.chunks)
    if not path.is_file() or Artefact.of(path).sha256 != sha256:
        raise BuildError(f"the artefact {sha256} is missing or damaged; `manage.py store verify` says whose it is")
    chunks.cut(path, place, index)
    return index


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def unpack(file: IO[bytes], store: Store, accept: Callable[[Label, dict[str, Any]], object], tell: Tell) -> Label:
    """Put a parcel's version into the store: complete when this returns; what is there when it raises is collected.

    `accept` is asked once the label and the manifest are read, and may raise. Raises BuildError for what is damaged, foreign or
    lacks its base.
    """
    with store.scratch() as work:
        try:
            with tarfile.open(fileobj=file, mode="r|") as tar:
                label, manifest = _label(tar), _read(tar.next(), "manifest", tar)
                if hashlib.sha256(manifest).hexdigest() != label.digest:
                    raise BuildError("its manifest is damaged, or another version's")
                accept(label, json.loads(manifest))
                _bounded(label, store)
                _scatter(tar, label, work)
        except (tarfile.TarError, UnicodeDecodeError, json.JSONDecodeError, EOFError) as error:
            raise BuildError(f"it is cut short, or no version that was exported ({error})") from error
        tell(f"{label.name}: {len(label.artefacts)} artefacts")
        for sha256 in label.base:
            _cut(store, sha256, work / "base", work)
        for artefact in label.artefacts:
            _place(artefact, label, store, work)
            tell(f"{artefact.sha256[:12]}, {artefact.bytes} bytes")
        (work / "manifest").write_bytes(manifest)
        store.put(work / "manifest")
    return label


def _label(tar: tarfile.TarFile) -> Label:
    data = json.loads(_read(tar.next(), "version.json", tar))
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise BuildError("it is no version that was exported by this program, or by a younger one")
    try:
        data["artefacts"] = tuple(Artefact(**row) for row in data["artefacts"])
        label = Label(**(data | {"base": tuple(data["base"])}))
        digests = [label.digest, *label.base, *(artefact.sha256 for artefact in label.artefacts)]
        sound = all(_SHA256.fullmatch(digest) for digest in digests) and isinstance(label.recipe, dict)
        sound = sound and isinstance(label.name, str) and all(type(row.bytes) is int for row in label.artefacts)
        sound = sound and isinstance(label.signature, str) and len(label.signature) <= _LONGEST_SIGNATURE
        sound = sound and all(artefact.bytes >= 0 for artefact in label.artefacts)
    except (KeyError, TypeError) as error:
        raise BuildError(f"its label is not one: {error}") from error
    if not sound:
        raise BuildError("its label names what is no artefact")
    return label


def _bounded(label: Label, store: Store) -> None:
    wanted = 2 * sum(artefact.bytes for artefact in label.artefacts if not store.path(artefact.sha256).exists())
    free = shutil.disk_usage(store.root).free
    if wanted > free:
        raise DiskFull(f"{label.name} wants {wanted} bytes while it is unpacked, {store.root} has {free}; make room")


def _read(member: tarfile.TarInfo | None, name: str, tar: tarfile.TarFile) -> bytes:
    """The content of a member that must be a file of this name."""
    if member is None or member.name != name or not member.isreg():
        raise BuildError(f"it has {member.name!r} where {name} belongs" if member else f"it ends before {name}")
    if member.size > _MOST_TEXT:
        raise BuildError(f"its {name} has {member.size} bytes, no version's has more than {_MOST_TEXT}")
    return _content(member, tar)


def _content(member: tarfile.TarInfo, tar: tarfile.TarFile) -> bytes:
    stream = tar.extractfile(member)
    content = stream.read() if stream else b""
    if len(content) != member.size:
        raise BuildError(f"it is cut short in {member.name}")
    return content


def _scatter(tar: tarfile.TarFile, label: Label, work: Path) -> None:
    """Write indices and chunks below `work`, under names of our own making."""
    most = {artefact.sha256: 1024 + artefact.bytes // chunks.SIZES[0] * 41 for artefact in label.artefacts}
    room = 2 * sum(artefact.bytes for artefact in label.artefacts) + (1 << 20)
    (work / "new").mkdir()
    while (member := tar.next()) is not None:
        match = _MEMBER.fullmatch(member.name)
        if match is None or not member.isreg():
            raise BuildError(f"it has a member {member.name!r}, which no exported version has")
        kind, digest = match.groups()
        if member.size > (most.get(digest, 0) if kind == "index" else _MOST_CHUNK):
            raise BuildError(f"its {member.name} has {member.size} bytes, more than it can have")
        room -= member.size
        if room < 0:
            raise BuildError("it has more bytes than the version it says it is")
        path = work / f"{digest}.caibx" if kind == "index" else chunks.chunk_path(work / "new", digest)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(_content(member, tar))


def _place(artefact: Artefact, label: Label, store: Store, work: Path) -> None:
    """Put one artefact into the store, or see that it is there."""
    if store.touch(artefact.sha256) and store.whole(artefact.sha256):
        return
    archive = chunks.Archive(store)
    if archive.has(artefact.sha256):
        archive.restore(artefact.sha256)
        return
    index, output = work / f"{artefact.sha256}.caibx", work / "artefact"
    if artefact.sha256 in label.base or not index.is_file():
        raise BuildError(
            f"it lacks the artefact {artefact.sha256}, which this store should have; export it without --have"
        )
    rows: Sequence[tuple[int, str]] = chunks.chunks_of(index)
    if (rows[-1][0] if rows else 0) != artefact.bytes:
        raise BuildError(f"the index of {artefact.sha256} is for another artefact")
    (work / "base").mkdir(exist_ok=True)
    chunks.join(index, output, work / "new", work / "base")
    if Artefact.of(output) != artefact:
        raise BuildError(f"it does not give the artefact {artefact.sha256}: it is damaged; export it again")
    store.put(output)
