"""Say what a step does to the world, and what to do when nobody knows whether it did.

Values only: effect classes, ambiguity policies, verdicts, retries, descriptions of steps and what a
step hands to its operation and to its caller. The rules that act on them are in `machine`.

Invariants:
    - An `exactly_once` effect always has a policy for the case that its fate is unknown, or its step
      cannot be built.
    - A policy, an effect kind and a retry are advice for the next ambiguity or failure; they are not
      part of a step's identity.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from math import isfinite
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

from holdfast.core.codec import Codec, codec, encode, json_blob
from holdfast.core.errors import CodecError, ConfigError, LimitError
from holdfast.execution import keys
from holdfast.execution.errors import AmbiguityPolicyRequired

T = TypeVar("T")

EffectClass: TypeAlias = Literal["idempotent", "at_least_once", "exactly_once"]
EffectKind: TypeAlias = Literal["cost_bearing", "destructive", "security", "money", "custom"]

NAME_BYTES_MAX = 128
"""Length of the name of a step, branch or patch: it is stored with every entry."""
FINGERPRINT_BYTES_MAX = 64 * 1024
"""Length of a fingerprint: enough for a document's digest list, too short for the document."""


@dataclass(frozen=True, slots=True)
class Skip:
    """Take the effect as done with a substitute value; see `skip`."""

    value: Any = None
    name: str = field(default="skip", init=False)


@dataclass(frozen=True, slots=True)
class Fail:
    """Stop and ask an operator; see `fail`."""

    name: str = field(default="fail", init=False)


@dataclass(frozen=True, slots=True)
class Rerun:
    """Run again and accept a second application; see `rerun`."""

    name: str = field(default="rerun", init=False)


@dataclass(frozen=True, slots=True)
class RerunWithKey:
    """Run again at a boundary that deduplicates; see `rerun_with_key`."""

    name: str = field(default="rerun_with_key", init=False)


@dataclass(frozen=True, slots=True)
class Reconcile:
    """Ask the other side what happened; see `reconcile`."""

    probe: Callable[[StepHandle], Awaitable[Verdict] | Verdict]
    name: str = field(default="reconcile", init=False)


Policy: TypeAlias = Skip | Fail | Rerun | RerunWithKey | Reconcile
"""What to do about an effect in doubt."""


def skip(value: Any = None) -> Policy:
    """When in doubt, never run the effect again; the step returns `value` instead.

    The substitute is recorded as `assumed` and replayed for ever. It must fit the step's declared
    result type (`ConfigError` when the step is built), except None.
    """
    return Skip(value)


def fail() -> Policy:
    """When in doubt, stop: the execution goes to `needs_decision` until `Holdfast.decide` answers."""
    return Fail()


def rerun() -> Policy:
    """When in doubt, run the effect again, accepting that it may then have happened twice."""
    return Rerun()


def rerun_with_key() -> Policy:
    """When in doubt, run the effect again with the same idempotency key.

    For a boundary that deduplicates by key. An operation that ends without having read
    `StepHandle.idempotency_key` is logged and audited as `key_unused`.
    """
    return RerunWithKey()


def reconcile(probe: Callable[[StepHandle], Awaitable[Verdict] | Verdict]) -> Policy:
    """When in doubt, ask: `probe` answers `happened(value)`, `not_happened()` or `unknown()`.

    The probe must only read. `unknown()`, an exception, or no answer within `probe_timeout_ms` act as
    `fail`.
    """
    if not callable(probe):
        raise ConfigError(f"reconcile: {probe!r} is not callable", hint="give a function that takes the handle")
    return Reconcile(probe)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of an effect in doubt. Made by `happened`, `not_happened`, `unknown`, `abort`."""

    answer: Literal["happened", "not_happened", "unknown", "abort"]
    value: Any = None
    blob: bytes | None = None


def happened(value: Any = None) -> Verdict:
    """Declare that the effect took place and gave `value`."""
    return Verdict("happened", value)


def happened_json(text: str) -> Verdict:
    """Declare that the effect took place; its value comes as JSON and is decoded by JSON's rules.

    Raises:
        CodecError: The text is not JSON.
    """
    return Verdict("happened", None, json_blob(text))


def not_happened() -> Verdict:
    """Declare that the effect did not take place: the step may run it."""
    return Verdict("not_happened")


def unknown() -> Verdict:
    """Declare, as a probe, that the other side cannot tell."""
    return Verdict("unknown")


def abort() -> Verdict:
    """Decide, as an operator, to end the execution."""
    return Verdict("abort")


@dataclass(frozen=True, slots=True)
class Effect:
    """An effect class with its policy. Made by `idempotent`, `at_least_once` and `exactly_once`."""

    cls: EffectClass
    kind: EffectKind | None = None
    policy: Policy | None = None
    unknown_on: tuple[type[Exception], ...] = ()


def idempotent() -> Effect:
    """Running twice does no harm: no intent is written; a crash before the outcome runs it again."""
    return Effect("idempotent")


def at_least_once() -> Effect:
    """Running twice is tolerated: as `idempotent`, and a later generation takes over the outcome."""
    return Effect("at_least_once")


_KINDS: tuple[EffectKind, ...] = ("cost_bearing", "destructive", "security", "money", "custom")


def exactly_once(
    kind: EffectKind, *, on_ambiguous: Policy | None = None, unknown_on: tuple[type[Exception], ...] = (TimeoutError,)
) -> Effect:
    """Write an intent before the effect, and never run it again without a policy's or a person's word.

    Args:
        kind: `cost_bearing`, `destructive`, `security`, `money` or `custom`.
        on_ambiguous: What to do when an intent has no outcome. `cost_bearing` defaults to
            `skip(None)`; the others must say (`AmbiguityPolicyRequired` when the step is built).
        unknown_on: Exceptions after which the fate of the effect is unknown, beside `OutcomeUnknown`.

    Raises:
        ConfigError: `kind` is not one of the five.
    """
    if kind not in _KINDS:
        raise ConfigError(f"exactly_once: unknown effect kind {kind!r}", hint=f"use one of {', '.join(_KINDS)}")
    if on_ambiguous is not None and not isinstance(on_ambiguous, Skip | Fail | Rerun | RerunWithKey | Reconcile):
        raise ConfigError(
            f"exactly_once: {on_ambiguous!r} is not a policy",
            hint="use skip(value), fail(), rerun(), rerun_with_key() or reconcile(probe)",
        )
    check_exceptions(unknown_on, "exactly_once: unknown_on")
    if on_ambiguous is None and kind == "cost_bearing":
        on_ambiguous = Skip()
    return Effect("exactly_once", kind, on_ambiguous, unknown_on)


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and after what pause, a failed step runs again.

    The pause before attempt n+1 is drawn uniformly from 0 to min(maximum, initial * factor**(n-1)).

    Attributes:
        max_attempts: Runs in all, 1 to 1000.
        initial: Longest pause before the second attempt.
        factor: Growth of the pause per attempt, at least 1.
        maximum: Upper limit of a pause.
        retry_on: Exceptions worth another attempt.
        give_up_on: Exceptions that are final even if `retry_on` matches.

    Raises:
        LimitError: More than 1000 attempts.
        ConfigError: A value out of range.
    """

    max_attempts: int = 1
    initial: timedelta = timedelta(milliseconds=200)
    factor: float = 2.0
    maximum: timedelta = timedelta(seconds=30)
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    give_up_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        whole = isinstance(self.max_attempts, int) and isinstance(self.factor, int | float) and isfinite(self.factor)
        if not whole or not isinstance(self.initial, timedelta) or not isinstance(self.maximum, timedelta):
            raise ConfigError(
                "Retry: max_attempts is a whole number, factor a number, initial and maximum are timedeltas",
                hint="for example Retry(max_attempts=5, initial=timedelta(milliseconds=200))",
            )
        check_exceptions(self.retry_on, "Retry: retry_on")
        check_exceptions(self.give_up_on, "Retry: give_up_on")
        if self.max_attempts > 1000:
            raise LimitError(
                f"Retry: max_attempts is {self.max_attempts}, the limit is 1000",
                limit="retry_attempts",
                maximum=1000,
                actual=self.max_attempts,
            )
        if self.max_attempts < 1 or self.factor < 1 or self.initial < timedelta(0) or self.maximum < timedelta(0):
            raise ConfigError(
                "Retry: max_attempts and factor must be at least 1, initial and maximum not negative",
                hint="for example Retry(max_attempts=5, initial=timedelta(milliseconds=200))",
            )


_EXACT: tuple[type, ...] = (str, int, bool, bytes, float)
"""Declared types whose values need no second look: what is decoded is what was encoded."""


@dataclass(frozen=True, eq=False)
class StepDescriptor:
    """A step described by hand, for adapters that have no function to decorate.

    Attributes:
        name: 1 to 128 bytes of UTF-8; part of the step's identity.
        effect: What it does to the world.
        fingerprint: What makes two calls of this name different effects; at most 64 KiB.
        retry: How often to run after a failure.
        timeout: Longest run of one attempt, or None.
        result_type: The type a replayed result is decoded to; `...` for none.
        raises: Exceptions that reach the program as themselves, live and on replay.
        spill: Whether a result may be as large as `spill_bytes_max`.

    Raises:
        AmbiguityPolicyRequired: An `exactly_once` effect (not `cost_bearing`) without a policy.
        ConfigError: A `skip` value that does not fit `result_type`, a bad name.
        LimitError: Name or fingerprint too long.
    """

    name: str
    effect: Effect
    fingerprint: bytes = field(default=b"", kw_only=True)
    retry: Retry = field(default_factory=Retry, kw_only=True)
    timeout: timedelta | None = field(default=None, kw_only=True)
    result_type: Any = field(default=..., kw_only=True)
    raises: tuple[type[Exception], ...] = field(default=(), kw_only=True)
    spill: bool = field(default=False, kw_only=True)
    # Worked out once, because they are read on every call.
    framed: bytes = field(init=False, repr=False)
    codec: Codec = field(init=False, repr=False)
    guarded: bool = field(init=False, repr=False)
    policy_name: str | None = field(init=False, repr=False)
    exact: type | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name, "step")
        self._check_options()
        check_fingerprint(self.name, self.fingerprint)
        if self.effect.cls == "exactly_once" and self.effect.policy is None:
            raise AmbiguityPolicyRequired(
                f"step {self.name!r}: an exactly_once effect of kind {self.effect.kind!r} needs on_ambiguous",
                hint="choose fail(), skip(value), rerun(), rerun_with_key() or reconcile(probe)",
                step=self.name,
            )
        object.__setattr__(self, "framed", keys.what("step", self.name, self.effect.cls))
        object.__setattr__(self, "codec", codec(self.result_type))
        object.__setattr__(self, "guarded", self.effect.cls == "exactly_once")
        object.__setattr__(self, "policy_name", self.effect.policy.name if self.effect.policy is not None else None)
        object.__setattr__(self, "exact", next((each for each in _EXACT if each is self.result_type), None))
        if isinstance(self.effect.policy, Skip) and self.effect.policy.value is not None:
            self._check_substitute(self.effect.policy.value)

    def _check_options(self) -> None:
        wrong = None
        if not isinstance(self.effect, Effect):
            wrong = f"effect is {self.effect!r}", "use idempotent(), at_least_once() or exactly_once(kind, …)"
        elif not isinstance(self.retry, Retry):
            wrong = f"retry is {self.retry!r}", "use Retry(max_attempts=…)"
        elif self.timeout is not None and (not isinstance(self.timeout, timedelta) or self.timeout <= timedelta(0)):
            wrong = f"timeout is {self.timeout!r}", "give a timedelta greater than zero, or None"
        elif not isinstance(self.fingerprint, bytes):
            wrong = f"the fingerprint is {type(self.fingerprint).__name__}", "give bytes"
        if wrong is not None:
            raise ConfigError(f"step {self.name!r}: {wrong[0]}", hint=wrong[1])
        check_exceptions(self.raises, f"step {self.name!r}: raises")

    def _check_substitute(self, value: Any) -> None:
        try:
            same = self.codec.decode(encode(value)) == value
        except CodecError as error:
            raise ConfigError(
                f"step {self.name!r}: the value of skip() does not fit the result type: {error}",
                hint="give skip() a value of the step's return type, or None",
            ) from error
        if not same:
            raise ConfigError(
                f"step {self.name!r}: the value of skip() does not come back equal from the result type",
                hint="give skip() a value of the step's return type, or None",
            )


def check_exceptions(classes: tuple[type[BaseException], ...], what: str) -> None:
    """Refuse what is not a tuple of exception classes."""
    if not isinstance(classes, tuple) or not all(isinstance(c, type) and issubclass(c, BaseException) for c in classes):
        raise ConfigError(f"{what} is {classes!r}, not a tuple of exception classes", hint="for example (OSError,)")


def check_name(name: str, what: str) -> None:
    """Refuse a name that is empty, too long, or has control characters."""
    if not isinstance(name, str) or not name or any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise ConfigError(f"{what} name {name!r} must be text without control characters", hint="use a plain name")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise ConfigError(f"{what} name {name!r} is not valid Unicode", hint="use a plain name") from None
    if length > NAME_BYTES_MAX:
        raise LimitError(
            f"{what} name {name[:40]!r}… has {length} bytes, the limit is {NAME_BYTES_MAX}",
            limit="name_bytes",
            maximum=NAME_BYTES_MAX,
            actual=length,
        )


def check_fingerprint(name: str, fingerprint: bytes) -> None:
    """Refuse a fingerprint over 64 KiB."""
    if len(fingerprint) > FINGERPRINT_BYTES_MAX:
        raise LimitError(
            f"step {name!r}: the fingerprint has {len(fingerprint)} bytes, the limit is {FINGERPRINT_BYTES_MAX}",
            hint="hash it first",
            limit="fingerprint_bytes",
            maximum=FINGERPRINT_BYTES_MAX,
            actual=len(fingerprint),
        )


class Counter(Protocol):
    """A counter of positions, as far as a handle asks."""

    path: bytes


class Running(Protocol):
    """The execution of a call, as far as a handle asks."""

    id: str


class Located(Protocol):
    """A call at a position, as far as its handle asks."""

    @property
    def run(self) -> Running: ...
    @property
    def scope(self) -> Counter: ...
    def key(self) -> bytes: ...

    index: int
    spec: StepDescriptor


class StepHandle:
    """What a running operation knows of itself; `current_step()` returns it.

    Attributes:
        execution_id: The execution the step belongs to.
        position: Where in the program it stands, for example `3.0.2`.
        name: The step's name.
        idempotency_key: 32 bytes, equal on every attempt, resume and generation: hand it (`.hex()`) to
            the service that deduplicates.
        attempt: 1 for the first run.
    """

    __slots__ = ("_call", "attempt", "key_read", "task")

    def __init__(self, call: Located, attempt: int) -> None:
        self._call = call
        self.attempt = attempt
        self.key_read = False
        self.task: Any = None

    @property
    def execution_id(self) -> str:
        """The execution the step belongs to."""
        return self._call.run.id

    @property
    def name(self) -> str:
        """The step's name."""
        return self._call.spec.name

    @property
    def position(self) -> str:
        """Where in the program the step stands, for example `3.0.2`."""
        return keys.position(*self.place)

    @property
    def place(self) -> tuple[bytes, int]:
        """Scope path and index, as stored."""
        return self._call.scope.path, self._call.index

    @property
    def guarded(self) -> bool:
        """Whether an intent was written before the operation."""
        return self._call.spec.guarded

    @property
    def key_missed(self) -> bool:
        """Whether the policy relies on the key, and the operation never looked at it."""
        return not self.key_read and isinstance(self._call.spec.effect.policy, RerunWithKey)

    @property
    def idempotency_key(self) -> bytes:
        """The step's own key, the same for all attempts."""
        self.key_read = True
        return self._call.key()

    def __repr__(self) -> str:
        return f"StepHandle({self.name!r} at {self.position} of {self.execution_id!r}, attempt {self.attempt})"


@dataclass(frozen=True, slots=True)
class Live(Generic[T]):
    """The operation ran now."""

    value: T


@dataclass(frozen=True, slots=True)
class Replayed(Generic[T]):
    """The value was recorded by an earlier run."""

    value: T


@dataclass(frozen=True, slots=True)
class Assumed(Generic[T]):
    """The effect was in doubt; the value is what `by` settled on."""

    value: T
    by: Literal["policy", "probe", "operator"]


@dataclass(frozen=True, slots=True)
class StepRecord(Generic[T]):
    """A step's value together with how it came about. Returned by `Step.recorded`."""

    position: str
    idempotency_key: bytes
    attempt: int
    value: T
    outcome: Live[T] | Replayed[T] | Assumed[T]
