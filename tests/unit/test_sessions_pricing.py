"""What calls cost: cards, the choice among them, exact amounts."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from tests.unit.sessions_data import FIXTURES, SHARED, recorded, used

from holdfast.core.errors import ConfigError
from holdfast.sessions.pricing import (
    CardSource,
    PriceQuery,
    RateCard,
    cards,
    choose,
    from_pusd,
    price,
    settle,
    to_pusd,
    version,
)
from holdfast.sessions.values import Cost, CostLine, Usage

LIST: dict[str, Any] = {
    "id": "list",
    "provider": "anthropic",
    "model": "m",
    "effective_from": "2026-01-01T00:00:00Z",
    "effective_until": None,
    "tier": None,
    "context_over": None,
    "per_million": {
        "input": "3",
        "output": "15",
        "cache_read": "0.30",
        "cache_write_5m": "3.75",
        "cache_write_1h": "6",
    },
    "per_unit": {"web_search": "0.01"},
}
[CARD] = cards([LIST])
CALL = used(20, 10, cache_read=4, cache_write=6, cache_write_5m=2, cache_write_1h=4, reasoning=3)


def usd(text: str) -> Decimal:
    return Decimal(text)


def query(usage: Usage = CALL, **more: Any) -> PriceQuery:
    return PriceQuery(
        **{"provider": "anthropic", "model": "m", "started_at": 2_000_000_000_000_000, "usage": usage, **more}
    )


@SHARED
def test_the_recorded_session_costs_what_it_costs() -> None:
    """SA-41."""
    source = CardSource(cards(json.loads((FIXTURES / "rates" / "sonnet-4-6.json").read_bytes())))
    total = Decimal(0)
    for call in recorded():
        assert call.facts.usage is not None
        asked = query(call.facts.usage, model=call.facts.model, started_at=1_785_187_951_640_990)
        cost = source.quote(asked)
        assert cost is not None
        assert (cost.state, cost.usd) == ("priced", usd(call.expected["cost_usd"]))
        total += cost.usd or 0
    assert total == usd("0.525090750000")


def test_every_part_has_its_rate_and_none_is_counted_twice() -> None:
    cost = price(CALL, CARD)
    assert {line.what: (line.count, line.usd) for line in cost.lines} == {
        "input": (10, usd("0.00003")),
        "cache_read": (4, usd("0.0000012")),
        "cache_write_5m": (2, usd("0.0000075")),
        "cache_write_1h": (4, usd("0.000024")),
        "output": (10, usd("0.00015")),
    }
    assert (cost.usd, cost.state, cost.price_version) == (usd("0.0002127"), "priced", version(CARD))


def test_a_rate_for_reasoning_takes_it_out_of_the_output() -> None:
    """SA-45."""
    dear = copy.deepcopy(LIST)
    dear["per_million"]["reasoning"] = "30"
    cost = price(used(0, 10, reasoning=3), cards([dear])[0])
    assert {line.what: line.count for line in cost.lines} == {"output": 7, "reasoning": 3}
    assert cost.usd == usd("0.000195")


@pytest.mark.parametrize(
    ("usage", "count_5m", "count_1h"),
    [
        (used(9, 0, cache_write=9), 9, 0),
        (used(9, 0, cache_write=9, cache_write_1h=5), 4, 5),
        (used(9, 0, cache_write_5m=2, cache_write_1h=3), 2, 3),
    ],
)
def test_what_is_not_said_to_be_kept_longer_is_kept_five_minutes(usage: Usage, count_5m: int, count_1h: int) -> None:
    counts = {line.what: line.count for line in price(usage, CARD).lines}
    assert (counts.get("cache_write_5m", 0), counts.get("cache_write_1h", 0)) == (count_5m, count_1h)
    assert counts.get("input", 0) == 9 - count_5m - count_1h


def test_amounts_are_rounded_once_half_to_even() -> None:
    tiny = RateCard(
        id="t", provider="p", model="m", per_million={"input": usd("0.0000005"), "output": usd("0.0000015")}
    )
    assert price(used(1, 0), tiny).usd == 0
    assert price(used(0, 1), tiny).usd == usd("0.000000000002")
    assert price(used(1, 1), tiny).usd == usd("0.000000000002")


@pytest.mark.parametrize(
    ("usage", "state", "amount"),
    [
        (used(1, 1, server_tools={"web_search": 2}), "priced", usd("0.020018")),
        (used(1, 1, server_tools={"fetch": 2}), "partial", usd("0.000018")),
        (used(1, None), "partial", usd("0.000003")),
        (used(None, 1), "partial", usd("0.000015")),
        (used(0, 0), "priced", Decimal(0)),
        (Usage(), "unpriced", None),
        (used(1, 1, cache_read=2), "unpriced", None),
    ],
)
def test_what_is_not_known_is_never_free(usage: Usage, state: str, amount: Decimal | None) -> None:
    cost = price(usage, CARD)
    assert (cost.state, cost.usd) == (state, amount)


def test_a_card_without_any_rate_prices_nothing() -> None:
    cost = price(used(1, 1), RateCard(id="e", provider="p", model="m"))
    assert (cost.state, cost.usd, cost.lines[0]) == ("unpriced", None, CostLine("input", 1, None, None))


def test_the_most_special_card_holds() -> None:
    """SA-44."""
    made = [
        RateCard(id="any", provider="anthropic", model="*"),
        RateCard(id="long", provider="anthropic", model="m-*"),
        RateCard(id="exact", provider="anthropic", model="m-1"),
        RateCard(id="new", provider="anthropic", model="m-1", effective_from=100),
        RateCard(id="old", provider="anthropic", model="m-1", effective_from=50, effective_until=100),
        RateCard(id="big", provider="anthropic", model="m-1", context_over=200),
        RateCard(id="bigger", provider="anthropic", model="m-1", context_over=1000),
        RateCard(id="tier", provider="anthropic", model="m-1", tier="batch"),
        RateCard(id="other", provider="openai", model="m-1"),
    ]

    def held(**more: Any) -> str | None:
        card = choose(made, query(**{"usage": used(5), "model": "m-1", "started_at": 60, **more}))
        return None if card is None else card.id

    assert [held(), held(started_at=100), held(started_at=10), held(model="m-2"), held(model="x")] == [
        "old",
        "new",
        "exact",
        "long",
        "any",
    ]
    assert [held(usage=used(200)), held(usage=used(201)), held(usage=used(5000))] == ["old", "big", "bigger"]
    assert held(usage=used(5000, service_tier="batch")) == "tier"
    assert held(provider="nobody") is None


def test_ones_own_machine_is_free_unless_a_card_says_otherwise() -> None:
    asked = query(used(5, 7), provider="ollama", model="llama")
    free = CardSource(()).quote(asked)
    assert free is not None
    assert (free.usd, free.state, free.price_version.partition("@")[0]) == (Decimal(0), "priced", "card:local")
    own = RateCard(id="own", provider="ollama", model="*", per_million={"input": usd("1"), "output": usd("1")})
    dear = CardSource([own]).quote(asked)
    assert dear is not None
    assert dear.usd == usd("0.000012")
    assert CardSource([own]).quote(query(provider="openai")) is None


def test_a_turns_cost_says_how_far_it_is_known() -> None:
    priced = price(CALL, CARD)
    partly = price(used(1), CARD)
    assert settle("measured", priced, None) is priced
    assert settle("measured", priced, usd("0.5")) == Cost(usd("0.5"), "provided", "", priced.lines)
    assert settle("none", None, usd("0.5")) == Cost(usd("0.5"), "provided", "", ())
    assert settle("none", priced, None) == Cost(Decimal(0), "unbilled", "", ())
    assert settle("missing", priced, None).state == settle("measured", None, None).state == "unpriced"
    assert settle("partial", priced, None) == Cost(priced.usd, "partial", priced.price_version, priced.lines)
    assert settle("partial", partly, None) is partly


def test_amounts_are_kept_in_pico_dollars() -> None:
    assert to_pusd(usd("0.525090750000")) == 525_090_750_000
    assert to_pusd(None) is None
    assert str(from_pusd(525_090_750_000)) == "0.525090750000"
    assert from_pusd(None) is None
    with pytest.raises(ValueError, match="larger"):
        to_pusd(usd("1e7"))


def test_a_version_changes_with_the_card_and_not_with_how_it_is_written() -> None:
    again = {
        **LIST,
        "per_million": dict(reversed(LIST["per_million"].items())),
        "effective_from": "2026-01-01T01:00:00+01:00",
    }
    assert version(cards({"cards": [again]})[0]) == version(CARD)
    assert version(CARD) != version(cards([{**LIST, "effective_until": "2027-01-01T00:00:00Z"}])[0])
    written = {**LIST, "per_million": {**LIST["per_million"], "cache_read": "0.3"}}
    assert version(cards([written])[0]) == version(CARD)
    at = datetime(2026, 1, 1, tzinfo=UTC)  # as TOML has it
    assert version(cards([{**LIST, "effective_from": at}])[0]) == version(CARD)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (5, "a list"),
        ({"rates": []}, "a list"),
        ([5], "no rate card"),
        ([{**LIST, "extra": 1}], "no rate card"),
        ([{**LIST, "id": ""}], "id is no text"),
        ([{**LIST, "tier": 5}], "tier is no text"),
        ([{**LIST, "context_over": -1}], "no count"),
        ([{**LIST, "context_over": True}], "no count"),
        ([{**LIST, "context_over": 1.5}], "no count"),
        ([{**LIST, "per_million": []}], "no table"),
        ([{**LIST, "per_million": {"inputs": "1"}}], "rates other than"),
        ([{**LIST, "per_million": {"input": 3}}], "written as text"),
        ([{**LIST, "per_million": {"input": "dear"}}], "written as text"),
        ([{**LIST, "per_million": {"input": "NaN"}}], "written as text"),
        ([{**LIST, "per_unit": {"x": "-1"}}], "written as text"),
        ([{**LIST, "effective_from": "yesterday"}], "no instant"),
        ([{**LIST, "effective_from": "2026-01-01T00:00:00"}], "no instant"),
        ([{**LIST, "effective_from": 5}], "no instant"),
        ([LIST, LIST], "same id"),
    ],
)
def test_a_wrong_card_says_what_is_wrong(document: object, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        cards(document)
    assert caught.value.keys == ("prices.cards",)


def test_a_card_may_leave_out_what_it_does_not_say() -> None:
    [card] = cards([{"id": "a", "provider": "p", "model": "m", "tier": "batch", "context_over": 5}])
    assert (card.per_million, card.per_unit, card.effective_from, card.tier, card.context_over) == (
        {},
        {},
        None,
        "batch",
        5,
    )
