"""A batch of appends, and what a dialect does with it.

The writer takes appends off its queue and sorts their rows by plan and statement; a dialect runs them in one
transaction. This module is that seam. It contains no SQL and no policy: queueing, time and failure are the
writer's, transactions the dialect's.

Invariants:
    - Sorting looks at each row once.
    - What a guard refuses writes nothing; what fails in a careful batch spoils nothing but itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from holdfast.core.errors import StoreError
from holdfast.store.database import Append, Call, Plan, Row

__all__ = ["AppendFailed", "Batch", "Committer", "Group"]


class AppendFailed(Exception):
    """Raised by a dialect when an append of the batch, not the database, is at fault; nothing was committed."""


class Group:
    """What a transaction runs for one plan: its rows by statement, and the guard keys to look up.

    The dialect runs `plan.creates`, fills `guards` with the guard's row or None for each key, and runs
    `plan.writes` with `admitted()`. In a careful batch a group holds a single append; the dialect then also
    honours `again` and sets `recorded` or `error`.

    Attributes:
        rows: Rows per statement name; a statement without rows has an empty list.
        guards: Distinct guard keys, each with the row its look-up gave.
        again: The append may be on disk already. Before anything else, for each of its rows whose statement has
            a companion (`Catalogue.companion`, `<name>.recorded`, with the guard's columns), run that: a row
            means the append is recorded, and goes to `recorded`; nothing else of it runs.
        recorded: The companion's row.
        error: Why the append alone could not be written; its savepoint was rolled back.
    """

    __slots__ = ("again", "error", "guards", "items", "plan", "recorded", "rows")

    def __init__(self, plan: Plan, *, again: bool = False) -> None:
        self.plan = plan
        self.items: list[Append] = []
        self.rows: dict[str, list[tuple[object, ...]]] = {}
        for name in plan.creates:
            self.rows[name] = []
        for name in plan.writes:
            self.rows[name] = []
        self.guards: dict[tuple[object, ...], Row | None] = {}
        self.again = again
        self.recorded: Row | None = None
        self.error: Exception | None = None

    def admitted(self) -> dict[str, list[tuple[object, ...]]]:
        """Rows of the appends that their guard does not refuse. Call after the guards were looked up."""
        guards = self.guards
        if None not in guards.values():
            return self.rows
        rows: dict[str, list[tuple[object, ...]]] = {name: [] for name in self.rows}
        for append in self.items:
            if append.guard is None or guards[append.guard] is not None:
                for name, row in append.rows:
                    rows[name].append(row)
        return rows


class Batch:
    """Appends of one lane on their way into one transaction.

    Attributes:
        lane: Index of the lane, below `Committer.lanes`.
        groups: The work, one group per plan; one per append when `careful`.
        calls: Statements that stand by themselves, to be run after the groups; the dialect sets `row` or `error`.
        careful: Run each group in a savepoint of its own, so that a bad append spoils nothing but itself.
        size: Bytes, as its appends weigh themselves.
        in_doubt: Set by the dialect when a commit was sent and its answer is not known.
    """

    __slots__ = ("_landed", "began", "calls", "careful", "groups", "in_doubt", "items", "lane", "size")

    def __init__(
        self, lane: int, items: list[Append], landed: Callable[[Batch, BaseException | None], None], *, careful: bool
    ) -> None:
        self.lane = lane
        self.items = items
        self.groups: list[Group] = []
        self.calls: list[Call] = []
        self.careful = careful
        self.in_doubt = False
        self.size = 0
        self.began = time.perf_counter()
        self._landed = landed

    def landed(self, error: BaseException | None = None) -> None:
        """Say, in the loop and once, that a batch answered with False has been committed, or why not."""
        self._landed(self, error)

    def group(self, doubtful: set[Append]) -> None:
        """Sort the rows by plan and statement, in one pass."""
        if self.careful:
            self._group_each(doubtful)
            return
        plan: Plan | None = None
        groups: dict[Plan, Group] = {}
        size = 0
        for append in self.items:
            if append.plan is not plan:
                if isinstance(append, Call):
                    self._call(append)
                    continue
                plan = append.plan
                group = groups.get(plan)
                if group is None:
                    group = groups[plan] = Group(plan)
                    self.groups.append(group)
                rows, guards, members = group.rows, group.guards, group.items
            append.state = "taken"
            size += append.size
            members.append(append)
            if append.guard is not None:
                guards[append.guard] = None
            for name, row in append.rows:
                rows[name].append(row)
        self.size += size

    def _call(self, call: Call) -> None:
        call.state = "taken"
        call.row = call.error = None
        self.size += call.size
        self.calls.append(call)

    def _group_each(self, doubtful: set[Append]) -> None:
        for append in self.items:
            if isinstance(append, Call):
                self._call(append)
                continue
            append.state = "taken"
            self.size += append.size
            group = Group(append.plan, again=append in doubtful)
            self.groups.append(group)
            group.items.append(append)
            if append.guard is not None:
                group.guards[append.guard] = None
            for name, row in append.rows:
                if name in group.rows:
                    group.rows[name].append(row)
                else:
                    group.error = StoreError(f"the plan {append.plan.name} has no statement {name}")


class Committer(Protocol):
    """How a dialect commits. Called only in the loop, and never for a lane that has a batch under way."""

    lanes: int

    def ready(self, lane: int, /) -> bool:
        """Say whether a batch may start now; after a yes `commit` may follow at once, or not at all.

        After a no, call `Writer.go(lane)` (or `poke`, for a tick later) once it may.
        """
        ...

    def commit(self, batch: Batch, /) -> bool:
        """Commit a batch: True when it is on disk on return, False when `batch.landed` will tell.

        Passes the crash points `batch.begun`, `batch.inserted` and `batch.committed`, inside the span
        `holdfast.durable.commit` (items, bytes).

        Raises (or gives to `landed`), with nothing left of the transaction:
            AppendFailed: An append is at fault; not for a careful batch, which sets `Group.error` instead.
            StoreError: The database is; with `batch.in_doubt` set when the commit may have happened.
        """
        ...

    async def reopen(self, lane: int, /) -> None:
        """Make a lane whose batch failed usable again; when it returns, that batch can no longer commit.

        Raises:
            StoreError: It is not usable yet; the writer asks again later.
        """
        ...
