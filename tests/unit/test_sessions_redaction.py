"""Secrets leave a call before anything of it is kept, wherever in it they stand and however they are written."""

from __future__ import annotations

import gzip
import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given as fed
from hypothesis import settings
from hypothesis import strategies as st

from holdfast.sessions import intake, jcs
from holdfast.sessions.errors import InvalidField
from holdfast.sessions.intake import Sent
from holdfast.sessions.redact import Rules, rules
from holdfast.sessions.redaction import DROPPED, SILENT_BYTES_MAX, Kept, kept
from holdfast.sessions.values import Call

ORG = UUID(int=7)
KEY = bytes(range(32))
SECRET = "sk-ant-0123456789abcdefghij"
BUILTIN = rules()
ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def sent(request: object = ASK, response: object = None, **more: Any) -> Sent:
    bodies = [each if isinstance(each, bytes | None) else json.dumps(each).encode() for each in (request, response)]
    return intake.sent_of(Call(more.pop("provider", "anthropic"), bodies[0], bodies[1], **more), org=ORG)


def cleaned(given: Sent, using: Rules = BUILTIN) -> Kept:
    found = kept(given, using, KEY, org=ORG)
    everything = b"".join((found.told, found.sent.call.request or b"", found.sent.call.response or b""))
    assert SECRET.encode() not in everything
    told = jcs.read(found.told)
    assert intake.reread(told, found.sent.call.request, found.sent.call.response, org=ORG) == found.sent.call
    return found


def stream(*pieces: str) -> bytes:
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "msg", "model": "m", "usage": {"input_tokens": 3}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
            for piece in pieces
        ),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    return b"".join(b"event: x\ndata: " + json.dumps(event).encode() + b"\n\n" for event in events)


def test_a_call_without_secrets_is_kept_as_it_came() -> None:
    given = sent(response=stream("all ", "clear"), response_type="text/event-stream")
    found = cleaned(given)
    assert (found.sent, found.counts) == (given, {})
    assert cleaned(given, rules(builtin=False)).sent is given
    assert cleaned(sent(None, None, capture="metadata")).sent.call.request is None


PARTS = (
    "all clear", "b", "a\nb", "\\", "é", SECRET, SECRET[:9], "\\u0073k-ant-0123456789abcdefghij",
)  # fmt: skip
PIECES = ((), ("all ", "clear"), (SECRET[:1], SECRET[1:]), (SECRET,))


@settings(max_examples=300)
@fed(
    asked=st.sampled_from(PARTS),
    answered=st.one_of(st.none(), st.sampled_from(PARTS), st.sampled_from(PIECES)),
    name=st.sampled_from(("", *PARTS)),
)
def test_one_look_at_all_of_a_call_finds_what_several_do(
    asked: str, answered: str | tuple[str, ...] | None, name: str
) -> None:
    """A small call is looked through at once; by rules that are not ours every part of it is, each for itself."""
    bodies = [
        each if each is None else stream(*each) if isinstance(each, tuple) else spelt({**ASK, "system": each})
        for each in (asked, answered)
    ]
    call = sent(*bodies, agent_name=name)
    found = kept(call, BUILTIN, KEY, org=ORG, written=jcs.write(call.told))
    assert found == kept(call, Rules(BUILTIN.patterns, ours=False), KEY, org=ORG)


def spelt(value: object) -> bytes:
    """JSON in which escapes that a text has are its own."""
    return json.dumps(value).replace("\\\\u", "\\u").encode()


def test_a_large_call_is_looked_through_part_by_part() -> None:
    filling = "x" * SILENT_BYTES_MAX
    assert cleaned(sent({**ASK, "system": filling})).counts == {}
    assert cleaned(sent({**ASK, "system": filling + " " + SECRET})).counts == {"provider_key": 1}


def test_a_secret_is_taken_out_of_bodies_and_of_what_was_told() -> None:
    given = sent({**ASK, "system": SECRET}, {"error": SECRET}, agent_name=SECRET)
    found = cleaned(given)
    assert found.counts == {"provider_key": 3}
    assert b"[redacted:provider_key:27:" in (found.sent.call.request or b"")
    assert found.sent.call.agent_name.startswith("[redacted:")
    assert found.sent.flags == frozenset()
    assert cleaned(sent(None, None, capture="metadata", agent_name=SECRET)).counts == {"provider_key": 1}


def test_a_coded_body_with_a_secret_is_kept_without_its_coding() -> None:
    coded = gzip.compress(json.dumps({**ASK, "system": SECRET}).encode())
    found = cleaned(sent(coded, gzip.compress(b'{"x":1}'), request_encoding="gzip", response_encoding="gzip"))
    assert found.sent.call.request_encoding == ""
    assert found.sent.call.request is not None
    assert found.sent.call.request.startswith(b'{"model"')
    assert found.sent.call.response_encoding == "gzip"


def test_a_stream_that_ended_early_under_its_coding_keeps_its_flag() -> None:
    text = b"".join(b"data: {}\n\n" for _ in range(9000))
    cut = gzip.compress(SECRET.encode() + b" " + text)[:-9]
    found = cleaned(sent(response=cut, response_encoding="gzip", response_type="text/event-stream"))
    assert found.sent.flags == {"truncated_encoding"}


def test_bytes_that_nobody_can_decode_stay() -> None:
    given = sent(response=b"zip", response_encoding="gzip")
    assert cleaned(given).sent == given


def test_a_secret_in_pieces_of_a_stream_drops_the_stream() -> None:
    found = cleaned(sent(response=stream("it is sk-ant-012345", "6789abcdefghij."), response_type="text/event-stream"))
    call = found.sent.call
    assert (call.response, found.sent.flags, found.counts) == (None, {DROPPED}, {"provider_key": 1})
    assert call.reduced is not None
    assert call.reduced.message is not None
    assert (call.reduced.message.content[0].text or "").startswith("it is [redacted:provider_key:27:")
    assert call.reduced.stop_reason == "end_turn"
    assert call.reduced.usage is not None
    assert call.reduced.usage.output == 5


def test_a_secret_in_pieces_counts_whatever_the_request_is_coded_with() -> None:
    coded = gzip.compress(json.dumps(ASK).encode())
    found = cleaned(
        sent(
            coded, stream("sk-ant-012345", "6789abcdefghij"), request_encoding="gzip", response_type="text/event-stream"
        )
    )
    assert found.sent.flags == {DROPPED}
    assert found.sent.call.request == coded
    both = cleaned(
        sent({**ASK, "system": SECRET}, stream("sk-ant-012345", "6789abcdefghij"), response_type="text/event-stream")
    )
    assert (both.sent.flags, both.counts) == ({DROPPED}, {"provider_key": 2})


def test_a_secret_that_is_written_with_escapes_is_found() -> None:
    spelt = json.dumps({**ASK, "system": "@"}).replace("@", "\\u0073" + SECRET[1:]).encode()
    found = cleaned(sent(spelt))
    assert found.sent.flags == {DROPPED}
    assert "system" in jcs.read(found.sent.call.request or b"")
    harmless = json.dumps({**ASK, "system": "\u00e4"}).encode()
    assert cleaned(sent(harmless)).sent.call.request == harmless
    broken = b'{"x":"\\u00e4'
    assert cleaned(sent(broken)).sent.call.request == broken
    for spelt in (b'{"x":"\\u0073k-', b'{"x":"\\u0073k-short"}'):
        assert cleaned(sent(spelt)).sent.call.request == spelt


def test_a_stream_of_a_provider_that_nobody_reads_stays() -> None:
    given = sent(response=b"data: x\n\n", provider="acme")
    assert cleaned(given).sent == given
    silent = sent(response=b"data: {}\n\n")
    assert cleaned(silent).sent == silent


def test_a_body_in_the_form_of_the_reference_is_redacted_like_any_other() -> None:
    body = {
        "provider": "anthropic",
        "request": ASK,
        "response": {"message": {"role": "assistant", "content": [{"type": "text", "text": SECRET}]}},
        "raw_response": "c2stYW50LTAxMjM0NTY3ODlhYmNkZWZnaGlq",
        "raw_response_encoding": "identity",
        "meta": {"request_id": "r"},
    }
    found = cleaned(intake.single(json.dumps(body).encode(), org=ORG))
    assert found.counts == {"provider_key": 2}
    assert (found.sent.call.response or b"").startswith(b"[redacted:")


def test_a_body_that_was_posted_as_json_stays_json() -> None:
    posted = {"provider": "anthropic", "request": {**ASK, "system": SECRET}, "response": {"error": SECRET}}
    found = cleaned(intake.single(json.dumps(posted).encode(), org=ORG))
    assert jcs.read(found.sent.call.request or b"")["messages"] == ASK["messages"]
    assert found.counts == {"provider_key": 2}


def test_usage_stays_where_there_was_none() -> None:
    cut = stream("sk-ant-012345", "6789abcdefghij").split(b"event: x\n")
    nothing = b"event: x\n".join(part for part in cut if b"usage" not in part)
    found = cleaned(sent(response=nothing, response_type="text/event-stream"))
    assert found.sent.call.reduced is not None
    assert found.sent.call.reduced.usage is None


def test_a_capture_id_is_no_secret() -> None:
    with pytest.raises(InvalidField):
        kept(sent(capture_id=SECRET), BUILTIN, KEY, org=ORG)
