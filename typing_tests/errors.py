"""What a checker infers of errors: their place in the tree and their attributes. Checked, never run."""

from __future__ import annotations

from datetime import datetime
from typing import assert_type

import holdfast

roots: list[type[holdfast.HoldfastError]] = [
    holdfast.CodecError,
    holdfast.ConfigError,
    holdfast.DurableError,
    holdfast.LimitError,
    holdfast.StoreError,
]
store: list[type[holdfast.StoreError]] = [
    holdfast.Busy,
    holdfast.Closed,
    holdfast.Conflict,
    holdfast.SchemaMismatch,
    holdfast.Unavailable,
    holdfast.WrongLoop,
    holdfast.WrongProcess,
]
durable: list[type[holdfast.DurableError]] = [
    holdfast.DurabilityDisabled,
    holdfast.ForeignTask,
    holdfast.NestedEffect,
    holdfast.NoDecisionOpen,
    holdfast.OutsideExecution,
    holdfast.ResultLost,
    holdfast.ResultUnserializable,
    holdfast.UnknownExecution,
    holdfast.UnknownKind,
]


def all_have_code_message_and_hint(error: holdfast.HoldfastError) -> None:
    """And only those."""
    assert_type(error.code, str)
    assert_type(error.message, str)
    assert_type(error.hint, str)
    error.positions  # type: ignore[attr-defined]  # noqa: B018 - not every error has positions


def leaves_say_more(error: Exception) -> None:
    """By attributes of their own."""
    match error:
        case holdfast.ExecutionConflict():
            assert_type((error.execution_id, error.field), tuple[str, str])
        case holdfast.ExecutionBusy():
            assert_type((error.execution_id, error.host, error.pid), tuple[str, str, int])
        case holdfast.ExecutionFailed():
            assert_type((error.error_type, error.error_message), tuple[str, str])
            assert_type(error.positions, tuple[str, ...])
        case holdfast.ExecutionAborted() | holdfast.ExecutionCanceled():
            assert_type(error.reason, str)
        case holdfast.ExecutionFinished():
            assert_type(error.status, str)
        case holdfast.DeadlineExceeded():
            assert_type(error.deadline_at, datetime)
        case holdfast.NeedsDecision():
            assert_type(error.positions, tuple[str, ...])
        case holdfast.AmbiguityPolicyRequired():
            assert_type(error.step, str)
        case holdfast.ReplayDivergence():
            assert_type(error.stored, holdfast.PositionShape | None)
            assert_type(error.asked, holdfast.PositionShape | None)
            assert_type((error.generation, error.position, error.report), tuple[int, str, str])
        case holdfast.FingerprintError():
            assert_type((error.step, error.argument), tuple[str, str])
        case holdfast.StepCapExceeded():
            assert_type(error.maximum, int)
        case holdfast.StepFailed():
            assert_type((error.position, error.error_type, error.attempts), tuple[str, str, int])
        case holdfast.ResultTooLarge():
            assert_type((error.size, error.maximum), tuple[int, int])
        case holdfast.JournalUnavailable() | holdfast.Unavailable():
            assert_type(error.retry_after, float)
        case holdfast.IntegrityError():
            assert_type((error.execution_id, error.table, error.row), tuple[str, str, str])
        case holdfast.LimitError():
            assert_type((error.limit, error.maximum, error.actual), tuple[str, int, int])
        case holdfast.ConfigError():
            assert_type(error.keys, tuple[str, ...])
        case holdfast.CodecError():
            assert_type(error.argument, str)
        case _:
            raise error
