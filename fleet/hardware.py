"""PCI ids and class deduction: pure functions, no database.

Ids are four lower-case hex digits without ``0x``, as in ``/sys/bus/pci/devices/*/vendor``; an adapter's class is six digits,
of which the first two are the base class (03: display controller, PCI Code and ID Assignment Specification).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

DISPLAY = "03"
PCI_IDS = (Path("/usr/share/misc/pci.ids"), Path("/usr/share/hwdata/pci.ids"))
MOST_ADAPTERS = 16

_ADAPTER = re.compile(
    r"(?P<address>[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]),(?P<vendor>[0-9a-f]{4}):(?P<device>[0-9a-f]{4}),"
    r"(?P<subvendor>[0-9a-f]{4}):(?P<subdevice>[0-9a-f]{4}),(?P<pci_class>[0-9a-f]{6})"
)


@dataclass(frozen=True, order=True)
class Adapter:
    """One PCI function, as a client reports it."""

    address: str
    vendor: str
    device: str
    subvendor: str
    subdevice: str
    pci_class: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``0000:00:02.0,1013:00b8,1af4:1100,030000``; ValueError names what does not fit."""
        match = _ADAPTER.fullmatch(text)
        if match is None:
            raise ValueError(
                f"Not an adapter: {text[:60]!r}. Expected address,vendor:device,subvendor:subdevice,class."
            )
        return cls(**match.groupdict())

    @property
    def is_display(self) -> bool:
        return self.pci_class.startswith(DISPLAY)

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def parse_adapters(text: str) -> list[Adapter]:
    """Adapters joined by ``;``, sorted by address. Raises ValueError for rubbish or more than MOST_ADAPTERS."""
    parts = [part for part in text.split(";") if part]
    if len(parts) > MOST_ADAPTERS:
        raise ValueError(f"{len(parts)} adapters are more than a client can have ({MOST_ADAPTERS}).")
    return sorted(Adapter.parse(part) for part in parts)


def adapters_from_json(rows: Iterable[Mapping[str, Any]]) -> list[Adapter]:
    return [Adapter(**{key: str(row[key]) for key in Adapter.__dataclass_fields__}) for row in rows]


@dataclass(frozen=True)
class Pattern:
    """Ids to match; ``*`` matches any."""

    vendor: str
    device: str = "*"
    subvendor: str = "*"
    subdevice: str = "*"

    def __str__(self) -> str:
        text = f"{self.vendor}:{self.device}"
        if (self.subvendor, self.subdevice) != ("*", "*"):
            text += f" [{self.subvendor}:{self.subdevice}]"
        return text

    @property
    def specificity(self) -> int:
        return sum(part != "*" for part in (self.vendor, self.device, self.subvendor, self.subdevice))

    def matches(self, adapter: Adapter) -> bool:
        """True if every id fits. Only display controllers are looked at: a network card decides no class."""
        return adapter.is_display and all(
            want in ("*", have)
            for want, have in (
                (self.vendor, adapter.vendor),
                (self.device, adapter.device),
                (self.subvendor, adapter.subvendor),
                (self.subdevice, adapter.subdevice),
            )
        )


T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """A pattern, its priority (the lowest number wins) and the class it stands for."""

    pattern: Pattern
    priority: int
    target: Any


@dataclass(frozen=True)
class Deduction:
    """Which class, and by which rule and adapter: shown to people, so that nobody has to guess."""

    target: Any
    rule: Rule
    adapter: Adapter


def deduce(adapters: Sequence[Adapter], rules: Iterable[Rule]) -> Deduction | None:
    """The class of a client with ``adapters``, or None where no rule matches.

    The lowest priority number decides; among equals the more specific pattern, then the lower PCI address, so that the
    answer never depends on the order of rows.
    """
    matches = [
        (
            rule.priority,
            -rule.pattern.specificity,
            adapter.address,
            str(rule.pattern),
            Deduction(rule.target, rule, adapter),
        )
        for rule in rules
        for adapter in adapters
        if rule.pattern.matches(adapter)
    ]
    return min(matches, key=lambda match: match[:4])[4] if matches else None


@cache
def _names() -> dict[str, str]:
    """pci.ids as ``{"1013": vendor, "1013:00b8": device}``. Lines: vendor, tab device, two tabs subsystem; C begins classes."""
    for path in PCI_IDS:
        if path.is_file():
            break
    else:
        return {}
    names: dict[str, str] = {}
    vendor = ""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("C "):
            break
        if not line or line.startswith(("#", "\t\t")):
            continue
        key, _, name = line.strip().partition("  ")
        if line.startswith("\t"):
            names[f"{vendor}:{key}"] = name
        else:
            vendor = key
            names[vendor] = name
    return names


def adapter_name(vendor: str, device: str) -> str:
    """The adapter's name as pci.ids has it: ``Cirrus Logic GD 5446``; the ids themselves where it is unknown."""
    names = _names()
    maker = names.get(vendor)
    if maker is None:
        return f"{vendor}:{device}"
    return f"{maker} {names.get(f'{vendor}:{device}', device)}"
