"""A small change is cheap to ship: real artefacts, a real package."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.ship import LIMIT, ship


@pytest.mark.slow
@pytest.mark.build
@pytest.mark.root
def test_a_version_with_one_small_package_more_ships_in_a_twenty_fifth_of_its_size(tmp_path: Path) -> None:
    assert ship(tmp_path).ratio <= LIMIT
