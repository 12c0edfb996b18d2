"""What the board shows, as plain values: equal facts are the same pixels, so comparing two readings finds what changed."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

# The way of a command: its statuses as it goes, and that it ends.
STEPS = ("Queued", "Sent", "Accepted", "Done")
PHASES = ("kill", "restore", "verify", "unmount", "login")


@dataclass(frozen=True)
class ClassMark:
    """A class in colour, shape (by colour, see board.css) and letters, so that nobody needs to tell colours apart."""

    slug: str
    name: str
    colour: str
    letters: str


@dataclass(frozen=True)
class Doing:
    """The command a client is carrying out."""

    verb: str
    verb_word: str
    status_word: str


@dataclass(frozen=True)
class LastCommand:
    """The last command a client was sent, and what became of it."""

    verb_word: str
    status: str
    status_word: str
    at: datetime
    by: str
    why: str
    explanation: str


@dataclass(frozen=True)
class Tile:
    """One client. ``heard`` is None while it is connected: a time that moves at each poll would be a change for nobody."""

    template: ClassVar[str] = "board/tile.html"

    key: str
    seat: str
    name: str
    mark: ClassMark | None
    state: str
    state_word: str
    since: datetime
    admission: str
    admission_word: str
    adapter: str
    version: str
    next_version: str
    trouble: str
    doing: Doing | None
    mac: str
    product: str
    memory: str
    connected: bool
    heard: datetime | None
    last: LastCommand | None
    admin_url: str
    twin: bool = False  # another machine has its MAC address

    @property
    def title(self) -> str:
        """What people call it."""
        return self.seat or self.name

    @property
    def words(self) -> str:
        """What the text filter looks in."""
        mark = self.mark.name if self.mark else "no class"
        words = (self.seat, self.name, mark, self.state_word, self.version, self.adapter, self.admission_word)
        return " ".join(words).lower()


@dataclass(frozen=True)
class Count:
    """How many clients are in a state."""

    template: ClassVar[str] = "board/count.html"

    key: str
    word: str
    number: int


@dataclass(frozen=True)
class ClassCount:
    """How many clients are of a class."""

    template: ClassVar[str] = "board/class.html"

    key: str
    mark: ClassMark
    number: int


@dataclass(frozen=True)
class Phase:
    """A part of a cycle: its time, and where it lies in the whole, in percent."""

    name: str
    ms: int
    start: int
    percent: int


@dataclass(frozen=True)
class Fate:
    """What became of an order at one client, where it did not succeed."""

    seat: str
    status: str
    status_word: str
    explanation: str


@dataclass(frozen=True)
class OrderLine:
    """One order: how many of its commands have ended, what became of those that failed, where the others are.

    ``steps`` is for an order to one client, ``running`` (status, seats) for one to several.
    """

    template: ClassVar[str] = "board/order.html"

    key: str
    verb: str
    verb_word: str
    whom: str
    at: datetime
    by: str
    why: str
    total: int
    ended: int
    succeeded: int
    waiting: int  # that can still be taken back
    fates: tuple[Fate, ...]
    more_fates: int
    running: tuple[tuple[str, str], ...]
    steps: tuple[tuple[str, bool], ...]
    phases: tuple[Phase, ...]
    total_ms: int
    cancel_url: str

    @property
    def open(self) -> bool:
        return self.ended < self.total

    @property
    def failed(self) -> int:
        """How many ended otherwise than asked."""
        return self.ended - self.succeeded

    @property
    def outcome(self) -> str:
        """The style of its outcome."""
        return "running" if self.open else "failed" if self.failed else "succeeded"


@dataclass(frozen=True)
class BuildLine:
    """A version that is being built."""

    template: ClassVar[str] = "board/build.html"

    key: str
    name: str
    status: str
    status_word: str
    at: datetime
    step: str
    said: str  # how far that step is
    number: int
    percent: int
    admin_url: str


@dataclass(frozen=True)
class RestoreLine:
    """A restore of a home directory, as audited."""

    template: ClassVar[str] = "board/restore.html"

    key: str
    client: str
    result: str
    result_word: str
    at: datetime
    by: str
    why: str
    explanation: str
    total_ms: int
    files: int | None
    bytes: int | None
    admin_url: str


@dataclass(frozen=True)
class ReleaseLine:
    """What a class boots, its canary if it has one, and how many of its clients run something older."""

    template: ClassVar[str] = "board/release.html"

    key: str
    mark: ClassMark
    version: str
    canary: str
    canary_word: str
    behind: int
    restart_url: str
    rollout: str
    stop_url: str
    notice: str
    admin_url: str


@dataclass(frozen=True)
class Notice:
    """Something about the whole site that a volunteer should know, and where it is seen to."""

    template: ClassVar[str] = "board/notice.html"

    key: str
    words: str
    icon: str
    admin_url: str


@dataclass(frozen=True)
class FreezeLine:
    """Nothing is signed. Who may lift it is asked when they try; ``lift_url`` is empty where that is not done here."""

    template: ClassVar[str] = "board/freeze_line.html"

    key: str
    where: str
    reason: str
    by: str
    at: datetime
    lift_url: str


Fact = FreezeLine | Notice | Tile | Count | ClassCount | ReleaseLine | OrderLine | BuildLine | RestoreLine


@dataclass(frozen=True)
class Reading:
    """All that is on one site's board at a moment: sections of facts in the order they are shown."""

    sections: dict[str, list[Fact]] = field(default_factory=dict)
