"""DBOS and LangGraph, each used the quickest way its documentation shows, with its default settings.

DBOS: plain functions called from threads, which its coroutines do not beat; its SQLite journals in the default
mode (`journal_mode=DELETE`, `synchronous=FULL`). LangGraph: coroutines and the asynchronous SQLite saver,
quicker than threads. Its `@task` results are handed to the saver in the background (`durability="async"`), so
a task that has returned is not yet on disk: it is shown for orientation, not as an equal.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

from workload import CRASHED, Case, Job, Sample, Seen, Value, flood, flood_threads

REPLAYED = "replayed"
# --- DBOS --------------------------------------------------------------------------------------------


class Dbos:
    """A launched DBOS, its one step and its workflows."""

    def __init__(self, target: str, *, crash: bool = False) -> None:
        from dbos import DBOS, SetWorkflowID

        url = target if target.startswith("postgresql") else f"sqlite:///{target}"
        # The version is otherwise a hash of the source; executions are recovered by the version that began them.
        DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR", "application_version": "1"})
        self.seen = seen = Seen()
        self.began = self.replayed = 0.0
        self._dbos = DBOS
        self._under_id = SetWorkflowID

        @DBOS.step()
        def fetch(index: int) -> Value:
            return seen.run(index)

        @DBOS.step()
        def first_live_step() -> None:
            self.replayed = time.perf_counter()
            if crash:
                os._exit(CRASHED)

        @DBOS.workflow()
        def plain(count: int) -> int:
            for index in range(count):
                seen.values.append((index, fetch(index)))
            return count

        @DBOS.workflow()
        def long(count: int) -> int:
            self.began = time.perf_counter()
            for index in range(count):
                seen.values.append((index, fetch(index)))
            first_live_step()
            return count

        self.plain: Callable[[int], int] = plain
        self._long: Callable[[int], int] = long
        DBOS.launch()

    def long(self, count: int) -> None:
        """Run the workflow that `wait_for_long` waits for."""
        with self._under_id(REPLAYED):
            self._long(count)

    def wait_for_long(self) -> int:
        """Wait until the workflow that another process left has been recovered and has ended."""
        return int(self._dbos.retrieve_workflow(REPLAYED).get_result())

    def close(self) -> None:
        """Stop its threads."""
        self._dbos.destroy()


@contextmanager
def _dbos(target: str) -> Iterator[Dbos]:
    app = Dbos(target)
    try:
        app.plain(3)
        yield app
    finally:
        app.close()


def dbos_sequential(job: Job) -> Sample:
    with _dbos(job.target) as app:
        with app.seen.timed():
            app.plain(job.sizes.steps)
        return app.seen.sample(job.sizes.steps)


def _dbos_concurrent(job: Job, in_flight: int) -> Sample:
    with _dbos(job.target) as app:
        with app.seen.timed():
            flood_threads(lambda: app.plain(job.sizes.executions_steps), job.sizes.executions, in_flight)
        return app.seen.sample(job.sizes.executions * job.sizes.executions_steps)


def dbos_concurrent32(job: Job) -> Sample:
    return _dbos_concurrent(job, 32)


def dbos_concurrent100(job: Job) -> Sample:
    return _dbos_concurrent(job, 100)


def dbos_crash(job: Job) -> Sample:
    """Record the steps to be replayed, then die."""
    Dbos(job.target, crash=True).long(job.sizes.replay)
    raise AssertionError("survived")


def dbos_replay(job: Job) -> Sample:
    """Let DBOS recover the workflow as it does at launch.

    Timed from the first line of the workflow to its first live step: neither the poll of the recovery queue
    (about a second) nor the claim nor the end counts.
    """
    app = Dbos(job.target)
    try:
        assert app.wait_for_long() == job.sizes.replay
        app.seen.seconds = app.replayed - app.began
        return app.seen.sample(job.sizes.replay, replayed=True)
    finally:
        app.close()


# --- LangGraph ---------------------------------------------------------------------------------------


class Interrupted(Exception):
    """Ends a run before its last task, and lets what it hands over in the background get to disk."""


class LangGraph:
    """An entrypoint over the SQLite saver."""

    def __init__(self, saver: Any, *, crash: bool = False) -> None:
        from langgraph.func import entrypoint, task

        self.seen = seen = Seen()

        @task
        async def fetch(index: int) -> Value:
            return seen.run(index)

        @task
        async def first_live_task() -> None:
            if crash:
                raise Interrupted

        async def plain(count: int) -> int:
            for index in range(count):
                seen.values.append((index, await fetch(index)))
            return count

        async def long(count: int) -> int:
            for index in range(count):
                seen.values.append((index, await fetch(index)))
            await first_live_task()
            return count

        self._plain = entrypoint(checkpointer=saver)(plain)
        self._long = entrypoint(checkpointer=saver)(long)

    async def plain(self, count: int) -> None:
        await self._plain.ainvoke(count, self._thread(str(uuid4())))

    async def long(self, count: int | None) -> int:
        """Run the crashing thread; without a count, resume it."""
        return int(await self._long.ainvoke(count, self._thread(REPLAYED)))

    @staticmethod
    def _thread(name: str) -> Any:
        return {"configurable": {"thread_id": name}}


def _langgraph(target: str, work: Callable[[LangGraph], Any], *, crash: bool = False) -> Sample:
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    async def main() -> Sample:
        async with AsyncSqliteSaver.from_conn_string(target) as saver:
            app = LangGraph(saver, crash=crash)
            if not crash:
                await app.plain(3)
            sample: Sample = await work(app)
            return sample

    return asyncio.run(main())


def langgraph_sequential(job: Job) -> Sample:
    async def work(app: LangGraph) -> Sample:
        with app.seen.timed():
            await app.plain(job.sizes.steps)
        return app.seen.sample(job.sizes.steps)

    return _langgraph(job.target, work)


def _langgraph_concurrent(job: Job, in_flight: int) -> Sample:
    async def work(app: LangGraph) -> Sample:
        with app.seen.timed():
            await flood(lambda: app.plain(job.sizes.executions_steps), job.sizes.executions, in_flight)
        return app.seen.sample(job.sizes.executions * job.sizes.executions_steps)

    return _langgraph(job.target, work)


def langgraph_concurrent32(job: Job) -> Sample:
    return _langgraph_concurrent(job, 32)


def langgraph_concurrent100(job: Job) -> Sample:
    return _langgraph_concurrent(job, 100)


def langgraph_crash(job: Job) -> Sample:
    """Record the tasks to be replayed, then stop."""
    with suppress(Interrupted):
        _langgraph(job.target, lambda app: app.long(job.sizes.replay), crash=True)
    sys.exit(CRASHED)


def langgraph_replay(job: Job) -> Sample:
    """Resume the thread that was left, up to its end."""

    async def work(app: LangGraph) -> Sample:
        with app.seen.timed():
            assert await app.long(None) == job.sizes.replay
        return app.seen.sample(job.sizes.replay, replayed=True)

    return _langgraph(job.target, work)


DBOS_CASES: dict[str, Case] = {
    "sequential": dbos_sequential,
    "concurrent32": dbos_concurrent32,
    "concurrent100": dbos_concurrent100,
    "crash": dbos_crash,
    "replay": dbos_replay,
}
LANGGRAPH_CASES: dict[str, Case] = {
    "sequential": langgraph_sequential,
    "concurrent32": langgraph_concurrent32,
    "concurrent100": langgraph_concurrent100,
    "crash": langgraph_crash,
    "replay": langgraph_replay,
}
