"""Executions and idempotency keys over HTTP: what operators see and do, on a server without access keys."""

from __future__ import annotations

import asyncio
import gzip
from contextlib import suppress
from typing import Any

import pytest
import zstandard
from tests.http.backends import SECRET, Server, in_doubt

from holdfast import Holdfast
from holdfast.execution.context import Suspend
from holdfast.idempotency import keys
from holdfast.testing.key_contract.bench import Bench

ODD = "eins/zwei drei-ü"
PATH = "/v1/executions/eins%2Fzwei%20drei-%C3%BC"


async def _finish(hf: Holdfast, id: str) -> None:
    async with hf.execution(id, kind="errand") as context:
        context.set_output("done")


def _audit(at: Server, event: str) -> list[Any]:
    async def read(hf: Holdfast) -> list[Any]:
        return [record for record in await hf.audit() if record.event == event]

    return at.do(read)


def test_an_execution_is_listed_and_shown_under_any_id(at: Server) -> None:
    at.do(lambda hf: in_doubt(hf, ODD))
    listed = at.client.get("/v1/executions", params={"status": "needs_decision"}).json()
    assert [each["id"] for each in listed["items"]] == [ODD]
    shown = at.client.get(PATH)
    assert shown.status_code == 200
    assert (shown.json()["id"], shown.json()["open_decisions"]) == (ODD, ["1"])
    assert shown.json()["created_at"].endswith("Z")
    assert at.client.get(f"{PATH}/diff", params={"from": 1, "to": 1}).json()["items"][0]["change"] == "same"
    assert {"entry", "outcome", "status"} & {
        each["event"] for each in at.client.get(f"{PATH}/timeline").json()["items"]
    }


def test_values_are_shown_only_by_name_and_that_is_audited(at: Server) -> None:
    at.do(lambda hf: in_doubt(hf, "secretive"))
    before = len(_audit(at, "reveal"))
    plain = at.client.get("/v1/executions/secretive/journal")
    assert SECRET not in plain.text
    assert len(_audit(at, "reveal")) == before
    assert SECRET in at.client.get("/v1/executions/secretive/journal", params={"reveal": True}).text
    assert len(_audit(at, "reveal")) == before + 1


def test_a_decision_is_answered_once_and_by_whom_is_kept(at: Server) -> None:
    at.do(lambda hf: in_doubt(hf, "doubtful"))
    path = "/v1/executions/doubtful/decisions"
    said = {"position": "1", "decision": "happened", "value": {"receipt": 7}, "note": "the bank says so"}
    answer = at.client.post(path, json=said)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["by"], answer.json()["open_decisions"]) == ("local", [])
    again = at.client.post(path, json=said)
    assert (again.status_code, again.json()["code"]) == (409, "no_decision_open")
    contradictory = at.client.post(path, json={"position": "1", "decision": "abort", "value": 1})
    assert (contradictory.status_code, contradictory.json()["field"]) == (400, "/value")
    assert [record.actor for record in _audit(at, "decision")] == ["local"]


def test_a_compressed_body_is_read_like_any_other(at: Server) -> None:
    at.do(lambda hf: in_doubt(hf, "packed"))
    body = zstandard.compress(gzip.compress(b'{"position":"1","decision":"abort"}'))
    headers = {"content-type": "application/json", "content-encoding": "gzip, zstd"}
    answer = at.client.post("/v1/executions/packed/decisions", content=body, headers=headers)
    assert (answer.status_code, answer.json()["status"]) == (200, "aborted")


def test_stopping_and_going_on_tell_what_became_of_it(at: Server) -> None:
    def post(path: str, **said: Any) -> tuple[int, str]:
        answer = at.client.post(f"/v1/executions/{path}", json=said or None)
        return answer.status_code, answer.json().get("outcome") or answer.json()["code"]

    at.do(lambda hf: _finish(hf, "over"))
    at.do(lambda hf: in_doubt(hf, "open"))
    assert post("open/pause") == (200, "paused")
    assert post("open/resume", deadline_ms=60_000) == (200, "resumed")
    assert post("open/cancel", reason="no more", force=True) == (200, "canceled")
    assert post("open/cancel") == (409, "execution_finished")
    assert post("over/pause") == (409, "execution_finished")
    assert post("over/resume") == (409, "execution_finished")
    assert post("nobody/cancel") == (404, "unknown_execution")

    answers = []

    async def held(hf: Holdfast) -> None:
        with suppress(Suspend):  # it rests, as it was asked to
            async with hf.execution("held", kind="errand"):
                answers.append(await asyncio.to_thread(post, "held/pause"))

    at.do(held)
    assert answers == [(202, "requested")]


def test_keys_are_listed_and_forced_with_a_reason(at: Server) -> None:
    async def prepare(hf: Holdfast) -> list[str]:
        bench = Bench(hf.database)
        return [(await bench.make("unknown")).key_id.hex() for _ in range(3)]

    first, second, third = at.do(prepare)
    listed = at.client.get("/v1/idempotency/keys", params={"state": "unknown", "limit": 2}).json()
    assert len(listed["items"]) == 2
    rest = at.client.get("/v1/idempotency/keys", params={"state": "unknown", "limit": 2, "cursor": listed["next"]})
    assert {each["ref"] for each in listed["items"] + rest.json()["items"]} == {
        ref[:12] for ref in (first, second, third)
    }

    def post(ref: str, verb: str, **said: Any) -> tuple[int, str]:
        answer = at.client.post(f"/v1/idempotency/keys/{ref}/{verb}", json=said)
        return answer.status_code, answer.json().get("state") or answer.json()["code"]

    assert post(first[:12], "release", reason="  ") == (400, "reason_required")
    assert post(first[:12], "expire", reason="tidy") == (409, "state_refuses")
    assert post(first[:12], "release", reason="it never ran") == (200, "released")
    assert post(second[:12], "decide", reason="x", rerun=True, tombstone=410) == (400, "invalid_field")
    result = {"status": 201, "headers": [["location", "/orders/9"]], "body": "{}"}
    assert post(second[:12], "decide", reason="the books say so", result=result) == (200, "completed")
    assert post(third[:12], "decide", reason="gone", tombstone=410) == (200, "tombstone")
    assert post("deadbeefdeadbeef", "release", reason="x") == (404, "key_not_found")
    assert at.client.get("/v1/idempotency/keys/no-ref").json()["code"] == "key_not_found"
    assert at.client.get(f"/v1/idempotency/keys/{second[:12]}").json()["status"] == 201

    async def trail(hf: Holdfast) -> list[tuple[str, str]]:
        async with hf.database.read() as tx:
            record = await keys.get(tx, bytes.fromhex(first))
            assert record is not None
            return [(row.actor, row.reason) for row in await keys.trail(tx, record.record_id)]

    assert at.do(trail) == [("local", "it never ran")]


@pytest.mark.parametrize("verb", ["expire", "release", "decide"])
def test_a_reason_is_needed_whatever_is_forced(at: Server, verb: str) -> None:
    answer = at.client.post(f"/v1/idempotency/keys/deadbeef/{verb}", json={"rerun": True} if verb == "decide" else {})
    assert (answer.status_code, answer.json()["code"]) == (400, "reason_required")
    bare = at.client.post(f"/v1/idempotency/keys/deadbeef/{verb}")
    assert bare.status_code == 400
