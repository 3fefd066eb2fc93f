"""Ids: their form, their order, and what a fork does to them."""

from __future__ import annotations

import os
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core import ids

NOW = 1_767_225_600_000_000


@pytest.fixture(autouse=True)
def _fresh_mint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids never go back behind those of other tests, so each test here gets a mint of its own."""
    monkeypatch.setattr(ids, "_mint", ids._Mint())


def test_minted_ids_are_uuid7_of_their_millisecond() -> None:
    minted = ids.uuid7(NOW + 10**9)
    assert (minted.version, minted.variant) == (7, uuid.RFC_4122)
    assert minted.int >> 80 == (NOW + 10**9) // 1000


def test_ids_sort_as_they_were_minted_even_when_the_clock_goes_back() -> None:
    instants = [NOW + 2 * 10**9] * 2000 + [NOW - 10**12] * 500 + [NOW + 2 * 10**9 + 1000] * 500
    minted = [ids.uuid7(now) for now in instants]
    assert minted == sorted(set(minted))


def test_a_full_millisecond_borrows_from_the_next() -> None:
    mint = ids._Mint()
    assert mint.next(5)[0] == 5
    mint.counter = ids._COUNTER_MAX
    assert mint.next(5)[0] == 6
    assert mint.next(5)[0] == 6


def test_a_forked_child_mints_other_ids() -> None:
    ids.uuid7(NOW)
    before = ids._mint
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # no test framework beyond this point
        os.write(writer, b"other" if ids._mint is not before else b"same")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 5) == b"other"
    assert ids._mint is before
    os.close(reader)
    os.close(writer)


@given(st.binary(min_size=16, max_size=40))
def test_derived_ids_keep_all_but_version_and_variant(digest: bytes) -> None:
    derived = uuid.UUID(bytes=ids.v8(digest))
    assert (derived.version, derived.variant) == (8, uuid.RFC_4122)
    mask = ~(0xF << 76 | 0b11 << 62)
    assert derived.int & mask == int.from_bytes(digest[:16], "big") & mask


@given(st.uuids())
def test_canonical_text_survives_the_trip(value: uuid.UUID) -> None:
    assert ids.uuid_text(value.bytes) == str(value)


def test_owners_are_told_apart() -> None:
    first, second = ids.owner_id(NOW), ids.owner_id(NOW)
    assert first < second
    assert first.startswith("own_")
