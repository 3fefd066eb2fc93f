"""What a configured value must be, in checks that can say so.

A `Want` is a test together with its words. Rules and settings list one for each field, so that every field is
checked and every refusal reads alike.

Invariants:
    - A value passes with its exact type: no number stands for a flag and no string for a list of strings.
    - A refusal names the field and what it must be, and shows nothing longer than a short plain value.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from holdfast.core.errors import ConfigError

__all__ = [
    "DURATION_MAX", "FLAG", "FUNCTION", "Want", "check", "conflict", "duration", "invalid", "is_token", "keep",
    "matching", "maybe", "methods", "names", "number", "one_of", "representation", "statuses",
]  # fmt: skip

DURATION_MAX = timedelta(days=36_500)
"""A century: instants stay well inside what a datetime and a column can hold."""
NUMBER_MAX = 2**62
"""What a column can hold, with room to add."""
SHOWN_CHARS_MAX = 80
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_STATUS_CLASS = re.compile(r"[2-5]xx")


class Want(NamedTuple):
    """What a value must be.

    Attributes:
        holds: Whether a value is that.
        what: The same in words, after "must be".
        hint: How to write one.
        plain: Whether a refused value may be shown.
    """

    holds: Callable[[Any], bool]
    what: str
    hint: str
    plain: bool = True


def maybe(want: Want) -> Want:
    """Allow None beside what is wanted."""
    return Want(lambda value: value is None or want.holds(value), f"{want.what}, or None", want.hint)


def one_of(*words: str) -> Want:
    """Want one of some words."""
    shown = ", ".join(repr(word) for word in words)
    return Want(lambda value: isinstance(value, str) and value in words, f"one of {shown}", f"choose one of {shown}")


def duration(minimum: timedelta | None = None, maximum: timedelta = DURATION_MAX) -> Want:
    """Want a duration within bounds, both allowed; without a minimum, anything over zero."""
    least = timedelta.resolution if minimum is None else minimum
    low = "longer than 0" if minimum is None else f"of at least {minimum.total_seconds():g} s"
    high = "100 years" if maximum == DURATION_MAX else f"{maximum.total_seconds():g} s"
    return Want(
        lambda value: isinstance(value, timedelta) and least <= value <= maximum,
        f"a duration {low} and at most {high}",
        "write it as datetime.timedelta(seconds=…)",
    )


def number(minimum: int, maximum: int = NUMBER_MAX) -> Want:
    """Want a whole number within bounds, both allowed."""
    bounds = f"of at least {minimum}" if maximum == NUMBER_MAX else f"from {minimum} to {maximum}"
    return Want(
        lambda value: type(value) is int and minimum <= value <= maximum,
        f"a whole number {bounds}",
        "where a limit may be absent, None says so",
    )


def names(*, least: int = 0, folded: bool = False) -> Want:
    """Want header names, each once; with `folded`, `_` and `-` are the same."""

    def holds(value: object) -> bool:
        if not isinstance(value, tuple) or len(value) < least or not all(map(is_token, value)):
            return False
        return len({name.lower().replace("_", "-") if folded else name.lower() for name in value}) == len(value)

    what = "a tuple of header names, each once" + (", where `_` and `-` are the same" if folded else "")
    return Want(holds, what, 'one name is written ("X-Name",)')


def is_token(value: object) -> bool:
    """Say whether a value is a token of RFC 9110, as names of fields and methods are."""
    return isinstance(value, str) and _TOKEN.fullmatch(value) is not None


def matching(pattern: str) -> Callable[[object], bool]:
    """Return a test for strings that a pattern matches wholly."""
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def methods() -> Want:
    """Want methods. They are case-sensitive, and one in lower case would never match."""

    def holds(value: object) -> bool:
        return (
            isinstance(value, tuple) and value != () and all(is_token(each) and each.upper() == each for each in value)
        )

    return Want(holds, "a tuple of methods in upper case", 'one method is written ("POST",)')


def statuses(*policies: str) -> Want:
    """Want a mapping of statuses and classes of them to policies. 1xx is never an outcome."""

    def is_status(value: object) -> bool:
        if isinstance(value, str):
            return _STATUS_CLASS.fullmatch(value) is not None
        return type(value) is int and 200 <= value <= 599

    def holds(value: object) -> bool:
        if not isinstance(value, Mapping):
            return False
        return all(is_status(status) and policy in policies for status, policy in value.items())

    return Want(
        holds,
        f"a mapping of statuses (200 to 599, or '2xx' to '5xx') to one of {', '.join(map(repr, policies))}",
        f'for instance {{409: "{policies[0]}", "5xx": "{policies[-1]}"}}',
    )


FLAG = Want(lambda value: isinstance(value, bool), "True or False", "write True or False")
FUNCTION = Want(callable, "a function", "give the function itself, not what it returns")


def check(owner: str, name: str, want: Want, value: object) -> None:
    """Check one field.

    Raises:
        ConfigError: `config.rule_invalid`; it is not what is wanted.
    """
    if not want.holds(value):
        plain = value is None or (want.plain and isinstance(value, str | int | timedelta))
        shown = repr(value)[:SHOWN_CHARS_MAX] if plain else type(value).__name__
        raise invalid(f"{owner}.{name} must be {want.what}; it is {shown}", want.hint, name)


def invalid(message: str, hint: str, *fields: str) -> ConfigError:
    """Make the error of a bad value or a bad pair."""
    return ConfigError(message, hint, code="config.rule_invalid", keys=fields)


def conflict(message: str, hint: str, *fields: str) -> ConfigError:
    """Make the error of what a mode cannot keep."""
    return ConfigError(message, hint, code="config.mode_conflict", keys=fields)


_V = TypeVar("_V")


def keep(owner: object, name: str, value: _V) -> _V:
    """Put a checked value into a frozen field, in the form in which it stays, and return it."""
    object.__setattr__(owner, name, value)
    return value


def representation(value: Any, *hidden: str) -> str:
    """Show the fields of a dataclass that differ from their defaults.

    No function is shown, because credentials may be bound to it, and no field named as hidden.
    """
    shown = []
    for each in dataclasses.fields(value):
        now = getattr(value, each.name)
        usual = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        if now != usual:
            secret = callable(now) or each.name in hidden
            shown.append(f"{each.name}={'...' if secret else repr(now)}")
    return f"{type(value).__name__}({', '.join(shown)})"
