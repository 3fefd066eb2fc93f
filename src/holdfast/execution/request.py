"""Turn what a caller asks into a request that can be compared with the ledger.

Everything that is wrong with a call (its id, its kind, an argument that does not encode, an input over the
limit) is said here, before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NamedTuple

from holdfast.core.clock import micros
from holdfast.core.codec import canonical, encode
from holdfast.core.errors import ConfigError, LimitError
from holdfast.core.ids import uuid7_bytes, uuid_text
from holdfast.execution import keys
from holdfast.execution.config import DurableConfig
from holdfast.execution.declare import Call, Durable, check_kind

ID_BYTES_MAX = 255
"""Length of an execution's id: an index key, and a segment of a URL."""

OnDivergence = Literal["restart", "raise"]
OnBusy = Literal["wait", "raise"]


@dataclass(slots=True)  # not frozen: one is made for every run, and a frozen one costs three times as much
class Request:
    """What a caller asked for.

    Attributes:
        id: The execution.
        kind: Its kind.
        fn: The function, or None for a block of the caller's own.
        call: The arguments of the caller, or None to take the recorded ones.
        minted: The bytes of an id that was made here just now, so that nobody else can know it.
        deadline_at: For a new execution, in microseconds.
    """

    id: str
    kind: str
    fn: Durable[..., Any] | None
    call: Call[Any] | None
    input: bytes | None = None
    input_hash: bytes | None = None
    minted: bytes | None = None
    deadline_at: int | None = None
    on_divergence: OnDivergence = "restart"
    on_busy: OnBusy = "wait"
    reopen: bool = False
    create: bool = True


class Options(NamedTuple):
    """The options of `run` and `start`."""

    id: str | None
    deadline: timedelta | None
    on_divergence: OnDivergence
    on_busy: OnBusy
    reopen: bool


def call_of(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call[Any]:
    """Return the call that `run` or `start` was given, bound or in parts."""
    if isinstance(fn, Call):
        if args or kwargs:
            raise ConfigError("arguments were given beside a bound call", "give them to bind(…)")
        return fn
    if isinstance(fn, Durable):
        return Call(fn, args, kwargs)
    raise ConfigError(f"{fn!r} is not a durable function", "decorate it with @holdfast.durable(kind=…)")


def deadline_of(now: int, deadline: timedelta | None) -> int | None:
    """Return the instant of a deadline given as a duration."""
    if deadline is not None and not isinstance(deadline, timedelta):
        raise ConfigError(
            f"deadline is {deadline!r}, not a timedelta", "give the longest life, for example timedelta(hours=1)"
        )
    return None if deadline is None else now + micros(deadline)


def request_of(config: DurableConfig, now: int, call: Call[Any], asked: Options) -> Request:
    """Make the request of a call.

    Raises:
        CodecError: An argument does not encode.
        LimitError: Id or input are too long.
        ConfigError: The id is not valid.
    """
    arguments = call.arguments()
    blob, input_hash = call.fn.pack(arguments)
    if len(blob) > config.payload_bytes_max:
        raise LimitError(
            f"the input has {len(blob)} bytes, the limit is {config.payload_bytes_max}",
            "pass a reference, or raise payload_bytes_max",
            limit="payload_bytes_max",
            maximum=config.payload_bytes_max,
            actual=len(blob),
        )
    check_option("on_divergence", asked.on_divergence, ("restart", "raise"))
    check_option("on_busy", asked.on_busy, ("wait", "raise"))
    if asked.id is not None:
        check_id(asked.id)
    id, minted = (asked.id, None) if asked.id is not None else _mint(now)
    return Request(
        id=id, kind=call.fn.kind, fn=call.fn, call=call, input=blob, input_hash=input_hash, minted=minted,
        deadline_at=deadline_of(now, asked.deadline), on_divergence=asked.on_divergence, on_busy=asked.on_busy,
        reopen=asked.reopen,
    )  # fmt: skip


def _mint(now: int) -> tuple[str, bytes]:
    uid = uuid7_bytes(now)
    return uuid_text(uid), uid


def block_request(id: str, kind: str, input: Any, deadline_at: int | None) -> Request:
    """Make the request of a block of the caller's own; `...` as input accepts any that is recorded."""
    check_id(id)
    check_kind(kind)
    given = input is not ...
    return Request(
        id=id, kind=kind, fn=None, call=None, input=encode(input if given else None),
        input_hash=keys.arguments(canonical({"input": input})) if given else None, deadline_at=deadline_at,
        on_busy="raise",
    )  # fmt: skip


def check_option(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse an option's value that is not of its closed set."""
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}", f"use {' or '.join(map(repr, allowed))}")


def check_id(id: str) -> None:
    """Refuse an id that is empty, too long, or has control characters."""
    if not isinstance(id, str) or not id:
        raise ConfigError(f"execution id {id!r} is not valid", "use 1 to 255 bytes of text")
    try:
        length = len(id.encode())
    except UnicodeEncodeError:
        raise ConfigError("the execution id is not valid Unicode", "use 1 to 255 bytes of text") from None
    if length > ID_BYTES_MAX:
        raise LimitError(
            f"execution id {id[:40]!r}… has {length} bytes, the limit is {ID_BYTES_MAX}", "use a shorter id",
            limit="id_bytes", maximum=ID_BYTES_MAX, actual=length,
        )  # fmt: skip
    if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in id):
        raise ConfigError(f"execution id {id!r} has control characters", "use plain text")
