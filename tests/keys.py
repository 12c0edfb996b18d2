"""Key pairs of tests: the image key is one for the whole run, as the versions that tests make are signed with it."""

import shutil
from pathlib import Path

from django.conf import settings

from fleet.signing import make_keys


def keys_in(directory: Path) -> None:
    """Fresh keys for commands and sessions; the image key of the run."""
    directory.mkdir(parents=True, exist_ok=True)
    own = Path(settings.IMAGE_KEY)
    for path in (own, own.with_suffix(".pub")):
        shutil.copy(path, directory)
    make_keys(directory)
