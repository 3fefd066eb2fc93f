"""Bodies as deltas: which base they get, when there is a new one, and that each comes back."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from holdfast.sessions import deltas
from holdfast.sessions.deltas import BASES_MAX, DELTAS_MAX, Base, Packing


def noise(seed: int, size: int = 4000) -> bytes:
    """Bytes that nothing compresses, the same for a seed."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - made-up data


@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 9))
def test_a_body_comes_back_from_any_base(start: bytes, base: bytes, times: int) -> None:
    data = start + base * times
    assert deltas.decode(deltas.encode(data, base), base) == data


def test_the_first_body_is_the_base_of_those_that_repeat_it() -> None:
    packing, first = Packing(), noise(1)
    assert packing.add(b"a", first, len(first)) is None
    for key, tail in ((b"b", noise(2, 100)), (b"c", noise(3, 1000))):
        found = packing.add(key, first + tail, len(first + tail))
        assert found is not None
        base, delta = found
        assert base == b"a"
        assert len(delta) < len(tail) + 100
        assert deltas.decode(delta, first) == first + tail


def test_a_body_that_is_not_halved_is_a_base_itself() -> None:
    packing, first = Packing(), noise(1)
    packing.add(b"a", first, 4000)
    grown = first + noise(2, 4100)
    assert packing.add(b"b", grown, 8100) is None
    found = packing.add(b"c", grown + b"!", 8101)
    assert found is not None
    assert found[0] == b"b"


def test_conversations_that_interleave_keep_their_bases() -> None:
    packing = Packing()
    threads = [noise(seed) for seed in range(BASES_MAX)]
    for at, body in enumerate(threads):
        assert packing.add(b"%d" % at, body, 4000) is None
    for turn in range(3):
        for at, body in enumerate(threads):
            found = packing.add(b"x", body + b"%d" % turn, 4001)
            assert found is not None
            assert found[0] == b"%d" % at


def test_the_base_that_was_not_used_for_longest_is_let_go() -> None:
    packing = Packing()
    for at in range(BASES_MAX):
        packing.add(b"%d" % at, noise(at), 4000)
    assert packing.add(b"again", noise(0), 4000) is not None  # 0 was the oldest; now that is 1
    assert packing.add(b"new", noise(99), 4000) is None
    assert packing.add(b"one", noise(1), 4000) is None
    assert packing.add(b"nought", noise(0), 4000) is not None


def test_a_base_takes_so_many_deltas_and_no_more() -> None:
    first = noise(1)
    packing = Packing([Base(b"full", first, DELTAS_MAX - 1)])
    found = packing.add(b"a", first + b"a", 4001)
    assert found is not None
    assert found[0] == b"full"
    assert packing.add(b"b", first + b"b", 4001) is None
    found = packing.add(b"c", first + b"c", 4001)
    assert found is not None
    assert found[0] == b"b"
