"""Count positions, and hold the records that wait for them.

A `Scope` is one counter of positions in one generation, bound to the task (or thread) that entered it.
It reads its part of the journal forward, segment by segment, as the program asks.

Invariants:
    - Index and occurrence of a durable call are taken when the call expression is evaluated, in the
      task that owns the scope.
    - A record inside a loaded segment costs no query; a segment is read once, whoever waits for it.
    - What is resident is one segment, the one being fetched, and the calls in flight.
"""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from holdfast.core import trace
from holdfast.core.codec import encode
from holdfast.execution import journal, keys
from holdfast.execution.errors import ForeignTask, StepCapExceeded
from holdfast.execution.machine import Record
from holdfast.store.database import Row

if TYPE_CHECKING:
    from holdfast.execution.context import Run
    from holdfast.execution.effects import StepHandle

TRUE = encode(True)  # noqa: FBT003 - the value itself

_scope: ContextVar[Scope | None] = ContextVar("holdfast_scope", default=None)
_effect: ContextVar[StepHandle | None] = ContextVar("holdfast_effect", default=None)
_plain: ContextVar[bool] = ContextVar("holdfast_plain", default=False)
"""Set where a program runs without a ledger (`enabled=false`)."""

_current_task = asyncio.current_task

_END = 1 << 40
"""Beyond every index: where a scope that was read to its end stands."""


class Scope:
    """One counter of positions and the records that wait for it."""

    __slots__ = (
        "ahead",
        "counter",
        "entries",
        "exhausted",
        "key_prefix",
        "labels",
        "labels_used",
        "loading",
        "next_idx",
        "occurrences",
        "patched_count",
        "patches",
        "path",
        "run",
        "task",
        "thread",
    )  # fmt: skip

    def __init__(self, run: Run, path: bytes, labels: bytes, *, recorded: bool) -> None:
        self.run = run
        self.path = path
        self.labels = labels
        self.key_prefix = keys.key_prefix(run.uid_bytes, run.chapter, labels)
        self.counter = 0
        self.occurrences: dict[bytes, int] = {}
        self.labels_used: dict[str, int] | None = None
        self.entries: dict[int, Any] = {}
        """Recorded positions not asked for yet: a record, or the list of them where there are several."""
        self.exhausted = not recorded
        """Whether the journal holds nothing beyond `entries`."""
        self.next_idx = journal.IDX_MIN
        self.loading: asyncio.Future[None] | None = None
        self.ahead: asyncio.Task[list[Row]] | None = None
        self.patches: dict[str, bool] | None = None
        self.patched_count = 0
        self.task: asyncio.Task[Any] | None = None
        self.thread = 0

    def bind(self) -> Scope:
        """Give the scope to the current task, or to the current thread when there is no loop in it."""
        try:
            self.task = _current_task()
        except RuntimeError:
            self.thread = threading.get_ident()
        return self

    def own(self, kind: str, name: str) -> None:
        """Make sure the call comes from the task, or thread, that entered the scope.

        Raises:
            ForeignTask: It does not.
        """
        if self.thread:
            if threading.get_ident() != self.thread:
                self._foreign(kind, name)
        elif _current_task(self.run.loop) is not self.task:
            self._foreign(kind, name)

    def take(self, kind: str, name: str, shape: bytes) -> tuple[int, int]:
        """Take the next index, and the occurrence of a shape in this scope.

        Raises:
            ForeignTask: The scope belongs to another task; nothing was taken.
        """
        self.own(kind, name)
        run = self.run
        if run.over:
            run.refuse()
        index = self.counter
        self.counter = index + 1
        run.positions += 1
        if run.positions > run.steps_max:
            run.halt(
                StepCapExceeded(
                    f"execution {run.id!r} has more than {run.steps_max} positions in generation {run.generation}",
                    hint="end chapters with continue_as_new, or raise steps_live_max",
                    maximum=run.steps_max,
                )
            )
        occurrences = self.occurrences
        occurrence = occurrences.get(shape, 0)
        occurrences[shape] = occurrence + 1
        return index, occurrence

    def _foreign(self, kind: str, name: str) -> None:
        here: Any
        try:
            here = _current_task()
        except RuntimeError:
            here = None
        this = here.get_name() if here is not None else threading.current_thread().name
        that = self.task.get_name() if self.task is not None else f"thread {self.thread}"
        raise ForeignTask(
            f"{kind} {name!r} was called in {this!r}, but this part of execution {self.run.id!r} belongs to {that!r}",
            hint="run concurrent helpers with holdfast.gather(…) or holdfast.branch(…).run(…); on Python 3.11 use "
            "asyncio.timeout in place of asyncio.wait_for",
        )

    def label(self, label: str) -> bytes:
        """Take the next occurrence of a label and return the label path of the scope it opens."""
        if self.labels_used is None:
            self.labels_used = {}
        occurrence = self.labels_used.get(label, 0)
        self.labels_used[label] = occurrence + 1
        return keys.scope_label(self.labels, label, occurrence)

    async def find(self, index: int) -> Any:
        """Return and remove the record(s) at a position, reading the journal forward as far as needed."""
        while not self.exhausted and index >= self.next_idx:
            await self._load()
        return self.entries.pop(index, None)

    async def _load(self) -> None:
        # Several calls may wait for the same segment; one reads it.
        if self.loading is not None:
            await asyncio.shield(self.loading)
            return
        self.loading = self.run.loop.create_future()
        try:
            ahead, self.ahead = self.ahead, None  # whoever is cancelled here must not take it with him
            rows = await asyncio.shield(ahead) if ahead is not None else await self._read(self.next_idx)
            self._file(rows)
        finally:
            loading, self.loading = self.loading, None
            loading.set_result(None)

    async def _read(self, start: int) -> list[Row]:
        run = self.run
        with trace.span("holdfast.durable.replay.segment", execution=run.id, start=start):
            async with run.database.read() as tx:
                return await journal.segment(tx, run.pk, run.generation, self.path, start, run.segment_rows)

    def _file(self, rows: list[Row]) -> None:
        """File one segment by index. The last index of a full segment may be cut: it is read again."""
        full = len(rows) >= self.run.segment_rows
        last = rows[-1].idx if rows else 0
        if full and rows[0].idx == last:
            full = False  # one position fills the segment: journal.segment then returned all of it
            self.next_idx = last + 1
        elif full:
            self.next_idx = last
        else:
            self.exhausted = True
            self.next_idx = _END
        entries = self.entries
        previous = None
        for row in rows:
            idx = row[0]
            if full and idx == last:
                break
            if idx < 0:
                self.patches = self.patches or {}
                self.patches[row.name] = row.payload == TRUE
                self.patched_count += 1
            elif idx == previous:
                found = entries[idx]
                if type(found) is list:
                    found.append(row)
                else:
                    entries[idx] = [found, row]
            else:
                entries[idx] = row
            previous = idx
        self.run.segments_read += 1
        if not self.exhausted and self.run.prefetch:
            self.ahead = self.run.engine.tasks.spawn(self._read(self.next_idx), "replay.segment")

    async def ahead_of(self, counter: int) -> Record | None:
        """Return a record at or beyond a counter, or None: then nothing is recorded there."""
        while not self.exhausted and self.next_idx <= counter:
            await self._load()
        if not self.exhausted and not any(idx >= counter for idx in self.entries):
            await self._load()
        beyond = [idx for idx in self.entries if idx >= counter]
        if not beyond:
            return None
        found = self.entries[min(beyond)]
        record: Record = found[0] if type(found) is list else found
        return record
