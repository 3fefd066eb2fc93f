"""Servers that the tests of a module share: one on each database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.http.backends import Server, server
from tests.http.orgs import Org, join

from holdfast.sessions.prices import rate_cards
from holdfast.sessions.verify import verify


@pytest.fixture(scope="module", params=["sqlite-file", "postgres"])
def module_ledger(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path or URL of a ledger that the tests of a module share, on each database."""
    if request.param == "sqlite-file":
        return str(tmp_path_factory.mktemp("ledger") / "ledger.db")
    found: str = request.getfixturevalue("migrated").fresh()
    return found


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    """Settings of the module's server; a module has its own."""
    return {}


@pytest.fixture(scope="module")
def at(module_ledger: str, limits: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The module's server; whatever the tests did, what it promises of captured calls holds in the end."""
    secret = tmp_path_factory.mktemp("secret") / "secret"
    with server(module_ledger, **{"secret_file": secret, **limits}) as made:
        yield made
        assert problems(made) == ()


def problems(made: Server) -> object:
    """What `verify` says of the ledger of a server, with all that it may know."""
    archive = made.serving.backend.archive
    path = archive.config.prices.cards
    cards = () if path is None else rate_cards(path)
    report = made.do(lambda hf: verify(hf.database, lag_us=2**62, cards=cards, terms=archive._deriver.terms))
    return report.problems


@pytest.fixture
def org(at: Server) -> Org:
    """An org that nobody else has, on each database."""
    return join(at)
