"""From a raw event to what it says of its call: decode, read, hash, measure. Pure.

This is everything of a derivation that needs no other event. What other events know of the same call, and what
becomes of the session, is for `turns`, under the locks that `evidence_locks` names.

Invariants:
    - Equal events give equal evidences, nodes and questions for a price, wherever and whenever they are read.
    - Nothing that was captured makes this raise: what cannot be read is a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from holdfast.sessions import calls, codings, identity, instants, nodes, pricing, providers, tokens
from holdfast.sessions.calls import Rule
from holdfast.sessions.codings import CodingError
from holdfast.sessions.errors import NumberRange
from holdfast.sessions.evidence import RANKS, Account, Evidence, join_key
from holdfast.sessions.limits import TITLE_CHARS_MAX
from holdfast.sessions.nodes import Node
from holdfast.sessions.pricing import PriceQuery
from holdfast.sessions.providers import Parser
from holdfast.sessions.values import Call, Envelope, Facts, Message

__all__ = ["Derived", "RawEvent", "derive", "moved", "placed", "query_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawEvent:
    """One captured call, as the ledger has it.

    Attributes:
        seq: Its place in the ledger.
        captured_at: In microseconds, corrected.
        flags: What was noted when it was taken.
    """

    seq: int
    event_id: bytes
    org: UUID
    capture_id: str
    captured_at: int
    call: Call
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """What an event says.

    Attributes:
        evidence: Of the call; None where no turn can be made of it.
        nodes: The chain, from its root.
        packed: By hash, what is stored of nodes whose blocks were let go of.
        query: What is to be priced; None where nothing was used.
        unparsed: Why there is no evidence.
        stamp: Of the attributions that were known when the event was read.
    """

    evidence: Evidence | None = None
    nodes: Sequence[Node] = ()
    packed: Mapping[str, bytes] = field(default_factory=dict)
    query: PriceQuery | None = None
    unparsed: str = ""
    stamp: int = 0


def derive(event: RawEvent, *, parsers: Mapping[str, Parser] | None = None, rules: Iterable[Rule] = ()) -> Derived:
    """Read an event.

    Args:
        event: The event.
        parsers: Who reads which provider; None for those that come with the slice.
        rules: The user's rules of what calls are for.
    """
    flags = set(event.flags)
    try:
        facts, fault = _read(event.call, flags, parsers)
        chain = [] if facts.unparsed else _chain(facts)
    except CodingError as error:
        return Derived(unparsed=error.fault)
    except NumberRange:
        return Derived(unparsed="number_range")
    if facts.unparsed:
        return Derived(unparsed=facts.unparsed)
    status, error_type = calls.outcome(facts, event.call.upstream, fault)
    usage, state = tokens.measured(facts, status, event.call.usage)
    if tokens.inconsistent(usage):
        flags.add("usage_inconsistent")
    account = Account(
        **_whose(event),
        **_said(event.call, facts),
        **_hashes(facts, chain),
        call_kind=calls.call_kind(facts, agent_name=event.call.agent_name, rules=rules),
        status=status,
        error_type=error_type,
        usage=usage if state not in ("missing", "none") else None,
        usage_state=state,
        flags=tuple(sorted(flags | set(facts.flags))),
    )
    evidence = _evidence(event, facts, account)
    return Derived(evidence=evidence, nodes=chain, query=query_of(evidence))


def _read(call: Call, flags: set[str], parsers: Mapping[str, Parser] | None) -> tuple[Facts, str]:
    """Return what the bodies say, and why the response could not be decoded."""
    request = _decoded(call.request, call.request_encoding, flags)
    fault, response = "", None
    try:
        response = _decoded(call.response, call.response_encoding, flags)
    except CodingError as error:
        fault = error.fault
    facts = providers.parse(
        call.provider, request, response, content_type=call.response_type, endpoint=call.endpoint, providers=parsers
    )
    if call.response is None and call.reduced is not None and not facts.unparsed:
        reduced = call.reduced
        facts = msgspec.structs.replace(
            facts,
            model=reduced.model or facts.model,
            response=reduced.message,
            outcome="complete",
            stop_reason=reduced.stop_reason,
            usage=reduced.usage,
            usage_final=reduced.usage is not None,
        )
    return facts, fault


def _decoded(body: bytes | None, encoding: str, flags: set[str]) -> bytes | None:
    if not body:
        return body  # nothing was sent, so there is nothing to undo
    decoded = codings.decode(body, encoding)
    if decoded.salvaged:
        flags.add("truncated_encoding")
    return decoded.data


def _chain(facts: Facts) -> list[Node]:
    said = facts.messages if facts.response is None else (*facts.messages, facts.response)
    chain = nodes.chain(said)
    nodes.check_chain(chain)
    return chain


def placed(event: RawEvent) -> dict[str, Any]:
    """Return where a call belongs, as an account says it: session, thread and parent."""
    envelope = event.call.session or Envelope()
    synthetic = not envelope.harness_session_id
    return {
        "harness_id": envelope.harness_id or identity.UNKNOWN,
        # The key of a group of its own; who groups turns may give it that of an earlier one.
        "harness_session_id": identity.synthetic_key(event.org, event.capture_id)
        if synthetic
        else envelope.harness_session_id,
        "synthetic": synthetic,
        "parent_harness_id": envelope.parent_harness_id,
        "parent_harness_session_id": envelope.parent_harness_session_id,
        "thread_id": event.call.thread_id,
    }


def moved(evidence: Evidence, event: RawEvent) -> Evidence:
    """Return what an event says where nothing but its place is another: its session, thread or parent.

    Args:
        evidence: What it said before.
        event: The event in its new place; its bodies are not needed.
    """
    says = msgspec.structs.replace(evidence.says, **placed(event))
    key = says.harness_id, says.harness_session_id
    joined = join_key(key, says.thread_id, says.answer_hash, says.usage)
    return msgspec.structs.replace(evidence, says=says, join_key=joined)


def _whose(event: RawEvent) -> dict[str, Any]:
    envelope = event.call.session or Envelope()
    return {
        **placed(event),
        "auth_subject": envelope.auth_subject,
        "name": envelope.name,
        "cwd": envelope.cwd,
        "harness_version": envelope.harness_version,
        "harness_metadata": dict(envelope.harness_metadata),
        "tags": tuple(sorted(event.call.tags)),
    }


def _said(call: Call, facts: Facts) -> dict[str, Any]:
    upstream = call.upstream
    found: dict[str, Any] = {
        "parent_tool_use_id": call.parent_tool_use_id,
        "agent_name": call.agent_name,
        "endpoint": facts.endpoint,
        "model": facts.model,
        "stop_reason": facts.stop_reason,
        "started_at": _micros(call.started_at),
        "ended_at": _micros(call.ended_at),
        "request_params": facts.request_params,
        "raw_usage": facts.raw_usage,
        "provided_pusd": pricing.to_pusd(call.cost_usd),
        "fidelity": _fidelity(call),
    }
    if upstream is not None:
        found |= {
            "upstream_status": upstream.status or None,
            "upstream_request_id": upstream.request_id,
            "ttft_ms": _millis(upstream.time_to_first_token),
            "duration_ms": _millis(upstream.duration),
            "rate_limits": {
                name: value for name, value in upstream.headers.items() if "ratelimit" in name or name == "retry-after"
            },
        }
    return found


def _micros(when: datetime | None) -> int | None:
    return None if when is None else instants.micros(when)


def _millis(span: timedelta | None) -> int | None:
    return None if span is None else span // timedelta(milliseconds=1)


def _fidelity(call: Call) -> str:
    if call.capture == "metadata":
        return "metadata"
    return "reduced" if call.response is None and call.reduced is not None else "raw"


def _hashes(facts: Facts, chain: Sequence[Node]) -> dict[str, Any]:
    if not chain:
        return {}
    asked = chain[: len(facts.messages)]
    spoken = [node.hash for node in asked if node.role == "assistant"]
    answer = facts.response
    return {
        "hash_version": nodes.HASH_VERSION,
        "root_hash": chain[0].hash,
        "head_hash": asked[-1].hash,
        "response_hash": "" if answer is None else chain[-1].hash,
        "answer_hash": "" if answer is None else nodes.answer_hash(answer),
        "continues_hash": spoken[-1] if spoken else "",
        "chain_length": len(chain),
        "first_text": _first_text(facts.messages),
    }


def _first_text(messages: Iterable[Message]) -> str:
    for message in messages:
        if message.role == "user":
            for block in nodes.project(message.content):
                if block.text:
                    return block.text[:TITLE_CHARS_MAX]
    return ""


def _evidence(event: RawEvent, facts: Facts, account: Account) -> Evidence:
    key = account.harness_id, account.harness_session_id
    return Evidence(
        event_id=event.event_id,
        seq=event.seq,
        rank=RANKS[event.call.source],
        source=event.call.source,
        captured_at=event.captured_at,
        capture_id=event.capture_id,
        provider=facts.provider,
        message_id=facts.message_id,
        request_id=account.upstream_request_id,
        join_key=join_key(key, account.thread_id, account.answer_hash, account.usage),
        says=account,
    )


def query_of(evidence: Evidence) -> PriceQuery | None:
    """Return what is to be priced of an evidence; None where it measures nothing, or nobody knows the model."""
    says = evidence.says
    if says.usage is None or not says.model:
        return None
    return PriceQuery(
        provider=evidence.provider,
        model=says.model,
        started_at=evidence.captured_at if says.started_at is None else says.started_at,
        usage=says.usage,
    )
