"""Calls over HTTP: each is one turn, whatever is sent again, and what nobody can read is kept."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from tests.flow.captured import rows
from tests.http.orgs import PATIENCE_S, Org, asked, event, minute, named, priced, said


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    return priced()


def dump(ledger: str) -> dict[str, list[str]]:
    """Every row of the slice but those that say when a key was used."""
    return {name: found for name, found in asyncio.run(rows(ledger)).items() if name != "session_access_keys"}


def test_a_call_is_a_turn_of_a_session_with_its_chain(org: Org) -> None:
    """SA-1."""
    usage = {"input_tokens": 5, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 20, "output_tokens": 3}
    given = event("one", request=asked("hi", "yes", "more"), response=said("done", usage=usage))
    [told] = org.take(given)
    session = org.only()
    assert (session["id"], session["harness_id"], session["harness_session_id"]) == (told["session_id"], "claude", "s")
    assert (session["turn_count"], session["failed_turn_count"], session["models"]) == (1, 0, {"claude-sonnet-4-6": 1})
    counted = {name: session["tokens"][name] for name in ("input", "cache_read", "cache_write", "output", "reasoning")}
    assert counted == {"input": 125, "cache_read": 100, "cache_write": 20, "output": 3, "reasoning": None}
    [turn] = org.turns(session, payload="full")
    assert (turn["id"], turn["status"], turn["chain_length"]) == (told["turn_id"], "ok", 4)
    assert [each["role"] for each in turn["messages"]] == ["user", "assistant", "user", "assistant"]
    assert [each["content"][0]["text"] for each in turn["messages"]] == ["hi", "yes", "more", "done"]
    above = [None, *(each["hash"] for each in turn["messages"])]
    assert [each["parent_hash"] for each in turn["messages"]] == above[:-1]
    assert (above[1], above[3], above[4]) == (turn["root_hash"], turn["head_hash"], turn["response_hash"])


def test_a_retry_changes_no_row_at_all(org: Org, module_ledger: str) -> None:
    """SA-2, SX-5."""
    given = event("again", tags=["t"], session=named("s", name="n", parent_harness_session_id="p"))
    [told] = org.take(given)
    before = dump(module_ledger)
    for headers in ({}, {"prefer": "wait=10"}, {"idempotency_key": "again"}):
        status, answer = org.post(given, **headers)
        assert (status, answer["status"]) == (200, "duplicate")
        assert [answer[name] for name in ("event_id", "turn_id", "session_id")] == [
            told[name] for name in ("event_id", "turn_id", "session_id")
        ]
    assert dump(module_ledger) == before
    assert len(before["session_turns"]) > 0


def test_one_call_that_is_sent_at_once_from_everywhere_is_one_turn(org: Org) -> None:
    """SA-3."""
    with ThreadPoolExecutor(8) as senders:
        answers = list(senders.map(lambda _: org.post(event("crowded")), range(50)))
    assert Counter(status for status, _ in answers) == {202: 1, 200: 49}
    assert len({told["event_id"] for _, told in answers}) == 1
    org.settle()
    assert (org.only()["turn_count"], len(org.events())) == (1, 1)


def test_another_call_under_a_known_id_is_refused_and_the_first_is_kept(org: Org) -> None:
    """SA-4."""
    [told] = org.take(event("known"))
    status, answer = org.post(event("known", request=asked("another")))
    assert (status, answer["code"]) == (409, "capture_conflict")
    assert org.ask(f"/v1/turns/{told['turn_id']}/raw", part="request").json() == asked("hi")
    assert (org.only()["turn_count"], len(org.events())) == (1, 1)


def test_billed_calls_of_equal_content_are_two_turns_with_one_chain(org: Org) -> None:
    """SA-5, SX-4."""
    for number in "12":
        org.take(event(number, response=said(id="same"), upstream={"status": 200, "request_id": f"req_{number}"}))
    session = org.only()
    assert (session["turn_count"], session["tokens"]["input"], session["tokens"]["output"]) == (2, 14, 6)
    one, two = org.turns(session)
    assert one["id"] != two["id"]
    assert one["response_hash"] == two["response_hash"]
    branches = org.get(f"/v1/sessions/{session['id']}/branches")
    assert [len(leaf["path"]) for leaf in branches["leaves"]] == [2]


def test_a_turn_whose_answer_was_seen_before_still_counts(org: Org) -> None:
    """SA-6."""
    later = event("2", 2, request=asked("hi", "yes", "more"), response=said("end", "m2", (20, 5)))
    earlier = event("1", 1, response=said("yes", "m1", (7, 3)))
    org.take(later, earlier)
    session = org.only()
    assert (session["turn_count"], session["tokens"]["input"], session["tokens"]["output"]) == (2, 27, 8)
    first, second = org.turns(session)
    assert (first["tokens"]["input"], first["tokens"]["output"], first["usage_state"]) == (7, 3, "measured")
    assert second["chain_length"] == 4
    assert (session["started_at"], session["last_seen_at"]) == (first["captured_at"], second["captured_at"])


def test_an_answer_that_was_lost_costs_nothing(org: Org) -> None:
    """SA-8."""
    body = json.dumps(event("lost")).encode()
    head = f"POST /v1/ingest HTTP/1.1\r\nhost: localhost\r\nx-api-key: {org.keys['all']}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with closing(socket.create_connection(("127.0.0.1", org.at.port))) as connection:
        connection.sendall(head.encode() + body)
        until = time.monotonic() + PATIENCE_S
        while not org.events():
            assert time.monotonic() < until
    org.settle()
    before = org.only(), org.projection()
    status, answer = org.post(event("lost"))
    assert (status, answer["status"], answer["session_id"]) == (200, "duplicate", before[0]["id"])
    assert (org.only(), org.projection()) == before


def test_a_session_id_is_identity_whoever_the_harness(org: Org) -> None:
    """SA-10."""
    org.take(
        event("1", session={"harness_session_id": "mine"}),
        event("2", session={"harness_id": "unknown", "harness_session_id": "mine"}),
        event("3", session={"harness_id": "pi"}),
        event("4", session=None),
    )
    found = {(each["harness_id"], each["is_synthetic"]): each for each in org.sessions().values()}
    assert found.keys() == {("unknown", False), ("pi", True), ("unknown", True)}
    assert (found["unknown", False]["harness_session_id"], found["unknown", False]["turn_count"]) == ("mine", 2)
    assert found["pi", True]["harness_session_id"].startswith("syn-")
    status, told = org.post(event("5", session=named("syn-" + "0" * 32)))
    assert (status, told["field"]) == (400, "/session/harness_session_id")


def test_what_nobody_can_read_is_kept_as_it_came(org: Org) -> None:
    """SA-11."""
    unread = {
        "no_messages": event("1", request={"model": "m", "messages": []}),
        "number_range": b'{"capture_id":"2","provider":"anthropic","request":{"messages":[{"role":"user","content":'
        b'[{"type":"x","n":1e999}]}]}}',
        "unknown_provider": event("3", provider="carrier-pigeon"),
    }
    for reason, given in unread.items():
        status, told = org.post(given, prefer="wait=10")
        assert (status, told["status"], told["reason"]) == (202, "stored_unparsed", reason)
        body = given if isinstance(given, bytes) else json.dumps(given).encode()
        kept = org.ask(f"/v1/turns/{told['event_id']}/raw", part="request")
        assert kept.status_code == 200, kept.text
        assert kept.content in body
        assert b"messages" in kept.content
        shown = org.get(f"/v1/raw/{told['event_id']}")
        assert (shown["state"], shown["reason"]) == ("unparsed", reason)
        assert org.ask(f"/v1/turns/{told['event_id']}").status_code == 404
    assert org.sessions() == {}
    assert len(list(org.pages("/v1/raw", state="unparsed"))) == 3


def test_an_element_of_a_batch_is_wrong_by_itself(org: Org) -> None:
    """SA-33."""
    items: list[Any] = [event(f"b{number}", session=named(f"s{number % 7}")) for number in range(100)]
    items[10] = event("b10", provider=5)
    items[50] = event("b50", session={"org_id": "no uuid"})
    items[99] = event("b99", session=named("s", parent_harness_session_id=""))
    told = org.batch(*items)
    assert (told["accepted"], told["duplicates"], told["rejected"]) == (97, 0, 3)
    wrong = {each["index"]: (each["code"], each["field"]) for each in told["results"] if each["status"] == "rejected"}
    assert wrong == {
        10: ("invalid_field", "/provider"), 50: ("invalid_field", "/session/org_id"),
        99: ("invalid_field", "/session/parent_harness_session_id"),
    }  # fmt: skip
    again = org.batch(*items)
    assert (again["accepted"], again["duplicates"], again["rejected"]) == (0, 97, 3)
    assert sum(each["turn_count"] for each in org.sessions().values()) == 97


def test_what_is_no_batch_leaves_no_row(org: Org) -> None:
    """SA-34."""
    body = json.dumps(event("a")).encode()
    for path, given, headers, expected in (
        ("/v1/ingest/batch", b'{"items":[]}', {}, (400, "malformed_json")),
        ("/v1/ingest/batch", b"\n \n", {"content_type": "application/x-ndjson"}, (400, "malformed_json")),
        ("/v1/ingest", body, {"content_type": "text/plain"}, (415, "unsupported_media_type")),
        ("/v1/ingest", body, {"content_encoding": "br"}, (415, "unsupported_encoding")),
        ("/v1/ingest", b'{"capture_id":"a","provider":"p","request":{"n":NaN}}', {}, (400, "malformed_json")),
        ("/v1/ingest", b"[" * 201 + b"]" * 201, {}, (400, "malformed_json")),
        ("/v1/ingest", body, {"idempotency_key": "b"}, (400, "invalid_field")),
    ):  # fmt: skip
        status, told = org.post(given, path, **headers)
        assert (status, told["code"]) == expected
    assert org.events() == []


def test_a_provider_that_repeats_its_ids_is_billed_for_every_call(org: Org) -> None:
    """SA-62."""
    org.batch(*(event(f"{number}", number, response=said(id="msg_stub")) for number in range(10)))
    session = org.only()
    assert (session["turn_count"], session["tokens"]["input"]) == (10, 70)
    assert len(org.turns(session)) == 10


@pytest.mark.parametrize("raw", [True, False])
def test_a_call_in_the_form_of_the_reference_is_one_turn(org: Org, raw: bool) -> None:
    """SA-63."""
    reduced = {
        "model": "claude-sonnet-4-6", "message": {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        "stop_reason": "end_turn", "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }  # fmt: skip
    given = {
        "provider": "anthropic", "agent_name": "a", "request": asked("hi"), "response": reduced, "session": named("s"),
        "meta": {
            "request_id": "r1", "path": "/v1/messages", "upstream_status": 200, "elapsed_seconds": 1.5,
            "ts_request": "2026-05-28T20:26:40Z", "thread_id": "side",
        },
    }  # fmt: skip
    if raw:
        coded = gzip.compress(json.dumps(said("yes")).encode())
        given |= {"raw_response": base64.b64encode(coded).decode(), "raw_response_encoding": "gzip"}
    statuses = [org.post(given, prefer="wait=10")[0] for _ in range(2)]
    assert statuses == [202, 200]
    session = org.only()
    assert (session["turn_count"], session["tokens"]["input"], session["tokens"]["output"]) == (1, 7, 3)
    [turn] = org.turns(session, payload="full")
    assert (turn["fidelity"], turn["thread_id"], turn["duration_ms"]) == ("raw" if raw else "reduced", "side", 1500)
    assert turn["evidence"][0]["capture_id"] == "req:r1"
    assert turn["messages"][-1]["content"][0]["text"] == "yes"


def test_text_that_no_column_holds_is_kept_in_the_bytes(org: Org) -> None:
    """SA-30: NUL, lone surrogates and deep nesting among other calls."""
    odd = [
        event("nul", 1, request=asked("a\x00b"), agent_name="x\x00y", session=named("odd", name="q")),
        event("surrogate", 2, request=asked("a\ud800b"), session=named("odd", cwd="/c\udfff")),
        json.dumps(event("deep", 3, session=named("odd"))).replace('"hi"', "[" * 195 + "]" * 195).encode(),
    ]
    bodies = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in odd]
    plain = [json.dumps(event(f"p{number}", session=named(f"s{number % 5}"))).encode() for number in range(97)]
    before = _derived(org)
    status, told = org.post(b'{"items":[' + b",".join(plain[:50] + bodies + plain[50:]) + b"]}", "/v1/ingest/batch")
    assert (status, told["accepted"]) == (207, 100)
    org.settle()
    assert _derived(org) - before == 100, "each once, and no more"
    assert {each["state"] for each in org.events()} == {"derived"}
    nul, surrogate, deep = org.turns(org.sessions(harness_session_id="odd")["odd"], payload="full")
    assert [("scrubbed" in each["flags"]) for each in (nul, surrogate, deep)] == [True, True, False]
    assert nul["agent_name"] == "x\ufffdy"
    assert "\\u0000" in org.ask(f"/v1/turns/{nul['id']}/raw", part="request").text
    assert "\\ud800" in org.ask(f"/v1/turns/{surrogate['id']}/raw", part="request").text
    assert b"[" * 195 in org.ask(f"/v1/turns/{deep['id']}/raw", part="request").content


def _derived(org: Org) -> float:
    lines = org.ask("/metrics").text.splitlines()
    return sum(float(each.rpartition(" ")[2]) for each in lines if each.startswith("holdfast_sessions_derive_total"))


def test_times_are_those_of_the_calls_and_not_of_their_coming(org: Org) -> None:
    """SX-12, SX-188."""
    org.take(event("late", 30, started_at=minute(29), ended_at=minute(31)), event("early", 5), event("between", 10))
    session = org.only()
    shown = [session["started_at"][11:16], session["last_seen_at"][11:16]]
    assert shown == ["20:31", "20:57"]
