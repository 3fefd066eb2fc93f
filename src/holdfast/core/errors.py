"""The root of Holdfast's errors, and the errors that belong to no slice.

    HoldfastError(code, message, hint)
    ├── ConfigError             config.*        what was asked for cannot be
    ├── CodecError              codec.*         a value or a blob that does not fit the format or its type
    ├── LimitError              limit.exceeded  larger than a named limit
    ├── StoreError              store.*
    │   ├── Busy                store.busy
    │   ├── SchemaMismatch      store.schema
    │   ├── Unavailable         store.unavailable
    │   ├── Conflict            store.conflict
    │   ├── WrongProcess        store.wrong_process
    │   ├── WrongLoop           store.wrong_loop
    │   └── Closed              store.closed
    └── DurableError            durable.*       in `holdfast.execution.errors`
    OutcomeUnknown              raised by a user's operation that cannot tell its fate
    LeaseLost                   BaseException: somebody else owns what we were writing

Invariants:
    - `code` is stable and machine-readable; `str(error)` is the message, and `hint` says what to do next.
    - No message holds a payload, an argument, a token or a whole key.
    - Every error survives pickling and copying with its attributes.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "Busy",
    "Closed",
    "CodecError",
    "CodedError",
    "ConfigError",
    "Conflict",
    "HoldfastError",
    "LeaseLost",
    "LimitError",
    "OutcomeUnknown",
    "SchemaMismatch",
    "StoreError",
    "Unavailable",
    "WrongLoop",
    "WrongProcess",
]


class HoldfastError(Exception):
    """The root of every error Holdfast raises.

    Attributes:
        code: Stable identifier, `<slice>.<what>`.
        message: What happened, and to which key.
        hint: What to do next; may be empty.
    """

    code: str
    message: str
    hint: str

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with `args`, which fits no constructor that has attributes.
        return _restore, (type(self), self.message), self.__dict__


def _restore(cls: type[HoldfastError], message: str) -> HoldfastError:
    return cls.__new__(cls, message)


class CodedError(HoldfastError):
    """An error whose class knows its code; the base of all leaves."""

    code = "error"

    def __init__(self, message: str, hint: str = "", *, code: str | None = None) -> None:
        super().__init__(code or type(self).code, message, hint)


class ConfigError(CodedError):
    """Something was configured, declared or named in a way that cannot work.

    Attributes:
        keys: The settings concerned, if settings are.
    """

    code = "config.invalid"
    keys: tuple[str, ...]

    def __init__(self, message: str, hint: str = "", *, code: str | None = None, keys: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint, code=code)
        self.keys = keys


class CodecError(CodedError):
    """A value cannot be encoded, or a blob does not decode (to its declared type).

    The codes are `codec.encode`, `codec.decode`, `codec.type` (the declared type itself cannot be
    decoded to) and `codec.cursor` (a page cursor that is not one of ours).

    Attributes:
        argument: The parameter whose argument did not encode, when arguments were being encoded.
    """

    code = "codec.decode"
    argument: str

    def __init__(self, message: str, hint: str = "", *, code: str | None = None, argument: str = "") -> None:
        super().__init__(message, hint, code=code)
        self.argument = argument


class LimitError(CodedError):
    """Something is beyond a fixed or configured limit; nothing was cut off or written.

    Attributes:
        limit: Name of the limit.
        maximum: Its value, in the limit's own unit.
        actual: What was asked for.
    """

    code = "limit.exceeded"
    limit: str
    maximum: int
    actual: int

    def __init__(self, message: str, hint: str = "", *, limit: str, maximum: int, actual: int) -> None:
        super().__init__(message, hint)
        self.limit = limit
        self.maximum = maximum
        self.actual = actual


class StoreError(CodedError):
    """The ledger could not do what was asked of it."""

    code = "store.error"


class Busy(StoreError):
    """Another connection held the database for longer than we are willing to wait."""

    code = "store.busy"


class SchemaMismatch(StoreError):
    """The ledger was written by a newer Holdfast, is too old to be read as it is, or is no ledger at all.

    Attributes:
        applied: The number of the newest migration it has; None where it does not say.
    """

    code = "store.schema"
    applied: int | None

    def __init__(self, message: str, hint: str = "", *, applied: int | None = None) -> None:
        super().__init__(message, hint)
        self.applied = applied


class Unavailable(StoreError):
    """The database cannot be reached or written just now.

    Attributes:
        retry_after: Seconds after which trying again makes sense.
    """

    code = "store.unavailable"
    retry_after: float

    def __init__(self, message: str, hint: str = "", *, retry_after: float = 1.0) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class Conflict(StoreError):
    """A row violates a constraint of the ledger."""

    code = "store.conflict"


class WrongProcess(StoreError):
    """A handle was used in a process that did not open it, such as the child of a fork."""

    code = "store.wrong_process"


class WrongLoop(StoreError):
    """A handle was used in an event loop that did not open it."""

    code = "store.wrong_loop"


class Closed(StoreError):
    """The ledger was closed before, or while, this was done."""

    code = "store.closed"


class OutcomeUnknown(Exception):
    """Raise it in an operation that cannot tell whether its effect took place."""


class LeaseLost(BaseException):
    """Somebody else has claimed what this task was working on; nothing it writes counts any more."""
