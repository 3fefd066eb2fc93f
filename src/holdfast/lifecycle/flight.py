"""One event on its way through the router: what was asked, and what is recorded of it.

Invariants:
    - A payload that has no place goes nowhere.
    - An event that no client is called about is claimed and settled in one transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from holdfast.lifecycle.annotations import Annotations, annotate
from holdfast.lifecycle.dispatch import Callback, Command
from holdfast.lifecycle.documents import CallbackResponse, Chosen, NegotiatedPlan, PayloadEnvelope, ReceiptContext
from holdfast.lifecycle.enums import ReplayMode
from holdfast.lifecycle.ledger import Claim, Claimed, Draft, Origin, Proceed, Settle, Settled
from holdfast.lifecycle.negotiation import PayloadPolicy

if TYPE_CHECKING:
    from holdfast.lifecycle.sheet import Sheet

__all__ = ["Event", "Note", "Unasked"]

Note: TypeAlias = Callable[[Annotations, CallbackResponse | None], Annotations]
"""Adds to what is known beyond the receipt, from what the client answered."""


class Unasked:
    """Claim an event that no client is called about, and settle it at once."""

    __slots__ = ("_claim", "_draft", "chain", "identity", "intent")

    place = None

    def __init__(self, claim: Claim, draft: Draft) -> None:
        self._claim = claim
        self._draft = draft
        self.chain = claim.chain
        self.identity = claim.identity
        self.intent: str | None = claim.intent

    def decide(self, sheet: Sheet) -> Claimed | Settled:
        """Insert the receipt, or say who has the event."""
        found = self._claim.decide(sheet)
        if isinstance(found, Proceed):
            return Settle(found.intent, found.fence, self._draft).decide(sheet)
        return found


class Event:
    """One event on its way: what `dispatch` was given, and what was settled about it."""

    __slots__ = ("client", "context", "due", "mode", "negotiated", "note", "origin", "payloads")

    def __init__(  # noqa: PLR0913 - what an event is, made in one place
        self,
        negotiated: NegotiatedPlan,
        client: Callback | Command | None,
        context: ReceiptContext,
        payloads: tuple[PayloadEnvelope, ...],
        mode: ReplayMode,
        due: float,
        origin: Origin,
        note: Note | None,
    ) -> None:
        self.negotiated = negotiated
        self.client = client
        self.context = context
        self.payloads = payloads
        self.mode = mode
        self.due = due
        self.origin = origin
        self.note = note

    @property
    def label(self) -> str:
        """The label of its request."""
        return self.negotiated.plan.schema_version

    @property
    def is_asked(self) -> bool:
        """Whether a client is to be called about it."""
        return self.client is not None and not self.negotiated.blocks_dispatch

    def placed(self) -> tuple[PayloadEnvelope, ...]:
        """What goes to the client: what has no place goes nowhere."""
        decided = {each.payload_id for each in self.negotiated.placement_decisions if isinstance(each, Chosen)}
        return tuple(payload for payload in self.payloads if payload.payload_id in decided)

    def draft(self, response: CallbackResponse | None, policy: PayloadPolicy, *, dispatched: bool) -> Draft:
        """Make the receipt, but for its number, of what the client answered."""
        notes = annotate(self.negotiated, response, self.context, dispatched=dispatched, policy=policy)
        if self.note is not None:
            notes = self.note(notes, response)
        return Draft(
            self.negotiated, response, self.context, dispatched=dispatched, annotations=notes, origin=self.origin
        )
