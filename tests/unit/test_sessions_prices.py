"""Prices: the user's cards before the package, the package before nothing, and never the network."""

from __future__ import annotations

import importlib.metadata
from decimal import Decimal
from pathlib import Path

import pytest
from tests.unit.sessions_data import FIXTURES, SHARED, used

from holdfast.core.errors import ConfigError
from holdfast.sessions.config import Prices, SessionsConfig
from holdfast.sessions.prices import GenaiPrices, source
from holdfast.sessions.pricing import PriceQuery
from holdfast.sessions.values import Cost, Usage

AT = 1_785_000_000_000_000
INSTALLED = f"genai-prices@{importlib.metadata.version('genai-prices')}"


def quoted(model: str, usage: Usage, provider: str = "anthropic", **prices: object) -> Cost | None:
    config = SessionsConfig.load(None, {}, prices=prices)
    return source(config).quote(PriceQuery(provider=provider, model=model, started_at=AT, usage=usage))


def test_the_package_prices_every_part_once() -> None:
    usage = used(
        100_000, 100, cache_read=50_000, cache_write=20_000, cache_write_1h=10_000, reasoning=30,
        server_tools={"web_search": 2}, service_tier="standard",
    )  # fmt: skip
    found = quoted("claude-sonnet-4-6", usage)
    assert found is not None
    # 30,000 at 3, 50,000 at 0.3, 10,000 at 3.75, 10,000 at 6, 100 at 15, two searches at 0.01
    assert (found.usd, found.state, found.price_version) == (Decimal("0.224"), "priced", INSTALLED)
    assert sum(line.usd or 0 for line in found.lines) == found.usd


def test_what_the_package_has_no_rate_for_is_a_lower_bound() -> None:
    tools = quoted("claude-sonnet-4-6", used(1_000_000, 0, server_tools={"bash": 1}))
    halved = quoted("claude-sonnet-4-6", used(1_000_000, None))
    assert tools is not None
    assert halved is not None
    assert (tools.usd, tools.state) == (halved.usd, halved.state) == (Decimal(3), "partial")


@pytest.mark.parametrize(
    ("model", "provider", "usage"),
    [
        ("nobody-knows-this-one", "anthropic", used(1, 1)),
        ("claude-sonnet-4-6", "nobody", used(1, 1)),
        ("claude-sonnet-4-6", "anthropic", used()),
        ("claude-sonnet-4-6", "anthropic", used(1, 1, cache_read=2)),
    ],
)
def test_what_the_package_does_not_know_has_no_price(model: str, provider: str, usage: Usage) -> None:
    """SA-43."""
    assert quoted(model, usage, provider) is None


@SHARED
@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_cards_answer_before_the_package(tmp_path: Path, suffix: str) -> None:
    path = FIXTURES / "rates" / "sonnet-4-6.json"
    if suffix == ".toml":
        path = tmp_path / "cards.toml"
        path.write_text('[[cards]]\nid = "c"\nprovider = "anthropic"\nmodel = "claude-sonnet-4-6*"\n'
                        'per_million = { input = "3", output = "15" }\n')  # fmt: skip
    found = quoted("claude-sonnet-4-6", used(1_000_000, 0), cards=path)
    assert found is not None
    assert found.usd == 3
    assert found.price_version.startswith("card:")


def test_without_the_package_only_cards_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quoted("claude-sonnet-4-6", used(1, 1), package=False) is None
    assert quoted("llama", used(1, 1), "ollama", package=False) is not None

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert quoted("claude-sonnet-4-6", used(1, 1)) is None
    with pytest.raises(ConfigError):
        GenaiPrices()


@pytest.mark.parametrize("content", [None, "{", "1", '{"cards":[{}]}', " " * (16 * 1024 * 1024 + 1)])
def test_a_file_that_holds_no_cards_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "cards.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError):
        source(SessionsConfig(prices=Prices(cards=path)))
