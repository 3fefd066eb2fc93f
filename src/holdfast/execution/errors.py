"""The errors of durable execution.

    DurableError
    ├── ExecutionConflict · ExecutionBusy · UnknownExecution · UnknownKind
    ├── ExecutionFailed · ExecutionAborted · ExecutionCanceled · ExecutionFinished · DeadlineExceeded
    ├── NeedsDecision · NoDecisionOpen · AmbiguityPolicyRequired
    ├── ReplayDivergence
    ├── ForeignTask · NestedEffect · OutsideExecution
    ├── FingerprintError · StepCapExceeded · DurabilityDisabled
    ├── StepFailed · JournalUnavailable · IntegrityError
    └── ResultLost
        ├── ResultTooLarge
        └── ResultUnserializable

Every class has a stable `code`; its attributes are given by keyword.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from holdfast.core.errors import CodedError

__all__ = [
    "AmbiguityPolicyRequired",
    "DeadlineExceeded",
    "DurabilityDisabled",
    "DurableError",
    "ExecutionAborted",
    "ExecutionBusy",
    "ExecutionCanceled",
    "ExecutionConflict",
    "ExecutionFailed",
    "ExecutionFinished",
    "FingerprintError",
    "ForeignTask",
    "IntegrityError",
    "JournalUnavailable",
    "NeedsDecision",
    "NestedEffect",
    "NoDecisionOpen",
    "OutsideExecution",
    "PositionShape",
    "ReplayDivergence",
    "ResultLost",
    "ResultTooLarge",
    "ResultUnserializable",
    "StepCapExceeded",
    "StepFailed",
    "UnknownExecution",
    "UnknownKind",
]


class PositionShape(NamedTuple):
    """What stands, or was asked for, at a position, as far as it may be shown.

    Attributes:
        kind: Kind of durable call, such as `step`.
        name: Name of the step or label, else empty.
        effect: Effect class of a step, else empty.
        shape: The first 16 hex digits of the shape.
    """

    kind: str
    name: str
    effect: str
    shape: str


class DurableError(CodedError):
    """The branch of durable execution."""

    code = "durable.error"


class ExecutionConflict(DurableError):
    """The id exists with another kind or another input; nothing was changed.

    Attributes:
        execution_id: The id.
        field: `kind` or `input`: what differs.
    """

    code = "durable.conflict"

    def __init__(self, message: str, hint: str = "", *, execution_id: str, field: str) -> None:
        super().__init__(message, hint)
        self.execution_id = execution_id
        self.field = field


class ExecutionBusy(DurableError):
    """A live owner has the execution, and the caller chose not to wait.

    Attributes:
        execution_id: The id.
        host: Machine of the owner; empty if it has none (paused, or waiting in a queue).
        pid: Process of the owner; 0 if it has none.
    """

    code = "durable.busy"

    def __init__(self, message: str, hint: str = "", *, execution_id: str, host: str = "", pid: int = 0) -> None:
        super().__init__(message, hint)
        self.execution_id = execution_id
        self.host = host
        self.pid = pid


class UnknownExecution(DurableError):
    """No execution has this id."""

    code = "durable.unknown_execution"


class UnknownKind(DurableError):
    """No function is registered under this kind in this process."""

    code = "durable.unknown_kind"


class ExecutionFailed(DurableError):
    """The execution ended because its function raised; live, the original is the `__cause__`.

    Attributes:
        error_type: Qualified name of what was raised.
        error_message: Its message, as far as `failure_message` lets it be recorded.
        positions: Positions of the step failures behind it.
    """

    code = "durable.execution_failed"

    def __init__(
        self, message: str, hint: str = "", *, error_type: str, error_message: str, positions: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message, hint)
        self.error_type = error_type
        self.error_message = error_message
        self.positions = positions


class ExecutionAborted(DurableError):
    """Holdfast or an operator ended the execution.

    Attributes:
        reason: `divergence`, `decision`, `step_cap`, `integrity`, `crash_loop` or `orphaned`.
    """

    code = "durable.execution_aborted"

    def __init__(self, message: str, hint: str = "", *, reason: str) -> None:
        super().__init__(message, hint)
        self.reason = reason


class ExecutionCanceled(DurableError):
    """The execution was canceled.

    Attributes:
        reason: The reason given with the request; may be empty.
    """

    code = "durable.execution_canceled"

    def __init__(self, message: str, hint: str = "", *, reason: str = "") -> None:
        super().__init__(message, hint)
        self.reason = reason


class ExecutionFinished(DurableError):
    """A write, a resume or a new position was asked of an execution that has ended.

    Attributes:
        status: How it ended.
    """

    code = "durable.execution_finished"

    def __init__(self, message: str, hint: str = "", *, status: str) -> None:
        super().__init__(message, hint)
        self.status = status


class DeadlineExceeded(DurableError):
    """The execution's deadline has passed.

    Attributes:
        deadline_at: The deadline, aware UTC.
    """

    code = "durable.deadline_exceeded"

    def __init__(self, message: str, hint: str = "", *, deadline_at: datetime) -> None:
        super().__init__(message, hint)
        self.deadline_at = deadline_at


class NeedsDecision(DurableError):
    """An effect may or may not have happened, and an operator has to say which.

    Attributes:
        execution_id: The execution, now in `needs_decision`.
        positions: Positions of the open decisions.
    """

    code = "durable.needs_decision"

    def __init__(self, message: str, hint: str = "", *, execution_id: str, positions: tuple[str, ...]) -> None:
        super().__init__(message, hint)
        self.execution_id = execution_id
        self.positions = positions


class NoDecisionOpen(DurableError):
    """There is no open decision at this position; an earlier answer stands."""

    code = "durable.no_decision_open"


class AmbiguityPolicyRequired(DurableError):
    """An `exactly_once` step of this kind was declared without `on_ambiguous`.

    Attributes:
        step: Name of the step.
    """

    code = "durable.policy_required"

    def __init__(self, message: str, hint: str = "", *, step: str) -> None:
        super().__init__(message, hint)
        self.step = step


class ReplayDivergence(DurableError):
    """The program asks for something else than the journal holds; no recorded value was returned.

    Attributes:
        execution_id: The execution.
        generation: The generation that diverged.
        position: Where.
        stored: What the journal holds there, or None if nothing.
        asked: What the program asked for, or None if it returned before its recorded tail.
        report: A text showing both.
    """

    code = "durable.replay_divergence"

    def __init__(  # noqa: PLR0913 - its attributes are what the specification lists
        self,
        message: str,
        hint: str = "",
        *,
        execution_id: str,
        generation: int,
        position: str,
        stored: PositionShape | None,
        asked: PositionShape | None,
        report: str,
    ) -> None:
        super().__init__(message, hint)
        self.execution_id = execution_id
        self.generation = generation
        self.position = position
        self.stored = stored
        self.asked = asked
        self.report = report


class ForeignTask(DurableError):
    """A durable call came from a task that does not own the scope; no position was taken."""

    code = "durable.foreign_task"


class NestedEffect(DurableError):
    """A durable call was made inside a running effect, or `run` inside an execution."""

    code = "durable.nested_effect"


class OutsideExecution(DurableError):
    """A durable call was made where no execution, or no effect, is running."""

    code = "durable.outside_execution"


class FingerprintError(DurableError):
    """An argument of a step cannot be encoded, so the step has no identity.

    Attributes:
        step: Name of the step.
        argument: Name of the parameter.
    """

    code = "durable.fingerprint"

    def __init__(self, message: str, hint: str = "", *, step: str, argument: str) -> None:
        super().__init__(message, hint)
        self.step = step
        self.argument = argument


class StepCapExceeded(DurableError):
    """The generation has more live positions than `steps_live_max`.

    Attributes:
        maximum: The limit.
    """

    code = "durable.step_cap"

    def __init__(self, message: str, hint: str = "", *, maximum: int) -> None:
        super().__init__(message, hint)
        self.maximum = maximum


class DurabilityDisabled(DurableError):
    """Asked for something that needs a ledger, with `enabled=false`."""

    code = "durable.disabled"


class StepFailed(DurableError):
    """A step failed, and its failure is recorded; live, the original is the `__cause__`.

    Attributes:
        position: The step's position.
        error_type: Qualified name of what the operation raised.
        error_message: Its message, as far as `failure_message` lets it be recorded.
        attempts: How many attempts were made.
    """

    code = "durable.step_failed"

    def __init__(
        self, message: str, hint: str = "", *, position: str, error_type: str, error_message: str, attempts: int
    ) -> None:
        super().__init__(message, hint)
        self.position = position
        self.error_type = error_type
        self.error_message = error_message
        self.attempts = attempts


class ResultLost(DurableError):
    """The step ran to its end, but its result could not be recorded; it never will be."""

    code = "durable.result_lost"


class ResultTooLarge(ResultLost):
    """The encoded result is over the limit for one value.

    Attributes:
        size: Encoded size in bytes.
        maximum: The limit in bytes.
    """

    code = "durable.result_too_large"

    def __init__(self, message: str, hint: str = "", *, size: int, maximum: int) -> None:
        super().__init__(message, hint)
        self.size = size
        self.maximum = maximum


class ResultUnserializable(ResultLost):
    """The result does not encode, or does not fit the declared type."""

    code = "durable.result_unserializable"


class JournalUnavailable(DurableError):
    """The journal cannot be written, and this call must not go on without it.

    Attributes:
        retry_after: Seconds after which trying again makes sense.
    """

    code = "durable.journal_unavailable"

    def __init__(self, message: str, hint: str = "", *, retry_after: float = 1.0) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class IntegrityError(DurableError):
    """A row of the ledger is not what was written, or contradicts another.

    Attributes:
        execution_id: The execution; empty if the row names none.
        table: Table of the row.
        row: Which row, in words.
    """

    code = "durable.integrity"

    def __init__(self, message: str, hint: str = "", *, execution_id: str, table: str, row: str) -> None:
        super().__init__(message, hint)
        self.execution_id = execution_id
        self.table = table
        self.row = row
