"""Names by content: the exact bytes, and that nothing collides."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.execution import keys

NAMESPACE = bytes.fromhex("000102030405060708090a0b0c0d0e0f")
UID = bytes.fromhex("eddf22b39eed8031987e15df6c626718")

words = st.text(max_size=12)
blobs = st.binary(max_size=40)


def framed_key(scope: bytes, occurrence: int, chapter: int = 0) -> str:
    prefix = keys.key_prefix(UID, chapter, scope)
    return keys.key(prefix, keys.what("step", "charge", "exactly_once"), b"order-1", occurrence).hex()


def test_uid_of_a_chosen_id_is_the_published_one() -> None:
    assert keys.uid(NAMESPACE, "turn-42") == UID


def test_shape_of_a_step_is_the_published_one() -> None:
    shape = keys.shape(keys.what("step", "charge", "exactly_once"), b"order-1")
    assert shape.hex() == "b2139a830f89744b890c93d4c04f1aa5e3e390e077250fee3579c70e6aed21ce"


def test_keys_are_the_published_ones() -> None:
    branch = keys.scope_label(b"", "fetch", 0)
    assert framed_key(b"", 0) == "93e1b26a24c30fe7d52d78f50be68214a58247a3225eb55faeda0c0202309256"
    assert framed_key(branch, 1) == "3549972849debfa705a33b5fba38315fdb7d4c1d792fd7c0cf8e372657a67e74"
    assert framed_key(b"", 0, chapter=1) == "5b5cd890723ad7e40757f2d0e17517e6758ccedf4c8493e4fcfcd7b2a6d5f8e0"


def test_the_hash_of_arguments_is_the_published_one() -> None:
    from holdfast.core.codec import canonical

    hashed = keys.arguments(canonical({"prompt": "buy milk"}))
    assert hashed.hex() == "68c5e39104d4705a05ba328d77d45a33c2800cf09f70613bc3d0431bb8c1458b"


@given(st.lists(blobs, max_size=5), st.lists(blobs, max_size=5))
def test_no_two_lists_of_fields_frame_alike(left: list[bytes], right: list[bytes]) -> None:
    assert (keys.frame(*left) == keys.frame(*right)) == (left == right)


@given(
    st.tuples(words, words, words, blobs, st.integers(0, 9)), st.tuples(words, words, words, blobs, st.integers(0, 9))
)
def test_keys_are_injective(left: tuple[str, str, str, bytes, int], right: tuple[str, str, str, bytes, int]) -> None:
    def key(parts: tuple[str, str, str, bytes, int]) -> bytes:
        kind, name, effect, fingerprint, occurrence = parts
        return keys.key(keys.key_prefix(UID, 0, b""), keys.what(kind, name, effect), fingerprint, occurrence)

    assert (key(left) == key(right)) == (left == right)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=16))
def test_a_position_reads_back_as_it_was_written(path: list[int]) -> None:
    scope = keys.scope_bytes(tuple(path[:-1]))
    text = keys.position(scope, path[-1])
    assert keys.parse_position(text) == (scope, path[-1])
    assert text == ".".join(map(str, path))


@given(st.lists(st.integers(0, 2**32 - 1), max_size=4), st.lists(st.integers(0, 2**32 - 1), max_size=4))
def test_stored_scopes_sort_as_positions_do(left: list[int], right: list[int]) -> None:
    a, b = keys.scope_bytes(tuple(left)), keys.scope_bytes(tuple(right))
    assert (a < b) == (left < right)


@pytest.mark.parametrize("text", ["", "a", "1.", ".1", "1..2", "-1", "4294967296", "1.x", "\uff11", "99999999999"])
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        keys.parse_position(text)


def test_extending_a_scope_opens_the_one_below_a_position() -> None:
    assert keys.extend(keys.scope_bytes((3,)), 7) == keys.scope_bytes((3, 7))


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_random_values_depend_on_seed_and_key_alone(seed: bytes, key: bytes) -> None:
    drawn = keys.random_float(seed, key)
    assert 0 <= drawn < 1
    assert drawn == keys.random_float(seed, key)
    assert drawn == (struct.unpack("<Q", keys.keyed(seed, key)[:8])[0] >> 11) * 2.0**-53
    assert keys.random_uuid(seed, key).version == 4
    assert keys.random_uuid(seed, key) == keys.random_uuid(seed, key)
