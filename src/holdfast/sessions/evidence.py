"""What is known of a call from each place it was seen, and what becomes of a session by its turns: the rows. Pure.

Invariants:
    - An evidence holds everything a turn is made of, but no bodies.
    - An empty text, an empty object and None all mean that nothing was said.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
from blake3 import blake3

from holdfast.sessions import jcs
from holdfast.sessions.values import CostState, Mark, SessionKey, Source, Status, Usage, UsageState

__all__ = ["RANKS", "Account", "Cell", "Evidence", "SessionRow", "TurnFacts", "join_key"]

RANKS: dict[Source, int] = {"wire": 0, "sdk": 0, "otlp": 1, "transcript": 2}
"""Whose word counts first; a transcript's copy of another's line comes after all, at 3."""


class Account(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one evidence says of a call. Instants are microseconds.

    Attributes:
        first_text: The first words of the user, as they are hashed.
        continues_hash: The last node of the assistant in the request.
        answer_hash: The response's hash under no parent.
    """

    harness_id: str = ""
    harness_session_id: str = ""
    synthetic: bool = False
    auth_subject: str = ""
    name: str = ""
    cwd: str = ""
    harness_version: str = ""
    harness_metadata: dict[str, Any] = {}
    parent_harness_id: str = ""
    parent_harness_session_id: str = ""
    thread_id: str = ""
    parent_tool_use_id: str = ""
    endpoint: str = ""
    model: str = ""
    agent_name: str = ""
    call_kind: str = ""
    status: Status = "ok"
    upstream_status: int | None = None
    error_type: str = ""
    stop_reason: str = ""
    started_at: int | None = None
    ended_at: int | None = None
    ttft_ms: int | None = None
    duration_ms: int | None = None
    upstream_request_id: str = ""
    request_params: dict[str, Any] = {}
    hash_version: int = 1
    root_hash: str = ""
    head_hash: str = ""
    response_hash: str = ""
    answer_hash: str = ""
    continues_hash: str = ""
    chain_length: int = 0
    first_text: str = ""
    usage: Usage | None = None
    usage_state: UsageState = "missing"
    raw_usage: Any = None
    provided_pusd: int | None = None
    rate_limits: dict[str, Any] = {}
    fidelity: str = ""
    tags: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What one event, or one part of it, says of one call.

    Attributes:
        evidence_key: Which part of the event; empty where the event is one call.
        seq: The event's place in the ledger.
        request_id: The provider's name of the request.
        join_key: What it has in common with another's view of the same call; None: nothing that is known.
    """

    event_id: bytes
    evidence_key: str = ""
    seq: int
    rank: int
    source: Source
    captured_at: int
    capture_id: str
    provider: str
    message_id: str = ""
    request_id: str = ""
    join_key: str | None = None
    says: Account

    @property
    def mark(self) -> Mark:
        """When it was captured, and what decides between equal times."""
        return self.captured_at, self.capture_id, self.evidence_key


Cell: TypeAlias = tuple[Evidence, ...]
"""The evidences of one turn, those whose word counts first at the front."""


def join_key(key: SessionKey, thread_id: str, answer_hash: str, usage: Usage | None) -> str | None:
    """Return what two views of one call have in common; None where one of them cannot be told from others."""
    if not answer_hash:
        return None
    counted = [None, None] if usage is None else [usage.input, usage.output]
    return blake3(jcs.write([*key, thread_id, answer_hash, *counted])).hexdigest(16)


class TurnFacts(Account, frozen=True, kw_only=True, omit_defaults=True):
    """One call, all evidences taken together.

    Attributes:
        turn_id: The id of the event that came first into the ledger, or made of it.
        captured_at: Of the evidence whose word counts first; with `capture_id` and `evidence_key` the turn's mark.
        usage_event: The event whose usage the turn has; its price is in the ledger under it and `usage_key`.
        cost_state: Filled in when the price is known.
    """

    turn_id: bytes
    captured_at: int
    capture_id: str
    evidence_key: str = ""
    provider: str
    message_id: str = ""
    evidence_count: int = 1
    usage_event: bytes = b""
    usage_key: str = ""
    cost_pusd: int | None = None
    computed_pusd: int | None = None
    cost_state: CostState = "unpriced"
    price_version: str = ""

    @property
    def mark(self) -> Mark:
        """The turn's place among others."""
        return self.captured_at, self.capture_id, self.evidence_key

    @property
    def key(self) -> SessionKey:
        """The session it belongs to."""
        return self.harness_id, self.harness_session_id


class SessionRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the turns of a session make of it.

    Attributes:
        marks: By field, the mark of the value that is kept.
        seen: By field, the values that were said and disagree, the kept one first, each after its mark.
        tokens: By column, how many turns measured it, and the sum.
        models: By model, how many turns used it.
        metadata_cut: Whether metadata was dropped because there was too much of it.
    """

    harness_id: str
    harness_session_id: str
    is_synthetic: bool = False
    auth_subject: str = ""
    name: str = ""
    cwd: str = ""
    harness_version: str = ""
    first_text: str = ""
    harness_metadata: dict[str, Any] = {}
    marks: dict[str, Mark] = {}
    seen: dict[str, tuple[tuple[Mark, Any], ...]] = {}
    started_at: int | None = None
    last_seen_at: int | None = None
    turn_count: int = 0
    failed_turn_count: int = 0
    tokens: dict[str, tuple[int, int]] = {}
    unmeasured_turn_count: int = 0
    cost_pusd: int = 0
    unpriced_turn_count: int = 0
    partial_turn_count: int = 0
    provided_turn_count: int = 0
    models: dict[str, int] = {}
    metadata_cut: bool = False
