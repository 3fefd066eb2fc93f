"""Secrets in what is about to be kept."""

from __future__ import annotations

import json

import pytest
from tests.unit.sessions_data import SHARED, recorded

from holdfast.core.errors import ConfigError
from holdfast.sessions.redact import BUILTIN, Redacted, redact, rules

KEY = b"k" * 32
# Put together here, so that no scanner of this repository takes them for real.
SECRETS = {
    "provider_key": "sk-" + "ant-api03-" + "aB3" * 9,
    "aws_key": "AKIA" + "IOSFODNN7EXAMPLE",
    "github_token": "ghp_" + "a1B2" * 9,
    "slack_token": "xoxb-" + "123456789012-abc",
    "jwt": "eyJ" + "hbGciOiJIUzI1NiJ9" + ".eyJ" + "zdWIiOiIxMjM0In0" + ".c2lnbmF0dXJl",
    "private_key": "-----BEGIN RSA " + "PRIVATE KEY-----\\nQUJD\\n" + "-----END RSA PRIVATE KEY-----",
    "bearer": "Bearer " + "abcdefghijklmnop",
}


@pytest.mark.parametrize("name", BUILTIN)
def test_a_secret_leaves_a_mark_that_tells_it_from_others(name: str) -> None:
    """SA-24."""
    body = json.dumps({"text": f"it is {SECRETS[name]}, keep it"}).replace("\\\\n", "\\n").encode()
    found = redact(body, rules(), KEY)
    secret = SECRETS[name].removeprefix("Bearer ").encode()
    assert found.counts == {name: 1}
    assert secret not in found.data
    assert f"[redacted:{name}:{len(secret)}:".encode() in found.data
    assert json.loads(found.data)["text"].endswith("], keep it")
    assert redact(found.data, rules(), KEY) == Redacted(found.data, {})
    assert redact(body, rules(), KEY) == found
    assert redact(body, rules(), b"l" * 32).data != found.data


@SHARED
def test_what_holds_no_secret_stays_as_it_is() -> None:
    for call in recorded()[:3]:
        assert redact(call.request, rules(), KEY) == Redacted(call.request, {})


def test_users_rules_come_after_ours_or_alone() -> None:
    own = rules([("ticket", r"T-\d+"), ("pin", r"pin=(?P<secret>\d{4}|\[redacted:x\]|)")], builtin=False)
    found = redact(b"T-12 T-345 pin=1234; pin=[redacted:x] pin=", own, KEY)
    assert found.counts == {"ticket": 2, "pin": 1}
    assert found.data.startswith(b"[redacted:ticket:4:")
    assert found.data.endswith(b"; pin=[redacted:x] pin=")
    assert len(rules([("ticket", r"T-\d+")]).patterns) == len(BUILTIN) + 1


@pytest.mark.parametrize(
    ("name", "pattern", "why"),
    [
        ("Bad name", "x", "name"),
        ("x", "(", "is none"),
        ("x", "a*", "nothing at all"),
        ("x", r"(a+)+b", "for ever"),
        ("x", r"(?:x(a|b*)y){2,}z", "for ever"),
        ("x", r"((ab)*c)*d", "for ever"),
        ("x", r"b(?:[^)]+)*a", "for ever"),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused(name: str, pattern: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        rules([(name, pattern)])
    assert caught.value.keys == ("redact",)


@pytest.mark.parametrize(
    "pattern", [r"(a+)b*c", r"(a+){3}b", r"\(a+\)+", r"[(a+]+)", r"(a{2,4})+b", r"(a+)(b)+", r"a+(?=x)"]
)
def test_a_repeat_beside_another_is_no_nest(pattern: str) -> None:
    assert rules([("x", pattern.replace(r"[(a+]+)", r"[(a+)]+b"))])
