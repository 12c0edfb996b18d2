"""Two slots for the keys of a kind: beside the present one lies either the next, known already and not used yet, or the old one,
used no more and still believed.

    publish    command-next.key is made, command-next.pub lies with the public keys: plans and answers carry it from now on
    switch     it becomes command.key; the one before lies on as command-old.pub
    retire     nobody believes that one any more; it stays in retired/, for what it once signed

When it is time for which is said elsewhere (``agents.rotation``). Each step may be run again where it was interrupted, and at
every moment in it the public keys name both.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fleet.exceptions import OperatorError, SiteError, WrongState
from fleet.signing import Signer, make_pair, public_key, public_keys, put

RETIRED = "retired"


@dataclass(frozen=True)
class Slots:
    """The keys of ``kind``: public halves in ``directory``, the private one in use at ``private``, the next one beside it."""

    kind: str
    directory: Path
    private: Path

    @classmethod
    def at(cls, kind: str, directory: Path, private: Path) -> "Slots":
        """OperatorError where ``private`` is not the key in use here: everything hangs on which one that is."""
        hint = f"Name the one in use, as in --private /etc/fleet/keys/{kind}.key, as a user who may read it."
        if not private.is_file():
            raise OperatorError(f"There is no {kind} key at {private}.", hint=hint)
        slots = cls(kind, directory, private)
        if slots.present not in public_keys(directory, kind):
            raise OperatorError(f"{private} is the key {slots.present}, which nobody believes here.", hint=hint)
        return slots

    @property
    def present(self) -> str:
        """The id of the key in use."""
        return Signer.load(str(self.private), self.kind).key_id

    @property
    def next(self) -> str:
        """The id of the key that is published and not in use yet; empty without one."""
        return self._id(self._next) if self._next.exists() else ""

    @property
    def old(self) -> str:
        """The id of the key that was in use before; empty without one."""
        return self._id(self._old) if self._old.exists() else ""

    @property
    def published_at(self) -> datetime:
        """When the next key was published."""
        return datetime.fromtimestamp(self._next.stat().st_mtime, UTC)

    def publish(self) -> None:
        """Make the next key, and publish its public half. Raises WrongState while another change is under way."""
        if self.old:
            raise WrongState(f"The {self.kind} key {self.old} is not retired yet.", hint="Retire that one first.")
        if self.next:
            raise WrongState(f"The {self.kind} key {self.next} is published already.", hint="Switch to that one.")
        # Owned as the present one: by the user of the process that will sign with it.
        make_pair(self.kind, self._next_private, self._next, self.private.stat())

    def switch(self) -> None:
        """Put the next key in the place of the present one. Raises WrongState without one, SiteError where a half is missing."""
        coming = self.next
        if not coming:
            raise WrongState(f"No next {self.kind} key is published.", hint="Publish one first.")
        if self.present != coming:  # else we were interrupted after the private half
            if not self._next_private.exists():
                raise SiteError(
                    f"The private half of {coming} is not at {self._next_private}.",
                    hint=f"Put it there, or remove {self._next} and publish another.",
                )
            put(self._old, self._present.read_text(), 0o644)
            self._next_private.replace(self.private)
        put(self._present, self._next.read_text(), 0o644)
        self._next.unlink()

    def retire(self) -> None:
        """Believe the old key no more. Raises WrongState without one."""
        old = self.old
        if not old:
            raise WrongState(f"There is no old {self.kind} key.", hint="Nothing is left to be done.")
        if self.next:
            raise WrongState(f"The switch to {self.next} is not complete.", hint="Switch once more.")
        place = self.directory / RETIRED
        place.mkdir(exist_ok=True, mode=0o755)
        self._old.replace(place / f"{old}.pub")

    @property
    def _present(self) -> Path:
        return self.directory / f"{self.kind}.pub"

    @property
    def _next(self) -> Path:
        return self.directory / f"{self.kind}-next.pub"

    @property
    def _old(self) -> Path:
        return self.directory / f"{self.kind}-old.pub"

    @property
    def _next_private(self) -> Path:
        return self.private.with_name(f"{self.private.stem}-next.key")

    def _id(self, path: Path) -> str:
        return public_key(path)[0]


def ever(directory: Path, kind: str) -> dict[str, bytes]:
    """All public keys of a kind that were ever in use here, by their ids: for what was signed long ago."""
    retired = directory / RETIRED
    return dict(public_key(path) for path in [*directory.glob(f"{kind}*.pub"), *retired.glob(f"{kind}-*.pub")])
