"""Filters for texts that are about to be kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.redact import MARK, redact


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("401: Authorization: Bearer abc.def-123", "abc.def-123"),
        ("Authorization: Basic QWxhZGRpbjpvcGVu", "QWxhZGRpbjpvcGVu"),
        ("invalid key sk-ant-api03-abcdefghijk given", "abcdefghijk"),
        ("ghp_abcdefghij0123456789", "abcdefghij"),
        ("AKIAIOSFODNN7EXAMPLE", "IOSFODNN7EXAMPLE"),
        ("eyJhbGciOi.eyJzdWIi.c2lnbmF0dXJl", "eyJzdWIi"),
        ("password=hunter2&x=1", "hunter2"),
        ('{"api_key": "abc def"}', "abc def"),
        (r"{\"accessToken\": \"abc def\"}", "abc def"),
        ("token_value = 'x y z'", "x y z"),
        ('password="never closed', "never closed"),
        ("Set-Cookie: sid=abc; theme=dark", "abc"),
        ("cannot connect to postgresql://user:p@ss@db/agents", "p@ss"),
        ("https://oauthtoken@github.com/x", "oauthtoken"),
        ("mail joe.b+x@example.co.uk now", "example.co.uk"),
        ("digest " + "ab12" * 8, "ab12ab12"),
        ("blob QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo1Mg== end", "QUJDREVG"),
        ("hfp_3q2-7wAAAAAAAAAA", "3q2-7wAAAAAAAAAA"),
    ],
)
def test_a_secret_does_not_survive(text: str, secret: str) -> None:
    assert secret in text
    assert secret not in redact(text)
    assert MARK in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no such file: /usr/lib/python3.11/site-packages/foo",
        "order 42 failed with code 500",
        "author=bob authenticated=yes max_tokens=4096",
        "ratio 3/4, see https://example.com/help?page=2",
        "expected int, got str at $.items[3].price",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert redact(text) == text


def test_the_rest_of_a_text_stays_readable() -> None:
    assert redact("POST https://k:s@api.test/v1?a=1 gave 401 for key sk-abcdef123") == (
        f"POST https://{MARK}@api.test/v1?a=1 gave 401 for key {MARK}"
    )


@given(st.text(alphabet="abe:/@.=- \"'\\[]1", max_size=2000))
def test_any_text_is_taken(text: str) -> None:
    assert isinstance(redact(text), str)
