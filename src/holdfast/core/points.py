"""Named places where a process can be made to die, so that tests can prove it does no harm.

Product code says `if points.armed: points.reach("intent.committed")`; while nothing is armed that is
one look at a module attribute. Modules register their points when they are imported; `holdfast.testing`,
or the environment, arms them.

Invariants:
    - Only registered points can be armed, so a test cannot pass because of a misspelt name.
    - The environment arms nothing unless it also says `HOLDFAST_TESTING=1`.
"""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, TypeAlias

from holdfast.core.errors import ConfigError

__all__ = [
    "Action",
    "Armed",
    "Crashed",
    "arm",
    "armed",
    "crash",
    "disarm",
    "names",
    "on_crash",
    "reach",
    "register",
    "verify",
]

Action: TypeAlias = Literal["kill", "raise"] | Callable[[], object]
"""What happens at a point: SIGKILL to this process, `Crashed`, or a call."""

armed: bool = False
"""Whether any point is armed. Read it through the module, never `from points import armed`."""


class Crashed(BaseException):
    """A simulated crash: whatever was in memory is gone, and nobody may tidy up."""


@dataclass(eq=False, slots=True)
class Armed:
    """One armed point; give it to `disarm`.

    Attributes:
        name: The point.
        hit: At which pass it acts, counted from 1 since it was armed; it acts once.
        action: What it does.
        passed: Passes so far.
    """

    name: str
    hit: int
    action: Action
    passed: int = field(default=0, init=False)


_registered: set[str] = set()
_armed: list[Armed] = []
_listeners: list[weakref.ref[Any]] = []
_unverified: str | None = None  # what the environment asked for, until it is known to exist
_lock = threading.Lock()  # the writer passes points on its own thread


def register(*points: str) -> None:
    """Declare points that the calling module passes."""
    _registered.update(points)


def names() -> tuple[str, ...]:
    """Return all registered points, sorted."""
    return tuple(sorted(_registered))


def arm(name: str, hit: int = 1, action: Action = "kill") -> Armed:
    """Let a point act at its `hit`-th pass from now on.

    Raises:
        ConfigError: No module has registered the point, or `hit` or `action` makes no sense.
    """
    if name not in _registered:
        hint = f"known are {', '.join(names())}"
        raise ConfigError(f"unknown crash point {name!r}", hint, code="config.unknown_point")
    if hit < 1:
        raise ConfigError(f"crash point {name} cannot act at pass {hit}", "passes count from 1")
    if action not in ("kill", "raise") and not callable(action):
        raise ConfigError(f"crash point {name} cannot do {action!r}", 'give "kill", "raise" or a callable')
    entry = Armed(name, hit, action)
    _arm(entry)
    return entry


def disarm(entry: Armed) -> None:
    """Take an armed point back; harmless when that was done before."""
    global armed
    with _lock:
        if entry in _armed:
            _armed.remove(entry)
        armed = bool(_armed) or _unverified is not None


def reach(name: str) -> None:
    """Pass a point; call it only when `armed`, and only for a registered point.

    Raises:
        ConfigError: The point, or the one that the environment names, does not exist.
        Crashed: The point is armed with `raise`.
    """
    if _unverified is not None:
        verify()
    if name not in _registered:
        raise ConfigError(f"crash point {name!r} is passed but not registered", code="config.unknown_point")
    due: list[Action] = []
    with _lock:
        for entry in _armed:
            if entry.name == name:
                entry.passed += 1
                if entry.passed == entry.hit:
                    due.append(entry.action)
    for action in due:
        _act(name, action)


def on_crash(listener: Callable[[], object]) -> None:
    """Have a callable called when a point armed with `raise` acts; it is held weakly.

    Whoever keeps state in memory drops it there, as a crash would.
    """
    held = weakref.WeakMethod(listener) if hasattr(listener, "__self__") else weakref.ref(listener)
    _listeners[:] = [each for each in _listeners if each() is not None]
    _listeners.append(held)


def crash(where: str) -> NoReturn:
    """Die here, as at a point armed with `raise`: what listeners keep in memory is dropped.

    Raises:
        Crashed: Always.
    """
    for listener in [each() for each in _listeners]:
        if listener is not None:
            listener()
    raise Crashed(where)


def verify() -> None:
    """Check what the environment armed; call it when everything that registers points is imported.

    Raises:
        ConfigError: `HOLDFAST_TEST_CRASH` names no known point, or a pass that is not a whole number from 1.
    """
    global _unverified
    if _unverified is None:
        return
    name, colon, count = _unverified.partition(":")
    if colon and not (count.isascii() and count.isdigit() and int(count) > 0):
        raise ConfigError(
            f"HOLDFAST_TEST_CRASH is {_unverified!r}",
            "write POINT or POINT:N, N counted from 1",
            code="config.unknown_point",
        )
    if name not in _registered:
        raise ConfigError(
            f"HOLDFAST_TEST_CRASH names the unknown crash point {name!r}",
            f"known are {', '.join(names())}",
            code="config.unknown_point",
        )
    _unverified = None
    _arm(Armed(name, int(count or 1), "kill"))


def _arm(entry: Armed) -> None:
    global armed
    with _lock:
        _armed.append(entry)
        armed = True


def _act(name: str, action: Action) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "raise":
        crash(name)
    else:
        action()


def _read_environment() -> None:
    global armed, _unverified
    if os.environ.get("HOLDFAST_TESTING") == "1" and os.environ.get("HOLDFAST_TEST_CRASH"):
        # The name is checked later: no module has registered its points yet.
        _unverified = os.environ["HOLDFAST_TEST_CRASH"]
        armed = True


_read_environment()
