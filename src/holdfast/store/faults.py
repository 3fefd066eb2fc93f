"""Faults of the writer on demand, for tests of whatever stands on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.store.writer import Writer

__all__ = ["Faults"]


class Faults:
    """Faults on demand, for tests of whatever stands on the writer."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.stalled = False
        self.failing = 0
        self.mute = 0

    @property
    def any(self) -> bool:
        """Whether a fault is set."""
        return self.stalled or self.failing > 0 or self.mute > 0

    def stall(self) -> None:
        """Commit nothing until `resume`."""
        self.stalled = True
        self._writer.faulty = True

    def resume(self) -> None:
        """End a stall and forget failures still to come."""
        self.stalled = False
        self.failing = self.mute = 0
        self._writer.faulty = False
        self._writer.poke()

    def fail_next(self, n: int = 1) -> None:
        """Let the next `n` commits fail before they begin, as a failing disk would."""
        self.failing = n
        self._writer.faulty = self.any

    def die(self, *, after_commit: bool = False) -> None:
        """Let the writer die now, or right after its next commit with the acknowledgement lost."""
        if after_commit:
            self.mute = 1
            self._writer.faulty = True
        else:
            self._writer.die()
