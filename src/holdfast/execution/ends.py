"""Say how an execution ended, or why it cannot be had: the same live and from the record."""

from __future__ import annotations

from holdfast.core.errors import LimitError
from holdfast.execution.context import canceled, deadline_exceeded
from holdfast.execution.errors import ExecutionAborted, ExecutionBusy, ExecutionConflict, ExecutionFailed
from holdfast.execution.payloads import FAILURE, Failure
from holdfast.store.database import Row


def conflict(id: str, field: str, kind: str, asked: str) -> ExecutionConflict:
    """Say that an id belongs to another execution."""
    what = f"kind {kind!r}, not {asked!r}" if field == "kind" else "another input"
    return ExecutionConflict(
        f"execution {id!r} exists with {what}", "use another id, or call it as before", execution_id=id, field=field
    )


def busy(row: Row, why: str) -> ExecutionBusy:
    """Say that somebody else has an execution."""
    said = {"owned": f"is run by {row.host}:{row.pid}", "paused": "is paused", "queued": "waits in a queue"}[why]
    return ExecutionBusy(
        f"execution {row.id!r} {said}",
        "wait for it, or cancel it" if why != "paused" else f"holdfast executions resume {row.id}",
        execution_id=row.id,
        host=row.host or "",
        pid=row.pid or 0,
    )


def failed(id: str, failure: Failure) -> ExecutionFailed:
    """Say how an execution failed, the same live and from the record."""
    return ExecutionFailed(
        f"execution {id!r} failed: {failure.error_type}" + (f": {failure.message}" if failure.message else ""),
        "mend the cause, then Holdfast.resume it",
        error_type=failure.error_type,
        error_message=failure.message,
        positions=failure.positions,
    )


def ended(row: Row, raises: tuple[type[Exception], ...] = ()) -> Exception:
    """Make the exception for an execution that did not complete."""
    if row.status == "canceled":
        return canceled(row.id, row.reason or "")
    if row.status == "aborted":
        return ExecutionAborted(
            f"execution {row.id!r} was aborted: {row.reason}",
            "it stays so" if row.reason == "integrity" else "look at its timeline, then Holdfast.resume it",
            reason=row.reason or "",
        )
    failure: Failure = FAILURE.decode(row.failure) if row.failure else Failure("", "", 1, retryable=False)
    error = failure.rebuild(raises)
    if error is not None:
        return error
    if row.reason == "deadline" and row.deadline_at is not None:
        cause: Exception | None = deadline_exceeded(row.id, row.deadline_at)
    else:
        cause = None
    made = failed(row.id, failure)
    made.__cause__ = cause
    return made


def too_large(size: int, maximum: int) -> LimitError:
    """Say that an output is over the limit for one value."""
    return LimitError(
        f"the output has {size} bytes, the limit is {maximum}",
        "return a reference, or raise payload_bytes_max",
        limit="payload_bytes_max",
        maximum=maximum,
        actual=size,
    )
