"""One lane: a connection that commits one batch of appends at a time, in one round trip if it can.

The statements of a batch, its guard among them, become the body of a function in the session's temporary
schema. Calling it is one message, and its own transaction: the creates, the guard, whose rows stay locked
(`FOR SHARE`, in the order of their keys) until the commit, then the writes. Each sees what the ones before it
have written, which the parts of one statement with CTEs would not. When the guard refuses a key the call
fails as a whole and the batch goes the long way.

The long way is statement by statement: for refusals, for careful batches, when a crash point is armed, and
where the role may make no temporary function.

PostgreSQL's texts take arrays here: a statement runs once, with a column of the batch's rows per parameter. A
guard's first columns are its parameters. A batch of a single append, which is what a lone caller waits for, is
called with plain values instead: `unnest` of its arrays becomes a row of `VALUES`.

Invariants:
    - A batch whose guard refuses a key writes the appends of the others, and nothing of that key's.
    - A lost connection in the middle of a commit leaves the batch in doubt, and `reopen` returns only when no
      session that might still commit it is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from holdfast.core import points
from holdfast.core.errors import StoreError, Unavailable
from holdfast.store.batch import AppendFailed, Batch, Group
from holdfast.store.catalogue import Catalogue
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
from holdfast.store.postgres_pool import Link

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
STALL_S = 30.0
"""How long a commit may take before its connection counts as lost."""
COLLISIONS_MAX = 5
"""How often a batch that met another transaction is run again at once."""
PARAMETERS_MAX = 100
"""PostgreSQL's own limit for a function."""
CALLS_MAX = 100
"""Functions per session: plans use few combinations of their statements; what is beyond goes the long way."""

_FAILURES: tuple[type[Exception], ...] = (*DRIVER_ERRORS, StoreError)
_REFUSED = "HF001"
_NUMBER = re.compile(r"\$([0-9]+)")
_UNNEST = re.compile(
    r"\bunnest\((?P<arrays>(?:\s*\$[0-9]+::[\w ]+\[\]\s*,?)+)\)(?P<alias>\s+AS\b|(?=\s*(?:ON|WHERE|RETURNING|ORDER|$)))"
)


class _Call:
    """A prepared call for one combination of a plan's statements.

    Attributes:
        fetch: Makes the call.
        parts: The statements whose rows are its arguments, and whether each takes the values of one row.
        guarded: Whether the guard's keys come first.
        single: Whether it is for one row per statement, and one key.
    """

    __slots__ = ("fetch", "guarded", "parts", "single")

    def __init__(
        self, fetch: Callable[..., Awaitable[list[Any]]], parts: list[tuple[str, bool]], *, guarded: bool, single: bool
    ) -> None:
        self.fetch = fetch
        self.parts = parts
        self.guarded = guarded
        self.single = single


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

    async def commit(self, batch: Batch) -> None:
        """Commit a batch.

        Raises:
            AppendFailed: An append is at fault; nothing of the batch was committed.
            StoreError: The database is; `batch.in_doubt` says whether it may be committed all the same.
        """
        link = self._link
        if link is None or link.closed:
            link = await self._open()
        # Real time, whatever clock a test may set: one that leaps must not cut a connection that works.
        timer = asyncio.get_running_loop().call_later(STALL_S, link.connection.terminate)
        try:
            await self._run(batch, link)
        except _FAILURES as error:
            if is_lost(error) or link.closed:
                batch.in_doubt = True
                self._lose(link)
            elif link.connection.is_in_transaction():
                await self._end(link)
            if is_append_fault(error) and not batch.careful:
                raise AppendFailed from cause_of(error)
            raise translate(error, self._label) from cause_of(error)
        finally:
            timer.cancel()

    async def reopen(self) -> None:
        """Make a new connection, and see to it that the old one's session can commit nothing more.

        Raises:
            StoreError: The server cannot be reached, or the session does not end.
        """
        if self._link is not None:
            self._lose(self._link)
        link = await self._open()
        evict = self._statements["ledger.evict"].text
        while self._ghosts:
            session = self._ghosts[-1].session
            with Edge(self._label):
                found = await link.connection.fetchrow(evict, session.pid, session.started)
            if found is not None and not found[0]:
                raise Unavailable(f"{self._label}: a lost session has not ended yet", "it is asked again")
            self._ghosts.pop()

    async def _open(self) -> Link:
        self._link = await self._connect(LANE_SETTINGS)
        return self._link

    def _lose(self, link: Link) -> None:
        link.connection.terminate()
        if self._link is link:  # else `reopen` was quicker
            self._ghosts.append(link)
            self._link = None

    async def _end(self, link: Link) -> None:
        """Roll back; a connection that cannot is given up, and its server rolls back."""
        try:
            await link.connection.execute("ROLLBACK")
        except DRIVER_ERRORS:
            self._lose(link)

    async def _run(self, batch: Batch, link: Link) -> None:
        """Run a batch as one transaction, again if it collides with another."""
        for attempt in range(COLLISIONS_MAX + 1):
            try:
                if batch.careful or points.armed or not await self._run_quickly(batch, link):
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
        rows, guards = group.rows, group.guards
        arguments: list[Any] = []
        keys = sorted(guards)
        if keys:
            arguments += keys[0] if call.single else zip(*keys, strict=True)
        for name, plain in call.parts:
            arguments += rows[name][0] if plain else zip(*rows[name], strict=True)
        try:
            found = await call.fetch(*arguments)
        except asyncpg.PostgresError as error:
            if sqlstate_of(error) == _REFUSED:
                raise _Refused from None
            raise
        if keys:
            guard = self._statements[group.plan.guard]
            width, make = len(guard.params), guard.row
            for row in found:
                guards[row[:width]] = make(row)

    async def _call_for(self, group: Group, link: Link) -> _Call | None:
        names = tuple([name for name, rows in group.rows.items() if rows])
        single = len(group.items) == 1 and all(len(group.rows[name]) == 1 for name in names)
        key = (group.plan.name, names, bool(group.guards), single)
        try:
            return link.calls[key]  # type: ignore[no-any-return] # what was put there below
        except KeyError:
            if len(link.calls) >= CALLS_MAX:
                return None
        call = None
        with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
            call = await self._make_call(group, names, link, single=single)
        link.calls[key] = call
        return call

    async def _make_call(self, group: Group, names: tuple[str, ...], link: Link, *, single: bool) -> _Call | None:
        """Prepare a combination of statements, as a function unless it is a single one."""
        connection, statements = link.connection, self._statements
        texts = [_Text(statements[name].text, single=single) for name in names]
        parts = [(name, text.plain) for name, text in zip(names, texts, strict=True)]
        if not group.guards and len(names) == 1:
            prepared = await connection.prepare(texts[0].text)
            return _Call(prepared.fetch, parts, guarded=False, single=single)
        if any(statements[name].columns for name in names):
            return None  # PL/pgSQL wants to be told where rows go
        steps, types, columns = [], [], []
        guard = _Text(statements[group.plan.guard].text, single=single) if group.guards else None
        if guard is not None:
            if guard.plain != single:
                return await self._make_call(group, names, link, single=False)
            prepared = await connection.prepare(guard.text)
            types = [each.name for each in prepared.get_parameters()]
            columns = [(each.name, each.type.name) for each in prepared.get_attributes()]
            wanted = "1" if single else "cardinality($1)"
        for name, text in zip(names, texts, strict=True):
            if guard is not None and name not in group.plan.creates:
                steps += _guard_steps(guard.text, wanted)
                guard = None
            steps.append(_renumber(text.text, len(types)))
            types += [each.name for each in (await connection.prepare(text.text)).get_parameters()]
        if guard is not None:
            steps += _guard_steps(guard.text, wanted)
        if len(types) > PARAMETERS_MAX:
            return None
        function = f"holdfast_{len(link.calls)}"
        await connection.execute(_function(function, types, steps, returns="SETOF record" if columns else "void"))
        prepared = await connection.prepare(_invocation(function, len(types), columns))
        return _Call(prepared.fetch, parts, guarded=bool(columns), single=single)

    # The long way

    async def _run_stepwise(self, batch: Batch, link: Link) -> None:
        connection = link.connection
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


class _Text:
    """A statement's text for a call.

    Attributes:
        text: The text.
        plain: Whether it takes the values of one row; else arrays.
    """

    __slots__ = ("plain", "text")

    def __init__(self, text: str, *, single: bool) -> None:
        self.text = text
        self.plain = False
        if single:
            found = list(_UNNEST.finditer(text))
            if len(found) == 1 and text.count("[]") == found[0]["arrays"].count("[]"):
                values, alias = found[0]["arrays"].replace("[]", ""), found[0]["alias"] or " AS one_row"
                self.text = f"{text[: found[0].start()]}(VALUES ({values})){alias}{text[found[0].end() :]}"
                self.plain = True


def _renumber(text: str, offset: int) -> str:
    return _NUMBER.sub(lambda match: f"${int(match[1]) + offset}", text)


def _guard_steps(text: str, wanted: str) -> list[str]:
    return [
        f"RETURN QUERY {text}",
        "GET DIAGNOSTICS holdfast_held = ROW_COUNT",
        f"IF holdfast_held <> {wanted} THEN RAISE 'a guard refuses' USING ERRCODE = '{_REFUSED}'; END IF",
    ]


def _function(name: str, types: list[str], steps: list[str], *, returns: str) -> str:
    """The function that runs a combination of statements."""
    takes, body = ", ".join(types), ";\n".join(steps)
    return (
        f"CREATE FUNCTION pg_temp.{name}({takes}) RETURNS {returns} LANGUAGE plpgsql AS $holdfast$\n"
        f"DECLARE holdfast_held bigint;\nBEGIN\n{body};\nEND\n$holdfast$"
    )


def _invocation(name: str, count: int, columns: list[tuple[str, str]]) -> str:
    parameters = ", ".join(f"${number}" for number in range(1, count + 1))
    shape = ", ".join(f'"{column}" {kind}' for column, kind in columns)
    call = f"SELECT * FROM pg_temp.{name}({parameters})"  # noqa: S608 - of names that we made, no values
    return f"{call} AS ({shape})" if columns else call
