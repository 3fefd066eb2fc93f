"""What a conformance kit says of what it tried."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Verdict"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one trial showed.

    Attributes:
        name: What must hold.
        ok: Whether it does.
        detail: What was seen instead; empty when it does.
    """

    name: str
    ok: bool
    detail: str = ""
