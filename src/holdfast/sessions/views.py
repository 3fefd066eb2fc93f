"""Sessions, turns and nodes as they are shown: what readers of any kind are given. Pure.

Ids have their prefixes, instants are aware, money is decimal; `document` makes of any of them what is sent as JSON.

Invariants:
    - What is absent is None, never an empty text; only the main thread's name is empty.
    - What was not measured is None, and what has no price is `unpriced`; neither becomes 0.
    - A total with such parts says how many there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Generic, Literal, TypeAlias, TypedDict, TypeVar

import msgspec

from holdfast.sessions import instants
from holdfast.sessions.jcs import Json
from holdfast.sessions.machine import DeriveState
from holdfast.sessions.parents import ParentState
from holdfast.sessions.values import Block, CostLine, CostState, Source, Status, UsageState, plain

__all__ = [
    "Branches", "CapturedEvent", "Event", "Fork", "GroupBy", "Leaf", "Moment", "Node", "Outcome", "Page", "Parent",
    "ParentHint", "Seen", "Session", "SessionFilters", "StatsRow", "Thread", "Tokens", "Total", "TotalTokens",
    "Tree", "TreeNode", "Turn", "TurnCost", "document",
]  # fmt: skip

T = TypeVar("T")
GroupBy: TypeAlias = Literal["day", "model", "harness", "subject", "session"]


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list, and the cursor of what follows; None: nothing does."""

    items: tuple[T, ...]
    next: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFilters:
    """Which sessions are listed: each that is set must fit exactly.

    Attributes:
        since: Seen at this instant or later; with `until`, those active in between.
        until: Begun before this instant.
        min_cost: In dollars.
    """

    harness_id: str | None = None
    harness_session_id: str | None = None
    auth_subject: str | None = None
    model: str | None = None
    provider: str | None = None
    agent_name: str | None = None
    tag: str | None = None
    parent_state: ParentState | None = None
    thread: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    min_cost: Decimal | None = None
    include_placeholders: bool = False


class Tokens(TypedDict):
    """The nine counts; None: not measured."""

    input: int | None
    cache_read: int | None
    cache_write: int | None
    cache_write_5m: int | None
    cache_write_1h: int | None
    output: int | None
    reasoning: int | None
    input_audio: int | None
    output_audio: int | None


class TotalTokens(Tokens):
    """What the turns that measured it used, and how many did not."""

    unmeasured_turns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """What several turns cost.

    Attributes:
        usd: None where none of them has a price.
        state: `priced` only where all of them have.
    """

    usd: Decimal | None
    state: Literal["priced", "partial", "unpriced"]
    unpriced_turns: int
    partial_turns: int
    provided_turns: int


@dataclass(frozen=True, slots=True)
class ParentHint:
    """What a session says of its parent; `harness_id` is None where it was not said."""

    harness_id: str | None
    harness_session_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """Where a session was forked from.

    Attributes:
        session_id: None where no session is linked.
        hint: What was said; None: nothing.
        flag: `harness_assumed` or `depth`.
    """

    session_id: str | None
    state: ParentState
    hint: ParentHint | None = None
    flag: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the last turn of the main thread ended."""

    status: Status
    stop_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One conversation of a harness.

    Attributes:
        title: Its display name, its name, the first words of the user, or its id: the first of these that there is.
        conflicts: By field, values that were said and disagree with the one that is kept.
        live: Whether it was seen in the last five minutes.
        row_hash: Changes with anything shown here but `live` and `outcome`.
    """

    id: str
    harness_id: str
    harness_session_id: str
    name: str | None
    display_name: str | None
    title: str
    parent: Parent
    is_placeholder: bool
    is_synthetic: bool
    auth_subject: str | None
    cwd: str | None
    harness_version: str | None
    harness_metadata: Mapping[str, Json]
    started_at: datetime | None
    last_seen_at: datetime | None
    turn_count: int
    failed_turn_count: int
    tokens: TotalTokens
    cost: Total
    models: Mapping[str, int]
    conflicts: Mapping[str, Sequence[Json]]
    live: bool
    outcome: Outcome | None
    row_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCost:
    """What one turn cost, and how that is known."""

    usd: Decimal | None
    state: CostState
    price_version: str | None
    provided_usd: Decimal | None
    computed_usd: Decimal | None
    lines: tuple[CostLine, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One event that tells of a turn."""

    event_id: str
    evidence_key: str
    source: Source
    rank: int
    captured_at: datetime
    capture_id: str
    message_id: str | None
    request_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One message in its place.

    Attributes:
        sessions: Those that hold it, the earliest first, where that was asked.
        sessions_truncated: Whether there are more of them.
        preview: Whether texts were cut.
    """

    hash: str
    parent_hash: str | None
    role: str
    content: tuple[Block, ...]
    hash_version: int = 1
    sessions: tuple[str, ...] = ()
    sessions_truncated: bool = False
    preview: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One call to a provider, and what came back.

    Attributes:
        row_hash: Changes with anything shown here but `messages`.
        messages: The chain, where it was asked for.
    """

    id: str
    session_id: str
    thread_id: str
    parent_tool_use_id: str | None
    provider: str
    endpoint: str | None
    model: str | None
    agent_name: str | None
    call_kind: str
    status: Status
    upstream_status: int | None
    error_type: str | None
    stop_reason: str | None
    captured_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    ttft_ms: int | None
    duration_ms: int | None
    message_id: str | None
    upstream_request_id: str | None
    request_params: Mapping[str, Json]
    hash_version: int
    root_hash: str | None
    head_hash: str | None
    response_hash: str | None
    answer_hash: str | None
    continues_hash: str | None
    chain_length: int
    tokens: Tokens
    usage_state: UsageState
    service_tier: str | None
    server_tools: Mapping[str, int]
    raw_usage: Json
    cost: TurnCost
    rate_limits: Mapping[str, Json]
    fidelity: str
    tags: tuple[str, ...]
    flags: tuple[str, ...]
    evidence_count: int
    evidence: tuple[Seen, ...]
    row_hash: str
    messages: tuple[Node, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One captured event, without its bodies.

    Attributes:
        request_bytes, response_bytes: What is kept of the bodies.
        reason: Why it has no turn.
        retry_at: When it is tried again.
    """

    event_id: str
    capture_id: str
    source: Source
    provider: str
    captured_at: datetime
    received_at: datetime
    request_bytes: int
    response_bytes: int
    flags: list[str]
    state: DeriveState
    attempts: int
    reason: str | None
    retry_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedEvent(Event):
    """A captured event with what was told of it.

    Attributes:
        turn_id: The turn it tells of; None: there is none.
        session_id: The session of that.
        told: Everything that was sent but the bodies.
    """

    turn_id: str | None
    session_id: str | None
    told: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One thing that happened in a session: a turn, or a tool that its answer asked for.

    Attributes:
        at: When it began.
        ended_at: When it ended; of a tool use, when its result was first seen; None: not known.
        id: The turn's, or the provider's for the tool use.
        name: The model, or the tool.
        outcome: The turn's status; of a tool use `ok` or `error`; None: not known.
    """

    at: datetime
    ended_at: datetime | None
    kind: Literal["turn", "tool_use"]
    id: str
    name: str | None
    outcome: str | None
    turn_id: str
    thread_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsRow:
    """The turns of one group.

    Attributes:
        key: The day, model, harness, subject or session; None: that of turns that name none.
    """

    key: str | None
    turns: int
    failed: int
    tokens: TotalTokens
    cost: Total


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """The turns of one thread of a session; the main one has no name."""

    thread_id: str
    turns: int
    failed: int
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A session below another, and how many links it is away."""

    session: Session
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A session with those above it, nearest first, and those below it, nearest first.

    Attributes:
        own: The session's own turns.
        subtree: With all that is below, as far as it is shown.
        truncated: Whether there is more, above or below.
    """

    session: Session
    ancestors: tuple[Session, ...]
    descendants: tuple[TreeNode, ...]
    threads: tuple[Thread, ...]
    own: StatsRow
    subtree: StatsRow
    depth: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Fork:
    """A node that has several children in a session."""

    hash: str
    children: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A node that has none, and the way to it from its root, itself last."""

    hash: str
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Branches:
    """Where the messages of a session part."""

    forks: tuple[Fork, ...]
    leaves: tuple[Leaf, ...]
    truncated: bool = field(default=False)


def document(value: Any) -> Json:
    """Return what is sent as JSON: instants in RFC 3339, amounts as text, what is absent as null."""
    if isinstance(value, datetime):
        return instants.written(instants.micros(value))
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, Block):
        return plain(value)
    if isinstance(value, msgspec.Struct):
        return document(msgspec.to_builtins(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: document(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {name: document(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [document(each) for each in value]
    return value
