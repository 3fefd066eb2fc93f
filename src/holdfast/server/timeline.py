"""One timeline of what all slices know of an agent's session: the place where they meet, by value.

A receipt names its harness and the harness's session. An execution belongs to the session whose id it has, or whose id
its own begins with, before a slash: `SESSION`, `SESSION/turn-3`.

Invariants:
    - Executions and receipts belong to the ledger and not to an org: only an operator sees them here too.
    - No recorded value is shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from holdfast.core.clock import to_datetime
from holdfast.execution import views
from holdfast.lifecycle import ledger
from holdfast.lifecycle.manifest import Registry
from holdfast.sessions.identity import UNKNOWN

if TYPE_CHECKING:
    from holdfast import Entry, Holdfast
    from holdfast.lifecycle.sheet import Stored
    from holdfast.sessions.views import Moment, Session

__all__ = ["Happening", "SessionTimeline", "merged"]

_EXECUTIONS_MAX = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One thing that happened in a session.

    Attributes:
        at: When it began; of a receipt, when it was recorded.
        ended_at: When it ended, as far as that is known.
        kind: An effect is a step that changes something outside exactly once, as far as that can be had.
        id: The turn's, the tool use's, the receipt's; of a step its position in the execution.
        name: The model, the tool, the step, or the event of the receipt.
        outcome: The turn's status, `ok` or `error` of a tool use, what came of a step, the receipt's status.
        effect: The class of a step, with its scope.
        generation: The pass of the execution that recorded the step.
        client_id: The client that the receipt is of.
    """

    at: datetime
    ended_at: datetime | None
    kind: Literal["turn", "tool_use", "step", "effect", "receipt"]
    id: str
    name: str | None
    outcome: str | None
    turn_id: str | None = None
    thread_id: str | None = None
    execution_id: str | None = None
    generation: int | None = None
    effect: str | None = None
    client_id: str | None = None


@dataclass(frozen=True, slots=True)
class SessionTimeline:
    """What happened in a session, by time.

    Attributes:
        slices: Who was asked: without the scope `admin` only `sessions`.
        truncated: Whether there is more than was looked at.
    """

    items: list[Happening]
    slices: list[Literal["sessions", "durable", "lifecycle"]]
    truncated: bool


async def merged(
    hf: Holdfast, session: Session, moments: Iterable[Moment], *, operator: bool, cut: bool, most: int
) -> SessionTimeline:
    """Put what the other slices know of a session between its moments.

    Args:
        hf: The ledger.
        session: The session.
        moments: Its turns and tool uses.
        operator: Whether who asks may see what belongs to no org.
        cut: Whether there are more moments than these.
        most: How many journal entries, and how many receipts, are looked at.
    """
    items = [_moment(each) for each in moments]
    if not operator:
        return SessionTimeline(items, ["sessions"], cut)
    steps, more_steps = await _steps(hf, session.harness_session_id, most)
    receipts, more_receipts = await _receipts(hf, session, most)
    items = sorted([*items, *steps, *receipts], key=lambda each: each.at)
    return SessionTimeline(items, ["sessions", "durable", "lifecycle"], cut or more_steps or more_receipts)


def _moment(moment: Moment) -> Happening:
    return Happening(
        at=moment.at, ended_at=moment.ended_at, kind=moment.kind, id=moment.id, name=moment.name,
        outcome=moment.outcome, turn_id=moment.turn_id, thread_id=moment.thread_id,
    )  # fmt: skip


async def _steps(hf: Holdfast, id: str, most: int) -> tuple[list[Happening], bool]:
    executions = await views.under(hf, id, most=_EXECUTIONS_MAX + 1)
    found: list[Happening] = []
    left = most
    for each in executions[:_EXECUTIONS_MAX]:
        left -= each.entries_count
        if left < 0:
            return found, True
        found += _of_execution(each.id, await hf.history(each.id))
    return found, len(executions) > _EXECUTIONS_MAX


def _of_execution(id: str, entries: Iterable[Entry]) -> list[Happening]:
    """Return the steps of an execution: of each the first and the last that was written of it."""
    by_place: dict[tuple[int, str], list[Entry]] = {}
    for each in entries:
        # What a later pass has taken over from an earlier one happened then.
        if each.kind == "step" and each.carried_from is None:
            by_place.setdefault((each.generation, each.position), []).append(each)
    return [
        Happening(
            at=written[0].at,
            ended_at=written[-1].at if written[-1].part != "opened" else None,
            kind="effect" if (written[-1].effect or "").startswith("exactly_once") else "step",
            id=position,
            name=written[-1].name,
            outcome=written[-1].outcome,
            execution_id=id,
            generation=generation,
            effect=written[-1].effect,
        )
        for (generation, position), written in by_place.items()
    ]


async def _receipts(hf: Holdfast, session: Session, most: int) -> tuple[list[Happening], bool]:
    async with hf.database.read() as tx:
        stored = await ledger.list_receipts(tx, session_id=session.harness_session_id, limit=most + 1)
    canonical = Registry.builtin().canonical
    harness = canonical(session.harness_id)
    # Receipts of any harness may be those of a session of which nobody said the harness.
    mine = [each for each in reversed(stored[:most]) if harness in (UNKNOWN, canonical(each.receipt.adapter_id))]
    return [_receipt(each) for each in mine], len(stored) > most


def _receipt(stored: Stored) -> Happening:
    receipt = stored.receipt
    return Happening(
        at=to_datetime(stored.recorded_at), ended_at=None, kind="receipt", id=receipt.receipt_id,
        name=receipt.event, outcome=receipt.status, client_id=receipt.client_id,
    )  # fmt: skip
