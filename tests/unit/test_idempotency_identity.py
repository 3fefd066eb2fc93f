"""Keys as they are sent, the ids they are found by, and callers as they are proven."""

from __future__ import annotations

import hmac
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import ConfigError
from holdfast.idempotency.errors import KeyInvalid, RequestInvalid
from holdfast.idempotency.identity import (
    Names,
    derived_key,
    execution_id,
    key_id,
    key_ref,
    lp,
    parse_first_sent,
    parse_key,
    principal_from_peer,
    principal_from_user,
    principal_of,
    record_id,
    scope_id,
    shared_principal,
    spellings,
    weak_key,
)
from holdfast.idempotency.rules import IdempotencyConfig
from holdfast.idempotency.values import Principal

SECRET = bytes(range(32))
ACME = Principal("user-1", "acme")
PRINT = bytes.fromhex("9f4e3e6dbbf7c367120b01a57bbd35723b4dfa84e007ed41698c9f15ec648686")


def config(**named: Any) -> IdempotencyConfig:
    return IdempotencyConfig(principal=lambda _scope: "somebody", secrets=[SECRET], **named)


DEFAULTS = config()
STRICT = config(strict_sf=True)


def key_of(value: str | bytes, settings: IdempotencyConfig = DEFAULTS) -> str | None:
    raw = value.encode("latin-1") if isinstance(value, str) else value
    return parse_key([(b"host", b"example.org"), (b"idempotency-key", raw)], settings)


def refused(value: str | bytes, settings: IdempotencyConfig = DEFAULTS) -> None:
    with pytest.raises(KeyInvalid) as caught:
        key_of(value, settings)
    assert caught.value.code == "idempotency.key_invalid"
    assert caught.value.hint


# --- ids --------------------------------------------------------------------------------------------


def test_the_ids_are_those_of_the_published_vector() -> None:
    assert scope_id(SECRET, ACME).hex() == "0c70cef1933ccab97ea0ec6e60c60485"
    assert key_id(SECRET, ACME, "order-17").hex() == "d10a46632f2b1076d0086ef096f097a6"
    name = record_id(SECRET, ACME, "order-17", PRINT)
    assert name.hex() == "15a084b23f5265167fa8f534314c1594"
    assert derived_key(name, "charge") == "a6334b95e2a788820be8adfd98c6baf2e2088157a297bfd2c184be426eff916e"
    assert execution_id(name) == "idem_15a084b23f5265167fa8f534314c1594"
    assert key_ref(key_id(SECRET, ACME, "order-17")) == "d10a46632f2b"


def test_joined_parts_carry_their_lengths() -> None:
    assert lp() == b""
    assert lp("é", b"\x00") == b"\0\0\0\0\0\0\0\x02\xc3\xa9" + b"\0\0\0\0\0\0\0\x01\0"
    assert lp("a", b"b" * 300) == b"\0\0\0\0\0\0\0\x01a" + b"\0\0\0\0\0\0\x01\x2c" + b"b" * 300


anything = st.text(max_size=6) | st.binary(max_size=6)


@given(st.lists(anything, max_size=4), st.lists(anything, max_size=4))
def test_no_other_parts_join_to_the_same_bytes(one: list[str | bytes], other: list[str | bytes]) -> None:
    raw = [[part.encode() if isinstance(part, str) else part for part in parts] for parts in (one, other)]
    assert (lp(*one) == lp(*other)) == (raw[0] == raw[1])


words = st.text(alphabet=st.characters(codec=None), max_size=3)
who = st.builds(Principal, words, words)


@given(who, words, who, words)
def test_ids_of_different_callers_and_keys_differ(one: Principal, key: str, other: Principal, other_key: str) -> None:
    """HX-27, HA-17."""
    assert (scope_id(SECRET, one) == scope_id(SECRET, other)) == (one == other)
    assert (key_id(SECRET, one, key) == key_id(SECRET, other, other_key)) == ((one, key) == (other, other_key))


def test_a_key_per_route_is_found_apart_from_every_other() -> None:
    plain = key_id(SECRET, ACME, "k")
    routes = [("POST", "/a"), ("POST", "/b"), ("PUT", "/a"), ("POS", "T/a")]
    assert len({plain, *(key_id(SECRET, ACME, "k", route=route) for route in routes)}) == 5


def test_ids_differ_by_secret_payload_and_step() -> None:
    assert key_id(SECRET, ACME, "k") != key_id(SECRET[::-1], ACME, "k")
    assert record_id(SECRET, ACME, "k", PRINT) != record_id(SECRET, ACME, "k", PRINT[::-1])
    assert derived_key(b"r" * 16, "a") != derived_key(b"r" * 16, "b") != derived_key(b"q" * 16, "b")


@pytest.mark.parametrize("size", [32, 64, 65, 200])
def test_ids_are_made_by_hmac_whatever_the_length_of_the_secret(size: int) -> None:
    secret = bytes(range(size))
    assert scope_id(secret, ACME) == hmac.digest(secret, lp("holdfast.scope.v1", "acme", "user-1"), "sha256")[:16]


@given(who, words, st.integers(1, 3))
def test_the_names_of_a_principal_are_the_ids(one: Principal, key: str, count: int) -> None:
    secrets = [bytes((number,)) * 32 for number in range(count)]
    names = Names(secrets, one)
    assert names.scope_ids == tuple(scope_id(secret, one) for secret in secrets)
    assert names.key_ids(key) == tuple(key_id(secret, one, key) for secret in secrets)
    route = ("POST", "/a")
    assert names.key_ids(key, route=route) == tuple(key_id(secret, one, key, route=route) for secret in secrets)
    assert names.record_id(SECRET, key, PRINT) == record_id(SECRET, one, key, PRINT)


# --- the key header ---------------------------------------------------------------------------------


def test_without_the_header_there_is_no_key() -> None:
    assert parse_key([], DEFAULTS) is None
    assert parse_key([(b"x-idempotency", b"k"), (b"accept-encoding", b"gzip")], DEFAULTS) is None


@pytest.mark.parametrize(
    ("sent", "key"),
    [
        ("abc", "abc"),
        ('"abc"', "abc"),
        ('  \t"abc"\t ', "abc"),
        (r'"a\"b\\c"', r'a"b\c'),
        ('"a b, c; d"', "a b, c; d"),
        ('":x"', ":x"),
        ("a:(?@=", "a:(?@="),
        ("8e03978e-40d5-43e8-bc93-6894a57f9324", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        ("'a'", "'a'"),
        ("x" * 255, "x" * 255),
        ('"' + "\\\\" * 255 + '"', "\\" * 255),
    ],
)
def test_a_key_is_a_structured_field_string_or_the_same_bare(sent: str, key: str) -> None:
    """HX-24, HA-6, HA-7."""
    assert key_of(sent) == key


@pytest.mark.parametrize(
    "sent",
    [
        "", "  \t", '""', "x" * 256, '"' + "x" * 256 + '"', "x" * 600, '"' + "\\\\" * 256 + '"',
        "a b", "a,b", "a;b", "a\\b", 'a"b', '"a', 'a"', '"a"b', '"a";p=1', '"a", "b"', '"a" "b"', ":YQ==:", "(a)",
        "?1", "@1", '"a\\n"', '" a"', '"a "', '"a\tb"', "a\tb", "a\x7f", "é", '"é"', "a\x00", '"\x1f"', "a\x80",
    ],
)  # fmt: skip
def test_anything_else_is_refused(sent: str) -> None:
    """HX-25, HA-7."""
    refused(sent)


def test_a_strict_guard_refuses_the_bare_form() -> None:
    assert key_of('"abc"', STRICT) == "abc"
    refused("abc", STRICT)


bare = st.from_regex(rb"\A(?![:(?@])[!#-+\--:<-\[\]-~]{1,255}\Z").map(lambda raw: raw.decode("ascii"))
plain = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255).filter(
    lambda text: text == text.strip(" ")
)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(bare)
def test_quoted_and_bare_are_one_key(key: str) -> None:
    assert key_of(key) == key_of(quoted(key)) == key


@given(plain)
def test_every_printable_text_can_be_a_key(key: str) -> None:
    assert key_of(quoted(key)) == key


@given(st.binary(max_size=300))
def test_bytes_make_a_key_or_an_error_and_nothing_else(raw: bytes) -> None:
    try:
        key = key_of(raw)
    except KeyInvalid as error:
        shown = f"{error} {error.hint}"
        assert len(raw) < 6 or raw.decode("latin-1") not in shown
    else:
        assert key is not None
        assert 1 <= len(key) <= 255
        assert key.isascii()
        assert key.isprintable()


def test_two_lines_of_one_name_are_refused_even_when_equal() -> None:
    for second in (b"k", b'"k"', b"other"):
        with pytest.raises(KeyInvalid, match="two lines"):
            parse_key([(b"idempotency-key", b"k"), (b"Idempotency-KEY", second)], DEFAULTS)


@pytest.mark.parametrize("name", [b"idempotency_key", b"Idempotency_Key"])
def test_a_name_with_an_underscore_is_refused(name: bytes) -> None:
    for lines in ([(name, b"k")], [(b"idempotency-key", b"k"), (name, b"k")]):
        with pytest.raises(KeyInvalid, match="underscore"):
            parse_key(lines, DEFAULTS)


def test_of_several_names_all_that_are_sent_must_agree() -> None:
    both = config(headers=("Idempotency-Key", "X-Request_Key"))
    assert parse_key([(b"x-request_key", b"k")], both) == "k"
    assert parse_key([(b"X-REQUEST_KEY", b'"k"'), (b"idempotency-key", b"k")], both) == "k"
    with pytest.raises(KeyInvalid, match="disagree"):
        parse_key([(b"x-request_key", b"k"), (b"idempotency-key", b"l")], both)
    with pytest.raises(KeyInvalid, match="blank"):
        parse_key([(b"x-request_key", b""), (b"idempotency-key", b"l")], both)


def test_a_minimum_length_counts_decoded_characters() -> None:
    long = config(key_length_min=3)
    assert key_of("abc", long) == "abc"
    refused("ab", long)
    refused(r'"\"\""', long)


V4, V7 = "8E03978e-40d5-43e8-bC93-6894a57f9324", "0190163d-8694-739B-aea5-966c26f8ad91"


@pytest.mark.parametrize(
    ("kind", "accepted", "other"),
    [
        ("uuid", [V4, V7, "8e03978e-40d5-13e8-8c93-6894a57f9324"], [str(uuid.UUID(int=0)), V4[:14] + "9" + V4[15:]]),
        ("uuid4", [V4], [V7]),
        ("uuid7", [V7], [V4]),
    ],
)  # fmt: skip
def test_a_uuid_is_of_its_version_and_compares_in_lower_case(kind: str, accepted: list[str], other: list[str]) -> None:
    """HX-26."""
    settings = config(key_format=kind)
    for key in accepted:
        assert key_of(key, settings) == key_of(quoted(key.upper()), settings) == key.lower()
    for key in [*other, V4.replace("-", ""), V4[:-1], "{" + V4 + "}", V4[:19] + "c" + V4[20:], "order-17"]:
        refused(key, settings)


def test_a_pattern_must_match_the_whole_key_as_it_is() -> None:
    settings = config(key_format=re.compile(r"ord-[A-Z]+"))
    assert key_of("ord-AB", settings) == "ord-AB"
    for key in ("ord-", "ord-ABc", "xord-AB", "ord-ab"):
        refused(key, settings)


@pytest.mark.parametrize(
    ("key", "weak"),
    [("x" * 15, True), ("x" * 16, False), ("1" * 40, True), ("1" * 39 + "x", False), (V4, False)],
)
def test_a_short_key_or_a_number_is_weak(key: str, weak: bool) -> None:
    assert weak_key(key) is weak


# --- when a call was first sent ---------------------------------------------------------------------

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND = 1_000_000


def us(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def sent(*values: str, name: bytes = b"idempotency-first-sent") -> int | None:
    return parse_first_sent([(name, value.encode("latin-1")) for value in values], now=us(NOW))


def test_a_client_may_say_nothing() -> None:
    assert sent() is None
    assert sent("whatever", name=b"date") is None


def test_a_date_of_http_is_read() -> None:
    assert sent("Sun, 06 Nov 1994 08:49:37 GMT") == 784_111_777 * SECOND
    assert sent(" \tSun, 06 Nov 1994 08:49:37 GMT ", name=b"Idempotency-First-Sent") == 784_111_777 * SECOND


@given(st.datetimes(datetime(1, 1, 1), datetime(2026, 3, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - Hypothesis adds the zone
def test_every_date_of_the_past_is_read_to_the_second(at: datetime) -> None:
    days, months = "MonTueWedThuFriSatSun", "JanFebMarAprMayJunJulAugSepOctNovDec"
    day, month = days[3 * at.weekday() :][:3], months[3 * at.month - 3 :][:3]
    text = f"{day}, {at.day:02} {month} {at.year:04} {at.hour:02}:{at.minute:02}:{at.second:02} GMT"
    assert sent(text) == us(at.replace(microsecond=0))


@pytest.mark.parametrize(
    "text",
    [
        "", "yesterday", "784111777", "1994-11-06T08:49:37Z", "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994", "Mon, 06 Nov 1994 08:49:37 GMT", "Sun, 6 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 UTC", "Sun, 06 Nov 1994 08:49:37 +0000", "sun, 06 nov 1994 08:49:37 gmt",
        "Sun, 31 Feb 1994 08:49:37 GMT", "Sun, 06 Nov 1994 24:00:00 GMT", "Sun, 06 Nov 1994 08:49:60 GMT",
        "Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 0\xb2 Nov 1994 08:49:37 GMT",
    ],
)  # fmt: skip
def test_anything_else_is_no_date(text: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        sent(text)
    assert caught.value.code == "idempotency.first_sent_invalid"


def test_two_dates_are_refused_even_when_equal() -> None:
    with pytest.raises(RequestInvalid, match="two lines"):
        sent("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 GMT")


def test_a_clock_may_be_five_minutes_ahead() -> None:
    """HX-41."""
    assert sent("Sun, 01 Mar 2026 12:05:00 GMT") == us(NOW + timedelta(minutes=5))
    with pytest.raises(RequestInvalid, match="future"):
        sent("Sun, 01 Mar 2026 12:05:01 GMT")


# --- what a principal function returned -------------------------------------------------------------


def test_a_principal_is_somebody() -> None:
    assert principal_of("u") == Principal("u")
    assert principal_of(ACME) is ACME


@pytest.mark.parametrize("nobody", [None, "", "  ", Principal(""), Principal(" ", "acme")])
def test_nobody_is_nobody(nobody: object) -> None:
    """HA-13."""
    assert principal_of(nobody) is None


@pytest.mark.parametrize("wrong", [0, True, b"u", ("u", "acme"), Principal(*[5]), Principal("u", *[None])])
def test_what_is_no_principal_is_an_error_of_the_application(wrong: object) -> None:
    with pytest.raises(TypeError):
        principal_of(wrong)


# --- users ------------------------------------------------------------------------------------------


class User:
    """A user as frameworks give it: attributes, some of which may not be there."""

    is_authenticated: object = True

    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


class Abstract:
    """A user whose class promises a name and has none."""

    is_authenticated = True
    display_name = "ann"

    @property
    def identity(self) -> str:
        raise NotImplementedError


def user(**attributes: object) -> Principal | None:
    return principal_from_user({"user": User(**attributes)})


def test_the_user_of_the_scope_is_the_principal() -> None:
    assert user(identity="i", username="u", display_name="d", tenant="t") == Principal("i", "t")
    assert user(username="u", display_name="d") == Principal("u")
    assert user(identity="", username=None, display_name="d", tenant=None) == Principal("d")
    assert principal_from_user({"user": Abstract()}) == Principal("ann")


def test_numbers_and_uuids_name_users_too() -> None:
    id_ = uuid.UUID(V4)
    assert user(identity=0, tenant=7) == Principal("0", "7")
    assert user(identity=id_, tenant=id_) == Principal(str(id_), str(id_))


@pytest.mark.parametrize(
    "attributes",
    [
        {"identity": "u", "is_authenticated": False},
        {"identity": "u", "is_authenticated": None},
        {"identity": "u", "is_authenticated": lambda: False},
        {},
        {"identity": object(), "username": True, "display_name": 1.5},
        {"identity": "  "},
        {"identity": "u", "tenant": object()},
    ],
)
def test_a_user_who_is_not_proven_or_not_named_is_nobody(attributes: dict[str, object]) -> None:
    assert user(**attributes) is None


def test_a_user_that_knows_nothing_of_authentication_is_nobody() -> None:
    assert principal_from_user({"user": None}) is None
    assert principal_from_user({"user": {"is_authenticated": True, "identity": "u"}}) is None


def test_without_authentication_before_it_a_guard_says_so() -> None:
    with pytest.raises(ConfigError) as caught:
        principal_from_user({"type": "http"})
    assert caught.value.code == "config.middleware_order"


# --- peers ------------------------------------------------------------------------------------------


def peer(host: str | None, *forwarded: str, trusted: tuple[str, ...] = ("10.0.0.0/8", "fd00::/8")) -> str | None:
    headers = [(b"X-Forwarded-For", line.encode("latin-1")) for line in forwarded]
    scope = {"client": None if host is None else (host, 4711), "headers": [(b"host", b"h"), *headers]}
    found = principal_from_peer(trusted)(scope)
    return None if found is None else found.subject


def test_a_peer_is_known_by_its_address() -> None:
    assert peer("192.0.2.1") == "192.0.2.1"
    assert peer("2001:DB8:0::1") == "2001:db8::1"
    assert peer("::ffff:192.0.2.1") == "192.0.2.1"
    assert peer("testclient") == "testclient"


def test_no_peer_is_nobody() -> None:
    assert peer(None) is None
    assert peer("") is None
    assert principal_from_peer()({"headers": []}) is None


def test_a_stranger_cannot_forward() -> None:
    assert peer("192.0.2.1", "198.51.100.7") == "192.0.2.1"
    assert peer("10.0.0.1", "198.51.100.7", trusted=()) == "10.0.0.1"


@pytest.mark.parametrize(
    ("forwarded", "origin"),
    [
        (["198.51.100.7"], "198.51.100.7"),
        (["203.0.113.9, 198.51.100.7"], "198.51.100.7"),
        (["nonsense, 198.51.100.7 , 10.2.3.4"], "198.51.100.7"),
        (["203.0.113.9", "198.51.100.7", "10.2.3.4, fd00::5"], "198.51.100.7"),
        (["203.0.113.9, 198.51.100.7,, "], "198.51.100.7"),
        (["198.51.100.7:5000"], "198.51.100.7"),
        (["[2001:db8::1]:5000"], "2001:db8::1"),
        (["[2001:db8::1]"], "2001:db8::1"),
        (["10.5.5.5, 10.6.6.6"], "10.5.5.5"),
        (["::ffff:10.1.1.1"], "10.1.1.1"),
        (["198.51.100.7, unknown"], None),
        (["198.51.100.7, []"], None),
        ([], "10.0.0.1"),
    ],
)
def test_behind_a_proxy_the_right_most_stranger_counts(forwarded: list[str], origin: str | None) -> None:
    """HX-28."""
    assert peer("10.0.0.1", *forwarded) == origin


def test_networks_of_proxies_are_checked_at_once() -> None:
    for wrong in (["ten"], ["10.0.0.1/8"], "10.0.0.0/8"):
        with pytest.raises(ConfigError) as caught:
            principal_from_peer(wrong)
        assert (caught.value.code, caught.value.keys) == ("config.rule_invalid", ("trusted",))


def test_one_bucket_may_be_shared_deliberately() -> None:
    one = shared_principal("cron")
    assert one({}) == one({"client": ("192.0.2.1", 1)}) == Principal("cron")
    with pytest.raises(ConfigError):
        shared_principal(" ")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("order-17", ("order-17",)),
        (' "order 17"\t', ("order 17", '"order 17"', ' "order 17"\t')),
        (r'"a\"b\\c"', ('a"b\\c', r'"a\"b\\c"')),
        (
            "C9B421E1-0130-7A6F-9C2B-346A3B0D935C",
            ("C9B421E1-0130-7A6F-9C2B-346A3B0D935C", "c9b421e1-0130-7a6f-9c2b-346a3b0d935c"),
        ),
        ('"', ('"',)),
        ("schl\u00fcssel", ("schl\u00fcssel",)),
    ],
)
def test_a_key_that_somebody_wrote_down_may_be_one_of_these(written: str, read: tuple[str, ...]) -> None:
    assert spellings(written) == read
