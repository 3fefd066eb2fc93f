"""What every request meets before its route: limits, codings, room, and whose page it comes from."""

from __future__ import annotations

import gzip
import json
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tests.http.backends import Server, server
from tests.http.captured import REQUEST, call, post

from holdfast.sessions.config import Derive

KIB = 1024
PATH = "/v1/executions/nobody/cancel"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    return {
        "body_bytes_max": 64 * KIB, "decoded_bytes_max": 128 * KIB, "inflight_items_max": 2,
        "inflight_bytes_max": 160 * KIB, "admission_wait_ms": 20,
    }  # fmt: skip


def refused(at: Server, body: bytes, **headers: str) -> tuple[int, str, str]:
    answer = at.client.post(
        PATH, content=body, headers={**JSON, **{k.replace("_", "-"): v for k, v in headers.items()}}
    )
    told = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert told["status"] == answer.status_code
    return answer.status_code, told["code"], told.get("limit", told.get("field", ""))


def begun(at: Server, size: int, sent: bytes = b"") -> socket.socket:
    """Begin a request of that size, and send no more of it than that."""
    made = socket.create_connection(("127.0.0.1", at.port))
    made.settimeout(30)
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n"
    made.sendall(head.encode() + b"\r\n" + sent)
    return made


def metric(at: Server, name: str) -> float:
    found = [line for line in at.client.get("/metrics").text.splitlines() if line.startswith(name)]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


def test_health_is_told_without_being_asked_twice(at: Server) -> None:
    assert at.client.get("/live").json() == {"status": "live"}
    assert at.client.get("/ready").json()["status"] == "ready"
    shown = at.client.get("/metrics")
    assert shown.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE holdfast_durable_commit_seconds histogram" in shown.text
    document = at.client.get("/openapi.json").json()
    assert document["components"]["schemas"]["Problem"]["required"] == ["code", "detail", "status", "title", "type"]
    assert at.client.get("/v1/executions", headers={"accept-encoding": "gzip"}).status_code == 200


def test_what_is_not_kept_is_told_by_reason(at: Server) -> None:
    """SX-11."""
    secret = "sk-ant-api03-" + "a" * 93 + "AA"
    asked = {**REQUEST, "messages": [{"role": "user", "content": secret}]}
    before = at.client.get("/ready").json()["loss"]
    assert post(at.client, call("policy", capture="metadata"))[0] == 202
    assert post(at.client, call("secret", request=asked))[0] == 202
    assert post(at.client, {"provider": 5})[0] == 400
    told = at.client.get("/ready").json()
    assert (told["status"], told["lag_seconds"] >= 0, told["dead_events"]) == ("ready", True, 0)
    for kind, reason in (("dropped", "policy"), ("refused", "invalid_field"), ("redacted", "provider_key")):
        assert told["loss"][kind][reason] > before[kind].get(reason, 0), (kind, told["loss"])
        name = {"dropped": "dropped_total", "refused": "rejected_total", "redacted": "redactions_total"}[kind]
        assert metric(at, f"holdfast_sessions_{name}") > 0


def test_a_server_that_falls_behind_is_not_ready(tmp_path: Path) -> None:
    config = {"derive": Derive(workers=0), "lag_ready_ms": 1, "secret_file": tmp_path / "secret"}
    with server(str(tmp_path / "ledger.db"), **config) as at:
        assert at.client.get("/ready").status_code == 200
        assert post(at.client, call("waiting"))[0] == 202
        while (answer := at.client.get("/ready")).status_code == 200:
            pass
    assert (answer.status_code, answer.json()["code"], "retry-after" in answer.headers) == (503, "lagging", True)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/no-such-route", 404, "not_found"),
        ("GET", "/v1/executions/%ff", 404, "unknown_execution"),
        ("GET", "/v1/executions/a%00b", 404, "unknown_execution"),
        ("GET", "/v1/executions/" + "x" * 256, 404, "unknown_execution"),
        ("GET", "/v1/executions/x/journal?generation=99999999999999999999", 400, "invalid_field"),
        ("GET", "/v1/executions?limit=501", 400, "invalid_field"),
        ("GET", "/v1/executions?status=odd", 400, "invalid_field"),
        ("GET", "/v1/executions?kind=%00", 400, "invalid_field"),
        ("GET", "/v1/executions?cursor=forged", 422, "cursor"),
        ("GET", "/v1/idempotency/keys?since=yesterday", 400, "invalid_field"),
        ("GET", "/v1/idempotency/keys?cursor=%F0%9F", 422, "cursor"),
        ("DELETE", "/v1/executions/x", 405, "method_not_allowed"),
        ("GET", PATH, 405, "method_not_allowed"),
    ],
)
def test_bad_questions_get_problem_documents(at: Server, method: str, path: str, status: int, code: str) -> None:
    answer = at.client.request(method, path)
    told = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, told["status"], told["code"]) == (status, status, code)
    assert told["type"].startswith("urn:holdfast:")
    assert told["type"].endswith(code)


def test_bad_bodies_get_problem_documents(at: Server) -> None:
    assert refused(at, b'{"reason"') == (400, "malformed_json", "")
    assert refused(at, b'{"reason": NaN}') == (400, "malformed_json", "")
    assert refused(at, b'{"reason": 5}') == (400, "invalid_field", "/reason")
    assert refused(at, b'{"reason": "a\\u0000b"}') == (400, "invalid_field", "/reason")
    assert refused(at, b'{"raeson": "x"}')[:2] == (400, "invalid_field")
    assert refused(at, b"[" * 201 + b"]" * 201) == (400, "malformed_json", "json_depth_max")
    assert refused(at, json.dumps({"reason": "x" * 2001}).encode())[:2] == (413, "exceeded")
    assert refused(at, b"reason=x", content_type="text/plain") == (415, "unsupported_media_type", "")
    assert refused(at, b"{}", content_encoding="br") == (415, "unsupported_encoding", "")
    assert refused(at, b"{}", content_encoding="gzip") == (400, "undecodable_body", "")
    assert refused(at, gzip.compress(b"{}")[:-9], content_encoding="gzip")[:2] == (400, "undecodable_body")


def test_a_body_beyond_a_limit_is_refused_with_the_limit_s_name(at: Server) -> None:
    assert refused(at, b"x" * (64 * KIB + 1)) == (413, "too_large", "body_bytes_max")
    with closing(begun(at, 10**12)) as connection:  # by its announced size, before any of it comes
        assert b"413" in connection.recv(4096)
    bomb = b'"' + b"x" * 10_000_000 + b'"'
    assert refused(at, gzip.compress(bomb), content_encoding="gzip") == (413, "too_large", "decoded_bytes_max")
    packed = zstandard.compress(zstandard.compress(bomb))
    assert refused(at, packed, content_encoding="zstd, zstd") == (413, "too_large", "decoded_bytes_max")
    fitting = gzip.compress(b'{"reason": "' + b"x" * (100 * KIB) + b'"}')
    assert refused(at, fitting, content_encoding="gzip")[:2] == (413, "exceeded"), "read, and then too long a reason"


def test_who_finds_no_place_is_told_to_come_again(at: Server) -> None:
    with closing(begun(at, 10, b"{")), closing(begun(at, 10, b"{")):
        while metric(at, "holdfast_sessions_inflight_items") < 2:
            pass
        answer = at.client.post(PATH, json={})
        assert (answer.status_code, answer.json()["code"]) == (429, "saturated_items")
        assert int(answer.headers["retry-after"]) >= 1
        assert at.client.get("/v1/executions").status_code == 200, "what has no body needs no place"
    while metric(at, "holdfast_sessions_inflight_items") > 0:
        pass
    assert at.client.post(PATH, json={}).status_code == 404


def test_bodies_that_weigh_too_much_together_wait_outside(at: Server) -> None:
    with closing(begun(at, 60 * KIB, b"{" * (50 * KIB))):
        while metric(at, "holdfast_sessions_inflight_bytes") < 50 * KIB:
            pass
        packed = gzip.compress(b'{"reason": "' + b"x" * (120 * KIB) + b'"}')
        assert refused(at, packed, content_encoding="gzip") == (429, "saturated_bytes", "")
    while metric(at, "holdfast_sessions_inflight_bytes") > 0:
        pass


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:1"}, 200),
        ({"host": "[::1]:4140"}, 200),
        ({"host": "127.8.8.8"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "localhost:1", "origin": "http://localhost:1"}, 200),
        ({"host": "localhost:1", "origin": "http://localhost:2"}, 403),
        ({"host": "localhost:1", "origin": "https://evil.example"}, 403),
        ({"host": "localhost:1", "origin": "null"}, 403),
    ],
)
def test_without_keys_only_this_machine_s_own_pages_get_in(at: Server, headers: dict[str, str], status: int) -> None:
    answer = at.client.get("/v1/executions", headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["code"] == "forbidden"
