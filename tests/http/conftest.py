"""Servers that the tests of a module share: one on each database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.http.backends import Server, server


@pytest.fixture(scope="module", params=["sqlite-file", "postgres"])
def module_ledger(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path or URL of a ledger that the tests of a module share, on each database."""
    if request.param == "sqlite-file":
        return str(tmp_path_factory.mktemp("ledger") / "ledger.db")
    found: str = request.getfixturevalue("postgres").fresh_schema()
    return found


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    """Settings of the module's server; a module has its own."""
    return {}


@pytest.fixture(scope="module")
def at(module_ledger: str, limits: dict[str, Any]) -> Iterator[Server]:
    """The module's server."""
    with server(module_ledger, **limits) as made:
        yield made
