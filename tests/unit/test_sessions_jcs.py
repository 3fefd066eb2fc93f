"""JSON from strangers, and canonical JSON."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.sessions import jcs
from holdfast.sessions.errors import MalformedJson, NumberRange

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_what_is_written_reads_back_and_is_written_alike(value: Any) -> None:
    once = jcs.write(value)
    assert jcs.write(jcs.read(once)) == once
    assert json.loads(once) == value


@pytest.mark.parametrize(
    ("bits", "text"),
    [  # RFC 8785, appendix B
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_numbers_are_written_as_ecmascript_writes_them(bits: str, text: str) -> None:
    [number] = struct.unpack(">d", bytes.fromhex(bits))
    assert jcs.write(number).decode() == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**53 + 1, "9007199254740992"),
        (-(2**60), "-1152921504606847000"),
        (123456789012345680000, "123456789012345680000"),
        (True, "true"),
        (False, "false"),
        (None, "null"),
        ([], "[]"),
        ({}, "{}"),
        ((1, 2), "[1,2]"),
        ({"b": [], "a": {"c": {}}}, '{"a":{"c":{}},"b":[]}'),
        ({"\ufb33": 1, "\U0001f600": 2, "\r": 3}, '{"\\r":3,"\U0001f600":2,"\ufb33":1}'),
        ("\ud800x\x00\x7f\u2028", '"\ufffdx\\u0000\x7f\u2028"'),
        (-1.5, "-1.5"),
        (1e-7, "1e-7"),
        (1.5e300, "1.5e+300"),
    ],
)
def test_values_are_written_canonically(value: object, text: str) -> None:
    assert jcs.write(value).decode() == text


@pytest.mark.parametrize("value", [math.inf, math.nan, 10**400])
def test_what_no_binary64_holds_is_not_written(value: object) -> None:
    with pytest.raises(NumberRange):
        jcs.write([value])


def test_what_json_cannot_say_is_not_written() -> None:
    with pytest.raises(TypeError, match="bytes"):
        jcs.write([b"x"])


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b' {"a":1,"a":2} ', {"a": 2}),
        (
            rb'{"\ud800a":["\ud83d\ude00","\udc00"],"b":1,"c":{"d":"\ud800"}}',
            {"\ufffda": ["\U0001f600", "\ufffd"], "b": 1, "c": {"d": "\ufffd"}},
        ),
        (b'"\xe2\x82A\xff"', "\ufffd\ufffdA\ufffd"),
        (
            rb'["\ud800",1.5,12345678901234567890,123456789012345678901234567890,-7]',
            ["\ufffd", 1.5, 12345678901234567890, 123456789012345677877719597056.0, -7],
        ),
        (b"1" * 300, 10**300 * 1.1111111111111111 / 10),
    ],
)
def test_json_is_read_strictly_and_mended(data: bytes, value: object) -> None:
    read = jcs.read(data)
    assert read == value or math.isclose(read, float("1" * 300))


@pytest.mark.parametrize("data", [b"NaN", b"[Infinity]", b"", b'{"a":1}x', b'"\xff', b"\xef\xbb\xbf1", b"[-Infinity]"])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedJson):
        jcs.read(data)


@pytest.mark.parametrize(
    "data",
    [
        b"1e999",
        b"[-1e999]",
        b"9" * 400,
        rb'["\ud800",1e999]',
        b'{"a":{"b":[%s,"x",null,true]}}' % (b"9" * 400),
        b"9" * 5000,
    ],
)
def test_a_number_outside_binary64_is_told_apart(data: bytes) -> None:
    with pytest.raises(NumberRange):
        jcs.read(data)


def test_depth_is_bounded_before_anything_recurses() -> None:
    assert jcs.read(b"[" * 200 + b"]" * 200)
    for deep in (201, 100_000):
        with pytest.raises(MalformedJson, match="deeper than 200") as caught:
            jcs.read(b"[" * deep + b"]" * deep)
        assert caught.value.limit == "json_depth_max"
    jcs.check_depth(b'["' + b"[" * 500 + b'",[],[]]', 2)


@pytest.mark.timeout(20)
def test_what_only_looks_like_json_costs_no_more_than_its_length() -> None:
    """What is quadratic takes hours."""
    jcs.check_depth(b"[" * 150 + b"{" * 50 + b"]" * 999 + b'"' + b'["' * 9 + rb"\"[" * 1_000_000)


def test_members_keep_their_bytes() -> None:
    assert jcs.members(b'{"a": 1.0 ,"b":[ 1 ],"a":{"x" :2}}') == {"a": b'{"x" :2}', "b": b"[ 1 ]"}
    odd = rb' {"a\ud800": "\ud800" , "b":[1,{"c":2}], "d":{"e":[]}, "f":1e999} '
    assert jcs.members(odd) == {
        "a\ufffd": rb'"\ud800"',
        "b": b'[1,{"c":2}]',
        "d": b'{"e":[]}',
        "f": b"1e999",
    }
    assert jcs.members(b"{}") == {}


def test_elements_keep_their_bytes() -> None:
    assert jcs.elements(b"[1, {} ,3.0]") == [b"1", b"{}", b"3.0"]
    assert jcs.elements(rb'["\ud800", [1,2] ,"x,]"]') == [rb'"\ud800"', b"[1,2]", b'"x,]"']
    assert jcs.elements(b'["\xff"]') == [b'"\xff"']


@pytest.mark.parametrize("data", [b"[1]", b'["\xff"]', b'{"a":"\xff"', b"", b'"\xff"'])
def test_what_is_no_object_has_no_members(data: bytes) -> None:
    with pytest.raises(MalformedJson):
        jcs.members(data)


@pytest.mark.parametrize("data", [b'{"a":1}', b'{"a":"\xff"}', b"nope"])
def test_what_is_no_list_has_no_elements(data: bytes) -> None:
    with pytest.raises(MalformedJson):
        jcs.elements(data)


def test_text_columns_hold_no_nul_and_no_surrogate() -> None:
    assert jcs.scrub("a\x00b\ud800c") == "a\ufffdb\ufffdc"


@pytest.mark.parametrize(
    ("data", "storable"),
    [
        (rb'"a\n\u00e9\\u0000"', True),
        (rb'"\ud83d\ude00\\ud800"', True),
        (rb'"\\\u0000"', False),
        (rb'"\ud800"', False),
        (rb'"\uD800x\udc00"', False),
        (rb'"\uDC00"', False),
        (rb'"\ud800\ud83d\ude00"', False),
    ],
)
def test_json_says_whether_its_texts_fit(data: bytes, storable: bool) -> None:
    assert jcs.is_storable(data) is storable


def test_names_are_those_of_the_members() -> None:
    for data in (b'{"a": 1, "b": {"c": 2}}', b'{"a": "\\ud800", "b": "\xff"}'):
        assert set(jcs.names(data)) == set(jcs.members(data)) == {"a", "b"}
    with pytest.raises(MalformedJson):
        jcs.names(b"[]")


def test_a_text_is_quoted_as_it_is_written() -> None:
    for text in ("", 'a"\x00\u2028', "\ud800x", "\U0001f600"):
        assert jcs.quoted(text) == jcs.write(text)


@given(JSON)
def test_what_is_plain_is_written_the_same_way_fast(value: Any) -> None:
    assert jcs.write(value) == jcs._write_slowly(value)
