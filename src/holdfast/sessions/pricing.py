"""What a call costs: rate cards, which of them holds, and the exact amount. Pure.

Amounts are Decimals of 50 digits, rounded once per call to a pico-dollar. A part is priced as a part: what a cache
gave and took is not input again, and reasoning is output unless the card has a rate for it.

Invariants:
    - What has no price is `unpriced`, never free.
    - The same card, usage and instant give the same amount on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import Any, Protocol

from blake3 import blake3

from holdfast.core.errors import ConfigError
from holdfast.sessions import jcs
from holdfast.sessions.instants import micros
from holdfast.sessions.jcs import Json
from holdfast.sessions.tokens import cache_written, inconsistent
from holdfast.sessions.values import Cost, CostLine, Usage, UsageState

__all__ = [
    "LOCAL_CARD", "PICO", "CardSource", "PriceQuery", "PriceSource", "RateCard", "cards", "choose", "from_pusd",
    "price", "settle", "to_pusd", "version",
]  # fmt: skip

PICO = Decimal("1E-12")
"""The unit that amounts are kept in, in dollars."""

_EXACT = Context(prec=50, rounding=ROUND_HALF_EVEN)
_MILLION = Decimal(1_000_000)
_PUSD_MAX = 2**63 - 1
_RATES = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h", "reasoning")


@dataclass(frozen=True, slots=True, kw_only=True)
class RateCard:
    """What a provider charges for a model, in dollars: per million tokens, and per unit.

    Attributes:
        id: What it is called.
        provider: The provider it is for.
        model: The model's name, or the beginning of names, ending with `*`.
        effective_from: The first instant it holds, in microseconds; None: always did.
        effective_until: The first instant it does not hold any more; None: never.
        tier: The service tier it is for; None: any.
        context_over: It holds for calls with more input tokens than this; None: any.
        per_million: Rates of `input output cache_read cache_write_5m cache_write_1h reasoning`.
        per_unit: Fees of the provider's own tools, by tool.
    """

    id: str
    provider: str
    model: str
    effective_from: int | None = None
    effective_until: int | None = None
    tier: str | None = None
    context_over: int | None = None
    per_million: Mapping[str, Decimal] = field(default_factory=dict)
    per_unit: Mapping[str, Decimal] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceQuery:
    """What is to be priced.

    Attributes:
        started_at: When the call began, in microseconds.
    """

    provider: str
    model: str
    started_at: int
    usage: Usage


class PriceSource(Protocol):
    """Whoever knows prices."""

    def quote(self, query: PriceQuery) -> Cost | None:
        """Return what a call costs, or None where this source does not know."""
        ...


LOCAL_CARD = RateCard(
    id="local", provider="ollama", model="*", per_million={name: Decimal(0) for name in _RATES if name != "reasoning"}
)
"""What runs on one's own machine is free, unless a card says otherwise."""


class CardSource:
    """Prices from rate cards; for models on one's own machine, from `LOCAL_CARD`."""

    def __init__(self, given: Sequence[RateCard]) -> None:
        self._given = tuple(given)

    def quote(self, query: PriceQuery) -> Cost | None:
        """Return what a call costs by the card that holds, or None where none does."""
        card = choose(self._given, query) or choose((LOCAL_CARD,), query)
        return None if card is None else price(query.usage, card)


# --- which card holds ---------------------------------------------------------------------------------


def choose(given: Iterable[RateCard], query: PriceQuery) -> RateCard | None:
    """Return the card that holds for a call: the most special one, of equals the one that holds since last."""
    best: RateCard | None = None
    for card in given:
        if _holds(card, query) and (best is None or _rank(card) > _rank(best)):
            best = card
    return best


def _holds(card: RateCard, query: PriceQuery) -> bool:
    taken = query.usage.input or 0
    return (
        card.provider == query.provider
        and (card.model == query.model or (card.model.endswith("*") and query.model.startswith(card.model[:-1])))
        and (card.tier is None or card.tier == query.usage.service_tier)
        and (card.context_over is None or card.context_over < taken)
        and (card.effective_from is None or card.effective_from <= query.started_at)
        and (card.effective_until is None or query.started_at < card.effective_until)
    )


def _rank(card: RateCard) -> tuple[bool, int, bool, int, int]:
    return (
        not card.model.endswith("*"),
        len(card.model),
        card.tier is not None,
        -1 if card.context_over is None else card.context_over,
        -(2**63) if card.effective_from is None else card.effective_from,
    )


# --- amounts ------------------------------------------------------------------------------------------


def price(usage: Usage, card: RateCard) -> Cost:
    """Return what a usage costs by a card."""
    if inconsistent(usage):
        return Cost(None, "unpriced", version(card), ())
    lines = [line for line in _lines(usage, card) if line.count]
    known = [line.usd for line in lines if line.usd is not None]
    if (lines and not known) or (usage.input is None and usage.output is None):
        return Cost(None, "unpriced", version(card), tuple(lines))
    total = Decimal(0)
    for usd in known:
        total = _EXACT.add(total, usd)
    total = _EXACT.quantize(total, PICO)
    whole = len(known) == len(lines) and usage.input is not None and usage.output is not None
    return Cost(total, "priced" if whole else "partial", version(card), tuple(lines))


def _lines(usage: Usage, card: RateCard) -> Iterator[CostLine]:
    read, write = usage.cache_read or 0, cache_written(usage)
    long = usage.cache_write_1h or 0
    rates = card.per_million
    thought = usage.reasoning or 0 if "reasoning" in rates else 0
    counts = {
        "input": (usage.input or 0) - (read + write if usage.input is not None else 0),
        "cache_read": read,
        "cache_write_5m": write - long,  # whatever is not said to be kept longer
        "cache_write_1h": long,
        "output": (usage.output or 0) - thought,
        "reasoning": thought,
    }
    for what, count in counts.items():
        rate = rates.get(what)
        yield CostLine(
            what, count, rate, None if rate is None else _EXACT.multiply(_EXACT.divide(rate, _MILLION), count)
        )
    for tool, count in sorted(usage.server_tools.items()):
        fee = card.per_unit.get(tool)
        yield CostLine(tool, count, fee, _times(fee, count))


def _times(fee: Decimal | None, count: int) -> Decimal | None:
    return None if fee is None else _EXACT.multiply(fee, count)


def settle(state: UsageState, computed: Cost | None, provided: Decimal | None) -> Cost:
    """Return the cost of a turn: the caller's own amount before the computed one, and nothing where nothing was billed.

    Args:
        state: How far the usage is known.
        computed: What a source of prices said; None where none knew.
        provided: The amount that the caller or the harness gave.
    """
    if provided is not None:
        return Cost(_EXACT.quantize(provided, PICO), "provided", "", () if computed is None else computed.lines)
    if state == "none":
        return Cost(Decimal(0), "unbilled", "", ())
    if computed is None or state == "missing":
        return Cost(None, "unpriced", "", ())
    if state == "partial" and computed.state == "priced":
        return Cost(computed.usd, "partial", computed.price_version, computed.lines)
    return computed


def to_pusd(usd: Decimal | None) -> int | None:
    """Return an amount in pico-dollars.

    Raises:
        ValueError: It is larger than a ledger can hold, nine million dollars for one call.
    """
    if usd is None:
        return None
    whole = int(_EXACT.quantize(usd, PICO).scaleb(12, _EXACT))
    if abs(whole) > _PUSD_MAX:
        raise ValueError("the amount is larger than a ledger can hold")
    return whole


def from_pusd(pusd: int | None) -> Decimal | None:
    """Return pico-dollars as an amount with twelve decimals."""
    return None if pusd is None else Decimal(pusd).scaleb(-12, _EXACT)


# --- cards as documents -------------------------------------------------------------------------------


def version(card: RateCard) -> str:
    """Return the name under which prices of a card are recorded; it changes with anything in the card."""
    return f"card:{card.id}@{blake3(jcs.write(_written(card))).hexdigest(6)}"


def _written(card: RateCard) -> Json:
    return {
        "id": card.id,
        "provider": card.provider,
        "model": card.model,
        "effective_from": None if card.effective_from is None else str(card.effective_from),
        "effective_until": None if card.effective_until is None else str(card.effective_until),
        "tier": card.tier,
        "context_over": card.context_over,
        "per_million": {name: _plain(rate) for name, rate in card.per_million.items()},
        "per_unit": {name: _plain(fee) for name, fee in card.per_unit.items()},
    }


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def cards(document: Json) -> list[RateCard]:
    """Return the rate cards of a document: `{"cards": […]}`, or the list alone.

    Raises:
        ConfigError: It is no such document, or a card breaks a rule.
    """
    given = document.get("cards") if isinstance(document, dict) else document
    if not isinstance(given, list):
        raise ConfigError("rate cards are a list", 'write {"cards": [...]}', keys=("prices.cards",))
    found = [_card(item, f"cards[{index}]") for index, item in enumerate(given)]
    if len({card.id for card in found}) < len(found):
        raise ConfigError("two rate cards have the same id", "give each an id of its own", keys=("prices.cards",))
    return found


_CARD_KEYS = frozenset(
    ("id", "provider", "model", "effective_from", "effective_until", "tier", "context_over", "per_million", "per_unit")
)


def _card(item: Any, where: str) -> RateCard:
    if not isinstance(item, dict) or not item.keys() <= _CARD_KEYS:
        raise _wrong(where, "is no rate card, or has members that none has")
    for name in ("id", "provider", "model"):
        if not isinstance(item.get(name), str) or not item[name]:
            raise _wrong(f"{where}.{name}", "is no text")
    tier, over = item.get("tier"), item.get("context_over")
    if tier is not None and not isinstance(tier, str):
        raise _wrong(f"{where}.tier", "is no text")
    if over is not None and (isinstance(over, bool) or not isinstance(over, int) or over < 0):
        raise _wrong(f"{where}.context_over", "is no count of tokens")
    rates = _amounts(item.get("per_million"), f"{where}.per_million")
    if not rates.keys() <= set(_RATES):
        raise _wrong(f"{where}.per_million", f"has rates other than {', '.join(_RATES)}")
    return RateCard(
        id=item["id"],
        provider=item["provider"],
        model=item["model"],
        effective_from=_instant(item.get("effective_from"), f"{where}.effective_from"),
        effective_until=_instant(item.get("effective_until"), f"{where}.effective_until"),
        tier=tier,
        context_over=over,
        per_million=rates,
        per_unit=_amounts(item.get("per_unit"), f"{where}.per_unit"),
    )


def _amounts(value: Any, where: str) -> dict[str, Decimal]:
    if not isinstance(value, dict | None):
        raise _wrong(where, "is no table of amounts")
    found: dict[str, Decimal] = {}
    for name, text in (value or {}).items():
        try:
            amount = Decimal(text) if isinstance(text, str) else Decimal("NaN")
        except InvalidOperation:
            amount = Decimal("NaN")
        if not amount.is_finite() or amount < 0:
            raise _wrong(f"{where}.{name}", "is no decimal, written as text, from 0")
        found[name] = amount
    return found


def _instant(value: Any, where: str) -> int | None:
    if value is None:
        return None
    when = value  # TOML has instants of its own
    if isinstance(value, str):
        try:
            when = datetime.fromisoformat(value)
        except ValueError:
            when = None
    if not isinstance(when, datetime) or when.tzinfo is None:
        raise _wrong(where, "is no instant with a time zone (RFC 3339)")
    return micros(when)


def _wrong(where: str, why: str) -> ConfigError:
    return ConfigError(f"rate card: {where} {why}", "see the reference on rate cards", keys=("prices.cards",))
