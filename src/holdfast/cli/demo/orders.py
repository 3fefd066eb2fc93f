"""What the demo's customers ask for: the plan every figure at the end is held against.

The plan follows from the seed alone, so the supervisor and the agent, in different processes, agree on
it without talking to each other.

Invariants:
    - Exactly one order is large: its payment is not repeated on suspicion, an operator decides.
    - An order's amount follows from its prompt, through the model's tool call and the price list.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

__all__ = ["LARGE_CENTS", "MODEL_CALLS_PER_TURN", "PRICES_CENTS", "TOOLS_PER_TURN", "Order", "plan"]

LARGE_CENTS = 100_000
"""From this amount on a payment in doubt is an operator's affair."""

MODEL_CALLS_PER_TURN = 2
"""The scripted conversation: one answer that asks for the tools, one that ends the turn."""

TOOLS_PER_TURN = 2

PRICES_CENTS = {
    "beeswax candle": 950,
    "copper kettle": 4_250,
    "linen apron": 2_800,
    "oak stool": 8_900,
    "paper lantern": 1_275,
    "greenhouse": 240_000,
}
_EVERYDAY = tuple(item for item, price in PRICES_CENTS.items() if price < LARGE_CENTS)


@dataclass(frozen=True, slots=True)
class Order:
    """One customer's wish, which one turn of the agent fulfils."""

    id: str
    item: str
    count: int

    @property
    def prompt(self) -> str:
        """What the customer writes."""
        return f"Please order {self.count} x {self.item}."

    @property
    def amount_cents(self) -> int:
        """What the customer is to be charged, once."""
        return self.count * PRICES_CENTS[self.item]

    @property
    def large(self) -> bool:
        """Whether a payment in doubt waits for an operator."""
        return self.amount_cents >= LARGE_CENTS


def plan(seed: int, turns: int) -> tuple[Order, ...]:
    """Make the orders of a demo, the same for the same seed."""
    rng = Random(seed)  # noqa: S311 - a repeatable script, no secret
    # Early enough that its decision comes while other turns are at work, and that they outlast it.
    large = rng.randrange((turns + 1) // 2)
    return tuple(
        Order(f"turn-{n:03d}", "greenhouse", 1)
        if n == large
        else Order(f"turn-{n:03d}", rng.choice(_EVERYDAY), rng.randint(1, 4))
        for n in range(turns)
    )
