"""Where a handle belongs: the process and the loop it was opened in."""

from __future__ import annotations

import asyncio
import threading

import pytest

from holdfast.core.errors import WrongLoop, WrongProcess
from holdfast.store.home import Home, leak


async def test_whoever_is_at_home_may_use_it() -> None:
    home = Home("it")
    home.check()
    home.check_loop()
    home.check_process()
    assert home.loop is asyncio.get_running_loop()


async def test_another_loop_or_none_may_not() -> None:
    home = Home("it")

    async def use() -> None:
        for look in (home.check, home.check_loop):
            with pytest.raises(WrongLoop, match="it was opened in another event loop"):
                look()

    def elsewhere() -> None:
        asyncio.run(use())
        with pytest.raises(WrongLoop):
            home.check()
        done.append(True)

    done: list[bool] = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert done == [True]
    home.check()


def test_a_loop_that_has_ended_is_no_home() -> None:
    async def make() -> Home:
        return Home("it")

    home = asyncio.run(make())
    with pytest.raises(WrongLoop):
        home.check()


async def test_a_forked_child_parts_with_it() -> None:
    """What the hook of the interpreter calls in a child, called here."""
    home, parted = Home("it"), []
    home.on_fork(lambda: parted.append(1))
    home._part()
    assert (home.foreign, parted) == (True, [1])
    for look in (home.check, home.check_process):
        with pytest.raises(WrongProcess, match="the parent process"):
            look()


def test_what_is_leaked_is_kept() -> None:
    class Thing:
        def __del__(self) -> None:
            gone.append(1)

    gone: list[int] = []
    thing = Thing()
    leak(thing)
    del thing
    assert gone == []
