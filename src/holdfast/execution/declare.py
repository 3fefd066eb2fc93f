"""Declare durable functions and steps.

A decorated step is the function it decorates until it is called inside an execution; there the same call
takes a position and becomes a step. A durable function is found by its kind when a process that did not
start an execution takes it over.

Invariants:
    - A step's identity (name, class, fingerprint) is fixed when its call expression is evaluated.
    - A kind names one function in a process.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Self, TypedDict, TypeVar, cast, overload

from holdfast.core.codec import Codec, canonical, codec, encode
from holdfast.core.errors import CodecError, ConfigError
from holdfast.execution import keys
from holdfast.execution.effects import Effect, Retry, StepDescriptor, StepRecord, check_exceptions, check_fingerprint
from holdfast.execution.errors import FingerprintError, NestedEffect, OutsideExecution, UnknownKind
from holdfast.execution.scope import Scope, _effect, _scope
from holdfast.execution.signature import Signature, resolved_hints
from holdfast.execution.steps import StepCall

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")
R_co = TypeVar("R_co", covariant=True)

Fingerprint = str | tuple[str, ...] | bytes | Callable[..., bytes] | None

KIND = re.compile(r"[a-z][a-z0-9_.-]{0,63}\Z")
OPTIONS = frozenset({"id", "deadline", "on_divergence", "on_busy", "reopen"})
"""Options of `run`: a parameter of this name can only be passed by position."""

_MEMO_MAX = 4096
_MEMO_BYTES_MAX = 256

_registry: dict[str, Durable[..., Any]] = {}


def require_kind(kind: str) -> Durable[..., Any]:
    """Return the function registered under a kind.

    Raises:
        UnknownKind: No module that this process has imported registers it.
    """
    fn = _registry.get(kind)
    if fn is None:
        raise UnknownKind(f"no durable function of kind {kind!r} is registered", "import the module that declares it")
    return fn


def registered() -> frozenset[str]:
    """List the kinds this process can run."""
    return frozenset(_registry)


def check_function(fn: object, what: str) -> None:
    """Refuse to decorate what is not a function."""
    if not callable(fn) or not hasattr(fn, "__name__"):
        raise ConfigError(f"{what}: {fn!r} is not a function", f"use @holdfast.{what}(…) above a function")


def check_kind(kind: str) -> None:
    """Refuse what is not a kind."""
    if not isinstance(kind, str) or not KIND.match(kind):
        raise ConfigError(f"kind {kind!r} is not valid", f"kinds match {KIND.pattern[:-2]}")


# --- durable functions ------------------------------------------------------------------------------


class Call(Generic[R_co]):
    """A durable function with its arguments: what `Durable.bind` makes and `run` and `start` accept."""

    __slots__ = ("args", "fn", "kwargs")

    def __init__(self, fn: Durable[..., R_co], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.fn = fn
        self.args = args
        self.kwargs = kwargs

    def arguments(self) -> dict[str, Any]:
        """Return the arguments by parameter name."""
        return self.fn.signature.bind(self.args, self.kwargs)


class Durable(Generic[P, R_co]):
    """A durable function. Called directly it is the plain function; `Holdfast.run` makes it durable.

    Attributes:
        kind: Its name in the registry and in the ledger.
        fn: The decorated function.
        raises: Exceptions that `run` raises as themselves, live and from the record.
        plain: Whether it is a plain function, which runs in a thread of its own.
    """

    def __init__(self, fn: Callable[P, Any], kind: str, raises: tuple[type[Exception], ...], depth: int) -> None:
        check_kind(kind)
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.kind = kind
        self.raises = raises
        self.plain = not inspect.iscoroutinefunction(fn)
        self.signature = Signature(fn)
        for parameter in self.signature.signature.parameters.values():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.name in OPTIONS:
                raise ConfigError(
                    f"durable {kind!r}: keyword-only parameter {parameter.name!r} is an option of run",
                    "rename it, or let it be passed by position",
                )
        self._hints = resolved_hints(fn, depth + 1)
        self._codecs: tuple[Codec, Codec] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call the plain function."""
        return self.fn(*args, **kwargs)

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Call[R_co]:
        """Bind arguments, typed exactly, for `run` and `start`."""
        return Call(cast("Durable[..., R_co]", self), args, kwargs)

    def codecs(self) -> tuple[Codec, Codec]:
        """Return the codecs of the arguments (a dict by parameter name) and of the output."""
        if self._codecs is None:
            hints = self._hints if self._hints is not None else (resolved_hints(self.fn, 1) or {})
            fields = {}
            for name, parameter in self.signature.signature.parameters.items():
                hint = hints.get(name, Any)
                if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                    hint = list[hint]  # type: ignore[valid-type]  # a type made at run time
                elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    hint = dict[str, hint]  # type: ignore[valid-type]  # a type made at run time
                fields[name] = hint
            arguments = TypedDict("Arguments", fields, total=False)  # type: ignore[misc]  # a type made at run time
            self._codecs = Codec(arguments), codec(hints.get("return", ...))
        return self._codecs

    def pack(self, arguments: dict[str, Any]) -> tuple[bytes, bytes]:
        """Encode arguments; return the blob and its hash.

        Raises:
            CodecError: An argument does not encode.
        """
        try:
            return encode(arguments), keys.arguments(canonical(arguments))
        except CodecError as error:
            argument = next((name for name, value in arguments.items() if not _encodes(value)), "")
            raise CodecError(
                f"durable {self.kind!r}: argument {argument!r} cannot be recorded: {error}",
                error.hint,
                code=error.code,
                argument=argument,
            ) from error

    def unpack(self, blob: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Decode stored arguments to the annotated types, ready for the call.

        Raises:
            CodecError: They do not fit today's annotations.
        """
        return self.call_with(self.codecs()[0].decode(blob))

    def call_with(self, arguments: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Turn arguments by parameter name into positional and keyword arguments."""
        bound = inspect.BoundArguments(self.signature.signature, cast("Any", dict(arguments)))
        for name, parameter in self.signature.signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL and name in arguments:
                bound.arguments[name] = tuple(arguments[name])
        return bound.args, bound.kwargs

    def __repr__(self) -> str:
        return f"<durable {self.kind!r}: {self.fn.__module__}.{self.fn.__qualname__}>"


class AsyncDurable(Durable[P, R_co]):
    """A durable `async def`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, object, R_co]:
        """Call the plain function."""
        return cast("Coroutine[object, object, R_co]", self.fn(*args, **kwargs))


class PlainDurable(Durable[P, R_co]):
    """A durable plain function: it runs in a thread of its own, its durable calls without `await`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the plain function."""
        return cast("R_co", self.fn(*args, **kwargs))


class _DurableDecorator:
    def __init__(self, kind: str, raises: tuple[type[Exception], ...]) -> None:
        self.kind = kind
        self.raises = raises

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]]) -> AsyncDurable[P, R]: ...  # type: ignore[overload-overlap]  # the first one wins
    @overload
    def __call__(self, fn: Callable[P, R]) -> PlainDurable[P, R]: ...
    def __call__(self, fn: Callable[..., Any]) -> Any:
        made: Durable[..., Any]
        check_function(fn, "durable")
        cls = AsyncDurable if inspect.iscoroutinefunction(fn) else PlainDurable
        made = cls(fn, self.kind, self.raises, 2)
        known = _registry.get(self.kind)
        if known is not None:
            was, here = known.fn, fn
            if (was.__module__, was.__qualname__) != (here.__module__, here.__qualname__):
                raise ConfigError(
                    f"durable kind {self.kind!r} is taken by {was.__module__}.{was.__qualname__}",
                    "give this function another kind",
                )
        _registry[self.kind] = made
        return made


def durable(*, kind: str, raises: tuple[type[Exception], ...] = ()) -> _DurableDecorator:
    """Make a function durable and register it under a kind.

    Args:
        kind: `[a-z][a-z0-9_.-]{0,63}`; stored with every execution, so it outlives renaming.
        raises: Exceptions that `Holdfast.run` raises as themselves, live and from the record, when their
            `args` can be recorded; everything else is `ExecutionFailed`.

    Raises:
        ConfigError: The kind is malformed or taken, or a keyword-only parameter is named like an option
            of `run`.
    """
    check_exceptions(raises, f"durable {kind!r}: raises")
    return _DurableDecorator(kind, raises)


# --- steps ------------------------------------------------------------------------------------------


class BaseStep(Generic[P, R]):
    """What decorated steps share. Outside an execution a step is the function it decorates.

    Attributes:
        fn: The decorated function.
        name: The step's name, part of its identity.
    """

    plain = False

    def __init__(self, fn: Callable[P, Any], options: _StepDecorator, depth: int) -> None:
        functools.update_wrapper(cast("Any", self), fn)
        self.fn = fn
        self.name = options.name if options.name is not None else fn.__name__
        self.signature = Signature(fn)
        self._options = options
        self._memo: dict[bytes, tuple[bytes, bytes]] = {}
        self._check_fingerprint_option()
        hints = resolved_hints(fn, depth + 1)
        self._spec: StepDescriptor | None = None
        if hints is not None or options.result_type is not ...:
            self._spec = self._describe(hints or {})
        else:  # the policy is checked now in any case
            self._describe({})

    def _describe(self, hints: dict[str, Any]) -> StepDescriptor:
        options = self._options
        result_type = options.result_type if options.result_type is not ... else hints.get("return", ...)
        return StepDescriptor(
            self.name,
            options.effect,
            retry=options.retry,
            timeout=options.timeout,
            result_type=result_type,
            raises=options.raises,
            spill=options.spill,
        )

    def _check_fingerprint_option(self) -> None:
        option = self._options.fingerprint
        strange = not isinstance(option, str | bytes | tuple | None) and not callable(option)
        if strange or (isinstance(option, str) and option != "args"):
            raise ConfigError(
                f"step {self.name!r}: fingerprint {option!r} is not valid",
                'use "args", a tuple of parameter names, bytes, a callable or None',
            )
        if isinstance(option, tuple):
            for name in option:
                if name not in self.signature.names:
                    raise ConfigError(
                        f"step {self.name!r}: fingerprint names {name!r}, which is no parameter of it",
                        f"parameters are {', '.join(self.signature.names)}",
                    )
        if isinstance(option, bytes):
            check_fingerprint(self.name, option)

    def spec(self) -> StepDescriptor:
        """Return the step's description, its annotations resolved."""
        if self._spec is None:
            self._spec = self._describe(resolved_hints(self.fn, 1) or {})
        return self._spec

    def identify(self, args: tuple[Any, ...], kwargs: dict[str, Any], spec: StepDescriptor) -> tuple[bytes, bytes]:
        """Return fingerprint and shape of a call.

        Raises:
            FingerprintError: An argument cannot be encoded.
            TypeError: The function cannot be called like this.
        """
        option = self._options.fingerprint
        if option == "args" and self._options.version is None:
            data = self._canonical(self.signature.bind(args, kwargs))
            known = self._memo.get(data)
            if known is None:
                fingerprint = keys.arguments(data)
                known = fingerprint, keys.shape(spec.framed, fingerprint)
                if len(data) <= _MEMO_BYTES_MAX:
                    if len(self._memo) >= _MEMO_MAX:
                        self._memo.clear()
                    self._memo[data] = known
            return known
        fingerprint = self._fingerprint(args, kwargs)
        return fingerprint, keys.shape(spec.framed, fingerprint)

    def _fingerprint(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        option = self._options.fingerprint
        bound = self.signature.bind(args, kwargs)
        if option is None:
            fingerprint = b""
        elif isinstance(option, bytes):
            fingerprint = option
        elif callable(option):
            fingerprint = option(*args, **kwargs)
            if not isinstance(fingerprint, bytes):
                raise FingerprintError(
                    f"step {self.name!r}: the fingerprint callable returned {type(fingerprint).__name__}, not bytes",
                    "return bytes",
                    step=self.name,
                    argument="",
                )
        else:
            chosen = bound if option == "args" else {name: bound[name] for name in option if name in bound}
            fingerprint = keys.arguments(self._canonical(chosen))
        if self._options.version is not None:
            fingerprint = keys.frame(fingerprint, self._options.version)
        check_fingerprint(self.name, fingerprint)
        return fingerprint

    def _canonical(self, arguments: dict[str, Any]) -> bytes:
        try:
            return canonical(arguments)
        except CodecError as error:
            argument = error.argument or next((n for n, v in arguments.items() if not _encodes(v)), "")
            raise FingerprintError(
                f"step {self.name!r}: argument {argument!r} cannot be encoded, so the call has no identity",
                f"pass plain data, leave it out with fingerprint=({_others(arguments, argument)}), or give a callable",
                step=self.name,
                argument=argument,
            ) from error

    def take(self, scope: Scope, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepCall:
        """Take a position for a call in a scope."""
        spec = self._spec or self.spec()
        fingerprint, shape = self.identify(args, kwargs, spec)
        return StepCall(scope, spec, fingerprint, shape, self.fn, args, kwargs, threaded=self.plain)

    def nested(self) -> bool:
        """Say whether an effect is running here, in which this step may only be an ordinary call.

        Raises:
            NestedEffect: It is an exactly_once step.
        """
        effect = _effect.get()
        if effect is None:
            return False
        if self._options.effect.cls == "exactly_once":
            raise NestedEffect(
                f"exactly_once step {self.name!r} was called inside the running step {effect.name!r}",
                "call it from the durable function",
            )
        return True

    def __repr__(self) -> str:
        return f"<step {self.name!r}: {self.fn.__module__}.{self.fn.__qualname__}>"


def _encodes(value: object) -> bool:
    try:
        canonical({"": value})
    except CodecError:
        return False
    return True


def _others(arguments: dict[str, Any], argument: str) -> str:
    return ", ".join(repr(name) for name in arguments if name != argument) + ","


def here() -> Scope | None:
    """Return the scope in which a step called here takes its position, or None: then it is an ordinary call."""
    return _scope.get()


class Step(BaseStep[P, R]):
    """An `async def` as a step."""

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...
    @overload
    def __get__(self: Step[Concatenate[S, Q], R], instance: S, owner: type | None = None, /) -> BoundStep[Q, R]: ...
    def __get__(self, instance: object, owner: type | None = None, /) -> Any:
        return self if instance is None else BoundStep(self, instance)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, object, R]:
        """Run, or replay, the step; outside an execution call the function."""
        scope = _scope.get()
        if scope is None or (_effect.get() is not None and self.nested()):
            return cast("Coroutine[object, object, R]", self.fn(*args, **kwargs))
        if scope.thread:
            raise OutsideExecution(
                f"async step {self.name!r} was called in a plain durable function",
                "make the step a plain function, or the durable function async",
            )
        return self.take(scope, args, kwargs).perform()

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, object, R]:
        """As calling the step."""
        return self(*args, **kwargs)

    def recorded(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, object, StepRecord[R]]:
        """As calling the step, returning the value together with how it came about."""
        scope = _require_scope(self)
        return self.take(scope, args, kwargs).perform_recorded()


class PlainStep(BaseStep[P, R]):
    """A plain function as a step; it runs in a thread. In an async execution use `.call`."""

    plain = True

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...
    @overload
    def __get__(
        self: PlainStep[Concatenate[S, Q], R], instance: S, owner: type | None = None, /
    ) -> BoundPlainStep[Q, R]: ...
    def __get__(self, instance: object, owner: type | None = None, /) -> Any:
        return self if instance is None else BoundPlainStep(self, instance)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run, or replay, the step in a plain durable function; outside an execution call the function."""
        scope = _scope.get()
        if scope is None or (_effect.get() is not None and self.nested()):
            return cast("R", self.fn(*args, **kwargs))
        if not scope.thread:
            raise OutsideExecution(
                f"plain step {self.name!r} was called bare in an async execution",
                f"await {self.name}.call(…), so that the loop is not blocked",
            )
        return cast("R", in_loop(scope, self.take(scope, args, kwargs).perform()))

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, object, R]:
        """Run, or replay, the step in an async execution; outside one run the function in a thread."""
        scope = _scope.get()
        if scope is None or (_effect.get() is not None and self.nested()):
            return cast("Coroutine[object, object, R]", asyncio.to_thread(self.fn, *args, **kwargs))
        return self.take(scope, args, kwargs).perform()

    def recorded(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, object, StepRecord[R]]:
        """As `call`, returning the value together with how it came about."""
        scope = _require_scope(self)
        return self.take(scope, args, kwargs).perform_recorded()


class _Bound(Generic[P, R]):
    """A step that is a method, bound to its object."""

    def __init__(self, step: Any, instance: object) -> None:
        self.step = step
        self.instance = instance

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, object, R]:
        """As the step's `call`."""
        return cast("Coroutine[object, object, R]", self.step.call(self.instance, *args, **kwargs))

    def recorded(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, object, StepRecord[R]]:
        """As the step's `recorded`."""
        return cast("Coroutine[object, object, StepRecord[R]]", self.step.recorded(self.instance, *args, **kwargs))


class BoundStep(_Bound[P, R]):
    """A method that is an async step."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, object, R]:
        return self.call(*args, **kwargs)


class BoundPlainStep(_Bound[P, R]):
    """A method that is a plain step."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return cast("R", self.step(self.instance, *args, **kwargs))


def in_loop(scope: Scope, coroutine: Coroutine[Any, Any, R]) -> R:
    """Run a durable call of a plain durable function in the engine's loop, and wait for it."""
    return asyncio.run_coroutine_threadsafe(coroutine, scope.run.loop).result()


def _require_scope(step: BaseStep[..., Any]) -> Scope:
    scope = _scope.get()
    if scope is None:
        raise OutsideExecution(f"{step.name}.recorded() was called outside an execution", "call the step itself there")
    effect = _effect.get()
    if effect is not None:
        raise NestedEffect(
            f"{step.name}.recorded() was called inside the running step {effect.name!r}", "call the step itself there"
        )
    return scope


class _StepDecorator:
    def __init__(  # noqa: PLR0913 - the options of `step`
        self,
        effect: Effect,
        name: str | None,
        fingerprint: Fingerprint,
        version: str | None,
        retry: Retry,
        timeout: timedelta | None,
        result_type: Any,
        raises: tuple[type[Exception], ...],
        spill: bool,  # noqa: FBT001 - private
    ) -> None:
        self.effect = effect
        self.name = name
        self.fingerprint = fingerprint
        self.version = version
        self.retry = retry
        self.timeout = timeout
        self.result_type = result_type
        self.raises = raises
        self.spill = spill

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]]) -> Step[P, R]: ...  # type: ignore[overload-overlap]  # the first one wins
    @overload
    def __call__(self, fn: Callable[P, R]) -> PlainStep[P, R]: ...
    def __call__(self, fn: Callable[..., Any]) -> Any:
        check_function(fn, "step")
        return (Step if inspect.iscoroutinefunction(fn) else PlainStep)(fn, self, 2)


def step(  # noqa: PLR0913 - the options of the contract, by keyword
    *,
    effect: Effect,
    name: str | None = None,
    fingerprint: Literal["args"] | tuple[str, ...] | bytes | Callable[..., bytes] | None = "args",
    version: str | None = None,
    retry: Retry | None = None,
    timeout: timedelta | None = None,
    result_type: Any = ...,
    raises: tuple[type[Exception], ...] = (),
    spill: bool = False,
) -> _StepDecorator:
    """Make a function a step.

    Args:
        effect: What it does to the world: `idempotent()`, `at_least_once()` or `exactly_once(kind, …)`.
        name: Part of its identity; default: the function's name.
        fingerprint: What makes two calls different effects. `"args"`: all arguments but `self` and `cls`;
            a tuple: these parameters; bytes or a callable giving bytes (at most 64 KiB): as they are; None:
            nothing. Arguments are hashed, not stored; secrets stay out of fingerprints.
        version: Enters the fingerprint, so that a new version is a new effect.
        retry: How often to run after a failure; default once.
        timeout: Longest run of one attempt.
        result_type: Default: the return annotation. Replayed results are decoded to it.
        raises: Exceptions that reach the program as themselves; everything else is `StepFailed`.
        spill: Whether the result may be as large as `spill_bytes_max`.

    Raises:
        AmbiguityPolicyRequired: An exactly_once effect (not `cost_bearing`) without `on_ambiguous`.
        ConfigError: A malformed name or fingerprint, or a `skip` value that does not fit.
    """
    return _StepDecorator(
        effect, name, fingerprint, version, Retry() if retry is None else retry, timeout, result_type, raises, spill
    )
