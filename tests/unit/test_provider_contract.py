"""The suite that whoever reads a provider must pass: ours do, and one that breaks a law is told so."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

import msgspec
import pytest
from tests.unit.sessions_data import FIXTURES, SHARED

from holdfast.sessions.providers import PROVIDERS, Parser
from holdfast.sessions.values import Facts, Message
from holdfast.testing.provider_contract import LAWS, Exchange, provider_contract

OFFER = {"name": "f", "description": "does f", "input_schema": {"type": "object"}}


def body(value: object) -> bytes:
    return json.dumps(value).encode()


def stream(*events: object) -> bytes:
    return b"".join(b"data: " + (event if isinstance(event, bytes) else body(event)) + b"\n\n" for event in events)


def wrong(parser: Parser, exchanges: list[Exchange]) -> list[str]:
    return [f"{each.name}: {each.detail}" for each in provider_contract(parser, exchanges) if not each.ok]


# --- ours


def chunk(finish: str | None = None, **delta: object) -> dict[str, object]:
    return {"id": "x", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def chat() -> Exchange:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    first, rest = {"name": "f", "arguments": '{"a"'}, {"arguments": ":1}"}
    asked = {
        "model": "m",
        "tools": [{"type": "function", "function": OFFER}],
        "messages": [
            {"role": "system", "content": "be nice"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "u"}}],
            },
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "done"},
        ],
    }
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}
    message = {"role": "assistant", "reasoning_content": "hm", "content": "hello", "tool_calls": [call]}
    whole = {
        "id": "x",
        "model": "m",
        "usage": usage,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }
    return Exchange(
        body(asked),
        body(whole),
        stream(
            chunk(role="assistant", reasoning_content="hm"),
            chunk(content="hel"),
            chunk(content="lo"),
            chunk(tool_calls=[{**call, "function": first}]),
            chunk(tool_calls=[{"index": 0, "function": rest}]),
            chunk("stop"),
            {"choices": [], "usage": usage},
            b"[DONE]",
        ),
        endpoint="/v1/chat/completions",
    )


def responses() -> Exchange:
    asked = {
        "model": "m",
        "instructions": "be nice",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "e"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "done"},
        ],
    }
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hello"}]}
    call = {"type": "function_call", "call_id": "d", "name": "f", "arguments": '{"a":1}'}
    usage = {"input_tokens": 9, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 3}}
    whole = {"id": "x", "model": "m", "status": "completed", "output": [said, call], "usage": usage}
    return Exchange(
        body(asked),
        body(whole),
        stream(
            {"type": "response.created", "response": {"id": "x", "status": "in_progress"}},
            {"type": "response.output_text.delta", "delta": "hello"},
            {"type": "response.output_item.done", "item": said},
            {"type": "response.output_item.done", "item": call},
            {"type": "response.completed", "response": {**whole, "output": []}},
        ),
        endpoint="/v1/responses",
    )


def ollama() -> Exchange:
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    said = {"role": "user", "content": "hi", "images": ["QQ=="]}
    end = {"model": "l", "done": True, "done_reason": "stop", "prompt_eval_count": 5, "eval_count": 2}
    lines = [
        {"model": "l", "message": {"thinking": "hm"}},
        {"message": {"content": "hel"}},
        {"message": {"content": "lo", "tool_calls": [call]}},
        end,
    ]
    return Exchange(
        body({"model": "l", "messages": [said, {"role": "assistant", "content": "", "tool_calls": [call]}]}),
        body({**end, "message": {"thinking": "hm", "content": "hello", "tool_calls": [call]}}),
        b"\n".join(map(body, lines)),
        endpoint="/api/chat",
        streamed_type="application/x-ndjson",
    )


def generate() -> Exchange:
    end = {"model": "l", "done": True, "prompt_eval_count": 5, "eval_count": 2}
    return Exchange(
        body({"model": "l", "prompt": "hi", "system": "be nice", "options": {"num_predict": 9}}),
        body({**end, "response": "hello"}),
        b"\n".join(map(body, [{"response": "hel"}, {"response": "lo"}, end])),
        endpoint="/api/generate",
        streamed_type="application/x-ndjson",
    )


def anthropic() -> Exchange:
    folder = FIXTURES / "capture" / "anthropic" / "canonical_equivalence"
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "done"}]}
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QQ=="}}
    asked = {
        "model": "m",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "be nice"}],
        "tools": [OFFER],
        "messages": [
            {"role": "user", "content": [image, {"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, call]},
            {"role": "user", "content": [result]},
        ],
    }
    whole, streamed = (folder / f"turn_02_tool_use_{form}" for form in ("oneshot.json", "stream.sse"))
    return Exchange(body(asked), whole.read_bytes(), streamed.read_bytes(), endpoint="/v1/messages")


@SHARED
@pytest.mark.parametrize(
    ("provider", "exchange"),
    [("anthropic", anthropic), ("openai", chat), ("openai", responses), ("ollama", ollama), ("ollama", generate)],
    ids=["anthropic", "chat", "responses", "ollama", "generate"],
)
def test_ours_keep_every_law(provider: str, exchange: Callable[[], Exchange]) -> None:
    """SX-50."""
    assert wrong(PROVIDERS[provider], [exchange()]) == []


# --- others

own = PROVIDERS["ollama"]
changed = msgspec.structs.replace


def whole_always(request: bytes | None, response: bytes | None, content_type: str, endpoint: str) -> Facts:
    facts = own(request, response, content_type, endpoint)
    return changed(facts, outcome="complete") if facts.response else facts


def doubtful(request: bytes | None, response: bytes | None, content_type: str, endpoint: str) -> Facts:
    facts = own(request, response, content_type, endpoint)
    return changed(facts, flags=tuple(sorted({*facts.flags, "guessed"}))) if facts.response else facts


def other_in_a_stream(request: bytes | None, response: bytes | None, content_type: str, endpoint: str) -> Facts:
    facts = own(request, response, content_type, endpoint)
    return changed(facts, stop_reason="end") if content_type == "application/json" else facts


def answers_anyhow(request: bytes | None, response: bytes | None, content_type: str, endpoint: str) -> Facts:
    facts = own(request, response, content_type, endpoint)
    return facts if response is not None else changed(facts, response=Message("assistant"), outcome="complete")


def silent(request: bytes | None, response: bytes | None, content_type: str, endpoint: str) -> Facts:
    facts = own(request, response, content_type, endpoint)
    return changed(facts, flags=())


def trusting(request: bytes | None, response: bytes | None, content_type: str, endpoint: str) -> Facts:
    (request or b"").decode()
    return own(request, response, content_type, endpoint)


def unchecked(request: bytes | None, response: bytes | None, content_type: str, endpoint: str) -> Facts:
    facts = own(request, response, content_type, endpoint)
    name = facts.request_params.get("model", "")
    return changed(facts, model=name)


def recursive(request: bytes | None, response: bytes | None, content_type: str, endpoint: str) -> Facts:
    with contextlib.suppress(ValueError):
        json.loads(request or b"")
    return own(request, response, content_type, endpoint)


last = {"model": ""}


def remembering(request: bytes | None, response: bytes | None, content_type: str, endpoint: str) -> Facts:
    facts = own(request, response, content_type, endpoint)
    before, last["model"] = last["model"], facts.model
    return changed(facts, message_id=before)


def again_and_again(request: bytes | None, response: bytes | None, content_type: str, endpoint: str) -> Facts:
    lines = (response or b"").split(b"\n")
    for at in range(0, len(lines), 5):
        b"\n".join(lines[:at]).count(b"error")
    return own(request, response, content_type, endpoint)


@pytest.mark.parametrize(
    ("parser", "law"),
    [
        (doubtful, "an example is read without a doubt"),
        (other_in_a_stream, "a stream says what the answer at once says"),
        (answers_anyhow, "what did not come is not made up"),
        (whole_always, "an answer that is cut is not whole"),
        (silent, "a frame that cannot be read is skipped and flagged"),
        (trusting, "no bytes make it raise"),
        (unchecked, "a member may have any type"),
        (recursive, "depth costs no stack"),
        (remembering, "equal bytes give equal facts"),
        (again_and_again, "work grows with the bytes"),
    ],
)
def test_who_breaks_a_law_is_told_which(parser: Parser, law: str) -> None:
    assert [each.name for each in provider_contract(parser, [generate()]) if not each.ok] == [law]


def test_nothing_is_proved_without_an_example() -> None:
    verdicts = provider_contract(own, [])
    assert len(verdicts) == len(LAWS) == 10
    assert not any(each.ok for each in verdicts)
