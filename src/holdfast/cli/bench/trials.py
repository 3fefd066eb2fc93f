"""How it is measured: rounds that interleave all contenders, medians, and a look at what the loop had to wait for."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from holdfast.core.clock import SystemClock
from holdfast.core.loops import spawn

__all__ = ["Sizes", "latencies", "longest_stall", "rate", "rounds"]

Call = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        rounds: How often every contender has its turn.
        calls: Calls of a turn, one after the other.
        crowd: Requests of a turn with 64 in flight.
        few: Records of a small ledger.
        many: Records of a large one.
    """

    rounds: int = 7
    calls: int = 400
    crowd: int = 6_400
    few: int = 100
    many: int = 100_000

    @classmethod
    def quick(cls) -> Sizes:
        """Sizes that only show that it runs."""
        return cls(rounds=3, calls=40, crowd=640, few=100, many=2_000)


async def rounds(contenders: Mapping[str, Call], sizes: Sizes) -> dict[str, float]:
    """Return the median seconds of one call of each contender, all having their turn in every round."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        for _ in range(sizes.calls // 4):
            await call()
    for _ in range(sizes.rounds):
        for name, call in contenders.items():
            gc.collect()
            began = time.perf_counter()
            for _ in range(sizes.calls):
                await call()
            found[name].append((time.perf_counter() - began) / sizes.calls)
    return {name: statistics.median(times) for name, times in found.items()}


async def rate(call: Call, count: int, *, in_flight: int = 64) -> float:
    """Return how many calls a second end, with that many in flight."""
    gc.collect()
    began = time.perf_counter()
    await _crowd(call, count, in_flight)
    return count / (time.perf_counter() - began)


async def latencies(call: Call, count: int, *, in_flight: int = 64) -> list[float]:
    """Return how many seconds each call took, in order, with that many in flight."""
    found: list[float] = []

    async def timed() -> None:
        began = time.perf_counter()
        await call()
        found.append(time.perf_counter() - began)

    await _crowd(timed, count, in_flight)
    return sorted(found)


async def _crowd(call: Call, count: int, in_flight: int) -> None:
    async def worker() -> None:
        for _ in range(count // in_flight):
            await call()

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(worker())


async def longest_stall(call: Call) -> float:
    """Return for how many seconds at most the event loop stood still during a call."""
    clock = SystemClock()
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        last = time.perf_counter()
        while True:
            await clock.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    ticking = spawn(tick(), "holdfast bench ticker")
    try:
        await clock.sleep(0)
        await call()
    finally:
        ticking.cancel()
    return longest
