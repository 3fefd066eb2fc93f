"""An outcome and the columns of its row."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.keyring import KeyRing
from holdfast.idempotency.errors import RecordUnreadable
from holdfast.idempotency.headers import encode_headers
from holdfast.idempotency.sealing import check_sum, heavy, open_outcome, redacted, seal_outcome
from holdfast.idempotency.values import Completed, Headers, Outcome, Sealed, Tombstone

IDS: dict[str, Any] = {"key_id": b"k" * 16, "record_id": b"r" * 16}
RING = KeyRing((3, bytes(range(32))))
SHORT = Completed(201, [(b"location", b"/orders/1")], b"body")
LONG = Completed(200, [(b"content-type", b"text/plain")], b"to be kept " * 2_000)
STONE = Tombstone(200, [(b"etag", b'"1"')], "oversize", 3_000_000, b"d" * 32)

statuses = st.integers(200, 599)
header_lists = st.lists(
    st.tuples(st.sampled_from([b"a", b"x-b", b"etag"]), st.sampled_from([b"", b"1", b"\xff"])), max_size=3
)
completed = st.builds(Completed, statuses, header_lists, st.binary(max_size=60) | st.just(b"ab" * 200))
tombstones = st.builds(
    Tombstone,
    statuses,
    header_lists,
    st.sampled_from(["stream", "oversize", "redaction", "decided"]),
    st.none() | st.integers(0, 10**9),
    st.none() | st.just(b"d" * 32),
)
ciphers = st.sampled_from([None, RING])


def sealed_as(outcome: Outcome, cipher: KeyRing | None = None) -> Sealed:
    return seal_outcome(outcome, **IDS, cipher=cipher, compress_over_bytes=100)


def unreadable(sealed: Sealed, cipher: KeyRing | None = None, **ids: Any) -> str:
    with pytest.raises(RecordUnreadable) as caught:
        open_outcome(sealed, **{**IDS, **ids}, cipher=cipher)
    return caught.value.code.removeprefix("idempotency.record_")


@given(completed | tombstones, ciphers)
def test_what_was_sealed_opens(outcome: Outcome, cipher: KeyRing | None) -> None:
    sealed = sealed_as(outcome, cipher)
    opened = open_outcome(sealed, **IDS, cipher=cipher)
    if cipher is not None and isinstance(outcome, Tombstone):
        outcome = replace(outcome, body_digest=None)
    assert opened == outcome
    assert check_sum(sealed)


def changed(column: str, value: Any, draw: Callable[[Any], Any]) -> Any:
    """Another value of a column: one byte flipped, one number up or down, something for nothing."""
    if value is None or value == b"":
        return {"reason": "stream", "body_bytes": 0, "cipher_key": 3}.get(column, b"x" if value == b"" else b"")
    if isinstance(value, bytes):
        at = draw(st.integers(0, len(value) - 1))
        return value[:at] + bytes((value[at] ^ draw(st.integers(1, 255)),)) + value[at + 1 :]
    if isinstance(value, int):
        return value + draw(st.sampled_from([-1, 1]))
    return draw(st.sampled_from([None, "message", value + "x"]))


@given(completed | tombstones, ciphers, st.sampled_from([field.name for field in fields(Sealed)]), st.data())
def test_no_changed_column_opens(outcome: Outcome, cipher: KeyRing | None, column: str, data: st.DataObject) -> None:
    sealed = sealed_as(outcome, cipher)
    other = replace(sealed, **{column: changed(column, getattr(sealed, column), data.draw)})
    assert unreadable(other, cipher) == ("newer" if column == "codec" and other.codec > 1 else "unreadable")


@pytest.mark.parametrize(
    "forge",
    [
        lambda sealed: replace(sealed, status=sealed.status + 1),
        lambda sealed: replace(sealed, codec=1 - sealed.codec),
        lambda sealed: replace(sealed, body=sealed.headers),
        lambda sealed: replace(sealed, headers=sealed.body),
        lambda sealed: replace(sealed, body=None, reason="decided"),
        lambda sealed: replace(sealed, body=sealed_as(LONG, RING).body),
        lambda sealed: replace(sealed, headers=encode_headers([(b"set-cookie", b"a=1")]), body=b"", cipher_key=3),
        lambda sealed: replace(sealed, headers=b""),
    ],
)
def test_under_a_cipher_no_row_can_be_made_to_fit(forge: Callable[[Sealed], Sealed]) -> None:
    forged = forge(sealed_as(SHORT, RING))
    forged = replace(forged, block_sum=_sum_of(forged))
    assert check_sum(forged)
    assert unreadable(forged, RING) == "unreadable"


def _sum_of(sealed: Sealed) -> bytes:
    from holdfast.idempotency import sealing

    return sealing._sum(sealed)


def test_under_a_cipher_a_row_opens_only_in_its_place_and_with_its_key() -> None:
    sealed = sealed_as(SHORT, RING)
    assert unreadable(sealed, RING, key_id=b"x" * 16) == "unreadable"
    assert unreadable(sealed, RING, record_id=b"x" * 16) == "unreadable"
    assert unreadable(sealed, RING, format=0) == "unreadable"
    assert unreadable(sealed, None) == "unreadable"
    assert unreadable(sealed, KeyRing((3, bytes(32)))) == "unreadable"
    assert unreadable(sealed, KeyRing((4, bytes(32)))) == "unreadable"


def test_a_cipher_opens_what_was_kept_before_there_was_one() -> None:
    assert open_outcome(sealed_as(SHORT), **IDS, cipher=RING) == SHORT


def test_nothing_of_an_outcome_shows_under_a_cipher() -> None:
    for outcome in (SHORT, LONG, STONE):
        shown = repr(sealed_as(outcome, RING)).encode()
        assert b"orders" not in shown
        assert b"kept" not in shown
        assert b"etag" not in shown
    assert sealed_as(SHORT, RING).body_digest is None
    assert sealed_as(STONE, RING).body_digest is None


def test_the_columns_are_the_described_ones() -> None:
    sealed = sealed_as(SHORT)
    assert (sealed.status, sealed.headers, sealed.body) == (201, encode_headers(SHORT.headers), b"body")
    assert (sealed.body_bytes, sealed.body_digest) == (4, hashlib.sha256(b"body").digest())
    assert (sealed.codec, sealed.cipher_key, sealed.reason, len(sealed.block_sum)) == (0, None, None, 16)
    stone = sealed_as(STONE)
    assert (stone.status, stone.headers, stone.body) == (200, encode_headers(STONE.headers), None)
    assert (stone.body_bytes, stone.body_digest, stone.reason) == (3_000_000, b"d" * 32, "oversize")
    assert sealed_as(SHORT, RING).cipher_key == 3


def test_the_sum_is_the_published_one() -> None:
    assert sealed_as(SHORT).block_sum.hex() == "dd7b048720783fdc4eb0e3248c48f108"
    assert sealed_as(STONE).block_sum.hex() == "85ff45cec48a2dbb8eac24e68f4e7195"


def test_a_large_body_is_compressed_if_that_helps() -> None:
    sealed = sealed_as(LONG)
    assert sealed.codec == 1
    assert sealed.body is not None
    assert len(sealed.body) < 1_000
    assert sealed.body_bytes == len(LONG.body)
    assert sealed_as(replace(LONG, body=LONG.body[:100])).codec == 0
    noise = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(100))
    assert sealed_as(replace(LONG, body=noise)).codec == 0
    assert seal_outcome(replace(LONG, body=bytes(16 * 1024)), **IDS).codec == 0
    assert seal_outcome(replace(LONG, body=bytes(16 * 1024 + 1)), **IDS).codec == 1


@pytest.mark.parametrize(
    ("headers", "codec"),
    [
        ([(b"content-encoding", b"gzip")], 0),
        ([(b"Content-Encoding", b"br")], 0),
        ([(b"content-encoding", b"Identity")], 1),
    ],
)
def test_a_body_in_a_coding_is_not_compressed_again(headers: Headers, codec: int) -> None:
    assert sealed_as(replace(LONG, headers=headers)).codec == codec


def test_a_row_of_a_newer_holdfast_is_told_from_a_damaged_one() -> None:
    assert unreadable(sealed_as(SHORT), format=2) == "newer"
    assert unreadable(replace(sealed_as(SHORT), codec=2)) == "newer"


@pytest.mark.parametrize(
    "broken",
    [
        {"headers": b"\x01"},
        {"status": 199},
        {"status": 600},
        {"body": None, "reason": None},
        {"body": None, "reason": "whim"},
        {"codec": 1, "body": b"not compressed"},
        {"codec": 1, "body": zlib.compress(b"12345")},
        {"codec": 1, "body": zlib.compress(b"123")},
        {"codec": 1, "body": zlib.compress(b"1234")[:-1]},
        {"codec": 1, "body": zlib.compress(b"1234") + b"x"},
        {"codec": 1, "body": zlib.compress(bytes(10_000_000)), "body_bytes": None},
        {"codec": 1, "body": zlib.compress(bytes(10_000_000)), "body_bytes": -1},
    ],
)
def test_a_row_that_holds_its_sum_and_no_outcome_is_unreadable(broken: dict[str, Any]) -> None:
    sealed = replace(sealed_as(SHORT), **broken)
    assert unreadable(replace(sealed, block_sum=_sum_of(sealed))) == "unreadable"


def test_an_empty_body_is_no_tombstone() -> None:
    empty = Completed(204, [], b"")
    for cipher in (None, RING):
        assert open_outcome(sealed_as(empty, cipher), **IDS, cipher=cipher) == empty


def test_large_work_is_for_a_thread() -> None:
    big = replace(LONG, body=bytes(64 * 1024 + 1))
    assert heavy(big)
    assert heavy(sealed_as(big))
    assert heavy(seal_outcome(big, **IDS, compress_over_bytes=10**6))
    for small in (replace(LONG, body=bytes(64 * 1024)), SHORT, STONE):
        assert not heavy(small)
        assert not heavy(sealed_as(small))


# -- redaction

SECRET = Completed(201, [(b"location", b"/1"), (b"content-type", b"a/b"), (b"x", b"1")], b"number 4111")
STRIPPED = Tombstone(201, [(b"location", b"/1"), (b"content-type", b"a/b")], "redaction", 11)


def test_without_redaction_everything_is_kept() -> None:
    assert redacted(SECRET, None) is SECRET


def test_redaction_says_what_is_kept() -> None:
    kept = redacted(SECRET, lambda response: replace(response, body=b"number ****"))
    assert kept == replace(SECRET, body=b"number ****")


def broken(response: Completed) -> Completed:
    raise ValueError(response)


@pytest.mark.parametrize(
    "redact",
    [
        lambda response: None,
        broken,
        lambda response: response.body,
        lambda response: replace(response, body="text"),
        lambda response: replace(response, status=99),
        lambda response: replace(response, headers=[(b"x", b"1\r\n")]),
        lambda response: replace(response, headers=None),
    ],
)
def test_where_redaction_keeps_nothing_it_was_executed_all_the_same(redact: Any) -> None:
    assert redacted(SECRET, redact) == STRIPPED
