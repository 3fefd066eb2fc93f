"""Rows as they are shown: a session, a turn, an event, a node, a group of turns. No statement is run here.

Invariants:
    - A sum over many turns is exact: its parts come from the store in two limbs.
    - A text is cut at a whole character, and whatever holds it says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import msgspec

from holdfast.sessions import identity, instants, pricing
from holdfast.sessions.archive import rows
from holdfast.sessions.archive.standing import Standing, standing_of
from holdfast.sessions.archive.work import Kept
from holdfast.sessions.evidence import Evidence
from holdfast.sessions.jcs import Json
from holdfast.sessions.values import COLUMNS, Block, CostLine, Usage
from holdfast.sessions.views import (
    Event,
    Node,
    Outcome,
    Parent,
    ParentHint,
    Seen,
    Session,
    StatsRow,
    Tokens,
    Total,
    TotalTokens,
    Turn,
    TurnCost,
)
from holdfast.store.database import Row

__all__ = [
    "LIMB", "PREVIEW_CHARS_MAX", "cut", "event_of", "node_of", "previewed", "session_of", "stats_of", "total_of",
    "total_tokens", "turn_of",
]  # fmt: skip

LIMB = 1_000_000_000
"""What the store splits amounts at, so that no sum of either half overflows."""

PREVIEW_CHARS_MAX = 512
"""What a preview shows of a text."""

LIVE_US = timedelta(minutes=5) // timedelta(microseconds=1)
"""How long after its last sign a session counts as going on."""


def session_of(row: Row, outcome: Row | None, *, now: int) -> Session:
    """Return a session as it is shown.

    Args:
        row: Its row.
        outcome: The last turn of its main thread.
        now: The clock, in microseconds.
    """
    standing = standing_of(row)
    fold = standing.fold
    tokens = {} if fold is None else fold.tokens
    counts = {column: tokens[column][1] if column in tokens else None for column in COLUMNS}
    shown = identity.shown_id("ses", standing.session_id)
    name = None if fold is None else fold.name or None
    return Session(
        id=shown,
        harness_id=standing.key[0],
        harness_session_id=standing.key[1],
        name=name,
        display_name=standing.display_name,
        title=standing.display_name or name or (fold is not None and fold.first_text) or shown,
        parent=_parent(standing),
        is_placeholder=fold is None,
        is_synthetic=fold is not None and fold.is_synthetic,
        auth_subject=None if fold is None else fold.auth_subject or None,
        cwd=None if fold is None else fold.cwd or None,
        harness_version=None if fold is None else fold.harness_version or None,
        harness_metadata={} if fold is None else fold.harness_metadata,
        started_at=None if fold is None or fold.started_at is None else instants.moment(fold.started_at),
        last_seen_at=None if fold is None or fold.last_seen_at is None else instants.moment(fold.last_seen_at),
        turn_count=0 if fold is None else fold.turn_count,
        failed_turn_count=0 if fold is None else fold.failed_turn_count,
        tokens=total_tokens(counts, 0 if fold is None else fold.unmeasured_turn_count),
        cost=total_of(
            0 if fold is None else fold.turn_count,
            0 if fold is None else fold.cost_pusd,
            0 if fold is None else fold.unpriced_turn_count,
            0 if fold is None else fold.partial_turn_count,
            0 if fold is None else fold.provided_turn_count,
        ),
        models={} if fold is None else fold.models,
        conflicts=_conflicts(standing),
        live=fold is not None and fold.last_seen_at is not None and 0 <= now - fold.last_seen_at < LIVE_US,
        outcome=None if outcome is None else Outcome(outcome.status, outcome.stop_reason or None),
        row_hash=row.row_hash.hex(),
    )


def _parent(standing: Standing) -> Parent:
    hint = standing.hint
    return Parent(
        session_id=None if standing.parent_id is None else identity.shown_id("ses", standing.parent_id),
        state=standing.parent_state,
        hint=None if hint is None else ParentHint(hint.harness_id or None, hint.harness_session_id),
        flag=standing.parent_flag or None,
    )


def _conflicts(standing: Standing) -> dict[str, list[Json]]:
    seen = {} if standing.fold is None else standing.fold.seen
    return {name: [value for _, value in said[1:]] for name, said in seen.items() if len(said) > 1}


def total_of(turns: int, pusd: int, unpriced: int, partial: int, provided: int) -> Total:
    """Return what turns cost together: a lower bound where some have no price."""
    nothing = turns > 0 and unpriced == turns
    return Total(
        usd=None if nothing else pricing.from_pusd(pusd),
        state="unpriced" if nothing else "partial" if unpriced or partial else "priced",
        unpriced_turns=unpriced,
        partial_turns=partial,
        provided_turns=provided,
    )


def total_tokens(counts: Mapping[str, int | None], unmeasured: int) -> TotalTokens:
    """Return what turns used together."""
    return cast("TotalTokens", {**counts, "unmeasured_turns": unmeasured})


def stats_of(row: Row, key: str | None) -> StatsRow:
    """Return a group of turns as it is shown."""
    pusd = int(row.cost_high or 0) * LIMB + int(row.cost_low or 0)
    return StatsRow(
        key=key,
        turns=row.turns,
        failed=int(row.failed or 0),
        tokens=total_tokens({column: getattr(row, column) for column in COLUMNS}, int(row.unmeasured or 0)),
        cost=total_of(row.turns, pusd, int(row.unpriced or 0), int(row.partial or 0), int(row.provided or 0)),
    )


# --- turns --------------------------------------------------------------------------------------------


def turn_of(kept: Kept, params: Mapping[str, Json], lines: tuple[CostLine, ...]) -> Turn:
    """Return a turn as it is shown.

    Args:
        kept: The turn.
        params: The request's parameters, whole.
        lines: What its cost is made of.
    """
    facts = kept.facts
    usage = facts.usage or Usage()
    assert kept.session_id is not None
    said = {
        name: _present(name, getattr(facts, name))
        for name in Turn.__dataclass_fields__
        if name in facts.__struct_fields__ and name not in ("captured_at", "started_at", "ended_at", "request_params")
    }
    return Turn(
        **said,
        id=identity.shown_id("turn", facts.turn_id),
        session_id=identity.shown_id("ses", kept.session_id),
        captured_at=instants.moment(facts.captured_at),
        started_at=None if facts.started_at is None else instants.moment(facts.started_at),
        ended_at=None if facts.ended_at is None else instants.moment(facts.ended_at),
        request_params=params,
        tokens=cast("Tokens", {column: getattr(usage, column) for column in COLUMNS}),
        service_tier=usage.service_tier or None,
        server_tools=usage.server_tools,
        cost=TurnCost(
            usd=pricing.from_pusd(facts.cost_pusd),
            state=facts.cost_state,
            price_version=facts.price_version or None,
            provided_usd=pricing.from_pusd(facts.provided_pusd),
            computed_usd=pricing.from_pusd(facts.computed_pusd),
            lines=lines,
        ),
        evidence=tuple(map(_seen, kept.cell)),
        row_hash=kept.row_hash.hex(),
    )


def _present(name: str, value: Any) -> Any:
    """Return None for an empty text, but for that of the main thread, whose name it is."""
    return None if value == "" and name != "thread_id" else value


def _seen(evidence: Evidence) -> Seen:
    return Seen(
        event_id=identity.shown_id("cap", evidence.event_id),
        evidence_key=evidence.evidence_key,
        source=evidence.source,
        rank=evidence.rank,
        captured_at=instants.moment(evidence.captured_at),
        capture_id=evidence.capture_id,
        message_id=evidence.message_id or None,
        request_id=evidence.request_id or None,
    )


# --- nodes --------------------------------------------------------------------------------------------


def event_of(row: Row) -> Event:
    """Return a captured event as it is shown."""
    return Event(
        event_id=identity.shown_id("cap", row.event_id),
        capture_id=row.capture_id,
        source=row.source,
        provider=row.provider,
        captured_at=instants.moment(row.captured_at),
        received_at=instants.moment(row.received_at),
        request_bytes=row.request_bytes,
        response_bytes=row.response_bytes,
        flags=row.flags.split(),
        state=row.derive_state,
        attempts=row.attempts,
        reason=row.error or None,
        retry_at=None if row.retry_at is None else instants.moment(row.retry_at),
    )


def node_of(row: Row, version: int, sessions: Sequence[bytes] = (), *, preview: bool = False) -> Node:
    """Return a node as it is shown; a preview has long texts cut."""
    node = Node(
        hash=row.hash.hex(),
        parent_hash=None if row.parent_hash is None else row.parent_hash.hex(),
        role=row.role,
        content=rows.read_blocks(row.content),
        hash_version=version,
        sessions=tuple(identity.shown_id("ses", each) for each in sessions),
    )
    return previewed(node) if preview else node


def previewed(node: Node) -> Node:
    """Return a node whose long texts are cut."""
    short = tuple(map(cut, node.content))
    return replace(node, content=short, preview=short != node.content)


def cut(block: Block) -> Block:
    """Return a block whose texts are no longer than a preview's; what is no text is cut as its JSON."""
    short: dict[str, Any] = {
        name: value[:PREVIEW_CHARS_MAX]
        for name in ("text", "tool_output", "thinking", "image_base64", "image_url", "tool_input_raw")
        if isinstance(value := getattr(block, name), str) and len(value) > PREVIEW_CHARS_MAX
    }
    if block.tool_input and len(written := msgspec.json.encode(block.tool_input)) > PREVIEW_CHARS_MAX:
        short |= {"tool_input": None, "tool_input_raw": written.decode()[:PREVIEW_CHARS_MAX]}
    if block.content is not None and len(written := msgspec.json.encode(block.content)) > PREVIEW_CHARS_MAX:
        short["content"] = written.decode()[:PREVIEW_CHARS_MAX]
    return msgspec.structs.replace(block, **short) if short else block
