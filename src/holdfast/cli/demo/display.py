"""What the demo shows while it runs: bars on a terminal, plain lines anywhere else."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from holdfast.core.clock import Clock

__all__ = ["Display"]

_LINE_SECONDS = 2.0


class Display:
    """Progress of turns and kills, and what happens on the way."""

    def __init__(self, console: Console, clock: Clock, *, turns: int, kills: int) -> None:
        self._console = console
        self._clock = clock
        self._began = clock.monotonic()
        self._spoke = self._began
        self._seen = ""
        self._bars = Progress(
            TextColumn("{task.description:>16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._turns = self._bars.add_task("turns completed", total=turns)
        self._kills = self._bars.add_task("processes killed", total=kills)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    @property
    def seconds(self) -> float:
        """How long the demo has run."""
        return self._clock.monotonic() - self._began

    def say(self, text: str) -> None:
        """Tell of an event."""
        self._console.print(f"{self.seconds:6.1f} s  {text}", highlight=False, markup=False, soft_wrap=True)

    def show(self, *, turns: int, kills: int, paid: int, applied: int) -> None:
        """Show how far everything is."""
        self._bars.update(self._turns, completed=turns)
        self._bars.update(self._kills, completed=kills)
        line = f"{turns} turns completed, {paid} model calls paid, {applied} payments applied"
        if self._console.is_terminal or line == self._seen or self._clock.monotonic() < self._spoke + _LINE_SECONDS:
            return
        self._spoke, self._seen = self._clock.monotonic(), line
        self.say(line)
