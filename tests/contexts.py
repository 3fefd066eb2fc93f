"""A plugin of pytest: coverage remembers of each line the file of the test that passed it."""

from __future__ import annotations

import coverage
import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    measuring = coverage.Coverage.current()
    assert measuring is not None
    measuring.switch_context(item.path.stem)
