"""Where a handle belongs: the process and the event loop that opened it.

A forked child inherits every handle and may use none of them: a SQLite connection used or merely closed
in the child can damage the file for the parent, and a lock descriptor kept there would make a dead
parent look alive. This module marks handles as foreign in the child, and lets their owners part with them.

Invariants:
    - In a forked child every handle of the parent raises `WrongProcess`.
    - Nothing here runs in the parent, and nothing the child does here reaches the parent.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable
from threading import get_ident

from holdfast.core.errors import WrongLoop, WrongProcess

__all__ = ["Home", "leak"]

_running_loop = asyncio._get_running_loop  # noqa: SLF001 - documented; gives None where the other one raises


class Home:
    """The process and event loop of a handle. Make it in both."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.loop = asyncio.get_running_loop()
        self._is_running = self.loop.is_running
        self._thread = get_ident()
        self.foreign = False
        self._parting: list[Callable[[], object]] = []
        _homes.add(self)

    @property
    def here(self) -> bool:
        """Whether the caller is at home."""
        if self.foreign:
            return False
        if get_ident() == self._thread and self._is_running():
            return True
        return _running_loop() is self.loop

    def check(self) -> None:
        """Make sure the caller is at home.

        Raises:
            WrongProcess: This is a child of the process that opened the handle.
            WrongLoop: This is another event loop, or none.
        """
        if self.foreign:
            self.check_process()
        # A loop that runs in this thread is the one whose code this is: quicker to tell than the running loop is.
        if get_ident() != self._thread or not self._is_running():
            self.check_loop()

    def check_loop(self) -> None:
        """Make sure the caller is in the loop in which the handle was opened.

        Raises:
            WrongLoop: This is another event loop, or none.
        """
        if _running_loop() is not self.loop:
            raise WrongLoop(f"{self.label} was opened in another event loop", "open it in the loop that uses it")

    def check_process(self) -> None:
        """Make sure the caller is in the process that opened the handle.

        Raises:
            WrongProcess: It is in a child of it.
        """
        if self.foreign:
            raise WrongProcess(f"{self.label} was opened by the parent process", "open it again after the fork")

    def on_fork(self, part: Callable[[], object]) -> None:
        """Have something called in every forked child, before anything else runs there."""
        self._parting.append(part)

    def _part(self) -> None:
        self.foreign = True
        for part in self._parting:
            part()


def leak(thing: object) -> None:
    """Keep an object for as long as this process lives, through the end of the interpreter too."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


_homes: weakref.WeakSet[Home] = weakref.WeakSet()


def _after_fork() -> None:
    for home in list(_homes):
        home._part()  # noqa: SLF001 - the module's own class
    _homes.clear()


os.register_at_fork(after_in_child=_after_fork)
