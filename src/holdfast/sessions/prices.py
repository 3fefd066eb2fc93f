"""The one seam to prices that others maintain, and the sources of an installation in the order they are asked.

The user's rate cards answer first, then the package `genai-prices`, then the card for models on one's own machine.
The package's data is what was installed with it: nothing here asks the network, and what somebody else in the
process has updated is not looked at.

Invariants:
    - Equal questions get equal answers as long as the same cards and the same version are installed.
    - A package that fails, or has changed its ways, is a source that does not know.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import logging
import tomllib
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import ConfigError
from holdfast.sessions import instants
from holdfast.sessions.pricing import PICO, CardSource, PriceQuery, PriceSource, RateCard, cards
from holdfast.sessions.tokens import cache_written, inconsistent
from holdfast.sessions.values import Cost, CostLine

if TYPE_CHECKING:
    from holdfast.sessions.config import SessionsConfig

__all__ = ["FirstOf", "GenaiPrices", "is_known", "rate_cards", "source"]

CARDS_BYTES_MAX = 16 * 1024 * 1024
"""A file of rate cards that is larger is another file."""

_EXACT = Context(prec=50, rounding=ROUND_HALF_EVEN)
_TOOLS = {"web_search": "web_searches", "code_execution": "code_executions"}

log = logging.getLogger("holdfast.sessions")


class FirstOf:
    """Sources of which the first that answers counts."""

    def __init__(self, sources: Sequence[PriceSource]) -> None:
        self._sources = tuple(sources)

    def quote(self, query: PriceQuery) -> Cost | None:
        """Return what a call costs by the first source that knows."""
        for each in self._sources:
            if (found := each.quote(query)) is not None:
                return found
        return None


class GenaiPrices:
    """Prices from the data that comes with the package `genai-prices`."""

    def __init__(self) -> None:
        """Look the package up; its data is loaded with the first question.

        Raises:
            ConfigError: It is not installed.
        """
        try:
            self._version = f"genai-prices@{importlib.metadata.version('genai-prices')}"
        except importlib.metadata.PackageNotFoundError:
            raise ConfigError(
                "genai-prices is not installed", "install holdfast[prices]", keys=("prices.package",)
            ) from None

    def quote(self, query: PriceQuery) -> Cost | None:
        """Return what a call costs, or None for a model that the package does not know."""
        usage = query.usage
        if inconsistent(usage) or (usage.input is None and usage.output is None):
            return None
        try:
            snapshot, of = _package()
            found = snapshot.calc(
                of(**_counts(query)),
                query.model,
                query.provider,
                None,
                instants.moment(query.started_at),
                {"service_tier": usage.service_tier} if usage.service_tier else None,
            )
            lines = _lines(found, query)
            total = _EXACT.quantize(Decimal(found.total_price), PICO)
        except LookupError:
            return None
        except Exception as error:  # noqa: BLE001 - somebody else's code: without a price a turn is unpriced, not lost
            log.warning("genai-prices failed about a call: %s", type(error).__qualname__)
            return None
        whole = usage.input is not None and usage.output is not None and all(line.rate is not None for line in lines)
        return Cost(total, "priced" if whole else "partial", self._version, lines)


@functools.cache
def _package() -> tuple[Any, Any]:
    """Return the installed data, and what counts are handed over in."""
    from genai_prices import Usage
    from genai_prices.data import providers
    from genai_prices.data_snapshot import DataSnapshot

    return DataSnapshot(providers=providers, from_auto_update=False), Usage


def _counts(query: PriceQuery) -> dict[str, int]:
    """Return the counts by the package's names: input with everything in it, parts beside it."""
    usage = query.usage
    long = usage.cache_write_1h or 0
    counts = {
        "input_tokens": usage.input or 0,
        "cache_read_tokens": usage.cache_read or 0,
        "cache_write_tokens": cache_written(usage),
        "cache_write_1h_tokens": long,
        "output_tokens": usage.output or 0,
        "output_reasoning_tokens": usage.reasoning or 0,
        "input_audio_tokens": usage.input_audio or 0,
        "output_audio_tokens": usage.output_audio or 0,
    }
    counts |= {_TOOLS[tool]: count for tool, count in usage.server_tools.items() if tool in _TOOLS}
    return {name: count for name, count in counts.items() if count}


def _lines(found: Any, query: PriceQuery) -> tuple[CostLine, ...]:
    """Return both sides of the amount, and a line without a rate for what the package has no price for."""
    usage, rates = query.usage, vars(found.model_price)
    other = Decimal(found.total_price) - Decimal(found.input_price) - Decimal(found.output_price)
    lines = [
        CostLine("input", usage.input or 0, *_rate(rates, "input_mtok"), Decimal(found.input_price)),
        CostLine("output", usage.output or 0, *_rate(rates, "output_mtok"), Decimal(found.output_price)),
    ]
    tools = sum(usage.server_tools.values())
    if tools:
        known = all(tool in _TOOLS for tool in usage.server_tools) and other
        lines.append(CostLine("server_tools", tools, _EXACT.divide(other, Decimal(tools)) if known else None, other))
    return tuple(line for line in lines if line.count)


def _rate(rates: dict[str, Any], name: str) -> tuple[Decimal | None]:
    rate = rates.get(name)
    return (rate if isinstance(rate, Decimal | None) else Decimal(rate.base),)


def source(config: SessionsConfig) -> PriceSource:
    """Return what an installation asks for prices.

    Raises:
        ConfigError: The file of rate cards cannot be read, or a card breaks a rule.
    """
    given = [] if config.prices.cards is None else rate_cards(config.prices.cards)
    sources: list[PriceSource] = [CardSource(given)]
    if config.prices.package:
        with contextlib.suppress(ConfigError):  # an extra: without it only cards are asked
            sources.append(GenaiPrices())
    return FirstOf(sources)


def is_known(config: SessionsConfig) -> bool:
    """Say whether an installation knows any prices but that of models on one's own machine."""
    return config.prices.cards is not None or (config.prices.package and find_spec("genai_prices") is not None)


def rate_cards(path: Path) -> list[RateCard]:
    """Return the rate cards of a file, JSON or TOML.

    Raises:
        ConfigError: It cannot be read, or a card breaks a rule.
    """
    return cards(_document(path))


def _document(path: Path) -> Any:
    try:
        if path.stat().st_size > CARDS_BYTES_MAX:
            raise _unreadable(path, "it is larger than any list of prices")
        data = path.read_bytes()
        if path.suffix == ".toml":
            return tomllib.loads(data.decode())
        return json.loads(data, parse_float=str)
    except OSError as error:
        raise _unreadable(path, error.strerror or "it cannot be opened") from error
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, "it is neither JSON nor TOML") from error


def _unreadable(path: Path, why: str) -> ConfigError:
    return ConfigError(f"cannot read the rate cards in {path}: {why}", "check prices.cards", keys=("prices.cards",))
