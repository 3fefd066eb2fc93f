"""`assert_replayed`, on what various libraries call headers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from holdfast.testing import assert_replayed

TRUE = {"Idempotency-Replayed": "true"}


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(201, headers=TRUE),
        httpx.Response(201, headers={"Idempotent-Replayed": "True"}),
        SimpleNamespace(status=200, headers=TRUE),
        SimpleNamespace(headers=[(b"content-type", b"text/plain"), (b"idempotency-replayed", b" true ")]),
    ],
)
def test_a_replay_is_a_replay(response: Any) -> None:
    assert_replayed(response)


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({}, r"\(201\) was not replayed"),
        ({"Idempotency-Replayed": "false"}, "first run"),
        ([("Idempotency-Replayed", "true"), ("idempotency-replayed", "true")], "2 times"),
    ],
)
def test_what_is_no_replay_says_why(headers: Any, why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        assert_replayed(httpx.Response(201, headers=headers))
