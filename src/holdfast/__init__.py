"""Durable execution with exactly-once effects, and the proof of it, over one ledger.

    import holdfast

    @holdfast.step(effect=holdfast.at_least_once())
    async def search(query: str) -> list[str]: ...

    @holdfast.durable(kind="agent_turn")
    async def turn(prompt: str) -> str: ...

    async with holdfast.open("agent.db") as hf:
        answer = await hf.run(turn, "buy milk", id="turn-42")

Names are loaded on first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from holdfast.core.version import VERSION

TYPE_CHECKING = False  # what `typing` says too; this package is imported where `typing` would cost too much
if TYPE_CHECKING:
    from typing import Any

    from holdfast.core.clock import Clock as Clock
    from holdfast.core.clock import SystemClock as SystemClock
    from holdfast.core.errors import Busy as Busy
    from holdfast.core.errors import Closed as Closed
    from holdfast.core.errors import CodecError as CodecError
    from holdfast.core.errors import ConfigError as ConfigError
    from holdfast.core.errors import Conflict as Conflict
    from holdfast.core.errors import HoldfastError as HoldfastError
    from holdfast.core.errors import LimitError as LimitError
    from holdfast.core.errors import OutcomeUnknown as OutcomeUnknown
    from holdfast.core.errors import SchemaMismatch as SchemaMismatch
    from holdfast.core.errors import StoreError as StoreError
    from holdfast.core.errors import Unavailable as Unavailable
    from holdfast.core.errors import WrongLoop as WrongLoop
    from holdfast.core.errors import WrongProcess as WrongProcess
    from holdfast.core.page import Page as Page
    from holdfast.execution.branches import Branch as Branch
    from holdfast.execution.branches import Parallel as Parallel
    from holdfast.execution.branches import branch as branch
    from holdfast.execution.branches import first as first
    from holdfast.execution.branches import gather as gather
    from holdfast.execution.config import DurableConfig as DurableConfig
    from holdfast.execution.context import current_step as current_step
    from holdfast.execution.declare import Call as Call
    from holdfast.execution.declare import Durable as Durable
    from holdfast.execution.declare import PlainStep as PlainStep
    from holdfast.execution.declare import Step as Step
    from holdfast.execution.declare import durable as durable
    from holdfast.execution.declare import step as step
    from holdfast.execution.effects import Assumed as Assumed
    from holdfast.execution.effects import Effect as Effect
    from holdfast.execution.effects import Live as Live
    from holdfast.execution.effects import Policy as Policy
    from holdfast.execution.effects import Replayed as Replayed
    from holdfast.execution.effects import Retry as Retry
    from holdfast.execution.effects import StepDescriptor as StepDescriptor
    from holdfast.execution.effects import StepHandle as StepHandle
    from holdfast.execution.effects import StepRecord as StepRecord
    from holdfast.execution.effects import Verdict as Verdict
    from holdfast.execution.effects import abort as abort
    from holdfast.execution.effects import at_least_once as at_least_once
    from holdfast.execution.effects import exactly_once as exactly_once
    from holdfast.execution.effects import fail as fail
    from holdfast.execution.effects import happened as happened
    from holdfast.execution.effects import idempotent as idempotent
    from holdfast.execution.effects import not_happened as not_happened
    from holdfast.execution.effects import reconcile as reconcile
    from holdfast.execution.effects import rerun as rerun
    from holdfast.execution.effects import rerun_with_key as rerun_with_key
    from holdfast.execution.effects import skip as skip
    from holdfast.execution.effects import unknown as unknown
    from holdfast.execution.engine import Holdfast as Holdfast
    from holdfast.execution.engine import open as open
    from holdfast.execution.errors import AmbiguityPolicyRequired as AmbiguityPolicyRequired
    from holdfast.execution.errors import DeadlineExceeded as DeadlineExceeded
    from holdfast.execution.errors import DurabilityDisabled as DurabilityDisabled
    from holdfast.execution.errors import DurableError as DurableError
    from holdfast.execution.errors import ExecutionAborted as ExecutionAborted
    from holdfast.execution.errors import ExecutionBusy as ExecutionBusy
    from holdfast.execution.errors import ExecutionCanceled as ExecutionCanceled
    from holdfast.execution.errors import ExecutionConflict as ExecutionConflict
    from holdfast.execution.errors import ExecutionFailed as ExecutionFailed
    from holdfast.execution.errors import ExecutionFinished as ExecutionFinished
    from holdfast.execution.errors import FingerprintError as FingerprintError
    from holdfast.execution.errors import ForeignTask as ForeignTask
    from holdfast.execution.errors import IntegrityError as IntegrityError
    from holdfast.execution.errors import JournalUnavailable as JournalUnavailable
    from holdfast.execution.errors import NeedsDecision as NeedsDecision
    from holdfast.execution.errors import NestedEffect as NestedEffect
    from holdfast.execution.errors import NoDecisionOpen as NoDecisionOpen
    from holdfast.execution.errors import OutsideExecution as OutsideExecution
    from holdfast.execution.errors import PositionShape as PositionShape
    from holdfast.execution.errors import ReplayDivergence as ReplayDivergence
    from holdfast.execution.errors import ResultLost as ResultLost
    from holdfast.execution.errors import ResultTooLarge as ResultTooLarge
    from holdfast.execution.errors import ResultUnserializable as ResultUnserializable
    from holdfast.execution.errors import StepCapExceeded as StepCapExceeded
    from holdfast.execution.errors import StepFailed as StepFailed
    from holdfast.execution.errors import UnknownExecution as UnknownExecution
    from holdfast.execution.errors import UnknownKind as UnknownKind
    from holdfast.execution.flow import Context as Context
    from holdfast.execution.flow import continue_as_new as continue_as_new
    from holdfast.execution.flow import current as current
    from holdfast.execution.handle import Handle as Handle
    from holdfast.execution.operate import AlreadyTerminal as AlreadyTerminal
    from holdfast.execution.operate import Canceled as Canceled
    from holdfast.execution.operate import CancelOutcome as CancelOutcome
    from holdfast.execution.operate import NotFound as NotFound
    from holdfast.execution.operate import Paused as Paused
    from holdfast.execution.operate import RecoverReport as RecoverReport
    from holdfast.execution.operate import Requested as Requested
    from holdfast.execution.values import now as now
    from holdfast.execution.values import patched as patched
    from holdfast.execution.values import random as random
    from holdfast.execution.values import uuid as uuid
    from holdfast.execution.verify import Problem as Problem
    from holdfast.execution.verify import VerifyReport as VerifyReport
    from holdfast.execution.views import AuditRecord as AuditRecord
    from holdfast.execution.views import Difference as Difference
    from holdfast.execution.views import Entry as Entry
    from holdfast.execution.views import Event as Event
    from holdfast.execution.views import Execution as Execution

__version__ = VERSION

_HOMES = {
    "core.clock": ("Clock", "SystemClock"),
    "core.errors": (
        "Busy", "Closed", "CodecError", "ConfigError", "Conflict", "HoldfastError", "LimitError", "OutcomeUnknown",
        "SchemaMismatch", "StoreError", "Unavailable", "WrongLoop", "WrongProcess",
    ),
    "core.page": ("Page",),
    "execution.config": ("DurableConfig",),
    "execution.context": ("current_step",),
    "execution.declare": ("Call", "Durable", "PlainStep", "Step", "durable", "step"),
    "execution.effects": (
        "Assumed", "Effect", "Live", "Policy", "Replayed", "Retry", "StepDescriptor", "StepHandle", "StepRecord",
        "Verdict", "abort", "at_least_once", "exactly_once", "fail", "happened", "idempotent", "not_happened",
        "reconcile", "rerun", "rerun_with_key", "skip", "unknown",
    ),
    "execution.engine": ("Holdfast", "open"),
    "execution.handle": ("Handle",),
    "execution.errors": (
        "AmbiguityPolicyRequired", "DeadlineExceeded", "DurabilityDisabled", "DurableError", "ExecutionAborted",
        "ExecutionBusy", "ExecutionCanceled", "ExecutionConflict", "ExecutionFailed", "ExecutionFinished",
        "FingerprintError", "ForeignTask", "IntegrityError", "JournalUnavailable", "NeedsDecision", "NestedEffect",
        "NoDecisionOpen", "OutsideExecution", "PositionShape", "ReplayDivergence", "ResultLost", "ResultTooLarge",
        "ResultUnserializable", "StepCapExceeded", "StepFailed", "UnknownExecution", "UnknownKind",
    ),
    "execution.branches": ("Branch", "Parallel", "branch", "first", "gather"),
    "execution.flow": ("Context", "continue_as_new", "current"),
    "execution.values": ("now", "patched", "random", "uuid"),
    "execution.operate": (
        "AlreadyTerminal", "CancelOutcome", "Canceled", "NotFound", "Paused", "RecoverReport", "Requested",
    ),
    "execution.verify": ("Problem", "VerifyReport"),
    "execution.views": ("AuditRecord", "Difference", "Entry", "Event", "Execution"),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"holdfast.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
