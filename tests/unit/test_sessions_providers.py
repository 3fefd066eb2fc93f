"""What providers say: streams and one-shot answers, whole and broken, and what is measured of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.sessions_data import FIXTURES, SHARED, recorded, used

from holdfast.sessions import frames, nodes, providers, tokens
from holdfast.sessions.calls import Rule, call_kind, outcome
from holdfast.sessions.providers import parse
from holdfast.sessions.providers.reading import items, joined, part
from holdfast.sessions.values import Block, Facts, Message, Upstream, Usage

ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
SSE = "text/event-stream"


def body(value: object) -> bytes:
    return json.dumps(value).encode()


def stream(*events: object) -> bytes:
    return b"".join(b"data: " + (event if isinstance(event, bytes) else body(event)) + b"\n\n" for event in events)


def told(provider: str, request: object, response: bytes | None = None, **more: Any) -> Facts:
    return parse(provider, body(request), response, **more)


def blocks(facts: Facts) -> tuple[Block, ...]:
    assert facts.response is not None
    return facts.response.content


# --- the recorded data


@SHARED
def test_every_recorded_call_says_what_was_expected() -> None:
    for call in recorded():
        facts, wanted = call.facts, call.expected
        assert (facts.stop_reason, facts.message_id, facts.model, facts.outcome, facts.flags) == (
            wanted["stop_reason"],
            wanted["message_id"],
            wanted["model"],
            "complete",
            (),
        )
        assert facts.usage is not None
        assert {name: getattr(facts.usage, name) for name in wanted["tokens"]} == wanted["tokens"]
        assert facts.usage.service_tier == "standard"
        assert tokens.measured(facts, "ok", None) == (facts.usage, "measured")
    assert [call_kind(call.facts) for call in recorded()] == ["title"] + ["main"] * 16


@SHARED
@pytest.mark.parametrize("turn", ["turn_01", "turn_02_tool_use", "turn_03_thinking"])
def test_a_stream_and_its_one_shot_say_the_same(turn: str) -> None:
    """SA-36."""
    folder = FIXTURES / "capture" / "anthropic" / "canonical_equivalence"
    streamed = told("anthropic", ASK, (folder / f"{turn}_stream.sse").read_bytes(), content_type=SSE)
    whole = told("anthropic", ASK, (folder / f"{turn}_oneshot.json").read_bytes(), content_type="application/json")
    assert (streamed.response, streamed.usage, streamed.stop_reason) == (whole.response, whole.usage, whole.stop_reason)
    assert streamed.outcome == whole.outcome == "complete"
    assert nodes.chain([*streamed.messages, Message("assistant", blocks(streamed))])[-1].hash


@SHARED
def test_a_cut_stream_keeps_its_text_and_counts_no_output() -> None:
    """SA-36."""
    data = (FIXTURES / "capture" / "anthropic" / "messages_truncated_stream.sse").read_bytes()
    facts = told("anthropic", ASK, data)
    assert blocks(facts) == (Block("text", text="Partial respon"),)
    assert outcome(facts, None) == ("incomplete", "")
    assert tokens.measured(facts, "incomplete", None) == (
        used(12, None, cache_read=0, cache_write=0),
        "partial",
    )


@SHARED
def test_responses_say_the_same_streamed_or_not() -> None:
    folder = FIXTURES / "capture" / "openai_responses"
    ask = {"model": "m", "input": "hi"}
    streamed = told("openai", ask, (folder / "stream.sse").read_bytes())
    whole = told("openai", ask, (folder / "oneshot.json").read_bytes())
    assert blocks(streamed) == (Block("text", text="paper-codex-sse-ok"),)
    assert blocks(whole) == (Block("text", text="paper-codex-ok"),)
    assert (streamed.stop_reason, streamed.outcome, streamed.endpoint) == ("stop", "complete", "/v1/responses")
    assert streamed.usage == used(18, 8, cache_read=0, reasoning=0, service_tier="default")
    assert whole.usage == used(16, 6, cache_read=0, reasoning=0, service_tier="default")


# --- what cannot be read


@pytest.mark.parametrize(
    ("provider", "request_", "reason"),
    [
        ("nobody", b"{}", "unknown_provider"),
        ("anthropic", b"nope", "request_unreadable"),
        ("anthropic", b"[1]", "request_unreadable"),
        ("anthropic", b'{"x":1e999}', "number_range"),
        ("openai", b'{"messages":[]}', "no_messages"),
        ("ollama", b"{}", "no_messages"),
        (
            "openai",
            b'{"messages":[{"role":"assistant","tool_calls":[{"function":{"arguments":"1e999"}}]}]}',
            "number_range",
        ),
    ],
)
def test_a_call_that_cannot_be_read_says_why(provider: str, request_: bytes, reason: str) -> None:
    """SA-11."""
    assert parse(provider, request_, None).unparsed == reason


def test_a_call_without_bodies_is_still_one() -> None:
    facts = parse("anthropic", None, None, endpoint="/v1/messages")
    assert facts == Facts(provider="anthropic", endpoint="/v1/messages")
    assert outcome(facts, Upstream(200)) == ("ok", "")
    assert outcome(facts, None) == ("ok", "")  # nobody says otherwise


@pytest.mark.parametrize("provider", ["anthropic", "openai", "ollama"])
def test_an_answer_that_cannot_be_read_is_incomplete(provider: str) -> None:
    empty = told(provider, ASK, b" \n")
    assert (empty.outcome, empty.error_type, empty.response) == ("incomplete", "empty_response", None)
    for wrong in (b"<html>", b'{"content":[{"type"', b"[1]"):
        facts = told(provider, ASK, wrong, content_type="application/json")
        assert (facts.outcome, facts.response) == ("incomplete", None)
        assert facts.flags in (("response_unreadable",), ("frame_malformed",))
    assert told(provider, ASK, None).outcome == "none"
    assert told(provider, ASK, b'{"x":1e999}').unparsed == "number_range"
    assert told("openai", {"input": "x"}, b"[]").flags == ("response_unreadable",)


# --- Anthropic


def test_anthropic_requests_become_messages() -> None:
    content = [
        {"type": "text", "text": "look", "cache_control": {}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QQ=="}},
        {"type": "document", "source": {"type": "url", "url": "https://e.example/a"}},
        {
            "type": "tool_result",
            "tool_use_id": "t",
            "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}],
            "is_error": True,
        },
        {"type": "tool_result", "tool_use_id": "u", "content": "out", "is_error": 1},
        {"type": "web_search_tool_result", "tool_use_id": "w", "content": [{"url": "u"}]},
        {"type": "thinking", "thinking": "", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "server_tool_use", "id": "i", "name": "web_search", "input": {"query": "q"}},
        {"type": "tool_use", "id": "j", "name": "n", "input": [1]},
        {"type": "tool_use", "id": "k", "name": "n"},
        "odd",
        {"text": 5},
    ]
    ask = {
        "model": "m",
        "max_tokens": 9,
        "tools": [{}],
        "system": [{"type": "text", "text": "be"}, {"type": "text", "text": "nice"}],
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": ""},
            {"role": "user"},
            {"role": "user", "content": 5},
            7,
        ],
    }
    facts = told("anthropic", ask)
    assert facts.messages[0].content == (
        Block("text", text="look"),
        Block("image", image_base64="QQ==", media_type="image/png"),
        Block("document", image_url="https://e.example/a"),
        Block("tool_result", tool_result_id="t", tool_output="a\nb", is_error=True),
        Block("tool_result", tool_result_id="u", tool_output="out"),
        Block("web_search_tool_result", tool_result_id="w", content=[{"url": "u"}]),
        Block("thinking", thinking_signature="s"),
        Block("redacted_thinking"),
        Block("server_tool_use", tool_use_id="i", tool_name="web_search", tool_input={"query": "q"}),
        Block("tool_use", tool_use_id="j", tool_name="n", tool_input_raw="[1]"),
        Block("tool_use", tool_use_id="k", tool_name="n"),
        Block(""),
    )
    assert facts.messages[1:] == (Message("assistant", (Block("text", text=""),)), Message("user"), Message("user"))
    assert (facts.system, facts.tools_offered, facts.output_max, facts.flags) == (
        "be\nnice",
        True,
        9,
        ("content_invalid",),
    )
    assert facts.request_params.keys() == {"model", "max_tokens", "tools", "system"}


def test_anthropic_streams_are_put_together() -> None:
    data = stream(
        {
            "type": "message_start",
            "message": {
                "id": "msg",
                "model": "m2",
                "usage": {"input_tokens": 5, "output_tokens": 1, "cache_creation": {"ephemeral_5m_input_tokens": 3}},
            },
        },
        {"type": "ping"},
        {"type": "future"},
        b"{nope",
        b"[1]",
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "t", "name": "n", "input": {}},
        },
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "a", "signature": "s"},
        },
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "b"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "t"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a":'}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "1}"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "text_delta", "text": "late"}},
        {"type": "content_block_delta", "delta": {"type": "citations_delta"}},
        {
            "type": "content_block_start",
            "index": 4,
            "content_block": {"type": "tool_use", "id": "u", "name": "n", "input": {}},
        },
        {"type": "content_block_delta", "index": 4, "delta": {"type": "input_json_delta", "partial_json": '{"cut'}},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use"},
            "usage": {"output_tokens": 7, "input_tokens": None, "output_tokens_details": {"thinking_tokens": 2}},
        },
        {"type": "message_stop"},
    )
    facts = told("anthropic", ASK, data, content_type=SSE + "; charset=utf-8")
    assert blocks(facts) == (
        Block("thinking", thinking="ab", thinking_signature="st"),
        Block("tool_use", tool_use_id="t", tool_name="n", tool_input={"a": 1}),
        Block("text", text="late"),
        Block("text", text=""),
        Block("tool_use", tool_use_id="u", tool_name="n", tool_input_raw='{"cut'),
    )
    assert facts.usage == used(8, 7, cache_write=3, cache_write_5m=3, reasoning=2)
    assert (facts.stop_reason, facts.message_id, facts.model, facts.usage_final) == ("tool_use", "msg", "m2", True)
    assert facts.flags == ("block_unopened", "frame_malformed")


def test_an_error_in_the_stream_keeps_what_came_before() -> None:
    """SA-37."""
    data = stream(
        {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "half"}},
        {"type": "error", "error": {"type": "overloaded_error"}},
        {"type": "message_stop"},
    )
    facts = told("anthropic", ASK, data)
    assert outcome(facts, Upstream(200)) == ("failed", "overloaded_error")
    assert blocks(facts) == (Block("text", text="half"),)
    assert tokens.measured(facts, "failed", None) == (used(5), "partial")
    assert tokens.measured(told("anthropic", ASK, stream({"type": "error"})), "failed", None) == (Usage(), "none")


def test_an_error_body_is_a_failed_call() -> None:
    for provider, error in (
        ("anthropic", {"type": "error", "error": {"type": "rate_limit_error"}}),
        ("openai", {"error": {"code": "quota"}}),
        ("ollama", {"error": "no such model"}),
    ):
        facts = told(provider, ASK, body(error), content_type="application/json")
        assert facts.outcome == "failed"
        assert outcome(facts, Upstream(429))[0] == "failed"
        assert facts.response is None
    assert told("openai", ASK, b'{"error":"text"}').error_type == "error"


# --- OpenAI chat completions

CALLS = [
    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
    {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "oops"}},
    {"id": "c3", "type": "custom", "custom": {"name": "h", "input": "raw"}},
]


def test_chat_requests_become_messages() -> None:
    ask = {
        "model": "m",
        "max_completion_tokens": 3,
        "messages": [
            {"role": "system", "content": "be nice"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "see"},
                    {"type": "image_url", "image_url": {"url": "u"}},
                    {"type": "input_audio"},
                ],
            },
            {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": CALLS},
            {
                "role": "tool",
                "tool_call_id": "c1",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": ""},
        ],
    }
    facts = told("openai", ask, endpoint="/v1/chat/completions?x=1")
    assert facts.messages == (
        Message("system", (Block("text", text="be nice"),)),
        Message("user", (Block("text", text="see"), Block("image_url", image_url="u"), Block("input_audio"))),
        Message(
            "assistant",
            (
                Block("thinking", thinking="hm"),
                Block("tool_use", tool_use_id="c1", tool_name="f", tool_input={"a": 1}),
                Block("tool_use", tool_use_id="c2", tool_name="g", tool_input_raw="oops"),
                Block("tool_use", tool_use_id="c3", tool_name="h", tool_input={"input": "raw"}),
            ),
        ),
        Message("tool", (Block("tool_result", tool_result_id="c1", tool_output="a\nb"),)),
        Message("assistant"),
    )
    assert (facts.system, facts.output_max, facts.tools_offered) == ("be nice", 3, False)
    assert told("openai", {**ASK, "max_tokens": 1}).output_max == 1


def chunk(delta: object = None, **more: object) -> dict[str, object]:
    return {"id": "x", "model": "m", "choices": [{"index": 0, "delta": delta or {}, **more}]}


USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "prompt_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 2, "audio_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 2, "audio_tokens": 0},
}


def test_chat_says_the_same_streamed_or_not() -> None:
    """SA-39."""
    message = {"role": "assistant", "reasoning_content": "hm", "content": "hello", "tool_calls": CALLS[:2]}
    whole = told(
        "openai",
        ASK,
        body(
            {
                "id": "x",
                "model": "m",
                "service_tier": "flex",
                "usage": USAGE,
                "choices": [
                    {"index": 0, "message": message, "finish_reason": "tool_calls"},
                    {"index": 1, "message": {"content": "other"}},
                ],
            }
        ),
    )
    data = stream(
        chunk({"role": "assistant", "reasoning_content": "hm"}),
        chunk({"content": "hel"}),
        chunk({"content": "lo"}),
        chunk(
            {
                "tool_calls": [
                    {"index": 0, "id": "c1", "function": {"name": "f", "arguments": '{"a"'}},
                    {"index": 1, "id": "c2", "function": {"name": "g"}},
                ]
            }
        ),
        chunk(
            {
                "tool_calls": [
                    {"index": 1, "function": {"arguments": "oops"}},
                    {"index": 0, "id": "late", "function": {"name": "late", "arguments": ":1}"}},
                ]
            }
        ),
        {"choices": [{"index": 1, "delta": {"content": "other"}}]},
        chunk(finish_reason="tool_calls"),
        {"service_tier": "flex", "choices": [], "usage": {"prompt_tokens": 1}},
        {"choices": [], "usage": USAGE},
        {"choices": [], "usage": None},
        b"[DONE]",
    )
    streamed = told("openai", ASK, data)
    assert streamed == whole
    assert blocks(whole)[0:2] == (Block("thinking", thinking="hm"), Block("text", text="hello"))
    assert whole.usage == used(
        9, 4, cache_read=3, cache_write=2, reasoning=2, input_audio=1, output_audio=0, service_tier="flex"
    )
    assert whole.flags == ("choices_ignored",)


def test_a_chat_stream_may_end_without_a_count_or_without_an_end() -> None:
    """SA-39."""
    unmeasured = told("openai", ASK, stream(chunk({"content": "x"}), b"[DONE]"))
    assert (unmeasured.outcome, unmeasured.usage) == ("complete", None)
    assert tokens.measured(unmeasured, "ok", None) == (Usage(), "missing")
    assert tokens.measured(unmeasured, "ok", used(1, 2)) == (used(1, 2), "provided")
    cut = told("openai", ASK, stream(chunk({"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]})))
    assert (cut.outcome, blocks(cut)) == ("incomplete", (Block("tool_use", tool_name="f"),))
    bare = told("openai", ASK, stream(chunk({"tool_calls": [{"function": {"name": "f", "arguments": " "}}]})))
    assert blocks(bare) == (Block("tool_use", tool_name="f"),)
    failed = told("openai", ASK, stream(chunk({"content": "x"}), {"error": {"type": "server_error"}}, b"[DONE]"))
    assert (failed.outcome, failed.error_type, blocks(failed)) == ("failed", "server_error", (Block("text", text="x"),))


# --- OpenAI Responses

CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":1}'}
BAD_CALL = {**CALL, "arguments": "oops"}
ITEMS = [
    {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "a"}, {"type": "summary_text", "text": "b"}],
        "encrypted_content": "e",
    },
    {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "hello"}, {"type": "refusal", "refusal": "no"}],
    },
    CALL,
    BAD_CALL,
    {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "raw"},
    {"type": "web_search_call", "id": "w"},
]
SAID = (
    Block("thinking", thinking="a\nb", thinking_signature="e"),
    Block("text", text="hello"),
    Block("refusal"),
    Block("tool_use", tool_use_id="c", tool_name="f", tool_input={"a": 1}),
    Block("tool_use", tool_use_id="c", tool_name="f", tool_input_raw="oops", content=BAD_CALL),
    Block("tool_use", tool_use_id="d", tool_name="g", tool_input={"input": "raw"}),
    Block("web_search_call", content={"type": "web_search_call", "id": "w"}),
)


def test_responses_items_become_messages_that_hash_like_the_answers_they_repeat() -> None:
    ask = {
        "model": "m",
        "instructions": "be nice",
        "max_output_tokens": 5,
        "tools": [{}],
        "input": [
            {"role": "developer", "content": "strictly"},
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "hi"}, {"type": "input_image", "image_url": "u"}],
            },
            *ITEMS,
            {"type": "function_call_output", "call_id": "c", "output": "out"},
            {
                "type": "custom_tool_call_output",
                "call_id": "d",
                "output": [{"type": "input_text", "text": "x"}, {"type": "input_text", "text": "y"}],
            },
            {"type": "computer_call_output", "call_id": "e", "output": {"b": 1, "a": 2}},
            {"type": "function_call_output"},
            {"role": "user", "content": ""},
        ],
    }
    facts = told("openai", ask, endpoint="/v1/responses/")
    assert [message.role for message in facts.messages] == ["developer", "user", "assistant", "tool", "user"]
    assert facts.messages[1].content == (Block("text", text="hi"), Block("input_image", image_url="u"))
    assert facts.messages[2].content == SAID
    assert [block.tool_output for block in facts.messages[3].content] == ["out", "x\ny", '{"a":2,"b":1}', None]
    assert facts.messages[4].content == ()
    assert (facts.system, facts.output_max, facts.tools_offered) == ("be nice\nstrictly", 5, True)
    answered = told("openai", {"input": "x"}, body({"status": "completed", "output": ITEMS}))
    assert answered.response is not None
    assert nodes.answer_hash(answered.response) == nodes.answer_hash(facts.messages[2])


def test_a_responses_stream_falls_back_on_what_it_has() -> None:
    done = [{"type": "response.output_item.done", "item": item} for item in ITEMS]
    created = {"type": "response.created", "response": {"id": "r", "model": "m2"}}
    full = {
        "id": "r",
        "model": "m2",
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "output": [],
        "usage": {"input_tokens": 2, "output_tokens": 1},
    }
    ended = told("openai", {"input": "x"}, stream(created, *done, {"type": "response.incomplete", "response": full}))
    assert (blocks(ended), ended.outcome, ended.stop_reason) == (SAID, "complete", "max_output_tokens")
    cut = told("openai", {"input": "x"}, stream(created, *done))
    assert (blocks(cut), cut.outcome, cut.message_id, cut.model) == (SAID, "incomplete", "r", "m2")
    delta = {"type": "response.output_text.delta", "delta": "par"}
    texts = told("openai", {"input": "x"}, stream(delta, delta, {"type": "response.other"}))
    assert (blocks(texts), texts.outcome) == ((Block("text", text="parpar"),), "incomplete")
    assert told("openai", {"input": "x"}, stream(created)).response is None


@pytest.mark.parametrize(
    ("response", "outcome_", "stop", "error"),
    [
        ({"status": "failed", "error": {"code": "server_error"}}, "failed", "failed", "server_error"),
        ({"status": "failed"}, "failed", "failed", "error"),
        ({"status": "in_progress"}, "incomplete", "in_progress", ""),
        ({"status": "incomplete"}, "complete", "incomplete", ""),
    ],
)
def test_a_responses_status_says_what_became_of_it(response: object, outcome_: str, stop: str, error: str) -> None:
    facts = told("openai", {"input": "x"}, body(response))
    assert (facts.outcome, facts.stop_reason, facts.error_type) == (outcome_, stop, error)


def test_an_error_event_of_responses_fails_the_call() -> None:
    assert told("openai", {"input": "x"}, stream({"type": "error", "code": "limit"})).error_type == "limit"
    assert told("openai", {"input": "x"}, stream({"type": "error"})).error_type == "error"


# --- Ollama


def test_ollama_says_the_same_by_lines_or_not() -> None:
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    last = {
        "model": "l",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "prompt_eval_count": 5,
        "eval_count": 2,
        "total_duration": 9,
    }
    lines = [
        {"model": "l", "message": {"thinking": "h"}},
        {"message": {"thinking": "m"}},
        {"message": {"content": "hel"}},
        {"message": {"content": "lo", "tool_calls": [call]}},
        last,
    ]
    streamed = told("ollama", ASK, b"\n".join(map(body, lines)), content_type="application/x-ndjson")
    whole = told("ollama", ASK, body({**last, "message": {"thinking": "hm", "content": "hello", "tool_calls": [call]}}))
    assert streamed == whole
    assert blocks(whole) == (
        Block("thinking", thinking="hm"),
        Block("text", text="hello"),
        Block("tool_use", tool_name="f", tool_input={"a": 1}),
    )
    assert (whole.usage, whole.stop_reason) == (used(5, 2), "stop")
    assert whole.raw_usage == {"prompt_eval_count": 5, "eval_count": 2, "total_duration": 9}
    cut = told("ollama", ASK, b"\n".join(map(body, lines[:3])))
    assert (cut.outcome, cut.usage) == ("incomplete", None)
    broken = told("ollama", ASK, b"\n".join(map(body, [lines[2], {"error": "gone"}, {"done": True}])))
    assert (broken.outcome, broken.usage) == ("failed", None)


def test_ollama_generate_is_one_user_message() -> None:
    ask = {"model": "l", "prompt": "hi", "images": ["QQ=="], "system": "be", "options": {"num_predict": 1}, "tools": []}
    facts = told("ollama", ask, body({"response": "yes", "thinking": "hm", "done": True, "done_reason": "length"}))
    assert facts.messages == (Message("user", (Block("text", text="hi"), Block("image", image_base64="QQ=="))),)
    assert blocks(facts) == (Block("thinking", thinking="hm"), Block("text", text="yes"))
    assert (facts.stop_reason, facts.endpoint, facts.system, facts.output_max) == ("length", "/api/generate", "be", 1)


# --- frames


def test_frames_follow_the_event_stream_format() -> None:
    data = b"\xef\xbb\xbfevent: a\r\ndata: 1\r\ndata:2\r\n\r\n: comment\rid: 7\r\rdata\n\nevent: b\n\ndata: 3"
    assert frames.sse(data) == [("a", b"1\n2"), ("", b""), ("", b"3")]
    flags: set[str] = set()
    assert frames.objects(b'event: ping\ndata: {}\n\ndata: {"type":"x"}\n\n', "sse", flags) == [
        {"type": "ping"},
        {"type": "x"},
    ]


@pytest.mark.parametrize(
    ("declared", "data", "kind"),
    [
        ("text/event-stream; charset=utf-8", b"{}", "sse"),
        ("application/x-ndjson", b"", "ndjson"),
        ("", b" data: 1", "sse"),
        ("application/json", b"event: x", "sse"),
        ("application/json", b"{}\n{}", "json"),
        ("", b'{"a":1}\n{"b":2}', "ndjson"),
        ("", b'{\n"a":1}', "json"),
        ("text/plain", b"{}", "json"),
    ],
)
def test_an_answer_is_framed_as_it_says_or_as_it_begins(declared: str, data: bytes, kind: str) -> None:
    assert frames.kind(declared, data) == kind


# --- tokens


@pytest.mark.parametrize("wrong", [-1, 2**63, 1.5, "5", True, [1]])
def test_a_count_that_is_none_is_unmeasured(wrong: object) -> None:
    flags: set[str] = set()
    assert tokens.ollama({"prompt_eval_count": wrong, "eval_count": 3}, flags) == used(None, 3)
    assert flags == {"usage_invalid"}


def test_anthropic_totals_are_inclusive_and_guessed_ttls_are_flagged() -> None:
    flags: set[str] = set()
    raw = {
        "input_tokens": 1,
        "cache_read_input_tokens": 2,
        "cache_creation_input_tokens": 4,
        "output_tokens": 8,
        "service_tier": "batch",
        "server_tool_use": {"web_search_requests": 3, "other": 1, "bad": -1},
    }
    usage = tokens.anthropic(raw, flags)
    assert usage == used(
        7, 8, cache_read=2, cache_write=4, server_tools={"web_search": 3, "other": 1}, service_tier="batch"
    )
    assert flags == {"cache_ttl_assumed", "usage_invalid"}
    assert tokens.anthropic({"output_tokens": 1, "cache_creation": 5}, set()) == used(None, 1)
    assert tokens.anthropic({"input_tokens": 2**63 - 1, "cache_read_input_tokens": 1}, flags).input is None


def test_given_counts_have_the_names_of_columns_or_of_the_reference() -> None:
    flags: set[str] = set()
    assert tokens.given({"input": 1, "output": 2, "reasoning": 1, "server_tools": {"x": 1, "y": -1}}, flags) == used(
        1, 2, reasoning=1, server_tools={"x": 1}
    )
    assert flags == {"usage_invalid"}
    assert tokens.given(
        {"prompt_tokens": 5, "completion_tokens": 3, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 1},
        set(),
    ) == used(5, 3, cache_read=2, cache_write=1)


@pytest.mark.parametrize(
    ("usage", "wrong"),
    [
        (used(10, 5, cache_read=6, cache_write=4, reasoning=5), False),
        (used(10, 5, cache_read=6, cache_write=5), True),
        (used(10, 5, reasoning=6), True),
        (used(10, cache_write=3, cache_write_5m=2, cache_write_1h=2), True),
        (used(None, 5, cache_read=6), False),
        (used(1, cache_write_1h=2), True),
        (used(1, 1, output_audio=2), True),
    ],
)
def test_a_part_larger_than_its_whole_is_inconsistent(usage: Usage, wrong: bool) -> None:
    assert tokens.inconsistent(usage) is wrong


# --- calls


@pytest.mark.parametrize(
    ("upstream", "fault", "said", "found"),
    [
        (Upstream(200, "aborted"), "", "complete", ("aborted", "")),
        (Upstream(529), "", "complete", ("failed", "http_529")),
        (Upstream(0, "error"), "", "none", ("failed", "connection_error")),
        (Upstream(0, "error", "dns"), "", "none", ("failed", "dns")),
        (Upstream(200), "oversize", "none", ("incomplete", "oversize")),
        (Upstream(200), "", "none", ("incomplete", "")),
        (Upstream(200, "incomplete"), "", "complete", ("incomplete", "")),
        (None, "", "complete", ("ok", "")),
        (Upstream(204), "", "complete", ("ok", "")),
    ],
)
def test_the_connection_speaks_before_the_bytes(
    upstream: Upstream | None, fault: str, said: Any, found: tuple[str, str]
) -> None:
    facts = Facts(provider="p", messages=(Message("user"),), outcome=said)
    assert outcome(facts, upstream, fault) == found


def asked(text: str, **more: Any) -> Facts:
    return Facts(provider="p", messages=(Message("user", (Block("text", text=text),)), Message("assistant")), **more)


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        (asked("x", output_max=1, tools_offered=True), "probe"),
        (asked("x", system="Write a Title."), "title"),
        (asked("x", system="entitled"), "unknown"),
        (asked("a summary of the conversation", tools_offered=True), "compaction"),
        (asked("x", system="title", tools_offered=True), "main"),
        (Facts(provider="p"), "unknown"),
    ],
)
def test_a_call_is_for_what_it_looks_like(facts: Facts, kind: str) -> None:
    assert call_kind(facts) == kind


def test_a_users_rule_comes_first() -> None:
    rules = [Rule(kind="other", model="n"), Rule(kind="lint", model="m", agent_name="a", system="be", text="x")]
    facts = asked("xyz", model="m", system="be nice", output_max=1)
    assert call_kind(facts, agent_name="a", rules=rules) == "lint"
    assert call_kind(facts, rules=rules) == "probe"


def test_looking_into_anything_never_raises() -> None:
    flags: set[str] = set()
    assert (list(items({}, flags)), flags) == ([], {"content_invalid"})
    assert (part([]), joined(5), joined([1, {"text": "a"}])) == ({}, "", "a")
    assert providers.PROVIDERS.keys() == {"anthropic", "ollama", "openai"}


@pytest.mark.parametrize("odd", [None, True, 5, 1.5, "x", [], ["x"], {}, {"a": {"b": []}}])
@pytest.mark.parametrize("provider", ["anthropic", "openai", "ollama"])
def test_members_of_unexpected_types_are_not_there(provider: str, odd: Any) -> None:
    """SX-50: whatever a provider or its client sends, reading it does not raise."""
    odd_message = {"role": odd, "content": odd, "tool_calls": odd, "images": odd, "type": odd}
    asks = [
        {"model": odd, "messages": [odd_message, {"role": "user", "content": [odd_message, odd]}], "system": odd},
        {"input": [odd_message, odd, {"type": "function_call", "arguments": odd, "name": odd}], "instructions": odd},
        {"prompt": "x", "images": odd, "options": odd, "max_tokens": odd},
    ]
    kinds = (
        "message_start",
        "content_block_start",
        "content_block_delta",
        "message_delta",
        "error",
        "response.completed",
    )
    names = ("message", "content_block", "delta", "usage", "response", "item", "index", "choices", "error", "done")
    events = [{"type": kind} | dict.fromkeys(names, odd) for kind in kinds]
    for ask in asks:
        for answer in (body(odd), body(odd_message), stream(odd, *events), b"\n".join(map(body, events))):
            facts = told(provider, ask, answer)
            nodes.chain(facts.messages if facts.response is None else [*facts.messages, facts.response])
