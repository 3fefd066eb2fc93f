"""Fields of a response: which are kept, how they are kept, and how they go out again."""

from __future__ import annotations

import gzip
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.idempotency import headers as fields
from holdfast.idempotency.errors import RecordUnreadable
from holdfast.idempotency.headers import (
    CORS_ALLOW_HEADERS,
    CORS_EXPOSE_HEADERS,
    MARKER,
    Control,
    decode_headers,
    encode_headers,
    filter_headers,
    imf_date,
    keepable,
    needs_transcoding,
    parse_control,
    replay,
    sets_cookie,
    sf_string,
    storable,
    tombstone_headers,
    transcode,
)
from holdfast.idempotency.identity import lp
from holdfast.idempotency.rules import RouteRule
from holdfast.idempotency.values import Completed, Headers

RULE = RouteRule()

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-!#$%&'*+.^_`|~", min_size=1, max_size=20).map(str.encode)
contents = st.binary(max_size=40).map(lambda raw: raw.translate(None, b"\r\n\x00").strip(b" \t"))
blocks = st.lists(st.tuples(names, contents), max_size=8)


# -- what is kept


@pytest.mark.parametrize(
    "name",
    [
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade", "set-cookie", "set-cookie2", "www-authenticate", "authentication-info",
        "authorization", "date", "age", "server", "server-timing", "ratelimit", "ratelimit-policy", "ratelimit-limit",
        "x-ratelimit-remaining", "traceparent", "tracestate", "x-request-id", "x-correlation-id", "content-length",
        "idempotency-replayed", "idempotent-replayed", "idempotency-control",
    ],
)  # fmt: skip
def test_a_field_of_one_sending_is_never_kept(name: str) -> None:
    given_ = [(b"location", b"/1"), (name.title().encode(), b"x"), (b"etag", b'"1"')]
    assert filter_headers(given_, RULE) == [(b"location", b"/1"), (b"etag", b'"1"')]


def test_every_other_field_is_kept_in_its_place() -> None:
    kept = [
        (b"location", b"/orders/1"), (b"link", b"<a>; rel=x"), (b"etag", b'"1"'), (b"link", b"<b>; rel=y"),
        (b"cache-control", b"no-store"), (b"content-type", b"text/plain"), (b"vary", b"accept"), (b"rate", b"1"),
        (b"proxy", b"x"), (b"x-ratelimit", b"1"), (b"idempotency-expires", b"x"), (b"content-encoding", b"gzip"),
    ]  # fmt: skip
    assert filter_headers(kept, RULE) == kept


def test_what_connection_names_is_not_kept() -> None:
    response = [
        (b"Connection", b"close, X-Hop ,"),
        (b"x-hop", b"1"),
        (b"connection", b"x-two"),
        (b"x-two", b"2"),
        (b"x-three", b"3"),
    ]
    assert filter_headers(response, RULE) == [(b"x-three", b"3")]


def test_a_rule_denies_more_fields() -> None:
    rule = RouteRule(header_deny=("X-Secret", "link"))
    assert filter_headers([(b"x-secret", b"1"), (b"Link", b"<a>"), (b"etag", b'"1"')], rule) == [(b"etag", b'"1"')]


def test_cookies_are_kept_only_where_the_rule_says_so() -> None:
    cookies = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    rules = (RouteRule(set_cookie="drop"), RouteRule(set_cookie="refuse"), RouteRule(set_cookie="keep"))
    kept = {rule.set_cookie: filter_headers(cookies, rule) for rule in rules}
    assert kept == {"drop": [], "refuse": [], "keep": cookies}
    assert sets_cookie([(b"Set-Cookie", b"a=1")])
    assert not sets_cookie([(b"cookie", b"a=1"), (b"set-cookie2", b"a=1")])


def test_a_tombstone_keeps_where_the_result_is() -> None:
    response = [(b"ETag", b'"1"'), (b"date", b"x"), (b"Location", b"/1"), (b"x", b"1"), (b"content-type", b"a/b")]
    assert tombstone_headers(response, RULE) == [(b"etag", b'"1"'), (b"location", b"/1"), (b"content-type", b"a/b")]
    assert tombstone_headers(response, RouteRule(header_deny=("etag", "content-type"))) == [(b"location", b"/1")]


@pytest.mark.parametrize("status", [200, 304, 599])
def test_a_head_that_can_be_sent_can_be_kept(status: int) -> None:
    assert storable(status, [(b"X-A", b" a\tb \xff\x01"), (b"x-a", b"")])


@pytest.mark.parametrize(
    ("status", "field"),
    [
        (199, (b"x", b"1")), (600, (b"x", b"1")), (100, (b"x", b"1")),
        (200, (b"", b"1")), (200, (b"x y", b"1")), (200, (b"x:", b"1")), (200, (b"\xff", b"1")), (200, (b"x\n", b"1")),
        (200, (b"x", b"1\r")), (200, (b"x", b"1\nset-cookie: a")), (200, (b"x", b"\x00")),
    ],
)  # fmt: skip
def test_a_head_that_could_do_harm_cannot(status: int, field: tuple[bytes, bytes]) -> None:
    assert not storable(status, [(b"a", b"b"), field])


# -- the block


def test_the_block_is_the_published_one() -> None:
    assert encode_headers([(b"ETag", b' "1" '), (b"a", b"")]) == b"\x01" + b"\0\0\0\2" + lp(b"etag", b'"1"') + lp(
        b"a", b""
    )
    assert encode_headers([]) == b"\x01\0\0\0\0"


@given(blocks)
def test_a_block_brings_back_what_it_was_made_from(headers: Headers) -> None:
    assert decode_headers(encode_headers(headers)) == headers


@given(blocks)
def test_a_cut_or_extended_block_is_unreadable(headers: Headers) -> None:
    block = encode_headers(headers)
    for broken in [block + b"\0", *(block[:length] for length in range(len(block)))]:
        with pytest.raises(RecordUnreadable):
            decode_headers(broken)


@given(st.binary(max_size=60))
def test_any_bytes_are_headers_that_can_be_sent_or_unreadable(raw: bytes) -> None:
    for block in (
        raw,
        b"\x01" + raw,
        b"\x01\0\0\0\1" + raw,
        b"\x01\0\0\0\1" + lp(raw, b"1"),
        b"\x01\0\0\0\1" + lp(b"a", raw),
    ):
        try:
            headers = decode_headers(block)
        except RecordUnreadable:
            continue
        assert storable(200, headers)
        assert encode_headers(headers) == block


@pytest.mark.parametrize(
    ("name", "value"),
    [(b"ETag", b"1"), (b"", b"1"), (b"a b", b"1"), (b"a", b" 1"), (b"a", b"1\t"), (b"a", b"1\r\n"), (b"a", b"\x00")],
)
def test_a_field_that_was_never_written_is_unreadable(name: bytes, value: bytes) -> None:
    with pytest.raises(RecordUnreadable):
        decode_headers(b"\x01\0\0\0\1" + lp(name, value))


def test_a_count_that_lies_costs_nothing() -> None:
    with pytest.raises(RecordUnreadable):
        decode_headers(b"\x01\xff\xff\xff\xff")
    with pytest.raises(RecordUnreadable):
        decode_headers(b"\x01\0\0\0\1" + b"\xff" * 8 + b"a")
    with pytest.raises(RecordUnreadable):
        decode_headers(b"\x02\0\0\0\0")


# -- the control field


@pytest.mark.parametrize(
    ("values", "control"),
    [
        ([b"no-store"], Control(no_store=True)),
        ([b"ttl=60"], Control(ttl=timedelta(seconds=60))),
        ([b" No-Store ,\tTTL = 5, irreversible"], Control(no_store=True, ttl=timedelta(seconds=5), irreversible=True)),
        ([b"ttl=60", b"ttl=30,irreversible"], Control(ttl=timedelta(seconds=30), irreversible=True)),
        ([b"ttl=0, ttl=-1, ttl=x, ttl=, ttl, ttl=1.5, ttl=9999999999, max-age=3,, no-store=1"], Control()),
        ([b""], Control()),
    ],
)
def test_a_handler_may_say_it_by_a_field(values: list[bytes], control: Control) -> None:
    response = [(b"a", b"1"), *((b"Idempotency-Control", value) for value in values), (b"b", b"2")]
    assert parse_control(response) == (control, [(b"a", b"1"), (b"b", b"2")])


def test_without_the_field_the_headers_are_the_same_object() -> None:
    response = [(b"a", b"1")]
    control, headers = parse_control(response)
    assert control == Control()
    assert headers is response


# -- the wire


def test_a_replay_is_marked_and_has_its_length() -> None:
    kept = Completed(201, [(b"location", b"/1"), (b"content-length", b"7"), (b"x", b"1")], b"body")
    assert replay(kept, MARKER) == Completed(
        201, [(b"location", b"/1"), (b"x", b"1"), (b"content-length", b"4"), (MARKER, b"true")], b"body"
    )


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_body_is_replayed_without_one(status: int) -> None:
    kept = Completed(status, [(b"etag", b'"1"'), (b"content-length", b"4")], b"body")
    assert replay(kept, MARKER) == Completed(status, [(b"etag", b'"1"'), (MARKER, b"true")], b"")


@pytest.mark.parametrize(("text", "quoted"), [("abc", b'"abc"'), ('a"b\\c', b'"a\\"b\\\\c"'), ("", b'""')])
def test_a_string_is_quoted(text: str, quoted: bytes) -> None:
    assert sf_string(text) == quoted


@given(st.datetimes(timezones=st.just(UTC)).map(lambda when: when if when.year >= 1970 else when.replace(year=2000)))
def test_a_date_is_written_as_http_writes_it(when: datetime) -> None:
    at = (when - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert imf_date(at).decode() == format_datetime(when.replace(microsecond=0), usegmt=True)


def test_the_last_date_there_is_stands_for_all_later_ones() -> None:
    assert imf_date(2**62) == b"Fri, 31 Dec 9999 23:59:59 GMT"


def test_browsers_are_told_of_every_field() -> None:
    assert "Idempotency-Key" in CORS_ALLOW_HEADERS
    assert {"Idempotency-Replayed", "Retry-After"} <= set(CORS_EXPOSE_HEADERS)


# -- content codings

TEXT = b"what was said " * 40
GZIP = gzip.compress(TEXT, mtime=0)
DEFLATE = zlib.compress(TEXT)
BARE = zlib.compress(TEXT, wbits=-15)


def kept_as(coding: bytes, body: bytes, *more: tuple[bytes, bytes]) -> Completed:
    return Completed(200, [(b"content-encoding", coding), *more], body)


def accept(*values: bytes) -> Headers:
    return [(b"Accept-Encoding", value) for value in values]


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (b"gzip", GZIP), (b"x-gzip", GZIP), (b"GZip", GZIP), (b"gzip", GZIP + gzip.compress(b"", mtime=0)),
        (b"deflate", DEFLATE), (b"deflate", BARE), (b"identity, gzip", GZIP),
        (b"deflate, gzip", gzip.compress(DEFLATE, mtime=0)),
    ],
)  # fmt: skip
def test_a_client_that_takes_no_coding_gets_the_text(coding: bytes, body: bytes) -> None:
    kept = kept_as(
        coding,
        body,
        (b"etag", b'"1"'),
        (b"content-length", b"9"),
        (b"content-digest", b"x"),
        (b"vary", b"accept-encoding"),
    )
    sent = transcode(kept, accept(b"identity"))
    length = (b"content-length", b"%d" % len(TEXT))
    assert sent == Completed(200, [(b"etag", b'W/"1"'), length, (b"vary", b"accept-encoding")], TEXT)
    assert needs_transcoding(kept, accept(b"identity"))


def test_two_members_are_decoded_and_a_weak_tag_stays_weak() -> None:
    sent = transcode(kept_as(b"gzip", GZIP + GZIP, (b"etag", b'W/"1"')), accept(b""))
    assert sent == Completed(200, [(b"etag", b'W/"1"')], TEXT + TEXT)


@pytest.mark.parametrize(
    "accepted",
    [
        [], accept(b"gzip"), accept(b"GZIP;q=0.5"), accept(b"x-gzip"), accept(b"br, *"), accept(b"br", b"gzip;q=1.000"),
        accept(b"*;q=0.1"), accept(b"gzip;q=nonsense"), accept(b"identity;q=0, gzip"),
    ],
)  # fmt: skip
def test_who_accepts_the_coding_gets_it(accepted: Headers) -> None:
    kept = kept_as(b"gzip", GZIP)
    assert transcode(kept, accepted) is kept


@pytest.mark.parametrize(
    "accepted", [accept(b"identity"), accept(b""), accept(b"br"), accept(b"gzip;q=0, *"), accept(b"gzip ; Q = 0.000")]
)
def test_who_does_not_accept_it_does_not(accepted: Headers) -> None:
    assert transcode(kept_as(b"gzip", GZIP), accepted) == Completed(200, [], TEXT)


@pytest.mark.parametrize(
    "kept",
    [
        kept_as(b"br", b"whatever"), kept_as(b"br, gzip", GZIP), kept_as(b"gzip", b""), kept_as(b"identity", TEXT),
        Completed(200, [], TEXT), kept_as(b"gzip", TEXT), kept_as(b"gzip", GZIP[:-9]), kept_as(b"gzip", GZIP + b"more"),
        kept_as(b"deflate", b"\x00" + DEFLATE), kept_as(b"deflate, gzip", GZIP),
        kept_as(b"gzip, gzip, gzip, gzip, gzip", GZIP),
        kept_as(b"gzip", gzip.compress(b"", mtime=0) * 65),
    ],
)  # fmt: skip
def test_what_cannot_be_decoded_is_sent_as_it_is_kept(kept: Completed) -> None:
    assert transcode(kept, accept(b"identity")) is kept


def test_what_would_fill_the_memory_is_sent_as_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "DECODED_BYTES_MAX", len(TEXT) + 1)
    assert transcode(kept_as(b"gzip", GZIP), accept(b"br")).body == TEXT
    monkeypatch.setattr(fields, "DECODED_BYTES_MAX", len(TEXT) - 1)
    for kept in (
        kept_as(b"gzip", GZIP),
        kept_as(b"deflate", BARE),
        kept_as(b"deflate, gzip", gzip.compress(DEFLATE, mtime=0)),
    ):
        assert transcode(kept, accept(b"br")) is kept


def test_a_kept_response_is_not_changed_by_sending_it() -> None:
    kept: Any = kept_as(b"gzip", GZIP, (b"etag", b'"1"'))
    before = Completed(kept.status, list(kept.headers), kept.body)
    transcode(replay(kept, MARKER), accept(b"br"))
    assert kept == before


@given(st.integers(100, 700), blocks | st.lists(st.tuples(st.binary(max_size=4), st.binary(max_size=4))))
def test_what_is_keepable_is_what_is_storable_filtered(status: int, headers: Headers) -> None:
    kept = keepable(status, headers, RouteRule())
    assert kept == (filter_headers(headers, RouteRule()) if storable(status, headers) else None)


def test_a_head_that_may_not_be_sent_again_is_not_keepable() -> None:
    assert keepable(200, [(b"X", b" a ")], RouteRule()) == [(b"x", b"a")]
    for status, field in ((600, (b"x", b"a")), (200, (b"x y", b"a")), (200, (b"x", b"a\nb"))):
        assert keepable(status, [field], RouteRule()) is None


def test_names_of_fields_are_remembered_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "HEADS_MAX", 2)
    rule = RouteRule(header_deny=("x-never",))
    lines = [(b"X-A", b"1"), (b"X-Never", b"2"), (b"x-b", b"3"), (b"x-" + b"c" * 3000, b"4"), (b"proxy-x", b"5")]
    kept = [(b"x-a", b"1"), (b"x-b", b"3"), (b"x-" + b"c" * 3000, b"4")]
    for count in (5, 3, 2, 1, 5):
        few = lines[:count]
        assert keepable(200, few, rule) == [line for line in kept if line[0] in {name.lower() for name, _ in few}]
        assert keepable(200, few, rule) == filter_headers(few, rule)
        assert len(fields._heads(rule.header_deny, True)) <= 2
    assert keepable(200, lines, rule) == kept


def test_what_connection_names_is_not_keepable_either() -> None:
    lines = [(b"a", b"1"), (b"connection", b"close, A"), (b"set-cookie", b"x=1"), (b"b", b"2")]
    assert keepable(200, lines, RouteRule()) == [(b"b", b"2")]


def test_markers_of_the_handler_are_taken_out_with_its_control() -> None:
    marked = [(b"Idempotency-Replayed", b"true"), (b"a", b"1"), (b"idempotent-replayed", b"x")]
    assert parse_control(marked) == (fields.NOTHING_SAID, [(b"a", b"1")])
    control, rest = parse_control([*marked, (b"idempotency-control", b"no-store")])
    assert control.no_store
    assert rest == [(b"a", b"1")]
