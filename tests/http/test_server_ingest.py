"""Captured calls over HTTP: stored before they are acknowledged, once each, and turned into turns."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

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


def test_one_call_that_is_sent_at_once_from_everywhere_is_one(at: Server) -> None:
    with ThreadPoolExecutor(8) as senders:
        answers = list(senders.map(lambda _: post(at.client, call("crowded")), range(50)))
    assert Counter(status for status, _ in answers) == {202: 1, 200: 49}
    assert len({told["event_id"] for _, told in answers}) == 1


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
