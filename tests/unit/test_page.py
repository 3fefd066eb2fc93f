"""Pages and cursors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import CodecError, ConfigError, LimitError
from holdfast.core.page import Page, check_limit, decode_cursor, encode_cursor

VALUES = st.tuples(st.integers(-(2**63), 2**63 - 1), st.text(), st.binary())


@given(VALUES)
def test_a_cursor_gives_back_its_values(values: tuple[int, str, bytes]) -> None:
    cursor = encode_cursor("executions", values)
    assert decode_cursor("executions", cursor, int, str, bytes) == values
    assert cursor.replace("-", "").replace("_", "").isalnum()


@given(st.text() | VALUES.map(lambda values: encode_cursor("executions", values) + "A"))
def test_anything_else_is_refused(cursor: str) -> None:
    with pytest.raises(CodecError) as caught:
        decode_cursor("executions", cursor, int)
    assert caught.value.code == "codec.cursor"


def test_a_cursor_fits_no_other_list_and_no_other_types() -> None:
    cursor = encode_cursor("executions", (1, "a"))
    for of, types in (("promises", (int, str)), ("executions", (int,)), ("executions", (str, str))):
        with pytest.raises(CodecError):
            decode_cursor(of, cursor, *types)
    with pytest.raises(CodecError):
        decode_cursor("executions", "A" * 10_000, int)


def test_a_page_has_a_size() -> None:
    assert Page([1, 2], None).items == [1, 2]
    assert [check_limit(limit) for limit in (1, 500)] == [1, 500]
    with pytest.raises(LimitError) as caught:
        check_limit(501)
    assert (caught.value.limit, caught.value.maximum, caught.value.actual) == ("list page", 500, 501)
    for wrong in (0, -1, True, "5", 2.0):
        with pytest.raises(ConfigError):
            check_limit(wrong)
