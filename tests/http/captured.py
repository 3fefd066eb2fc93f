"""Captured calls as tests send them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx

REQUEST = {"model": "m-1", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}
ANSWER = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m-1", "stop_reason": "end_turn",
    "content": [{"type": "text", "text": "hi"}], "usage": {"input_tokens": 7, "output_tokens": 3},
}  # fmt: skip


def call(name: str, **more: Any) -> dict[str, Any]:
    """A captured call under a capture id of its own, and of a session of its own."""
    session = {"harness_id": "claude-code", "harness_session_id": name}
    response = {**ANSWER, "id": f"msg_{name}"}
    return {
        "capture_id": name, "provider": "anthropic", "endpoint": "/v1/messages", "request": REQUEST,
        "response": response, "session": session, "captured_at": "2026-11-21T12:00:00Z", **more,
    }  # fmt: skip


def post(client: httpx.Client, given: Any, path: str = "/v1/ingest", **headers: str) -> tuple[int, Mapping[str, Any]]:
    """Send JSON as it is written here, blanks and all: a retry is the same bytes."""
    answer = client.post(path, content=json.dumps(given), headers={"content-type": "application/json", **headers})
    return answer.status_code, answer.json()
