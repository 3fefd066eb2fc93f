"""A ledger, the world outside it, and the deaths of whoever works on it.

What an effect did is counted where no ledger can flatter: in a file that effects append to and fsync.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast.core import points
from holdfast.core.clock import Clock
from holdfast.testing import Crashed, crash, crash_points

_DURABLE = {
    "ambiguity", "batch", "cancel", "claim", "decision", "effect", "finish", "generation", "intent", "lock", "outcome",
    "step",
}  # fmt: skip
DURABLE_POINTS = tuple(point for point in crash_points() if point.split(".")[0] in _DURABLE)
"""The crash points that executions pass; those of the other slices have journeys of their own."""


@dataclass(frozen=True)
class Outside:
    """The world: one line for each thing that happened in it."""

    path: Path

    def happen(self, *words: object) -> None:
        """Let something happen, for good."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def lines(self) -> list[str]:
        """Everything that happened, in order."""
        return self.path.read_text().splitlines() if self.path.exists() else []

    def count(self, *words: object) -> int:
        """How often something that begins with these words happened."""
        asked = " ".join(map(str, words)).split()
        return sum(line.split()[: len(asked)] == asked for line in self.lines())


@dataclass(frozen=True)
class Stage:
    """One ledger and what lies around it.

    Attributes:
        target: The ledger.
        folder: For files of this test.
        outside: Where effects are counted.
    """

    target: str
    folder: Path

    @property
    def outside(self) -> Outside:
        return Outside(self.folder / "outside")

    def open(self, *, clock: Clock | None = None, recover: bool = False, **config: Any) -> holdfast.Holdfast:
        """Open the ledger with these settings, as a process that just started would."""
        config.setdefault("owner_dir", self.folder / "owners")
        return holdfast.open(self.target, durable=holdfast.DurableConfig(**config), clock=clock, recover=recover)

    async def die(
        self, point: str, fn: Any, *args: Any, id: str, hit: int = 1, clock: Clock | None = None, **config: Any
    ) -> None:
        """Run an execution in a process that dies at a point."""
        async with self.open(clock=clock, **config) as hf:
            with crash(point, hit, "raise"), pytest.raises(Crashed):
                await hf.run(fn, *args, id=id)

    async def run(self, fn: Any, *args: Any, id: str, clock: Clock | None = None, **config: Any) -> Any:
        """Run an execution in a process of its own, to its end."""
        async with self.open(clock=clock, **config) as hf:
            return await hf.run(fn, *args, id=id)


def drop_everything() -> None:
    """Die here: all that open ledgers hold in memory is gone."""
    with pytest.raises(Crashed):
        points.crash("here")


async def turns(count: int = 30) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


def halves(*cases: str) -> list[Any]:
    """Give each case to one of the databases, in turn, and to the other one under torture; for `ledger` and another."""
    return [
        pytest.param(ledger, case, id=f"{ledger}-{case}", marks=() if (number + turn) % 2 else pytest.mark.torture)
        for turn, ledger in enumerate(("sqlite-file", "postgres"))
        for number, case in enumerate(cases)
    ]
