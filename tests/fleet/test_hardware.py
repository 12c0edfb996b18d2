"""Classes from PCI ids: whatever the order of rows, one answer, and the one the docstring promises."""

import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.hardware import (
    MOST_ADAPTERS,
    Adapter,
    Pattern,
    Rule,
    adapter_name,
    adapters_from_json,
    deduce,
    parse_adapters,
)

pytestmark = pytest.mark.once
# Few ids, so that rules and adapters often fit each other.
ids = st.sampled_from(["1013", "1002", "00b8", "5046"])
wild = st.one_of(st.just("*"), ids)
addresses = st.integers(0, 31).map(lambda slot: f"0000:00:{slot:02x}.0")
adapters = st.builds(
    Adapter, addresses, ids, ids, ids, ids, st.sampled_from(["030000", "030200", "038000", "020000", "040300"])
)
machines = st.lists(adapters, max_size=4, unique_by=lambda adapter: adapter.address)
patterns = st.builds(Pattern, wild, wild, wild, wild)
# A site has each pattern once (rule_pattern_unique_in_site); the target is the rule's number.
rule_sets = st.lists(st.tuples(patterns, st.integers(1, 3)), max_size=6, unique_by=lambda pair: pair[0]).map(
    lambda pairs: [Rule(pattern, priority, number) for number, (pattern, priority) in enumerate(pairs)]
)
CIRRUS = Adapter("0000:00:02.0", "1013", "00b8", "1af4", "1100", "030000")
ATI = Adapter("0000:00:03.0", "1002", "5046", "1af4", "1100", "030000")


@given(machines, rule_sets, st.randoms(use_true_random=False))
def test_the_order_of_rows_and_of_adapters_changes_nothing(
    machine: list[Adapter], rules: list[Rule], shuffler: random.Random
) -> None:
    found = deduce(machine, rules)
    machine, rules = list(machine), list(rules)
    shuffler.shuffle(machine)
    shuffler.shuffle(rules)
    assert deduce(machine, rules) == found


@given(machines, rule_sets)
def test_the_lowest_number_wins_then_the_more_exact_pattern_then_the_lower_address(
    machine: list[Adapter], rules: list[Rule]
) -> None:
    fitting = [(rule, adapter) for rule in rules for adapter in machine if rule.pattern.matches(adapter)]
    found = deduce(machine, rules)
    if found is None:
        assert not fitting
        return
    assert (found.rule, found.adapter) in fitting
    assert found.target == found.rule.target
    mine = (found.rule.priority, -found.rule.pattern.specificity, found.adapter.address)
    for rule, adapter in fitting:
        assert mine <= (rule.priority, -rule.pattern.specificity, adapter.address)


@given(machines, rule_sets)
def test_what_is_no_display_decides_nothing(machine: list[Adapter], rules: list[Rule]) -> None:
    displays = [adapter for adapter in machine if adapter.pci_class.startswith("03")]
    assert deduce(machine, rules) == deduce(displays, rules)
    assert deduce([adapter for adapter in machine if adapter not in displays], rules) is None


@given(adapters, patterns)
def test_a_pattern_fits_what_has_its_ids_and_a_star_is_any(adapter: Adapter, pattern: Pattern) -> None:
    have = (adapter.vendor, adapter.device, adapter.subvendor, adapter.subdevice)
    want = (pattern.vendor, pattern.device, pattern.subvendor, pattern.subdevice)
    fits = adapter.is_display and all(w in {"*", h} for w, h in zip(want, have, strict=True))
    assert pattern.matches(adapter) is fits
    assert pattern.specificity == 4 - want.count("*")


def test_two_adapters_the_priority_decides() -> None:
    gamer, contest = Rule(Pattern("1013"), 20, "gamer"), Rule(Pattern("1002", "5046"), 10, "contest")
    assert deduce([CIRRUS, ATI], [gamer, contest]) == deduce([ATI, CIRRUS], [contest, gamer])
    found = deduce([CIRRUS, ATI], [gamer, contest])
    assert found is not None
    assert (found.target, found.adapter) == ("contest", ATI)


def test_a_subsystem_is_more_exact_than_its_device() -> None:
    rules = [Rule(Pattern("1013", "00b8"), 10, "any"), Rule(Pattern("1013", "00b8", "1af4", "1100"), 10, "this board")]
    found = deduce([CIRRUS], rules)
    assert found is not None
    assert found.target == "this board"
    assert str(found.rule.pattern) == "1013:00b8 [1af4:1100]"


@given(machines)
def test_what_a_client_reports_is_read_back(machine: list[Adapter]) -> None:
    def line(adapter: Adapter) -> str:
        row = adapter.as_json()
        return "{address},{vendor}:{device},{subvendor}:{subdevice},{pci_class}".format(**row)

    assert parse_adapters(";".join(map(line, machine))) == sorted(machine)
    assert adapters_from_json(adapter.as_json() for adapter in machine) == machine


@given(st.text(string.printable + "é\x00", max_size=80).filter(lambda text: text.strip(";")))
def test_rubbish_is_refused_and_not_guessed(text: str) -> None:
    with pytest.raises(ValueError, match=r"^Not an adapter: .*Expected address,vendor:device"):
        parse_adapters(text)


@pytest.mark.parametrize(
    "text",
    [
        "0000:00:02.0,1013:00B8,1af4:1100,030000",  # capitals
        "0000:00:02.8,1013:00b8,1af4:1100,030000",  # a PCI device has eight functions
        "0000:00:02.0,1013:00b8,1af4:1100,0300",
        "0000:00:02.0,0x1013:00b8,1af4:1100,030000",
        "0000:00:02.0,1013:00b8,1af4:1100,030000\n",
    ],
)
def test_what_is_almost_an_adapter_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="Not an adapter"):
        Adapter.parse(text)


def test_more_adapters_than_a_client_has_are_refused() -> None:
    with pytest.raises(ValueError, match=f"{MOST_ADAPTERS + 1} adapters are more than a client can have"):
        parse_adapters(";".join(["0000:00:02.0,1013:00b8,1af4:1100,030000"] * (MOST_ADAPTERS + 1)))


def test_names_come_from_pci_ids_and_where_there_is_none_from_the_ids() -> None:
    assert adapter_name("1013", "00b8") == "Cirrus Logic GD 5446"
    assert adapter_name("1013", "ffff") == "Cirrus Logic ffff"
    assert adapter_name("fffc", "0001") == "fffc:0001"
