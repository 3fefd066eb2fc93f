"""Decide what an execution may do next. Pure: no clock, no randomness, no storage.

The rules of durable execution as functions over values: who may run an execution, what the records at
a position mean, what becomes of an effect nobody can vouch for, when a failure is tried again, what a
change of the program means for effects already made.

Invariants:
    - A position with an outcome is never decided again.
    - An effect in doubt runs again only by its policy, a probe's or an operator's word.
    - Records of another shape never give a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from holdfast.execution.effects import Fail, Policy, Reconcile, Rerun, RerunWithKey, Retry, Skip, Verdict
from holdfast.execution.errors import PositionShape

# --- entries ------------------------------------------------------------------------------------

OPENED, FAILED, OUTCOME, PATCH = 0, 1, 2, 4
"""Parts of a position: opened or intent, failed attempt, outcome; and the answer of a patch."""


class Record(NamedTuple):
    """One entry of the journal, as replay reads it."""

    idx: int
    part: int
    attempt: int
    shape: bytes
    outcome: str | None
    payload: bytes | None
    kind: str
    name: str
    effect: str | None
    effect_kind: str | None
    policy: str | None
    key: bytes | None
    carried_from: int | None
    due_at: int | None
    seq: int


# --- states -------------------------------------------------------------------------------------

Status: TypeAlias = Literal[
    "pending", "running", "waiting", "needs_decision", "completed", "failed", "aborted", "canceled"
]

TERMINAL: frozenset[str] = frozenset({"completed", "failed", "aborted", "canceled"})

TRANSITIONS: dict[str, frozenset[str]] = {
    "": frozenset({"running", "pending"}),
    "pending": frozenset({"running", "waiting", "canceled", "failed", "aborted", "needs_decision"}),
    "running": frozenset(
        {"running", "pending", "waiting", "needs_decision", "completed", "failed", "aborted", "canceled"}
    ),
    "waiting": frozenset({"running", "pending", "waiting", "needs_decision", "failed", "aborted", "canceled"}),
    "needs_decision": frozenset({"pending", "waiting", "aborted", "canceled"}),
    "failed": frozenset({"pending", "running"}),
    "aborted": frozenset({"pending", "running"}),
    "completed": frozenset(),
    "canceled": frozenset(),
}
"""Which status may follow which; `running` after `running` is a takeover or a new generation."""


# --- who may run it -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Proceed:
    """Claim it and run it."""

    fence: int


@dataclass(frozen=True, slots=True)
class Replay:
    """It has ended; answer from the record."""

    status: str


@dataclass(frozen=True, slots=True)
class InFlight:
    """Somebody else runs it, or it rests."""

    why: Literal["owned", "queued", "paused"]


@dataclass(frozen=True, slots=True)
class Conflict:
    """It is another execution under the same id."""

    field: Literal["kind", "input"]


@dataclass(frozen=True, slots=True)
class Blocked:
    """It cannot go on before somebody decides or takes back the end."""

    status: str


class Found(Protocol):
    """What the ledger says of an execution, as far as admission asks."""

    status: str
    queue: str | None
    waiting_on: str | None
    owner_id: str | None
    fence: int
    kind: str
    input_hash: bytes


def admit(
    found: Found, *, owner_dead: bool, asked_kind: str, asked_hash: bytes | None
) -> Proceed | Replay | InFlight | Conflict | Blocked:
    """Decide whether an execution found in the ledger may be claimed.

    Args:
        found: What the ledger says.
        owner_dead: Whether the recorded owner, if there is one, is known to be dead.
        asked_kind: Kind of the call.
        asked_hash: Input of the call, or None to accept any.
    """
    if found.kind != asked_kind:
        return Conflict("kind")
    if asked_hash is not None and asked_hash != found.input_hash:
        return Conflict("input")
    if found.status in TERMINAL:
        return Replay(found.status)
    if found.status == "needs_decision":
        return Blocked(found.status)
    if found.status == "waiting" and found.waiting_on == "paused":
        return InFlight("paused")
    if found.status == "pending" and found.queue is not None:
        return InFlight("queued")
    if found.owner_id is not None and not owner_dead:
        return InFlight("owned")
    return Proceed(found.fence)


# --- what the records at a position mean --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fresh:
    """Nothing happened here."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The outcome is known."""

    record: Record


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """Attempt `attempt` was begun and nobody knows how it ended."""

    attempt: int
    record: Record


@dataclass(frozen=True, slots=True)
class Due:
    """Attempt `attempt` is to run, not before `due_at` (microseconds; None: at once)."""

    attempt: int
    due_at: int | None


@dataclass(frozen=True, slots=True)
class Held:
    """An operator must decide before the effect may begin."""

    record: Record


def judge(records: Sequence[Record]) -> Fresh | Settled | Ambiguous | Due | Held:
    """Read the records of one step's position (any order)."""
    intent: Record | None = None
    failed: Record | None = None
    held: Record | None = None
    for record in records:
        if record.part == OUTCOME:
            return Settled(record)
        if record.part == FAILED:
            if failed is None or record.attempt > failed.attempt:
                failed = record
        elif record.attempt == 0:
            held = record
        elif intent is None or record.attempt > intent.attempt:
            intent = record
    if intent is not None and (failed is None or intent.attempt > failed.attempt):
        return Ambiguous(intent.attempt, intent)
    if failed is not None:
        return Due(failed.attempt + 1, failed.due_at)
    return Held(held) if held is not None else Fresh()


def attempts(records: Iterable[Record]) -> int:
    """Count the attempts that records of one key bear witness to."""
    return max((record.attempt for record in records), default=0)


def tries(records: Iterable[Record]) -> int:
    """Count the failures that a retry's `max_attempts` has to reckon with: those since the step was last re-armed."""
    failed = [record for record in records if record.part == FAILED]
    rearmed = max((record.attempt for record in failed if record.due_at is None), default=0)
    return sum(record.due_at is not None and record.attempt > rearmed for record in failed)


def reruns(records: Iterable[Record]) -> int:
    """Count the attempts that were begun because nobody knew how the one before had ended."""
    begun = {record.attempt for record in records if record.part == OPENED and record.attempt > 0}
    known = {record.attempt for record in records if record.part == FAILED and record.attempt > 0}
    return max(0, len(begun - known) - 1)


# --- effects in doubt ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Assume:
    """Record an assumed outcome and go on with it."""

    value: Any
    blob: bytes | None
    by: Literal["policy", "probe", "operator"]


@dataclass(frozen=True, slots=True)
class Ask:
    """Open a decision and stop."""

    reason: str


@dataclass(frozen=True, slots=True)
class Again:
    """Write the next intent and run."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask the other side, then call `resolve` with its verdict."""

    policy: Reconcile


def resolve(
    policy: Policy, *, reruns: int, reruns_max: int, verdict: Verdict | None = None
) -> Assume | Ask | Again | Probe:
    """Decide what becomes of an effect whose fate is unknown.

    Args:
        policy: The policy of today's program.
        reruns: How often the key was run again already.
        reruns_max: Beyond this every policy is `fail`.
        verdict: What the probe answered; None before it was asked.
    """
    if isinstance(policy, Skip):
        return Assume(policy.value, None, "policy")
    if isinstance(policy, Fail) or reruns >= reruns_max:
        return Ask("ambiguous" if isinstance(policy, Fail) else "reruns_exhausted")
    if isinstance(policy, Rerun | RerunWithKey):
        return Again()
    if verdict is None:
        return Probe(policy)
    if verdict.answer == "happened":
        return Assume(verdict.value, verdict.blob, "probe")
    return Again() if verdict.answer == "not_happened" else Ask("probe_unknown")


def abandoned(policy: Policy) -> Assume | Ask:
    """Decide what becomes of an open intent whose call the program has given up: it cannot run again."""
    return Assume(policy.value, None, "policy") if isinstance(policy, Skip) else Ask("abandoned")


# --- failures -----------------------------------------------------------------------------------


def pause_before_next(retry: Retry, attempt: int, error: BaseException, draw: float) -> float | None:
    """Return the pause in seconds before the next attempt, or None when the failure is final.

    Args:
        retry: The step's retry.
        attempt: The attempt of this run that failed, from 1.
        error: What it raised.
        draw: A number in [0, 1).
    """
    if attempt >= retry.max_attempts or isinstance(error, retry.give_up_on) or not isinstance(error, retry.retry_on):
        return None
    initial, maximum = retry.initial.total_seconds(), retry.maximum.total_seconds()
    try:
        grown = initial * retry.factor ** (attempt - 1)
    except OverflowError:
        grown = maximum
    return draw * min(maximum, grown)


POSITION_MARK = "_holdfast_position"
"""Attribute under which an exception raised by a step remembers its position."""


def failed_positions(error: BaseException) -> tuple[str, ...]:
    """Name the positions of all step failures in an exception's cause, context and group tree."""
    found: dict[str, None] = {}
    for each in _tree(error):
        mark = getattr(each, POSITION_MARK, None)
        if mark is not None:
            found[mark] = None
    return tuple(found)


def _tree(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    stack: list[BaseException] = [error]
    while stack:
        each = stack.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, BaseExceptionGroup):
            stack.extend(reversed(each.exceptions))
        stack.extend(other for other in (each.__context__, each.__cause__) if other is not None)


# --- a changed program --------------------------------------------------------------------------

GUARDED_KINDS: frozenset[str] = frozenset({"destructive", "security", "money", "custom"})
"""Kinds of exactly_once effect that the shifted-effect guard stops for."""

_SPENT: frozenset[str | None] = frozenset({"value", "assumed", "no_value"})


class Earlier(NamedTuple):
    """What earlier generations of the chapter hold for one key: the latest records of it."""

    key: bytes
    name: str
    effect: str
    effect_kind: str | None
    generation: int
    records: tuple[Record, ...]

    @property
    def outcome(self) -> Record | None:
        """The record of its outcome, if it has one."""
        return next((record for record in self.records if record.part == OUTCOME), None)

    @property
    def spent(self) -> bool:
        """Whether the effect may have happened: an intent in doubt, or an outcome other than a failure."""
        outcome = self.outcome
        if outcome is not None:
            return outcome.outcome in _SPENT
        return isinstance(judge(self.records), Ambiguous)


@dataclass(slots=True)
class Past:
    """What earlier generations of the chapter did, and what this one has made of it.

    Attributes:
        earlier: What they hold, by key, oldest first.
        asked: Keys this generation has asked for.
        claimed: Sequence numbers of records that a position of this generation has taken over.
    """

    earlier: dict[bytes, Earlier]
    asked: set[bytes]
    claimed: set[int]

    def unclaimed(self) -> list[Earlier]:
        """List exactly_once effects of earlier generations that this one has not asked for."""
        return [
            item
            for item in self.earlier.values()
            if item.effect == "exactly_once"
            and item.spent
            and item.key not in self.asked
            and not any(record.seq in self.claimed for record in item.records)
        ]

    def shifted(self, name: str) -> Earlier | None:
        """Return the oldest unclaimed effect of a step's name, or None: then the step is a new effect."""
        return next((item for item in self.unclaimed() if item.name == name), None)

    def claim(self, item: Earlier) -> None:
        """A position of this generation takes an earlier effect over."""
        self.claimed.update(record.seq for record in item.records)


def describe(kind: str, name: str, effect: str | None, shape: bytes) -> PositionShape:
    """Describe a call so that two of them can be told apart by eye."""
    return PositionShape(kind, name, effect or "", shape.hex()[:16])


def shown(shape: PositionShape | None) -> str:
    """Write what stands at a position, or was asked of it, for people."""
    if shape is None:
        return "nothing"
    effect = f" {shape.effect}" if shape.effect else ""
    return f"{shape.kind} {shape.name!r}{effect} [{shape.shape}]"


def report(
    execution_id: str, generation: int, position: str, stored: PositionShape | None, asked: PositionShape | None
) -> str:
    """Write down a divergence for people."""
    return "\n".join(
        [
            f"Execution {execution_id!r}, generation {generation}, position {position}: the program changed.",
            f"  recorded: {shown(stored)}",
            f"  asked:    {shown(asked) if asked is not None else 'nothing, the program ended before it'}",
        ]
    )
