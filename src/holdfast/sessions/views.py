"""Sessions, turns and nodes as they are shown: what readers of any kind are given. Pure.

Ids have their prefixes, instants are aware, money is decimal; `document` makes of any of them what is sent as JSON.

Invariants:
    - What was not measured is None, and what has no price is `unpriced`; neither becomes 0.
    - A total with such parts says how many there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from holdfast.sessions import instants
from holdfast.sessions.jcs import Json
from holdfast.sessions.values import Block, CostLine, CostState, Status, UsageState, plain

__all__ = [
    "Branches", "Fork", "GroupBy", "Leaf", "Node", "Outcome", "Page", "Parent", "Seen", "Session", "SessionFilters",
    "StatsRow", "Thread", "Total", "Tree", "TreeNode", "Turn", "TurnCost", "document",
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
    parent_state: str | None = None
    thread: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    min_cost: Decimal | None = None
    include_placeholders: bool = False


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """Where a session was forked from.

    Attributes:
        session_id: None where no session is linked.
        hint: What was said: harness (None: not said) and session id; None: nothing.
        flag: `harness_assumed`, `depth`, or empty.
    """

    session_id: str | None
    state: str
    hint: tuple[str | None, str] | None = None
    flag: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the last turn of the main thread ended."""

    status: Status
    stop_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One conversation of a harness.

    Attributes:
        tokens: By column, what the turns that measured it used; None: none did. And `unmeasured_turns`.
        conflicts: By field, values that were said and disagree with the one that is kept.
        live: Whether it was seen in the last five minutes.
        etag: Changes with anything shown here but `live`.
    """

    id: str
    harness_id: str
    harness_session_id: str
    name: str
    display_name: str | None
    title: str
    parent: Parent
    is_placeholder: bool
    is_synthetic: bool
    auth_subject: str
    cwd: str
    harness_version: str
    harness_metadata: Mapping[str, Json]
    started_at: datetime | None
    last_seen_at: datetime | None
    turn_count: int
    failed_turn_count: int
    tokens: Mapping[str, int | None]
    cost: Total
    models: Mapping[str, int]
    conflicts: Mapping[str, Sequence[Json]]
    live: bool
    outcome: Outcome | None
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCost:
    """What one turn cost, and how that is known."""

    usd: Decimal | None
    state: CostState
    price_version: str
    provided_usd: Decimal | None
    computed_usd: Decimal | None
    lines: tuple[CostLine, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One event that tells of a turn."""

    event_id: str
    evidence_key: str
    source: str
    rank: int
    captured_at: datetime
    capture_id: str
    message_id: str
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One message in its place.

    Attributes:
        preview: Whether texts were cut.
    """

    hash: str
    parent_hash: str | None
    role: str
    content: tuple[Block, ...]
    hash_version: int = 1
    sessions: tuple[str, ...] = ()
    preview: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One call to a provider, and what came back.

    Attributes:
        tokens: By column; None: not measured.
        messages: The chain, where it was asked for.
    """

    id: str
    session_id: str
    thread_id: str
    parent_tool_use_id: str
    provider: str
    endpoint: str
    model: str
    agent_name: str
    call_kind: str
    status: Status
    upstream_status: int | None
    error_type: str
    stop_reason: str
    captured_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    ttft_ms: int | None
    duration_ms: int | None
    message_id: str
    upstream_request_id: str
    request_params: Mapping[str, Json]
    hash_version: int
    root_hash: str
    head_hash: str
    response_hash: str
    answer_hash: str
    continues_hash: str
    chain_length: int
    tokens: Mapping[str, int | None]
    usage_state: UsageState
    service_tier: str
    server_tools: Mapping[str, int]
    raw_usage: Json
    cost: TurnCost
    rate_limits: Mapping[str, Json]
    fidelity: str
    tags: tuple[str, ...]
    flags: tuple[str, ...]
    evidence: tuple[Seen, ...]
    etag: str
    messages: tuple[Node, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsRow:
    """The turns of one group.

    Attributes:
        key: The day, model, harness, subject or session.
    """

    key: str
    turns: int
    failed: int
    tokens: Mapping[str, int | None]
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
        truncated: Whether there is more below.
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
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: document(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {name: document(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [document(each) for each in value]
    return value
