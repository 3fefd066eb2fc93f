"""What PostgreSQL and its driver say, in the ledger's own words, and what a connection is told; no server is needed."""

from __future__ import annotations

import asyncpg
import pytest

from holdfast.core.errors import HoldfastError, StoreError
from holdfast.store.postgres_errors import (
    Edge,
    is_append_fault,
    is_collision,
    is_lost,
    is_unprepared,
    sqlstate_of,
    translate,
)  # fmt: skip
from holdfast.store.postgres_pool import READ_BYTES, _read_less, begun

LABEL = "postgresql://h/d"


def said(state: str) -> asyncpg.PostgresError:
    """An error of the server."""
    error: asyncpg.PostgresError = asyncpg.PostgresError.new({"C": state, "M": "told so", "S": "ERROR"})
    assert sqlstate_of(error) == state
    return error


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("23505", "store.conflict"), ("22003", "store.value"), ("54000", "store.too_big"), ("40001", "store.busy"),
        ("55P03", "store.busy"), ("28P01", "store.permission"), ("42501", "store.permission"),
        ("42P01", "store.schema"), ("3F000", "store.schema"), ("42703", "store.schema"), ("3D000", "store.cannot_open"),
        ("26000", "store.unavailable"), ("42P05", "store.unavailable"), ("25006", "store.read_only"),
        ("25P02", "store.error"), ("0A000", "store.busy"), ("53100", "store.unavailable"),
        ("57014", "store.unavailable"), ("08006", "store.unavailable"), ("57P01", "store.unavailable"),
        ("XX001", "store.corrupt"), ("XX002", "store.corrupt"), ("XX000", "store.error"), ("99999", "store.error"),
    ],
)  # fmt: skip
def test_an_error_of_the_server_has_its_meaning(state: str, code: str) -> None:
    assert translate(said(state), LABEL).code == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoreError("mine"), "store.error"), (OverflowError("much"), "store.value"), (TypeError("odd"), "store.value"),
        (asyncpg.DataError("odd"), "store.value"), (TimeoutError(), "store.unavailable"),
        (OSError("cut"), "store.unavailable"), (asyncpg.InterfaceError("another operation is going on"), "store.error"),
        (asyncpg.InterfaceError("the connection is closed"), "store.unavailable"),
        (asyncpg.InternalClientError("lost count"), "store.unavailable"),
    ],
)  # fmt: skip
def test_an_error_of_the_driver_has_its_meaning(error: Exception, code: str) -> None:
    assert translate(error, LABEL).code == code


def test_errors_are_told_apart() -> None:
    faults = {state for state in ("22003", "23505", "42601", "42501", "54000", "26000", "42P05", "08006", "40001")
              if is_append_fault(said(state))}  # fmt: skip
    assert faults == {"22003", "23505", "42601", "54000"}
    assert is_append_fault(StoreError("no such statement"))
    assert is_append_fault(asyncpg.InterfaceError("wrong number of arguments"))
    assert not is_append_fault(asyncpg.InterfaceError("the connection is closed"))
    assert not is_append_fault(OSError())
    assert [is_collision(said(state)) for state in ("40001", "40P01", "55P03")] == [True, True, False]
    assert [is_lost(said(state)) for state in ("08006", "57P01", "57014", "26000")] == [True, True, False, False]
    assert [is_lost(error) for error in (OSError(), TimeoutError(), ValueError())] == [True, True, False]
    assert [is_unprepared(said(state)) for state in ("26000", "42P05", "42P01")] == [True, True, False]
    assert not is_unprepared(None)
    assert not is_unprepared(OSError())


def test_an_edge_maps_what_the_driver_raises_and_tells_of_it_first() -> None:
    learned: list[BaseException] = []
    gone, edge = said("26000"), Edge(LABEL, learned.append)
    with pytest.raises(HoldfastError) as caught, edge:
        raise gone
    assert caught.value.__cause__ is gone
    with pytest.raises(HoldfastError) as caught, edge:
        raise said("22003")
    assert caught.value.__cause__ is None, "it quotes values"
    assert len(learned) == 2
    with pytest.raises(ZeroDivisionError), edge:
        raise ZeroDivisionError
    with edge:
        pass
    assert len(learned) == 2


class Transport:
    """The driver's transport, of an event loop that has such a limit, or not."""

    def __init__(self, **attributes: int) -> None:
        self.__dict__.update(attributes)


@pytest.mark.parametrize(
    ("before", "after"), [(256 * 1024, READ_BYTES), (READ_BYTES, READ_BYTES), (1024, 1024), (None, None)]
)
def test_answers_are_read_in_small_pieces_where_that_can_be_said(before: int | None, after: int | None) -> None:
    transport = Transport() if before is None else Transport(max_size=before)
    _read_less(transport)
    assert getattr(transport, "max_size", None) == after


def test_a_transaction_behind_a_pooler_says_what_a_session_would() -> None:
    assert begun("BEGIN", {}) == "BEGIN; SET LOCAL synchronous_commit TO 'on'; SET LOCAL jit TO 'off'"
    assert begun("BEGIN", {"enable_seqscan": "off"}).endswith("; SET LOCAL enable_seqscan TO 'off'")
