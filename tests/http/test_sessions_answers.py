"""What providers answer, in whatever form, becomes turns with tokens, prices and an end: over HTTP."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from tests.http.orgs import Org, asked, event, named, priced, said
from tests.unit.sessions_data import FIXTURES, SHARED, cases
from tests.unit.test_sessions_codings import made

CAPTURE = FIXTURES / "capture"
SSE = "text/event-stream"


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    return priced()


def bytes_(data: bytes, content_type: str = "application/json", coding: str = "") -> dict[str, Any]:
    """A body as the bytes that came."""
    return {"base64": base64.b64encode(data).decode(), "content_type": content_type, "content_encoding": coding}


def one(org: Org, given: Any) -> Any:
    """Take a call, and return its turn with the messages."""
    [told] = org.take(given)
    return org.get(f"/v1/turns/{told['turn_id']}", payload="full")


def frames(*events: Any, done: bool = False) -> dict[str, Any]:
    """A stream of these events."""
    lines = "".join(f"event: {each.get('type', 'x')}\ndata: {json.dumps(each)}\n\n" for each in events)
    return bytes_((lines + ("data: [DONE]\n\n" if done else "")).encode(), SSE)


# --- how it is coded


@SHARED
def test_recorded_codings_end_as_they_state(org: Org) -> None:
    """SA-35: a body that cannot be decoded leaves a turn that says why, and stays as it came."""
    wanted = {}
    for case in cases("content-encoding"):
        built = case["body"].get("build")
        body = made(built)[1] if built else base64.b64decode(case["body"]["bytes_b64"])
        org.take(event(case["name"], response=bytes_(body, coding=case["encoding"])))
        expected = case["expect"]
        fault = expected["error"]["class"] if expected["outcome"] == "error" else ""
        if not body:
            fault = "empty_response"  # nothing came: there was nothing to decode
        wanted[case["name"]] = (fault, expected["outcome"] == "salvaged")
    classes = {"undecodable", "unsupported", "oversize", "empty_response"}
    turns = {each["evidence"][0]["capture_id"]: each for each in org.turns(org.only())}
    found = {
        name: (each["error_type"] if each["error_type"] in classes else "", "truncated_encoding" in each["flags"])
        for name, each in turns.items()
    }
    assert found == wanted
    assert {each["status"] for each in turns.values() if each["error_type"] in classes} == {"incomplete"}
    assert org.only()["turn_count"] == 18


@SHARED
def test_recorded_envelopes_are_shown_as_they_were_sent(org: Org) -> None:
    """SA-35."""
    names = ("harness_id", "harness_session_id", "auth_subject", "harness_version", "cwd", "name", "harness_metadata")
    for case in cases("envelope"):
        sent = {name: value for name, value in case.get("envelope", {}).items() if name != "org_id"}
        if case.get("error", {}).get("disposition") == "reject-400" or not sent.get("harness_session_id"):
            continue
        sent["harness_session_id"] = case["name"]
        org.take(event(case["name"], session=sent))
        shown = org.only(harness_session_id=case["name"])
        assert {name: shown[name] for name in names if name in sent} == {k: v for k, v in sent.items() if k in names}
        hint = sent.get("parent_harness_session_id")
        assert (shown["parent"]["state"] == "none") == (hint is None), case["name"]


# --- streams


@SHARED
@pytest.mark.parametrize("turn", ["turn_01", "turn_02_tool_use", "turn_03_thinking"])
def test_a_stream_and_its_one_shot_are_one_answer(org: Org, turn: str) -> None:
    """SA-36."""
    folder = CAPTURE / "anthropic" / "canonical_equivalence"
    streamed = one(org, event("s", response=bytes_((folder / f"{turn}_stream.sse").read_bytes(), SSE)))
    whole = one(org, event("w", response=bytes_((folder / f"{turn}_oneshot.json").read_bytes())))
    for name in ("response_hash", "answer_hash", "tokens", "stop_reason", "status", "server_tools"):
        assert streamed[name] == whole[name], name
    assert streamed["messages"][-1]["content"] == whole["messages"][-1]["content"]
    assert streamed["status"] == "ok"


@SHARED
def test_a_stream_that_was_cut_keeps_its_text_and_counts_no_output(org: Org) -> None:
    """SA-36."""
    data = (CAPTURE / "anthropic" / "messages_truncated_stream.sse").read_bytes()
    turn = one(org, event("cut", response=bytes_(data.replace(b"claude-3-5-sonnet", b"claude-sonnet-4-6"), SSE)))
    assert (turn["status"], turn["usage_state"], turn["tokens"]["output"]) == ("incomplete", "partial", None)
    assert turn["messages"][-1]["content"][0]["text"] == "Partial respon"
    assert turn["tokens"]["input"] == 12
    cost = org.only()["cost"]
    assert cost["state"] != "priced"
    assert cost["unpriced_turns"] + cost["partial_turns"] == 1


def test_an_error_within_a_stream_fails_the_call_and_keeps_the_text(org: Org) -> None:
    """SA-37."""
    stream = frames(
        {"type": "message_start", "message": {"id": "m", "model": "claude-sonnet-4-6", "usage": {"input_tokens": 9}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "so f"}},
        {"type": "error", "error": {"type": "overloaded_error", "message": "later"}},
    )
    turn = one(org, event("e", response=stream))
    assert (turn["status"], turn["error_type"], turn["tokens"]["output"]) == ("failed", "overloaded_error", None)
    assert turn["messages"][-1]["content"][0]["text"] == "so f"
    assert (org.only()["turn_count"], org.only()["failed_turn_count"]) == (1, 1)


def test_a_chat_stream_without_a_count_is_unmeasured_and_has_no_price(org: Org) -> None:
    """SA-39, SA-43, SX-9: its parallel calls are put together, and nothing of it is shown as nought."""
    calls = [
        {"index": 0, "id": "c0", "function": {"name": "look", "arguments": '{"at":'}},
        {"index": 1, "id": "c1", "function": {"name": "pay", "arguments": "{}"}},
        {"index": 0, "function": {"arguments": '"x"}'}},
    ]
    parts = [
        {"model": "gpt-x", "id": "cc", "choices": [{"index": 0, "delta": {"tool_calls": [each]}}]} for each in calls
    ]
    end = {"model": "gpt-x", "id": "cc", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    given = event("chat", provider="openai", endpoint="/v1/chat/completions", response=frames(*parts, end, done=True))
    turn = one(org, given)
    uses = [
        (each["tool_use_id"], each["tool_name"], each.get("tool_input")) for each in turn["messages"][-1]["content"]
    ]
    assert uses == [("c0", "look", {"at": "x"}), ("c1", "pay", None)]
    assert (turn["usage_state"], set(turn["tokens"].values())) == ("missing", {None})
    assert (turn["cost"]["usd"], turn["cost"]["state"]) == (None, "unpriced")
    session = org.only()
    assert (session["cost"]["usd"], session["cost"]["state"], session["cost"]["unpriced_turns"]) == (
        None,
        "unpriced",
        1,
    )
    assert (session["tokens"]["input"], session["tokens"]["unmeasured_turns"]) == (None, 1)
    org.take(event("priced", 1))
    session = org.only()
    assert (session["cost"]["usd"], session["cost"]["state"]) == ("0.000066000000", "partial")
    assert (session["tokens"]["input"], session["tokens"]["unmeasured_turns"]) == (7, 1)
    [known, unknown] = sorted(org.get("/v1/stats")["items"], key=lambda each: each["key"])
    assert (known["cost"]["state"], unknown["cost"]["usd"], unknown["tokens"]["input"]) == ("priced", None, None)


def test_a_call_that_was_turned_away_is_a_turn_that_costs_nothing(org: Org) -> None:
    """SA-40."""
    for number, (status, error) in enumerate(((429, "rate_limit_error"), (529, "overloaded_error"))):
        headers = {"Retry-After": "7", "anthropic-ratelimit-requests-remaining": "0", "set-cookie": "a=b"}
        body = {"type": "error", "error": {"type": error, "message": "no"}}
        turn = one(org, event(str(status), number, response=body, upstream={"status": status, "headers": headers}))
        assert (turn["status"], turn["upstream_status"], turn["error_type"]) == ("failed", status, error)
        assert (turn["usage_state"], turn["cost"]["state"], turn["cost"]["usd"]) == (
            "none",
            "unbilled",
            "0.000000000000",
        )
        kept = {name.lower(): value for name, value in turn["rate_limits"].items()}
        assert kept == {"retry-after": "7", "anthropic-ratelimit-requests-remaining": "0"}
    session = org.only()
    assert (session["turn_count"], session["failed_turn_count"]) == (2, 2)
    assert (session["cost"]["usd"], session["cost"]["state"]) == ("0.000000000000", "priced")


# --- tokens and prices


def test_inclusive_and_exclusive_counts_are_the_same_columns(org: Org) -> None:
    """SA-42."""
    exclusive = {
        "input_tokens": 100, "cache_read_input_tokens": 40, "cache_creation_input_tokens": 10, "output_tokens": 30,
        "output_tokens_details": {"thinking_tokens": 20},
    }  # fmt: skip
    inclusive = {
        "prompt_tokens": 150, "completion_tokens": 30, "completion_tokens_details": {"reasoning_tokens": 20},
        "prompt_tokens_details": {"cached_tokens": 40, "cache_write_tokens": 10},
    }  # fmt: skip
    chat = {
        "id": "cc", "model": "m", "usage": inclusive,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}],
    }  # fmt: skip
    anthropic = one(org, event("a", response=said(usage=exclusive)))
    openai = one(org, event("o", provider="openai", endpoint="/v1/chat/completions", response=chat))
    assert anthropic["tokens"] == openai["tokens"]
    assert {name: count for name, count in openai["tokens"].items() if count is not None} == {
        "input": 150, "cache_read": 40, "cache_write": 10, "output": 30, "reasoning": 20,
    }  # fmt: skip
    assert anthropic["response_hash"] == openai["response_hash"]


def test_reasoning_is_within_the_output_and_priced_once(org: Org) -> None:
    """SA-45: the recorded session's card has no rate of its own for it."""
    usage = {"input_tokens": 0, "output_tokens": 1_000_000, "output_tokens_details": {"thinking_tokens": 400_000}}
    turn = one(org, event("r", response=said(usage=usage)))
    assert (turn["tokens"]["output"], turn["tokens"]["reasoning"]) == (1_000_000, 400_000)
    assert turn["cost"]["usd"] == "15.000000000000"
    assert org.only()["tokens"]["output"] == 1_000_000


def test_what_the_caller_says_of_cost_stands_beside_what_is_computed(org: Org) -> None:
    """SX-64, SX-61: a count that is none is unmeasured, and one that contradicts itself has no price."""
    turn = one(org, event("p", cost={"usd": "0.0123", "source": "me"}))
    cost = turn["cost"]
    assert (cost["usd"], cost["state"]) == ("0.012300000000", "provided")
    assert (cost["provided_usd"], cost["computed_usd"]) == ("0.012300000000", "0.000066000000")
    assert org.only()["cost"]["provided_turns"] == 1
    for number, wrong in enumerate((-1, 2**63, "7", True)):
        usage = {"input_tokens": wrong, "output_tokens": 3}
        odd = one(org, event(f"w{number}", session=named("w"), response=said(usage=usage)))
        assert odd["tokens"]["input"] is None
        assert "usage_invalid" in odd["flags"]
    usage = {"input_tokens": 1, "output_tokens": 3, "output_tokens_details": {"thinking_tokens": 5}}
    inconsistent = one(org, event("i", session=named("i"), response=said(usage=usage)))
    assert ("usage_inconsistent" in inconsistent["flags"], inconsistent["cost"]["usd"]) == (True, None)
    for usage in ({"input": -1}, {"input": 1.5}, {"input": "1"}):
        status, told = org.post(event("bad", usage=usage))
        assert (status, told["code"]) == (400, "invalid_field")
    for cost in ({"usd": "-1"}, {"usd": "NaN"}, {"usd": 0.5}):
        assert org.post(event("bad", cost=cost))[0] == 400


def test_bodies_may_stay_where_they_were(org: Org) -> None:
    """SX-70: metadata drops both bodies before anything is kept, and what the caller counted counts."""
    given = event("m", capture="metadata", usage={"input": 5, "output": 2}, upstream={"status": 200})
    turn = one(org, {**given, "request": asked("unheard-of")})
    assert (turn["fidelity"], turn["usage_state"], turn["tokens"]["input"]) == ("metadata", "provided", 5)
    assert (turn["chain_length"], turn["messages"]) == (0, [])
    for part in ("request", "response"):
        assert org.ask(f"/v1/turns/{turn['id']}/raw", part=part).status_code == 404
