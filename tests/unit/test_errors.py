"""Errors: codes, attributes, and surviving a trip through pickle and copy."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from holdfast.core import errors as core
from holdfast.execution import errors as durable

SHAPE = durable.PositionShape("step", "charge", "exactly_once", "b2139a830f89744b")
ATTRIBUTES: dict[str, dict[str, object]] = {
    "LimitError": {"limit": "names", "maximum": 128, "actual": 129},
    "Unavailable": {"retry_after": 2.5},
    "ConfigError": {"keys": ("lease_ms",)},
    "CodecError": {"argument": "order"},
    "ExecutionConflict": {"execution_id": "turn-42", "field": "input"},
    "ExecutionBusy": {"execution_id": "turn-42", "host": "a", "pid": 7},
    "ExecutionFailed": {"error_type": "ValueError", "error_message": "no", "positions": ("0", "1.2")},
    "ExecutionAborted": {"reason": "step_cap"},
    "ExecutionCanceled": {"reason": "enough"},
    "ExecutionFinished": {"status": "completed"},
    "DeadlineExceeded": {"deadline_at": datetime(2026, 1, 1, tzinfo=UTC)},
    "NeedsDecision": {"execution_id": "turn-42", "positions": ("3",)},
    "AmbiguityPolicyRequired": {"step": "charge"},
    "ReplayDivergence": {
        "execution_id": "turn-42",
        "generation": 1,
        "position": "3",
        "stored": SHAPE,
        "asked": None,
        "report": "stored …, asked nothing",
    },
    "FingerprintError": {"step": "charge", "argument": "order"},
    "StepCapExceeded": {"maximum": 10_000},
    "StepFailed": {"position": "3", "error_type": "ValueError", "error_message": "no", "attempts": 2},
    "ResultTooLarge": {"size": 2, "maximum": 1},
    "JournalUnavailable": {"retry_after": 1.0},
    "IntegrityError": {"execution_id": "turn-42", "table": "durable_journal", "row": "seq 7"},
}
LEAVES = [
    cls
    for module in (core, durable)
    for _, cls in sorted(inspect.getmembers(module, inspect.isclass))
    if issubclass(cls, core.CodedError) and cls is not core.CodedError and cls.__module__ == module.__name__
]


def build(cls: type[core.CodedError]) -> core.CodedError:
    return cls("what happened", "what to do", **ATTRIBUTES.get(cls.__name__, {}))


@pytest.mark.parametrize("cls", LEAVES, ids=lambda cls: cls.__name__)
def test_an_error_keeps_what_it_was_given(cls: type[core.CodedError]) -> None:
    error = build(cls)
    assert (str(error), error.message, error.hint) == ("what happened", "what happened", "what to do")
    assert {name: getattr(error, name) for name in ATTRIBUTES.get(cls.__name__, {})} == ATTRIBUTES.get(cls.__name__, {})
    assert re.fullmatch(r"(config|codec|limit|store|durable)\.[a-z_]+", error.code)


@pytest.mark.parametrize("cls", LEAVES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("travel", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])  # noqa: S301 - our own
def test_an_error_survives_pickling_and_copying(
    cls: type[core.CodedError], travel: Callable[[core.CodedError], core.CodedError]
) -> None:
    error = build(cls)
    error.add_note("seen in passing")
    twin = travel(error)
    assert type(twin) is cls
    assert vars(twin) == vars(error)
    assert str(twin) == "what happened"
    assert twin.args == error.args


@pytest.mark.parametrize("cls", LEAVES, ids=lambda cls: cls.__name__)
def test_a_docstring_says_when(cls: type[core.CodedError]) -> None:
    assert cls.__doc__
    assert all(f"{name}:" in cls.__doc__ for name in ATTRIBUTES.get(cls.__name__, {}))
    module = core if cls.__module__ == core.__name__ else durable
    assert cls.__name__ in module.__all__
    assert cls.__name__ in (module.__doc__ or "")


def test_codes_are_unique() -> None:
    codes = [cls.code for cls in LEAVES]
    assert len(set(codes)) == len(codes)


def test_a_code_can_be_narrowed_where_it_is_raised() -> None:
    assert core.ConfigError("no", code="config.unknown_key").code == "config.unknown_key"
    assert core.ConfigError("no").code == "config.invalid"
    assert core.HoldfastError("slice.what", "no").code == "slice.what"


def test_lost_results_share_a_class() -> None:
    assert issubclass(durable.ResultTooLarge, durable.ResultLost)
    assert issubclass(durable.ResultUnserializable, durable.ResultLost)


def test_signals_are_no_errors() -> None:
    assert issubclass(core.LeaseLost, BaseException)
    assert not issubclass(core.LeaseLost, Exception)
    assert not issubclass(core.OutcomeUnknown, core.HoldfastError)
