"""Checks of ready versions: one boot in a virtual PC, and what it met noted as findings.

``ImageVersion.checked`` has the last check: ``state`` (asked, running, done, failed), ``at``; of one that is over ``found`` (how many
findings), ``new``, ``seconds`` and ``untraced`` (what the version's kernel cannot note), or ``failure``.
"""

import logging
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from fleet import audit
from fleet.exceptions import FleetError
from images import bootplan, builds, findings, signatures
from images.builder.errors import BuildError
from images.builder.manifest import Manifest
from images.builder.recipe import Recipe
from images.builder.squashfs import files
from images.checker import boot, machine, reading
from images.checker.boot import PATIENCE_S, SETTLE_S, Subject
from images.checker.cure import Root
from images.finding_models import FindingSource
from images.findings import Found
from images.models import ImageVersion, Storage, VersionStatus

log = logging.getLogger(__name__)

_LOST = timedelta(seconds=4 * PATIENCE_S)  # then it may be asked for anew


def asked() -> dict[str, Any]:
    """What ``checked`` is of a version that waits for its check."""
    return {"state": "asked", "at": _now()}


def is_under_way(version: ImageVersion) -> bool:
    """Asked for or running, and not so long ago that its worker must be gone."""
    last = version.checked or {}
    return last.get("state") in ("asked", "running") and datetime.fromisoformat(last["at"]) > timezone.now() - _LOST


def check(pk: int, patience_s: float = PATIENCE_S, settle_s: float = SETTLE_S) -> list[Found] | None:
    """Check the ready version with this primary key; what it met. Twice is harmless: one at a time.

    None where there was no check: ``checked`` tells why, and that another worker is at it.
    """
    with builds.held(f"check-{pk}") as mine:
        ready = ImageVersion.objects.select_related("image__site").filter(pk=pk, status=VersionStatus.READY)
        version = ready.filter(storage=Storage.FILES).first()
        if not mine or version is None:
            return None
        began = time.monotonic()
        _note(version, state="running")
        try:
            found, untraced = _check(version, patience_s, settle_s)
        except (FleetError, BuildError, OSError) as error:
            log.warning("%s could not be checked: %s", version, error)
            _over(version, state="failed", failure=str(error)[:3000])
            return None
        except BaseException as error:
            _over(version, state="failed", failure=f"It broke off: {type(error).__name__}. Check it once more.")
            raise
        with transaction.atomic():
            new = findings.note(version, FindingSource.CHECKED, found)
            seconds = round(time.monotonic() - began)
            _over(version, state="done", found=len(found), new=new, seconds=seconds, untraced=untraced)
        return found


def _check(version: ImageVersion, patience_s: float, settle_s: float) -> tuple[list[Found], Sequence[str]]:
    signatures.require(version)
    store = builds.context().store
    manifest = Manifest.load(store, version.digest)
    paths = {name: store.path(part.sha256) for name, part in manifest.artefacts().items()}
    plan = {
        **bootplan.of(version),
        "home": manifest.home.sha256,
        "home_bytes": manifest.home.bytes,
        "home_digest": manifest.home_digest,
    }
    subject = Subject(
        str(version),
        paths["kernel"],
        paths["initrd"],
        plan,
        {str(plan[part]): paths[part] for part in ("root", "plan", "home")},
    )
    report = boot.boot(subject, patience_s, settle_s, kvm=settings.CHECK_KVM and machine.has_kvm())
    root = Root(files(paths["root"], manifest.epoch), Recipe.from_dict(version.recipe).volatile)
    if "all" in report.missing and not report.journal and not report.units:
        log.warning("%s: its kernel cannot trace, so only what was logged is seen.", version)
    return reading.findings(report, root), report.missing


def _over(version: ImageVersion, **outcome: Any) -> None:
    _note(version, **outcome)
    audit.record("version.checked", version, site=version.image.site, actor=builds.WORKER, **outcome)


def _note(version: ImageVersion, **outcome: Any) -> None:
    version.checked = {"at": _now(), **outcome}
    version.save(update_fields=["checked"])


def _now() -> str:
    return timezone.now().isoformat(timespec="seconds")
