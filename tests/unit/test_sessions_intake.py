"""What is posted: calls, lists of calls, and the reference's own form."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from tests.unit.sessions_data import used

from holdfast.sessions.errors import InvalidField, MalformedJson, OrgMismatch, TooLarge
from holdfast.sessions.intake import Sent, batch, capture_id, reread, sent_of, single, spoken_for
from holdfast.sessions.values import Block, Call, Envelope, Message, Reduced, Upstream

ORG = UUID(int=7)
LEAST = {"provider": "anthropic", "request": {"a": 1}}


def posted(value: object) -> Sent:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return single(data, org=ORG)


def packed(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_call_keeps_the_bytes_of_its_bodies() -> None:
    """SA-1."""
    sent = posted(b'{"provider":"anthropic","request": {"b" : 1.0,"a":"\\ud800"} ,"response":null,"x":{"y":[1]}}')
    assert sent.call.request == b'{"b" : 1.0,"a":"\\ud800"}'
    assert (sent.call.response, sent.call.request_type, sent.call.response_type) == (None, "application/json", "")
    assert sent.told == {"provider": "anthropic", "x": {"y": [1]}}
    assert sent.call.session == Envelope(harness_id="unknown", org_id=str(ORG))
    coded = {"base64": packed(b"\x1f\x8b"), "content_type": "text/event-stream", "content_encoding": "gzip"}
    sent = posted({**LEAST, "response": coded})
    assert (sent.call.response, sent.call.response_type, sent.call.response_encoding) == (
        b"\x1f\x8b",
        "text/event-stream",
        "gzip",
    )
    assert sent.told["response"] == {"content_type": "text/event-stream", "content_encoding": "gzip"}
    for no_form in ({"base64": "QQ==", "other": 1}, {"x": {"base64": "QQ=="}}):
        assert posted({**LEAST, "request": no_form}).call.request == json.dumps(no_form).encode()
    assert posted({**LEAST, "request": {"base64": "QQ==", "content_type": None}}).call.request == b"A"


def test_every_member_lands_where_it_belongs() -> None:
    sent = posted(
        {
            **LEAST,
            "capture_id": "c",
            "source": "sdk",
            "captured_at": "2026-07-27T21:32:31Z",
            "started_at": 5,
            "ended_at": -5,
            "endpoint": "/v1/messages",
            "agent_name": "a",
            "thread_id": "t",
            "parent_tool_use_id": "p",
            "tags": ["x", "y", "x", ""],
            "upstream": {
                "status": 200,
                "outcome": "incomplete",
                "error_type": "e",
                "request_id": "r",
                "time_to_first_token_ms": 5,
                "duration_ms": 7,
                "headers": {"Authorization": "s", "Retry-After": "3", "x-request-id": 5},
                "request_bytes": 9,
            },
            "usage": {
                "input": 5,
                "output": 0,
                "server_tools": {"web_search": 2},
                "service_tier": "flex",
                "reasoning": None,
            },
            "cost": {"usd": "0.25", "source": "me"},
            "session": {"harness_id": "claude", "harness_session_id": "s"},
        }
    )
    call = sent.call
    assert (call.capture_id, call.source, call.endpoint, call.agent_name, call.thread_id, call.parent_tool_use_id) == (
        "c",
        "sdk",
        "/v1/messages",
        "a",
        "t",
        "p",
    )
    assert call.captured_at == datetime(2026, 7, 27, 21, 32, 31, tzinfo=UTC)
    assert call.started_at == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=5)
    assert call.tags == {"x", "y"}
    assert call.upstream == Upstream(
        200, "incomplete", "e", "r", {"retry-after": "3"}, timedelta(milliseconds=5), timedelta(milliseconds=7)
    )
    assert call.usage == used(5, 0, server_tools={"web_search": 2}, service_tier="flex")
    assert call.cost_usd == Decimal("0.25")
    assert call.session == Envelope(harness_id="claude", harness_session_id="s", org_id=str(ORG))
    assert sent.told["upstream"]["headers"] == {"retry-after": "3"}
    assert (sent.captured_at, sent.request_id) == ("2026-07-27T21:32:31Z", "")


def test_without_bodies_only_the_call_itself_is_taken() -> None:
    sent = posted({**LEAST, "response": {"b": 2}, "capture": "metadata"})
    assert (sent.call.request, sent.call.response, sent.call.capture) == (None, None, "metadata")
    assert posted({"provider": "p", "capture": "metadata", "session": None}).call.request is None


def test_an_answer_may_come_reduced() -> None:
    reduced = {
        "model": "m",
        "message": {"content": [{"type": "text", "text": "x"}]},
        "stop_reason": "stop",
        "usage": {"prompt_tokens": 5},
    }
    call = posted({**LEAST, "reduced": reduced}).call
    assert call.reduced == Reduced("m", Message("assistant", (Block("text", text="x"),)), "stop", used(5))
    assert posted({**LEAST, "reduced": reduced, "response": {"a": 1}}).call.reduced is None
    assert posted({**LEAST, "reduced": {}}).call.reduced == Reduced(message=Message("assistant"))


TURN = {
    "provider": "anthropic",
    "agent_name": "a",
    "request": {"messages": []},
    "session": {"harness_id": "claude"},
    "response": {"model": "m", "message": {"role": "assistant", "content": [{"type": "text", "text": "x"}]}},
    "meta": {
        "request_id": "r-1",
        "upstream_request_id": "req_9",
        "thread_id": "t",
        "path": "/v1/messages",
        "upstream_status": 200,
        "elapsed_seconds": 1.25,
        "ts_request": "2026-07-27T21:32:31Z",
    },
}


def test_the_references_form_is_a_call_like_any_other() -> None:
    """SA-63."""
    sent = posted(TURN)
    call = sent.call
    assert call.reduced == Reduced("m", Message("assistant", (Block("text", text="x"),)))
    assert (call.thread_id, call.endpoint, call.agent_name, call.response) == ("t", "/v1/messages", "a", None)
    assert call.upstream == Upstream(200, request_id="req_9", duration=timedelta(milliseconds=1250))
    assert call.captured_at == call.started_at == datetime(2026, 7, 27, 21, 32, 31, tzinfo=UTC)
    assert capture_id(sent, "", org=ORG) == ("req:r-1", False)
    raw = {**TURN, "raw_response": packed(b"data"), "raw_response_encoding": "gzip", "thread_id": "own"}
    sent = posted(raw)
    assert (sent.call.response, sent.call.response_encoding, sent.call.reduced, sent.call.thread_id) == (
        b"data",
        "gzip",
        None,
        "own",
    )
    assert sent.told.keys() == {
        "provider",
        "agent_name",
        "session",
        "response",
        "meta",
        "raw_response_encoding",
        "thread_id",
    }
    withheld = posted({**LEAST, "raw_response": "", "raw_response_withheld": True, "meta": {"elapsed_seconds": -1}})
    assert (withheld.call.response, withheld.call.upstream) == (None, Upstream())
    assert posted({**LEAST, "meta": {}, "raw_response": None}).call.response is None


@pytest.mark.parametrize(
    "response",
    [
        b'{"message":{"role":"a","content":"text"}}',
        b'{"message":5}',
        b'{"message":1e999}',
        b'{"a":"message"}',
        b'["message"]',
        b'{"type":"message","of":{"message":{"role":"a","content":[]}}}',
    ],
)
def test_an_answer_that_only_looks_reduced_is_a_body(response: bytes) -> None:
    sent = posted(b'{"provider":"p","request":{},"response":%s}' % response)
    assert (sent.call.response, sent.call.reduced) == (response, None)


def test_a_reduced_answer_is_known_however_it_is_laid_out() -> None:
    answer = b'{"type":"message", "message" \t\r\n: {"role":"a","content":[]}}'
    sent = posted(b'{"provider":"p","request":{},"response":%s}' % answer)
    assert (sent.call.response, sent.call.reduced) == (None, Reduced(message=Message("a")))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"provider": "Nobody!"}, "/provider"),
        ({"provider": None}, "/provider"),
        ({"request": None}, "/request"),
        ({"request": {"base64": "?"}}, "/request/base64"),
        ({"request": {"base64": 5}}, "/request/base64"),
        ({"request": {"base64": "QQ==", "content_type": 5}}, "/request/content_type"),
        ({"request": {"base64": "QQ==", "content_encoding": "x" * 300}}, "/request/content_encoding"),
        ({"source": "otlp"}, "/source"),
        ({"capture": "off"}, "/capture"),
        ({"captured_at": "now"}, "/captured_at"),
        ({"captured_at": True}, "/captured_at"),
        ({"captured_at": 1.5}, "/captured_at"),
        ({"captured_at": 10**18}, "/captured_at"),
        ({"session": []}, "/session"),
        ({"session": {"harness_metadata": 5}}, "/session/harness_metadata"),
        ({"agent_name": "x" * 257}, "/agent_name"),
        ({"thread_id": 5}, "/thread_id"),
        ({"upstream": 5}, "/upstream"),
        ({"upstream": {"status": "200"}}, "/upstream/status"),
        ({"upstream": {"status": True}}, "/upstream/status"),
        ({"upstream": {"duration_ms": -1}}, "/upstream/duration_ms"),
        ({"upstream": {"outcome": "fine"}}, "/outcome"),
        ({"usage": {"input": -1}}, "/usage/input"),
        ({"usage": {"input": 1.5}}, "/usage/input"),
        ({"usage": {"server_tools": {"x": "1"}}}, "/usage/server_tools/x"),
        ({"cost": {"usd": 5}}, "/cost/usd"),
        ({"cost": {"usd": "-1"}}, "/cost/usd"),
        ({"cost": {"usd": "NaN"}}, "/cost/usd"),
        ({"cost": {"usd": "dear"}}, "/cost/usd"),
        ({"cost": {"usd": "1e9"}}, "/cost/usd"),
        ({"tags": "x"}, "/tags"),
        ({"tags": ["x"] * 33}, "/tags"),
        ({"tags": [5]}, "/tags/0"),
        ({"tags": ["x" * 65]}, "/tags/0"),
        ({"reduced": {"message": {"content": "x"}}}, "/reduced/message/content"),
        ({"reduced": {"message": {"content": [5]}}}, "/reduced/message/content/0"),
        ({"reduced": {"message": {"content": [{"text": 5}]}}}, "/reduced/message/content/0"),
        ({"meta": 5}, "/meta"),
        ({"raw_response": 5}, "/raw_response"),
        ({"raw_response": "?"}, "/raw_response"),
        ({"raw_response": "QQ==", "raw_response_encoding": 5}, "/raw_response_encoding"),
    ],
)
def test_a_member_that_breaks_its_rule_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        posted({**LEAST, **change})
    assert caught.value.field == field


@pytest.mark.parametrize("data", [b"[]", b"{", b"NaN", b'{"a":' + b"[" * 201 + b"]" * 201 + b"}"])
def test_what_is_no_object_is_no_call(data: bytes) -> None:
    with pytest.raises(MalformedJson):
        posted(data)


def test_numbers_that_nobody_can_hold_are_the_bodys_own_affair() -> None:
    """SA-11."""
    assert posted(b'{"provider":"p","request":{"x":1e999},"response":{"y":1e999}}').call.request == b'{"x":1e999}'
    with pytest.raises(InvalidField) as caught:
        posted(b'{"provider":"p","request":{},"x":1e999}')
    assert caught.value.field == "/x"


def test_another_org_is_refused() -> None:
    """SA-22."""
    with pytest.raises(OrgMismatch):
        posted({**LEAST, "session": {"org_id": str(UUID(int=8))}})


def test_text_that_no_column_holds_is_scrubbed_and_flagged() -> None:
    """SA-30."""
    sent = posted({**LEAST, "agent_name": "a\x00", "session": {"name": "n" * 300}})
    assert (sent.call.agent_name, sent.flags) == ("a\ufffd", {"scrubbed", "name_cut"})


def test_a_capture_id_is_given_or_made_of_the_content() -> None:
    assert capture_id(posted({**LEAST, "capture_id": "c"}), '"c"', org=ORG) == ("c", False)
    one, two = posted(LEAST), posted({**LEAST, "captured_at": 5})
    assert capture_id(one, "", org=ORG) == capture_id(posted({**LEAST, "x": 1}), "", org=ORG)
    assert capture_id(one, "", org=ORG) != capture_id(two, "", org=ORG)


# --- calls that are stored, and calls of a program


@pytest.mark.parametrize(
    "value",
    [
        LEAST,
        {**LEAST, "response": {"b": 2}, "thread_id": "t"},
        {
            **LEAST,
            "request": {"base64": "QQ=="},
            "response": {"base64": "QQ==", "content_type": "a/b", "content_encoding": "gzip"},
        },
        {**LEAST, "capture": "metadata"},
        TURN,
        {**LEAST, "raw_response": "QQ=="},
        {**TURN, "raw_response": "QQ==", "raw_response_encoding": "zstd"},
    ],
)
def test_a_stored_call_reads_back_the_same(value: dict[str, Any]) -> None:
    sent = posted(value)
    assert reread(sent.told, sent.call.request, sent.call.response, org=ORG) == sent.call


CALL = Call(
    "openai",
    b"{}",
    b"data",
    capture_id="c",
    source="sdk",
    endpoint="/e",
    request_encoding="gzip",
    response_type="a/b",
    response_encoding="zstd",
    captured_at=datetime(2026, 1, 1, tzinfo=UTC),
    thread_id="t",
    agent_name="a",
    upstream=Upstream(
        200, "aborted", "e", "r", {"retry-after": "1"}, timedelta(milliseconds=5), timedelta(milliseconds=7)
    ),
    session=Envelope(harness_id="h", harness_session_id="s", org_id=str(ORG), harness_metadata={"a": 1}),
    usage=used(5, 0, server_tools={"x": 1}),
    cost_usd=Decimal("0.5"),
    tags=frozenset({"x", "y"}),
)


def test_a_programs_call_is_one_that_could_have_been_posted() -> None:
    sent = sent_of(CALL, org=ORG)
    assert sent.call == CALL
    assert reread(sent.told, CALL.request, CALL.response, org=ORG) == CALL
    assert json.loads(json.dumps(sent.told)) == sent.told
    assert sent.captured_at == 1_767_225_600_000_000
    reduced = Reduced("m", Message("assistant", (Block("text", text="x"),)), "stop", used(5))
    for more in ({"reduced": reduced}, {"reduced": Reduced(message=Message("assistant"))}, {"upstream": Upstream()}):
        call = Call("p", b"{}", session=Envelope(harness_id="unknown", org_id=str(ORG)), **more)
        assert sent_of(call, org=ORG).call == call


@pytest.mark.parametrize("form", ["reduced", "response"])
def test_of_metadata_the_words_of_an_answer_are_dropped_too(form: str) -> None:
    """SX-70: its model and usage are none."""
    answer = {"model": "m", "message": {"role": "assistant", "content": [{"type": "text", "text": "psst"}]}}
    sent = posted({**LEAST, "capture": "metadata", form: {**answer, "usage": {"prompt_tokens": 5}}})
    assert "psst" not in json.dumps(sent.told)
    assert sent.call.reduced == Reduced("m", None, "", used(5))
    assert reread(sent.told, None, None, org=ORG) == sent.call
    said = Reduced("m", Message("assistant", (Block("text", text="psst"),)))
    made = sent_of(Call("p", None, capture="metadata", reduced=said), org=ORG)
    assert ("psst" in json.dumps(made.told), made.call.reduced) == (False, Reduced("m"))


def test_a_proxy_names_the_subject_where_the_call_names_none() -> None:
    named = posted({**LEAST, "session": {"auth_subject": "ann"}})
    assert spoken_for(named, "bea") is named
    assert spoken_for(posted(LEAST), "") == posted(LEAST)
    spoken = spoken_for(posted(LEAST), "bea")
    assert spoken.call.session is not None
    assert (spoken.call.session.auth_subject, spoken.told["session"]) == ("bea", {"auth_subject": "bea"})
    assert reread(spoken.told, spoken.call.request, None, org=ORG) == spoken.call


def test_a_programs_call_is_checked_like_any_other() -> None:
    bare = Call("p", b"{}", b"x", capture="metadata")
    assert (sent_of(bare, org=ORG).call.request, sent_of(bare, org=ORG).call.response) == (None, None)
    for wrong in (Call("p", None), Call("P", b"{}"), Call("p", b"{}", tags=frozenset({"x" * 65}))):
        with pytest.raises(InvalidField):
            sent_of(wrong, org=ORG)


# --- lists


def test_a_list_is_cut_into_the_bytes_of_its_elements() -> None:
    assert batch(b'{"items":[{"a": 1},"x" , 5]}', items_max=3) == [b'{"a": 1}', b'"x"', b"5"]
    assert batch(b'{"turns":[{}]}', items_max=1) == [b"{}"]
    assert batch(b'{"a":1}\n\n {"b":2}\r\n', items_max=2, lines=True) == [b'{"a":1}', b' {"b":2}\r']


@pytest.mark.parametrize("data", [b'{"items":[]}', b'{"others":[1]}', b"[1]", b'{"items":5}', b"nope"])
def test_a_list_that_is_none_or_empty_is_refused(data: bytes) -> None:
    """SA-34."""
    with pytest.raises(MalformedJson):
        batch(data, items_max=9)
    with pytest.raises(MalformedJson):
        batch(b"\n\n", items_max=9, lines=True)


def test_a_list_has_a_limit() -> None:
    with pytest.raises(TooLarge) as caught:
        batch(b'{"items":[1,2,3]}', items_max=2)
    assert caught.value.limit == "batch_items_max"
