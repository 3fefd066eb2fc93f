"""One lane: a connection that commits one batch of appends at a time, in one round trip if it can.

The statements of a batch, its guard among them, are one call (`postgres_calls` says how): one message, and its own
transaction. A plan has a function for all its statements; an append that is alone in its batch, which is what a
lone caller waits for, has a call for just the statements that it needs. When the guard refuses a key the function
fails as a whole and the batch goes the long way.

The long way is statement by statement: for refusals, for careful batches, when a crash point is armed, behind a
pooler that gives every transaction another session, and where the role may make no temporary function or type.

Invariants:
    - A batch whose guard refuses a key writes the appends of the others, and nothing of that key's.
    - A lost connection in the middle of a commit leaves the batch in doubt, and `reopen` returns only when no
      session that might still commit it is left.
    - No append is blamed for what befell its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

import asyncpg

from holdfast.core import points
from holdfast.core.errors import StoreError, Unavailable
from holdfast.store.batch import AppendFailed, Batch, Group
from holdfast.store.catalogue import Catalogue
from holdfast.store.database import Plan
from holdfast.store.postgres_calls import REFUSED, Recipe, lone, whole
from holdfast.store.postgres_errors import (
    DRIVER_ERRORS,
    Edge,
    cause_of,
    is_append_fault,
    is_collision,
    is_lost,
    sqlstate_of,
    translate,
)
from holdfast.store.postgres_pool import Link, begun

__all__ = ["LANE_SETTINGS", "Lane"]

log = logging.getLogger(__name__)

LANE_SETTINGS = {
    # To plan a statement takes longer than to run it, so a function keeps its plans; and one made while a table is
    # small must not scan it when it has grown.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
COLLISIONS_MAX = 5
"""How often a batch that met another transaction is run again at once."""
CALLS_MAX = 100
"""Calls per session: plans use few combinations of their statements; what is beyond takes its plan's function."""
LONE_AFTER = 3
"""How often a combination of a lone append takes its plan's function, if there is one, before it gets its own."""

_FAILURES: tuple[type[Exception], ...] = (*DRIVER_ERRORS, StoreError)
_Key: TypeAlias = tuple[Plan, tuple[str, ...], bool]
"""A call of a plan: the statements of a lone append, or none for all of them; and whether its guard is among them."""


class _Call:
    """A prepared call.

    Attributes:
        fetch: Makes the call.
        recipe: What it was made of.
        names: The statements it runs.
    """

    __slots__ = ("fetch", "names", "recipe")

    def __init__(self, fetch: Callable[..., Awaitable[list[Any]]], recipe: Recipe) -> None:
        self.fetch = fetch
        self.recipe = recipe
        self.names = frozenset(recipe.names)


class _Refused(Exception):
    """A guard gave no row for a key; nothing was written."""


class Lane:
    """A connection for batches, made when it is first needed.

    Args:
        connect: Opens it.
        statements: The catalogue.
        label: What to call the database.
    """

    def __init__(
        self, connect: Callable[[dict[str, str]], Awaitable[Link]], *, statements: Catalogue, label: str
    ) -> None:
        self._connect = connect
        self._statements = statements
        self._label = label
        self._link: Link | None = None
        self._ghosts: list[Link] = []
        self._used = False
        self._preparing: asyncio.Future[None] | None = None
        self._turn = 0
        self._lone: Counter[_Key] = Counter()
        self._columns: dict[str, dict[str, str]] = {}
        self._made = 0

    async def commit(self, batch: Batch) -> None:
        """Commit a batch.

        Raises:
            AppendFailed: An append is at fault; nothing of the batch was committed.
            StoreError: The database is; `batch.in_doubt` says whether it may be committed all the same.
        """
        self._used = True
        turn = self._turn
        if self._preparing is not None:
            await self._preparing
        link = await self._open(turn)
        try:
            with link.watch:
                await self._run(batch, link)
        except _FAILURES as error:
            lost = is_lost(error) or link.closed
            if lost:
                batch.in_doubt = True
                self._lose(link)
            elif link.connection.is_in_transaction():
                await self._end(link)
            if is_append_fault(error) and not lost and not batch.careful:
                raise AppendFailed from cause_of(error)
            raise translate(error, self._label) from cause_of(error)

    async def prepare(self, plans: Iterable[Plan]) -> None:
        """Connect and make the functions of plans before the first batch; what goes wrong is left to that."""
        if self._used:
            return
        self._used = True
        self._preparing = asyncio.get_running_loop().create_future()
        try:
            with contextlib.suppress(*_FAILURES):
                link = await self._open(self._turn)
                with link.watch:
                    for plan in plans:
                        await self._find_call(_whole(plan), link)
        finally:
            self._preparing.set_result(None)
            self._preparing = None

    async def reopen(self) -> None:
        """Make a new connection, and see to it that the old one's session can commit nothing more.

        Raises:
            StoreError: The server cannot be reached, or the session does not end.
        """
        self._turn += 1
        if self._link is not None:
            self._lose(self._link)
        if self._preparing is not None:
            await self._preparing
        link = await self._open(self._turn)
        evict = self._statements["ledger.evict"].text
        while self._ghosts:
            session = self._ghosts[-1].session
            if link.pooled and session.since is None:  # it began no transaction, and the session is anybody's
                self._ghosts.pop()
                continue
            with Edge(self._label), link.watch:
                found = await link.connection.fetchrow(evict, session.pid, session.started, session.since)
            if found is not None and not found[0]:
                raise Unavailable(f"{self._label}: a lost session has not ended yet", "it is asked again")
            self._ghosts.pop()

    async def _open(self, turn: int) -> Link:
        """Return the connection, made if need be; to nobody who began before the lane was reopened.

        `reopen` can end what runs on a connection that it knows of. Who is about to have one, or to be given the new
        one, would commit beside the batch that is committed again.
        """
        if turn == self._turn and self._link is not None and not self._link.closed:
            return self._link
        link = await self._connect(LANE_SETTINGS)
        if turn != self._turn:
            link.connection.terminate()
            raise Unavailable(f"{self._label}: the batch was given up", "it is committed again")
        self._link = link
        return link

    def _lose(self, link: Link) -> None:
        link.connection.terminate()
        if self._link is link:  # else `reopen` was quicker
            self._ghosts.append(link)
            self._link = None

    async def _end(self, link: Link) -> None:
        """Roll back; a connection that cannot is given up, and its server rolls back."""
        try:
            with link.watch:
                await link.connection.execute("ROLLBACK")
        except DRIVER_ERRORS:
            self._lose(link)

    async def _run(self, batch: Batch, link: Link) -> None:
        """Run a batch as one transaction, again if it collides with another."""
        for attempt in range(COLLISIONS_MAX + 1):
            try:
                slowly = batch.careful or link.pooled or points.armed
                if slowly or not await self._run_quickly(batch, link):
                    await self._run_stepwise(batch, link)
            except asyncpg.PostgresError as error:
                if attempt == COLLISIONS_MAX or not is_collision(error):
                    raise
                if link.connection.is_in_transaction():
                    await link.connection.execute("ROLLBACK")
                for group in batch.groups:
                    group.guards = dict.fromkeys(group.guards)
            else:
                return

    # One round trip

    async def _run_quickly(self, batch: Batch, link: Link) -> bool:
        """Commit a batch by one call per plan; False, with nothing done, when that is not possible."""
        calls = []
        for group in batch.groups:
            call = await self._call_for(group, link)
            if call is None:
                return False
            calls.append((group, call))
        try:
            if len(calls) == 1:
                await self._invoke(*calls[0])
            else:
                await link.connection.execute("BEGIN")
                for group, call in calls:
                    await self._invoke(group, call)
                await link.connection.execute("COMMIT")
        except _Refused:
            if link.connection.is_in_transaction():
                await link.connection.execute("ROLLBACK")
            for group in batch.groups:
                group.guards = dict.fromkeys(group.guards)
            return False
        return True

    async def _invoke(self, group: Group, call: _Call) -> None:
        rows, guards, recipe = group.rows, group.guards, call.recipe
        keys = sorted(guards)
        arguments: list[Any] = []
        if recipe.single:
            if keys:
                arguments += keys[0]
            for name in recipe.names:
                arguments += rows[name][0]
        else:
            if recipe.guarded:
                arguments.append(keys)
            arguments += [rows[name] for name in recipe.names]
        try:
            found = await call.fetch(*arguments)
        except asyncpg.PostgresError as error:
            if sqlstate_of(error) == REFUSED:
                raise _Refused from None
            raise
        if keys:
            guard = self._statements[group.plan.guard]
            width, make = len(guard.params), guard.row
            if recipe.refuses:
                no_news = (None,) * (len(guard.columns) - width)
                for key in keys:
                    guards[key] = make(key + no_news)
            for row in found:
                guards[row[:width]] = make(row)

    async def _call_for(self, group: Group, link: Link) -> _Call | None:
        """Find the call for a batch's part of a plan, made if need be; None when there can be none."""
        plan, guarded = group.plan, bool(group.guards)
        names = tuple([name for name, rows in group.rows.items() if rows])
        if len(group.items) == 1 and all(len(group.rows[name]) == 1 for name in names):
            key = plan, names, guarded
            if key in link.calls or self._wants_own(key, link):
                call = await self._find_call(key, link)
                if call is not None:
                    return call
        call = await self._find_call(_whole(plan), link)
        if call is None or not call.names.issuperset(names) or (guarded and not call.recipe.guarded):
            return None
        return call

    def _wants_own(self, key: _Key, link: Link) -> bool:
        self._lone[key] += 1
        return self._lone[key] > LONE_AFTER or _whole(key[0]) not in link.calls

    async def _find_call(self, key: _Key, link: Link) -> _Call | None:
        try:
            return link.calls[key]  # type: ignore[no-any-return] # what was put there below
        except KeyError:
            if key[1] and len(link.calls) >= CALLS_MAX:
                return None
        call = None
        try:
            call = await self._make_call(key, link)
        except asyncpg.PostgresError as error:
            # The role may not, or a text is at odds with the tables: the long way says what it is, if anything.
            if not is_append_fault(error) and not isinstance(error, asyncpg.InsufficientPrivilegeError):
                raise
        link.calls[key] = call
        link.watch.start()
        return call

    async def _make_call(self, key: _Key, link: Link) -> _Call | None:
        (plan, names, guarded), connection = key, link.connection
        columns = await self._columns_of(plan, link) if guarded else {}
        self._made += 1
        name = f"holdfast_{self._made}"
        if names:
            recipe = lone(name, plan, names, self._statements, columns)
        else:
            recipe = whole(name, plan, self._statements, columns)
        if recipe is None:
            return None
        if recipe.definition:
            await connection.execute(recipe.definition)
        prepared = await connection.prepare(recipe.call)
        if not names:
            await prepared.fetch(*[None] * len(prepared.get_parameters()))  # plans every statement, and runs none
        return _Call(prepared.fetch, recipe)

    async def _columns_of(self, plan: Plan, link: Link) -> dict[str, str]:
        """The columns of a plan's guard and their types, as the server names them."""
        found = self._columns.get(plan.name)
        if found is None:
            prepared = await link.connection.prepare(self._statements[plan.guard].text)
            found = self._columns[plan.name] = {each.name: each.type.name for each in prepared.get_attributes()}
        return found

    # The long way

    async def _run_stepwise(self, batch: Batch, link: Link) -> None:
        connection = link.connection
        if link.pooled:
            await connection.execute(begun("BEGIN", LANE_SETTINGS))
            statement = self._statements["ledger.transaction"]
            link.session = statement.row(await connection.fetchrow(statement.text))
        else:
            await connection.execute("BEGIN")
        if points.armed:
            points.reach("batch.begun")
        if batch.careful:
            await self._lock_guards(batch, connection)
            for group in batch.groups:
                await self._run_carefully(group, connection)
        else:
            for group in batch.groups:
                await self._run_group(group, connection)
        if points.armed:
            points.reach("batch.inserted")
        await connection.execute("COMMIT")
        if points.armed:
            points.reach("batch.committed")

    async def _lock_guards(self, batch: Batch, connection: Any) -> None:
        """Lock in the order of the keys what the groups will look up one by one."""
        wanted: dict[str, set[tuple[object, ...]]] = {}
        for group in batch.groups:
            wanted.setdefault(group.plan.guard, set()).update(group.guards)
        for name, keys in wanted.items():
            if keys:
                ordered = sorted(keys)
                await connection.fetch(self._statements[name].text, *zip(*ordered, strict=True))

    async def _run_group(self, group: Group, connection: Any) -> None:
        statements, rows, guards = self._statements, group.rows, group.guards
        for name in group.plan.creates:
            if found := rows[name]:
                await connection.fetch(statements[name].text, *zip(*found, strict=True))
        if guards:
            guard = statements[group.plan.guard]
            width, make = len(guard.params), guard.row
            keys = sorted(guards)
            for row in await connection.fetch(guard.text, *zip(*keys, strict=True)):
                guards[row[:width]] = make(row)
            rows = group.admitted()
        for name in group.plan.writes:
            if found := rows[name]:
                await connection.fetch(statements[name].text, *zip(*found, strict=True))

    async def _run_carefully(self, group: Group, connection: Any) -> None:
        """Run the one append of a group so that its failure stays its own."""
        if group.error is not None or (group.again and await self._find_recorded(group, connection)):
            return
        await connection.execute("SAVEPOINT append")
        try:
            await self._run_group(group, connection)
        except _FAILURES as error:
            if not is_append_fault(error):
                raise
            await connection.execute("ROLLBACK TO append")
            group.error = translate(error, self._label)
        await connection.execute("RELEASE append")

    async def _find_recorded(self, group: Group, connection: Any) -> bool:
        for name, row in group.items[0].rows:
            companion = self._statements.companion(name)
            if companion is not None:
                found = await connection.fetchrow(companion.statement.text, *companion.params(row))
                if found is not None:
                    group.recorded = companion.statement.row(found)
                    return True
        return False


def _whole(plan: Plan) -> _Key:
    return plan, (), bool(plan.guard)
