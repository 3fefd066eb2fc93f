"""Secrets in what is about to be kept."""

from __future__ import annotations

import json
import re

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.sessions_data import SHARED, recorded

from holdfast.core.errors import ConfigError
from holdfast.sessions.redact import BUILTIN, Redacted, may_hide, may_hold, redact, rules

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


@pytest.mark.parametrize("name", BUILTIN)
@pytest.mark.parametrize("before", ["\n", "\t", "\x1b", "\x7f", "\u2028", '"', "("])
def test_a_secret_is_found_after_a_character_that_is_escaped(name: str, before: str) -> None:
    body = json.dumps({"text": f"a key:{before}{SECRETS[name]}"}).replace("\\\\n", "\\n").encode()
    assert redact(body, rules(), KEY).counts == {name: 1}


def test_every_secret_is_found_once_however_close_they_stand() -> None:
    body = "".join(f"{SECRETS[name]} {SECRETS[name]},{SECRETS[name]}\n" for name in BUILTIN).encode()
    found = redact(body, rules(), KEY)
    assert found.counts == dict.fromkeys(BUILTIN, 3)
    # Trying a match at every byte, without knowing how one begins, finds the same.
    plain = body
    for name, pattern in BUILTIN.items():
        plain = re.sub(pattern, lambda match, name=name: _sign(name, match), plain)
    assert found.data == plain


def _sign(name: str, match: re.Match[bytes]) -> bytes:
    secret = match.groupdict().get("secret", match[0])
    sign = b"[redacted:%s:%d:%s]" % (name.encode(), len(secret), blake3(secret, key=KEY).hexdigest(4).encode())
    return match[0].replace(secret, sign)


PARTS = (
    *SECRETS.values(), *(secret[:cut] for secret in SECRETS.values() for cut in (3, 9)),
    *(secret[4:] for secret in SECRETS.values()),
    "gsk_", "github_pat_", "ASIA", "AIza", "gho_", "bearer ", "-", "_", "z", "x", "J", "B", "K", "S", " ", "\\n",
    "\\u0041",
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PARTS), max_size=6))
def test_where_nothing_begins_nothing_is_found(parts: list[str]) -> None:
    data = "".join(parts).encode()
    found = any(re.search(pattern, data) for pattern in BUILTIN.values())
    assert may_hold(data) or not found
    assert bool(redact(data, rules(), KEY).counts) == found


@pytest.mark.parametrize("character", "aZ09._~+/=- ")
def test_text_that_spells_what_rules_look_for_with_escapes_may_hide_it(character: str) -> None:
    assert may_hide(b'"\\u%04x"' % ord(character), rules())


def test_text_with_other_escapes_hides_nothing_from_our_rules() -> None:
    other = json.dumps("\n\t\x1b\u2014\U0001f600<>&\x7f").encode()
    assert not may_hide(other, rules())
    assert may_hide(other, rules([("dash", "\u2014")]))
    assert may_hide(rb'"\/"', rules())
    assert not may_hide(b'"plain"', rules([("dash", "\u2014")]))


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
