"""What travels between the parts of the slice: calls as they are sent in, and what is read out of them. Pure.

What callers hand in and get back are dataclasses; what lies in a column or crosses a module are Structs, which
leave their defaults out when they are written.

Invariants:
    - None is "not measured" or "not there"; it is never shown, summed or stored as 0.
    - A block holds what the model saw; what is hashed of it is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, TypeAlias
from uuid import UUID

import msgspec

from holdfast.sessions.jcs import Json

__all__ = [
    "COLUMNS",
    "LOCAL",
    "Block",
    "Call",
    "Cost",
    "CostLine",
    "CostState",
    "Duplicate",
    "Envelope",
    "Facts",
    "Mark",
    "Message",
    "Outcome",
    "Principal",
    "Reduced",
    "Refused",
    "Scope",
    "SessionKey",
    "Source",
    "Status",
    "Stored",
    "Upstream",
    "Usage",
    "UsageState",
    "block_of",
    "plain",
]

Source: TypeAlias = Literal["wire", "sdk", "transcript", "otlp"]
Status: TypeAlias = Literal["ok", "incomplete", "aborted", "failed"]
Outcome: TypeAlias = Literal["complete", "incomplete", "failed", "none"]
UsageState: TypeAlias = Literal["measured", "partial", "missing", "provided", "none"]
CostState: TypeAlias = Literal["priced", "partial", "unpriced", "provided", "unbilled"]
Scope: TypeAlias = Literal["ingest", "read", "admin"]
SessionKey: TypeAlias = tuple[str, str]
"""Harness id and harness session id; the org is the ledger's question, not the key's."""

Mark: TypeAlias = tuple[int, str, str]
"""Captured time, capture id, evidence key: the only notion of earlier."""

COLUMNS = (
    "input", "cache_read", "cache_write", "cache_write_5m", "cache_write_1h", "output", "reasoning",
    "input_audio", "output_audio",
)  # fmt: skip
"""The nine counts of tokens."""


# --- messages -----------------------------------------------------------------------------------------


class Block(msgspec.Struct, frozen=True, omit_defaults=True):
    """One piece of a message. `thinking_signature` and `tool_input_raw` are kept and never hashed."""

    type: str
    text: str | None = None
    image_url: str | None = None
    image_base64: str | None = None
    media_type: str | None = None
    tool_use_id: str | None = None
    tool_name: str | None = None
    tool_input: dict[str, Any] | None = None
    tool_result_id: str | None = None
    tool_output: str | None = None
    thinking: str | None = None
    thinking_signature: str | None = None
    tool_input_raw: str | None = None
    content: Any = None
    is_error: bool = False


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one side said."""

    role: str
    content: tuple[Block, ...] = ()


_FIELDS = frozenset(Block.__struct_fields__)


def block_of(value: Mapping[str, Json]) -> Block:
    """Return a block that is written as JSON; members that a block has not are left out.

    Raises:
        ValueError: A member has the wrong type, or `type` is missing.
    """
    try:
        return msgspec.convert({name: each for name, each in value.items() if name in _FIELDS}, Block)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def plain(value: Block | Usage) -> dict[str, Json]:
    """Return a block or a usage as plain data, without what is not there."""
    built: dict[str, Json] = msgspec.to_builtins(value)
    return {name: each for name, each in built.items() if each is not None}


# --- what is measured and what it costs ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one call used, in tokens; None is not measured.

    `input` contains what was read from and written to a cache, `output` contains reasoning.

    Attributes:
        server_tools: Requests that the provider's own tools made, by tool.
        service_tier: As the provider names it.
    """

    input: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    cache_write_5m: int | None = None
    cache_write_1h: int | None = None
    output: int | None = None
    reasoning: int | None = None
    input_audio: int | None = None
    output_audio: int | None = None
    server_tools: Mapping[str, int] = field(default_factory=dict)
    service_tier: str = ""


@dataclass(frozen=True, slots=True)
class CostLine:
    """One part of an amount: so many of a thing at a rate, per million tokens or per unit; None: there is no rate."""

    what: str
    count: int
    rate: Decimal | None
    usd: Decimal | None


@dataclass(frozen=True, slots=True)
class Cost:
    """What one call cost, and how far that is known."""

    usd: Decimal | None
    state: CostState
    price_version: str
    lines: tuple[CostLine, ...]


# --- calls as they are sent in ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """Which session of which harness a call belongs to; empty is not said."""

    harness_id: str = ""
    harness_session_id: str = ""
    harness_version: str = ""
    cwd: str = ""
    name: str = ""
    auth_subject: str = ""
    org_id: str = ""
    parent_harness_id: str = ""
    parent_harness_session_id: str = ""
    harness_metadata: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Upstream:
    """How the provider's side of a call went."""

    status: int = 0
    outcome: Literal["complete", "incomplete", "aborted", "error"] = "complete"
    error_type: str = ""
    request_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    time_to_first_token: timedelta | None = None
    duration: timedelta | None = None


class Reduced(msgspec.Struct, frozen=True, omit_defaults=True):
    """An answer in the form of blocks, where its bytes are not to be had."""

    model: str = ""
    message: Message | None = None
    stop_reason: str = ""
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call to a model provider, as whoever captured it tells it."""

    provider: str
    request: bytes | None
    response: bytes | None = None
    _: KW_ONLY
    capture_id: str = ""
    source: Literal["wire", "sdk"] = "wire"
    endpoint: str = ""
    request_type: str = "application/json"
    response_type: str = ""
    request_encoding: str = ""
    response_encoding: str = ""
    captured_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    upstream: Upstream | None = None
    session: Envelope | None = None
    thread_id: str = ""
    parent_tool_use_id: str = ""
    agent_name: str = ""
    reduced: Reduced | None = None
    usage: Usage | None = None
    cost_usd: Decimal | None = None
    tags: frozenset[str] = frozenset()
    capture: Literal["full", "metadata"] = "full"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: an org, and what its credential is good for.

    Attributes:
        auth_subject: For whom, where a trusted proxy says so; calls that name nobody themselves are theirs.
    """

    org_id: UUID
    scopes: frozenset[Scope]
    access_key_id: str = ""
    auth_subject: str = ""


LOCAL = Principal(UUID(int=0), frozenset(("ingest", "read", "admin")))
"""Whoever may read the ledger's file anyway."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The call is on disk. `session_id` is None until it is known."""

    event_id: str
    turn_id: str
    session_id: str | None
    state: Literal["accepted", "stored_unparsed"]
    reason: str
    derived: bool


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The call was on disk already, and nothing changed."""

    event_id: str
    turn_id: str
    session_id: str | None


@dataclass(frozen=True, slots=True)
class Refused:
    """The call was not stored: the code without the slice's prefix, the member to blame, and why."""

    code: str
    field: str
    message: str


# --- what the bytes of a call say ---------------------------------------------------------------------


class Facts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the bytes of one call say, read by the rules of its provider.

    Attributes:
        unparsed: Why no turn can be made of it; empty when one can.
        messages: What was sent, in order.
        response: What came back; None where nothing did.
        outcome: What the bytes of the answer look like: an end, a break, an error, or nothing.
        usage_final: Whether the counts are the answer's last.
        raw_usage: The provider's own account.
        request_params: Everything of the request but the messages.
        system: The system prompt's text, wherever the provider has it.
        tools_offered: Whether the model could have called tools.
        output_max: The most tokens it was allowed to answer with.
        flags: What could not be read as it should, sorted.
    """

    provider: str
    endpoint: str = ""
    unparsed: str = ""
    model: str = ""
    messages: tuple[Message, ...] = ()
    response: Message | None = None
    outcome: Outcome = "none"
    error_type: str = ""
    stop_reason: str = ""
    message_id: str = ""
    usage: Usage | None = None
    usage_final: bool = False
    raw_usage: Any = None
    request_params: dict[str, Any] = {}
    system: str = ""
    tools_offered: bool = False
    output_max: int | None = None
    flags: tuple[str, ...] = ()
