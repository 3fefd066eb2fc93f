"""What one event says, and what all events of the recorded session make, in any order."""

from __future__ import annotations

import functools
import gzip
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from tests.unit.sessions_data import FIXTURES, SHARED, recorded, used

from holdfast.sessions import headers, instants, jcs
from holdfast.sessions.calls import Rule
from holdfast.sessions.derivation import Derived, RawEvent, derive, moved
from holdfast.sessions.errors import InvalidField
from holdfast.sessions.evidence import Evidence, SessionRow, TurnFacts
from holdfast.sessions.pricing import CardSource, cards, from_pusd, settle, to_pusd
from holdfast.sessions.turns import fold, merge, partition, refold
from holdfast.sessions.values import Block, Call, Envelope, Facts, Message, Reduced, Upstream

ORG = UUID(int=7)
ASK = {
    "model": "m",
    "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "go"},
    ],
}
SAY = {
    "id": "msg",
    "content": [{"type": "text", "text": "done"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 5, "output_tokens": 2},
}


def event(request: object = ASK, response: object = SAY, **more: Any) -> RawEvent:
    bodies = [each if isinstance(each, bytes | None) else json.dumps(each).encode() for each in (request, response)]
    named = {"session": Envelope(harness_id="claude", harness_session_id="s"), **more}
    call = Call(named.pop("provider", "anthropic"), bodies[0], bodies[1], **named)
    return RawEvent(
        seq=1, event_id=bytes(16), org=ORG, capture_id="c", captured_at=9, call=call, flags=frozenset({"kept"})
    )


def evidence_of(derived: Derived) -> Evidence:
    assert derived.evidence is not None
    return derived.evidence


def test_an_event_says_everything_a_turn_is_made_of() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    upstream = Upstream(
        200,
        "complete",
        "",
        "req",
        {"retry-after": "1", "x-ratelimit-a": "2", "date": "d"},
        timedelta(milliseconds=3),
        timedelta(seconds=1),
    )
    derived = derive(
        event(
            upstream=upstream, started_at=at, ended_at=at, thread_id="t", tags=frozenset("ba"), cost_usd=Decimal("0.5")
        )
    )
    found = evidence_of(derived)
    says = found.says
    assert (found.message_id, found.request_id, found.rank, found.source, found.mark) == (
        "msg",
        "req",
        0,
        "wire",
        (9, "c", ""),
    )
    assert [node.role for node in derived.nodes] == ["user", "assistant", "user", "assistant"]
    hashes = [node.hash for node in derived.nodes]
    assert (says.root_hash, says.continues_hash, says.head_hash, says.response_hash) == tuple(hashes)
    assert (says.chain_length, says.first_text, says.status, says.usage, says.usage_state) == (
        4,
        "hi",
        "ok",
        used(5, 2),
        "measured",
    )
    assert (says.started_at, says.ended_at, says.ttft_ms, says.duration_ms) == (
        instants.micros(at),
        instants.micros(at),
        3,
        1000,
    )
    assert (says.rate_limits, says.tags, says.flags) == (
        {"retry-after": "1", "x-ratelimit-a": "2"},
        ("a", "b"),
        ("kept",),
    )
    assert (says.provided_pusd, says.fidelity, says.call_kind) == (500_000_000_000, "raw", "unknown")
    assert found.join_key is not None
    assert derived.query is not None
    assert (derived.query.started_at, derived.query.usage) == (instants.micros(at), used(5, 2))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Evidence) == found


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (event(b"nope"), "request_unreadable"),
        (event(provider="x"), "unknown_provider"),
        (event(b"zip", request_encoding="gzip"), "undecodable"),
        (event(b"x", request_encoding="br"), "unsupported"),
        (event({"messages": []}), "no_messages"),
        (event(b'{"messages":[{"role":"user","content":[{"x":1e999}]}]}'), "number_range"),
    ],
)
def test_an_event_without_a_turn_says_why(made: RawEvent, reason: str) -> None:
    """SA-11."""
    assert derive(made) == Derived(unparsed=reason)


def test_a_number_that_only_the_hash_cannot_hold_is_out_of_range_too() -> None:
    def parser(request: bytes | None, response: bytes | None, content_type: str, endpoint: str) -> Facts:
        return Facts(provider="p", messages=(Message("user", (Block("x", content=10**400),)),))

    assert derive(event(provider="p"), parsers={"p": parser}) == Derived(unparsed="number_range")


@pytest.mark.parametrize(
    ("response", "encoding", "status", "error"),
    [
        (b"zip", "gzip", "incomplete", "undecodable"),
        (b"x", "br", "incomplete", "unsupported"),
        (b"", "gzip", "incomplete", "empty_response"),
        (None, "", "incomplete", ""),
    ],
)
def test_an_answer_that_cannot_be_decoded_leaves_a_turn_without_one(
    response: bytes | None, encoding: str, status: str, error: str
) -> None:
    derived = derive(event(response=response, response_encoding=encoding))
    says = evidence_of(derived).says
    assert (says.status, says.error_type, says.response_hash, says.usage_state, says.usage) == (
        status,
        error,
        "",
        "missing",
        None,
    )
    assert (says.chain_length, says.head_hash, derived.query, evidence_of(derived).join_key) == (
        3,
        derived.nodes[-1].hash,
        None,
        None,
    )


def test_a_stream_that_was_cut_under_its_coding_is_flagged() -> None:
    whole = gzip.compress(b"data: {}\n\n" * 9000)
    says = evidence_of(derive(event(response=whole[:-9], response_encoding="gzip"))).says
    assert "truncated_encoding" in says.flags


def test_a_reduced_answer_stands_for_its_bytes() -> None:
    answer = Message("assistant", (Block("text", text="done"),))
    reduced = derive(event(response=None, reduced=Reduced("m", answer, "end_turn", used(5, 2))))
    wired = derive(event())
    says = evidence_of(reduced).says
    assert (says.fidelity, says.status, says.usage_state) == ("reduced", "ok", "measured")
    assert [node.hash for node in reduced.nodes] == [node.hash for node in wired.nodes]
    bare = evidence_of(derive(event(response=None, reduced=Reduced(message=answer)))).says
    assert (bare.model, bare.usage_state) == ("m", "missing")
    assert derive(event(b"nope", None, reduced=Reduced())).unparsed


def test_a_call_without_bodies_is_a_turn_without_a_chain() -> None:
    derived = derive(event(None, None, capture="metadata", upstream=Upstream(200), usage=used(5, 2)))
    says = evidence_of(derived).says
    assert (says.fidelity, says.chain_length, says.status, says.usage_state) == ("metadata", 0, "ok", "provided")
    assert (derived.nodes, derived.query) == ([], None)


def test_a_call_in_another_place_says_the_same() -> None:
    here, there = event(), event(session=Envelope(harness_id="codex", harness_session_id="t"), thread_id="side")
    assert moved(evidence_of(derive(here)), there) == evidence_of(derive(there))


def test_a_failed_call_without_usage_is_not_priced() -> None:
    """SA-40."""
    error = {"type": "error", "error": {"type": "overloaded_error"}}
    derived = derive(event(response=error, upstream=Upstream(529)))
    says = evidence_of(derived).says
    assert (says.status, says.error_type, says.usage_state, derived.query) == (
        "failed",
        "overloaded_error",
        "none",
        None,
    )


def test_usage_that_contradicts_itself_is_flagged() -> None:
    usage = {"input_tokens": 5, "output_tokens": 2, "output_tokens_details": {"thinking_tokens": 3}}
    assert "usage_inconsistent" in evidence_of(derive(event(response={**SAY, "usage": usage}))).says.flags


def test_a_call_without_a_session_has_one_of_its_own() -> None:
    """SA-9."""
    alone, nobody = derive(event(session=None)), derive(event(session=Envelope(harness_id="pi"), agent_name="a"))
    assert evidence_of(alone).says.synthetic
    assert evidence_of(alone).says.harness_id == "unknown"
    assert evidence_of(alone).says.harness_session_id == evidence_of(nobody).says.harness_session_id


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "assistant", "content": "no"}, {"role": "user", "content": "x" * 99}], "x" * 80),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "see"}]}], "see"),
        ([{"role": "user", "content": "<status>x</status>"}, {"role": "user", "content": "next"}], "next"),
        ([{"role": "assistant", "content": "no"}], ""),
    ],
)
def test_the_first_words_are_the_users(messages: list[Any], text: str) -> None:
    assert evidence_of(derive(event({"messages": messages}))).says.first_text == text


def test_rules_of_the_user_say_what_a_call_is_for() -> None:
    assert evidence_of(derive(event(), rules=[Rule(kind="mine", text="go")])).says.call_kind == "mine"


# --- the recorded session


@functools.cache
def whole() -> tuple[RawEvent, ...]:
    """Each recorded call as a wire event."""
    found = []
    for seq, call in enumerate(recorded(), start=1):
        who = headers.identity(call.headers, trusted=False)
        [folder] = FIXTURES.glob(f"recordings/*/{call.expected['call']}")
        sent, ended = (instants.parse(call.meta[name]) for name in ("ts_request", "ts_complete"))
        assert sent is not None
        assert ended is not None
        made = Call(
            "anthropic",
            call.request,
            (folder / "response.sse").read_bytes(),
            endpoint="/v1/messages",
            response_type=call.meta["content_type"],
            response_encoding=call.meta["content_encoding"],
            started_at=instants.moment(sent),
            ended_at=instants.moment(ended),
            session=who.envelope,
            thread_id=who.thread_id,
            upstream=Upstream(200, request_id=call.expected["request_id"]),
        )
        found.append(
            RawEvent(
                seq=seq,
                event_id=seq.to_bytes(16, "big"),
                org=ORG,
                capture_id=call.expected["call"],
                captured_at=sent,
                call=made,
            )
        )
    return tuple(found)


def priced(turn: TurnFacts, derived: Derived, source: CardSource) -> TurnFacts:
    assert derived.query is not None
    cost = settle(turn.usage_state, source.quote(derived.query), from_pusd(turn.provided_pusd))
    return msgspec.structs.replace(
        turn, cost_pusd=to_pusd(cost.usd), cost_state=cost.state, price_version=cost.price_version
    )


@SHARED
def test_the_recorded_session_is_the_same_in_any_order() -> None:
    """SA-7, SA-41: the rules alone; the ledger has its own test."""
    source = CardSource(cards(json.loads((FIXTURES / "rates" / "sonnet-4-6.json").read_bytes())))
    turns = []
    for each in whole():
        derived = derive(each)
        [cell] = partition([evidence_of(derived)])
        turns.append(priced(merge(cell), derived, source))
    assert {turn.turn_id for turn in turns} == {each.event_id for each in whole()}
    assert len(partition([evidence_of(derive(each)) for each in whole()[:3]])) == 3
    orders = [turns, turns[::-1], *([turns[at * step % 17] for at in range(17)] for step in range(2, 16))]
    rows = []
    for order in orders:
        row: SessionRow | None = None
        for turn in order:
            row = fold(row, None, turn)
        assert row is not None
        rows.append(jcs.write(msgspec.to_builtins(row)))
    assert set(rows) == {jcs.write(msgspec.to_builtins(refold(turns[0].key, turns)))}
    row = msgspec.json.decode(rows[0], type=SessionRow)
    assert (row.turn_count, row.tokens["input"], row.tokens["output"]) == (17, (17, 565_318), (17, 3_827))
    assert (row.tokens["reasoning"], row.tokens["cache_write_1h"]) == ((16, 339), (17, 39_635))
    assert str(from_pusd(row.cost_pusd)) == "0.525090750000"
    assert (row.name, row.cwd, row.harness_version) == (
        "tapes-fixture-run-7c",
        "/private/tmp/tapes-fixture-run",
        "2.1.219",
    )
    assert (row.models, row.unpriced_turn_count, row.unmeasured_turn_count) == ({"claude-sonnet-4-6": 17}, 0, 0)


def test_an_instant_without_a_time_zone_is_none() -> None:
    with pytest.raises(InvalidField) as refused:
        instants.micros(datetime(2026, 1, 1), "/captured_at")  # noqa: DTZ001 - that is what is tried
    assert refused.value.field == "/captured_at"
