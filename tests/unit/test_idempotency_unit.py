"""What an error of a driver means, by its code alone."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.idempotency.unit import Aborted, aborts, chain, is_abort, is_busy, is_decided, is_spoilt, pick


def coded(**codes: Any) -> Exception:
    """An error of some driver, as drivers carry codes."""
    error = Exception("said so")
    for name, code in codes.items():
        setattr(error, name, code)
    return error


def because(error: BaseException, *, how: str) -> BaseException:
    """An error that was raised because of another."""
    match how:
        case "cause":
            outer: BaseException = RuntimeError()
            outer.__cause__ = error
        case "context":
            outer = RuntimeError()
            outer.__context__ = error
        case "orig":
            outer = coded(orig=error)
        case _:
            outer = BaseExceptionGroup("tasks", [ValueError(), BaseExceptionGroup("more", [error])])
    return outer


@pytest.mark.parametrize(
    "codes",
    [
        {"sqlstate": "40001"}, {"sqlstate": "40P01"}, {"pgcode": "40001"},
        {"sqlite_errorcode": 517}, {"extendedresult": 517},
    ],
)  # fmt: skip
def test_an_abort_is_known_by_its_code(codes: dict[str, Any]) -> None:
    error = coded(**codes)
    assert is_abort(error)
    assert all(is_abort(because(error, how=how)) for how in ("cause", "context", "orig", "group"))


@pytest.mark.parametrize("codes", [{}, {"sqlstate": "23505"}, {"sqlstate": None}, {"sqlite_errorcode": 5}])
def test_nothing_else_is_an_abort(codes: dict[str, Any]) -> None:
    assert not is_abort(coded(**codes))


@pytest.mark.parametrize(
    ("codes", "decided"),
    [
        ({"sqlstate": "23505"}, True), ({"sqlstate": "25P02"}, True), ({"sqlite_errorcode": 5}, True),
        ({"sqlite_errorcode": 787}, True), ({"extendedresult": 2067}, True), ({"sqlite_errorcode": 10}, False),
        ({"sqlstate": "08006"}, False), ({"sqlstate": "57P01"}, False), ({}, False),
    ],
)  # fmt: skip
def test_a_refusal_of_a_commit_is_told_from_a_loss(codes: dict[str, Any], decided: bool) -> None:
    assert is_decided(coded(**codes)) is decided


def test_a_busy_file_and_a_spoilt_transaction_are_known_by_their_codes() -> None:
    assert is_busy(coded(sqlite_errorcode=5))
    assert is_busy(coded(extendedresult=261))
    assert not is_busy(coded(sqlstate="55P03"))
    assert is_spoilt(coded(sqlstate="25P02"))
    assert not is_spoilt(coded(sqlstate="25001"))


def test_an_abort_is_raised_as_what_no_handler_catches() -> None:
    seen: list[bool] = []
    with pytest.raises(Aborted) as raised, aborts(lambda: seen.append(True)):
        raise coded(sqlstate="40001")
    assert not isinstance(raised.value, Exception)
    assert seen == [True]
    with pytest.raises(ZeroDivisionError), aborts(lambda: seen.append(True)):
        raise ZeroDivisionError
    with aborts():
        pass
    assert seen == [True]


def test_errors_that_go_in_a_ring_come_to_an_end() -> None:
    first, second = RuntimeError(), ValueError()
    first.__context__, second.__context__ = second, first
    assert list(chain(first)) == [first, second]
    assert pick(first, ValueError) is second
    assert pick(first, KeyError) is None
