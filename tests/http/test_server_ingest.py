"""Captured calls over HTTP: stored before they are acknowledged, once each, and turned into turns."""

from __future__ import annotations

import gzip
import json

import httpx
import pytest
import zstandard
from tests.http.backends import Server
from tests.http.captured import call, post


def test_a_call_is_stored_once_and_a_retry_changes_nothing(at: Server) -> None:
    status, first = post(at.client, call("once"))
    assert (status, first["status"]) == (202, "accepted")
    assert first["event_id"].startswith("cap_")
    assert first["turn_id"].startswith("turn_")
    status, again = post(at.client, call("once"))
    assert (status, again["status"], again["event_id"]) == (200, "duplicate", first["event_id"])
    status, other = post(at.client, call("once", agent_name="another"))
    assert (status, other["code"]) == (409, "capture_conflict")


def test_who_waits_is_told_of_the_turn(at: Server) -> None:
    status, told = post(at.client, call("waited"), prefer="wait=10")
    assert (status, told["status"], told["derived"]) == (202, "accepted", True), told
    assert told["session_id"].startswith("ses_")


def test_a_call_that_nobody_reads_is_stored_all_the_same(at: Server) -> None:
    status, told = post(at.client, call("strange", provider="carrier-pigeon"), prefer="wait=10")
    assert (status, told["status"]) == (202, "stored_unparsed")
    assert told["reason"]


@pytest.mark.parametrize("coding", ["gzip", "zstd", "gzip, zstd"])
def test_a_compressed_call_is_the_same_call(at: Server, coding: str) -> None:
    name = "packed-" + coding.replace(", ", "-")
    status, plain = post(at.client, call(name))
    assert status == 202
    body = json.dumps(call(name)).encode()
    for each in coding.split(", "):
        body = gzip.compress(body) if each == "gzip" else zstandard.compress(body)
    headers = {"content-type": "application/json", "content-encoding": coding}
    answer = at.client.post("/v1/ingest", content=body, headers=headers)
    assert (answer.status_code, answer.json()["event_id"]) == (200, plain["event_id"]), answer.json()


def test_each_element_of_a_batch_is_answered_by_itself(at: Server) -> None:
    items = [call(f"batch-{number}") for number in range(5)]
    items[1] = {"provider": 5}
    items[3] = call("batch-3", session={"org_id": "no uuid"})
    status, told = post(at.client, {"items": items}, "/v1/ingest/batch")
    assert (status, told["accepted"], told["duplicates"], told["rejected"]) == (207, 3, 0, 2)
    assert [each["status"] for each in told["results"]] == ["accepted", "rejected", "accepted", "rejected", "accepted"]
    assert (told["results"][1]["http_status"], told["results"][1]["code"]) == (400, "invalid_field")
    lines = "\n".join(json.dumps(items[number]) for number in (0, 2, 4))
    headers = {"content-type": "application/x-ndjson"}
    again = at.client.post("/v1/ingest/batch", content=lines, headers=headers).json()
    assert (again["accepted"], again["duplicates"]) == (0, 3)


def test_what_cannot_be_taken_is_refused_with_its_reason(at: Server) -> None:
    assert post(at.client, {"request": {}})[1]["field"] == "/provider"
    assert post(at.client, [])[1]["code"] == "malformed_json"
    assert post(at.client, {"items": []}, "/v1/ingest/batch")[1]["code"] == "malformed_json"
    assert post(at.client, call("elsewhere", session={"org_id": "6ba7b810-9dad-41d1-80b4-00c04fd430c8"}))[0] == 403
    answer = at.client.post("/v1/ingest", content="{}", headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    lines = at.client.post("/v1/ingest", content="{}", headers={"content-type": "application/x-ndjson"})
    assert lines.status_code == 415


def test_the_short_way_answers_as_the_framework_does(at: Server) -> None:
    """With a slash at its end a path goes the long way, to the same route."""
    json_type = {"content-type": "application/json"}
    body = json.dumps(call("short-or-long"))
    assert at.client.post("/v1/ingest", content=body, headers={**json_type, "prefer": "wait=10"}).status_code == 202
    for content, headers, status in (
        (body, json_type, 200),
        (body, json_type | {"idempotency-key": "another"}, 400),
        (json.dumps(call("short-or-long", agent_name="other")), json_type, 409),
        ("[", json_type, 400),
        ("", json_type, 400),
        ("{}", {"content-type": "text/plain"}, 415),
        (body, json_type | {"content-encoding": "br"}, 415),
        (body, json_type | {"host": "elsewhere"}, 403),
    ):
        short, long = (at.client.post(f"/v1/ingest{end}", content=content, headers=headers) for end in ("", "/"))
        assert short.status_code == long.status_code == status, short.text
        assert short.json() == long.json()
        assert _told(short) == _told(long)


def _told(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in ("date", "vary")}
