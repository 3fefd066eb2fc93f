"""The work every contender does, and how it is counted.

A step returns a small record; an execution collects what its steps gave it, and `check` compares that with
what they should have given after the clock has stopped. Nobody is timed doing the comparing, and nobody
gets away with a wrong value.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

Value = dict[str, int | str]

VALUE_BYTES = 200
"""Size of a step's result, as JSON."""
FIRST = 100_000  # six digits from the first step on, so that every result has the same size

IN_FLIGHT = 32
"""How many executions run at once in the rows that do not name another number."""

CRASHED = 3
"""Exit status of a process that died on purpose."""


def value(index: int) -> Value:
    """Make the result of a step."""
    return {"n": FIRST + index, "text": f"{index:0175d}"}


@dataclass(frozen=True)
class Sizes:
    """How much of everything a run does."""

    steps: int = 1_000
    """Of the one sequential execution."""
    executions: int = 1_000
    executions_steps: int = 3
    replay: int = 5_000
    steady: int = 400
    """Steps of each of the 32 executions that show the steady state."""
    growth_small: int = 1_000
    growth_large: int = 1_000_000
    imports: int = 15

    @classmethod
    def quick(cls) -> Sizes:
        """Sizes that show that everything runs; the figures mean little."""
        return cls(
            steps=200, executions=200, replay=1_000, steady=50, growth_small=1_000, growth_large=50_000, imports=5
        )


@dataclass(frozen=True)
class Job:
    """What one trial is to do, as it is passed to the process that does it."""

    target: str
    """The database, as `holdfast.open` takes it."""
    sizes: Sizes
    batch: int = 0
    """Rows per commit of the raw limits."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        record = json.loads(text)
        return cls(record["target"], Sizes(**record["sizes"]), record["batch"])


@dataclass
class Sample:
    """What one trial measured: how many of what it counts (mostly steps), in how many seconds."""

    count: int
    seconds: float
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Counted things per second."""
        return self.count / self.seconds


class Seen:
    """What the steps of a trial gave their callers, and how long the clock ran."""

    def __init__(self) -> None:
        self.values: list[tuple[int, Value]] = []
        self.ran = 0
        self.seconds = 0.0

    def run(self, index: int) -> Value:
        """Be the body of a step."""
        self.ran += 1
        return value(index)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Forget the warm-up and time the block."""
        self.values.clear()
        self.ran = 0
        started = time.perf_counter()
        yield
        self.seconds = time.perf_counter() - started

    def sample(self, count: int, *, replayed: bool = False, **extra: float) -> Sample:
        """Return the sample, once all `count` values have proved right and all steps ran once (or, replayed, not)."""
        assert self.ran == (0 if replayed else count), f"{self.ran} steps ran"
        assert len(self.values) == count, f"{len(self.values)} steps instead of {count}"
        for index, got in self.values:
            assert got == value(index), f"step {index} gave {got!r}"
        return Sample(count, self.seconds, extra)


async def flood(work: Callable[[], Awaitable[object]], count: int, in_flight: int) -> None:
    """Await `work()` `count` times, `in_flight` of them at once."""
    turns = iter(range(count))

    async def take_turns() -> None:
        for _ in turns:
            await work()

    await asyncio.gather(*(take_turns() for _ in range(in_flight)))


def flood_threads(work: Callable[[], object], count: int, in_flight: int) -> None:
    """Call `work()` `count` times from `in_flight` threads."""
    with ThreadPoolExecutor(in_flight) as threads:
        for _ in threads.map(lambda _: work(), range(count)):
            pass


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the values lie."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


Case = Callable[[Job], Sample]
"""What a contender offers under each name of a case."""
