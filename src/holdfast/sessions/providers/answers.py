"""What an answer says, whichever provider gave it and whether it was streamed. Pure.

Invariants:
    - An answer that broke off keeps what had come of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast.sessions.jcs import Json
from holdfast.sessions.values import Block, Outcome, Usage

__all__ = ["Answer"]


@dataclass(slots=True)
class Answer:
    """What has been read of an answer so far.

    Attributes:
        raw_usage: The provider's own account, or None.
        usage_final: Whether that account is the last one.
        flags: What could not be read as it should.
    """

    flags: set[str]
    blocks: list[Block] = field(default_factory=list)
    outcome: Outcome = "incomplete"
    error_type: str = ""
    stop_reason: str = ""
    message_id: str = ""
    model: str = ""
    usage: Usage | None = None
    raw_usage: Json = None
    usage_final: bool = False

    def fail(self, error_type: str) -> None:
        """Note that the provider itself said that it failed."""
        self.outcome = "failed"
        self.error_type = error_type or "error"
