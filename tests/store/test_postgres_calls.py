"""How statements become one call: what is made of their texts, and that the server does with it what they say."""

from __future__ import annotations

import asyncio
import itertools
import re
from typing import Any

import pytest

from holdfast.execution.journal import PLAN
from holdfast.store import Append, Plan, catalogue
from holdfast.store.catalogue import Statement
from holdfast.store.postgres import PREPARE_AFTER, PostgresDatabase
from holdfast.store.postgres_batch import LONE_AFTER, _Call, _whole
from holdfast.store.postgres_calls import PARAMETERS_MAX, Recipe, lone, whole
from holdfast.testing.store_contract.ledgers import append, create, entries, entry, executions, put, reserve, values

STATEMENTS = catalogue.load("postgres")
COLUMNS = {"pk": "bigint", "fence": "bigint", "request": "text"}
"""What the guard of executions returns."""


def statements(**texts: str) -> dict[str, Statement]:
    """A catalogue of statements with as many parameters as their texts have."""
    made = {}
    for name, text in texts.items():
        count = max(map(int, re.findall(r"\$([0-9]+)", text)), default=0)
        columns = ("a", "b") if name == "guard" else ()
        made[name] = Statement(name, tuple(f"p{number}" for number in range(1, count + 1)), columns, text)
    return made


GUARD = "SELECT e.a, e.b FROM unnest($1::bigint[]) AS w (a) JOIN e ON e.a = w.a FOR SHARE OF e"
CREATE = "INSERT INTO e (a) SELECT * FROM unnest($1::bigint[]) ON CONFLICT DO NOTHING"
WRITE = "INSERT INTO t (a, b) SELECT * FROM unnest($1::bigint[], $2::text[])"
CHANGE = "UPDATE e SET b = w.b FROM unnest($1::text[], $2::bigint[]) AS w (b, a) WHERE e.a = w.a"


# Texts


@pytest.mark.parametrize(
    ("text", "made"),
    [
        (WRITE, "INSERT INTO t (a, b) SELECT * FROM (VALUES ($1::bigint, $2::text)) AS one_row"),
        (CREATE, "INSERT INTO e (a) SELECT * FROM (VALUES ($1::bigint)) AS one_row ON CONFLICT DO NOTHING"),
        (CHANGE, "UPDATE e SET b = w.b FROM (VALUES ($1::text, $2::bigint)) AS w (b, a) WHERE e.a = w.a"),
        (
            "UPDATE e SET a = 1 FROM unnest($1::int[])\n AS w (a)",
            "UPDATE e SET a = 1 FROM (VALUES ($1::int))\n AS w (a)",
        ),
        ("INSERT INTO t SELECT * FROM unnest($1::int[]) WITH ORDINALITY AS w (a, place)", None),
        ("INSERT INTO t SELECT * FROM unnest($1::int[]) w", None),
        ("UPDATE t SET a = 1 WHERE a = ANY ($1::int[])", None),
        ("INSERT INTO t SELECT * FROM unnest($1::int[]) AS w, unnest($2::int[]) AS v", None),
        ("INSERT INTO t SELECT * FROM unnest($2::int[], $1::int[])", None),
        ("INSERT INTO t SELECT *, $1 FROM unnest($1::int[])", None),
        ("INSERT INTO t VALUES ($1::int)", None),
    ],
)
def test_arrays_become_values_only_where_that_is_certain(text: str, made: str | None) -> None:
    recipe = lone("f", Plan("p", (), "", ("write",)), ("write",), statements(write=text), {})
    assert (recipe and recipe.call) == made
    assert recipe is None or recipe == Recipe("", recipe.call, ("write",), guarded=False, single=True, refuses=False)


def test_a_lone_append_is_one_statement_that_writes_what_its_guard_holds() -> None:
    plan = Plan("p", ("create",), "guard", ("write", "change"))
    known = statements(guard=GUARD, create=CREATE, write=WRITE, change=CHANGE)
    recipe = lone("f", plan, ("write", "change"), known, {"a": "bigint", "b": "text"})
    assert recipe is not None
    assert (recipe.definition, recipe.guarded, recipe.single, recipe.refuses) == ("", True, True, False)
    assert recipe.call == (
        "WITH holdfast_held AS MATERIALIZED (\n"
        "SELECT e.a, e.b FROM (VALUES ($1::bigint)) AS w (a) JOIN e ON e.a = w.a FOR SHARE OF e\n"
        "),\nholdfast_0 AS (\n"
        "INSERT INTO t (a, b) SELECT * FROM (SELECT $2::bigint, $3::text FROM holdfast_held) AS one_row\n"
        "),\nholdfast_1 AS (\n"
        "UPDATE e SET b = w.b FROM (SELECT $4::text, $5::bigint FROM holdfast_held) AS w (b, a) WHERE e.a = w.a\n"
        ")\nSELECT * FROM holdfast_held"
    )


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("create", "write"), "the guard must see what was created"),
        (("change", "change_again"), "a statement changes a row once"),
    ],
)
def test_statements_that_must_see_one_another_are_steps_of_a_function(names: tuple[str, ...], why: str) -> None:
    plan = Plan("p", ("create",), "guard", ("write", "change", "change_again"))
    known = statements(guard=GUARD, create=CREATE, write=WRITE, change=CHANGE, change_again=CHANGE)
    recipe = lone("f", plan, names, known, {"a": "bigint", "b": "text"})
    assert recipe is not None, why
    assert (recipe.guarded, recipe.single, recipe.refuses, recipe.names) == (True, True, True, names)
    steps = [recipe.definition.index(each) for each in ("FOR SHARE", known[names[1]].text.partition(" FROM ")[0])]
    if names[0] == "create":
        steps.insert(0, recipe.definition.index("INSERT INTO e"))
    assert steps == sorted(steps), "creates, guard, writes"


def test_a_lone_append_without_a_guard_is_a_function_of_its_statements() -> None:
    known = statements(create=CREATE, write=WRITE)
    recipe = lone("f", Plan("p", ("create",), "", ("write",)), ("create", "write"), known, {})
    assert recipe is not None
    assert (recipe.guarded, recipe.single, recipe.names) == (False, True, ("create", "write"))
    assert recipe.call == "SELECT * FROM pg_temp.f($1, $2, $3)"
    assert "holdfast_count <>" not in recipe.definition


@pytest.mark.parametrize("bad", ["guard", "create", "write"])
def test_a_lone_append_of_an_unforeseen_text_has_no_call(bad: str) -> None:
    plan = Plan("p", ("create",), "guard", ("write",))
    texts = {"guard": GUARD, "create": CREATE, "write": WRITE}
    known = statements(**{**texts, bad: texts[bad].replace("::bigint[]", "")})
    assert lone("f", plan, ("create", "write"), known, {"a": "bigint", "b": "text"}) is None
    if bad != "create":
        assert lone("f", plan, ("write",), known, {"a": "bigint", "b": "text"}) is None


def test_rows_that_a_write_returns_have_no_place_in_a_call() -> None:
    plan = Plan("p", (), "guard", ("write", "change"))
    known = statements(guard=GUARD, write=WRITE, change=CHANGE)
    known["write"] = Statement("write", ("a", "b"), ("seq",), WRITE + " RETURNING seq")
    assert lone("f", plan, ("write",), known, {}) is None
    made = whole("f", plan, known, {"a": "bigint", "b": "text"})
    assert made is not None
    assert made.names == ("change",)


def test_a_whole_call_leaves_out_what_was_not_foreseen() -> None:
    plan = Plan("p", ("create",), "guard", ("missing", "odd", "write"))
    known = statements(guard=GUARD, create=CREATE, odd="UPDATE e SET a = 1 WHERE a = ANY ($1::int[])", write=WRITE)
    made = whole("f", plan, known, {"a": "bigint", "b": "text"})
    assert made is not None
    assert (made.names, made.guarded, made.single, made.refuses) == (("create", "write"), True, False, True)
    known["guard"] = Statement("guard", ("a",), ("a",), "SELECT $1 AS a")
    made = whole("f", plan, known, {"a": "bigint"})
    assert made is not None
    assert not made.guarded
    made = whole("f", Plan("p", (), "", ("write",)), known, {})
    assert made is not None
    assert (made.guarded, made.call) == (False, "SELECT * FROM pg_temp.f($1)")


def test_a_function_takes_as_many_parameters_as_a_server_allows() -> None:
    arrays = ", ".join(f"${number}::int[]" for number in range(1, PARAMETERS_MAX + 1))
    text = WRITE.replace("$1::bigint[], $2::text[]", arrays)
    known = statements(guard=GUARD, create=CREATE, write=text)
    plan = Plan("p", ("create",), "guard", ("write",))
    assert lone("f", plan, ("create", "write"), known, {"a": "bigint", "b": "text"}) is None
    many = Plan("p", (), "guard", tuple(f"w{n}" for n in range(PARAMETERS_MAX)))
    known = statements(guard=GUARD, **dict.fromkeys(many.writes, WRITE))
    assert whole("f", many, known, {"a": "bigint", "b": "text"}) is None


def test_every_statement_of_an_execution_has_its_place_in_the_whole_call() -> None:
    made = whole("f", PLAN, STATEMENTS, COLUMNS)
    assert made is not None
    assert (made.names, made.guarded) == ((*PLAN.creates, *PLAN.writes), True)
    for name in made.names:
        assert lone("f", PLAN, (name,), STATEMENTS, COLUMNS) is not None or name == "executions.move"


# On a server


def calls(pg: PostgresDatabase, pk: int) -> dict[Any, _Call | None]:
    """What the lane of an execution has prepared."""
    link = pg._lanes[pk % pg.lanes]._link
    assert link is not None
    return link.calls


async def lane_mates(pg: PostgresDatabase, count: int) -> list[int]:
    """Executions of one lane."""
    pks = await executions(pg, count * pg.lanes)
    return [pk for pk in pks if pk % pg.lanes == 0][:count]


def move(pg: PostgresDatabase, pk: int, status: str, **columns: Any) -> tuple[str, tuple[Any, ...]]:
    """A change of status."""
    return "executions.move", values(pg, "executions.move", status=status, pk=pk, now=1, bytes=0, **columns)


def settle(pg: PostgresDatabase, pk: int) -> list[tuple[str, tuple[Any, ...]]]:
    """The end of an execution."""
    ended = values(pg, "executions.settle", status="completed", output=b"out", bytes=7, finished_at=1, pk=pk)
    trail = values(pg, "trail.add", execution_pk=pk, status="completed", fence=1, at=1)
    return [("trail.add", trail), ("executions.settle", ended)]


async def row_of(pg: PostgresDatabase, pk: int) -> Any:
    async with pg.read() as tx:
        return await tx.one("executions.get", id=f"e{pk}")


async def test_every_statement_runs_in_the_whole_call(pg: PostgresDatabase) -> None:
    """What it does is what the statements do one by one: the same batches, with and without it."""
    found = []
    for quick in (True, False):
        first, second, third = await lane_mates(pg, 3)
        new = await reserve(pg)
        new += new % pg.lanes
        if not quick:
            calls(pg, first)[_whole(PLAN)] = None

        def row(name: str, **columns: Any) -> tuple[str, tuple[Any, ...]]:
            return name, values(pg, name, **columns)

        batch = [
            create(pg, new),
            entry(pg, new, 0, payload=None),
            append(
                [
                    row("generations.close", execution_pk=first, generation=1, closed_at=5, closed_as="diverged"),
                    row("generations.open", execution_pk=first, generation=2),
                    row("blobs.add", blob_pk=first * 2 + 1, execution_pk=first, part=0, bytes=b"\x00\xff"),
                    row("blobs.add", blob_pk=first * 2 + 1, execution_pk=first, part=1, bytes=b""),
                    row("decisions.open", execution_pk=first, position="0", reason="lost", key=b"k", opened_at=1),
                    row("audit.add", execution_id=f"e{first}", at=1, event="x", detail='{"a": "ü"}'),
                    ("executions.degrade", (first,)),
                    move(pg, first, "waiting", generation=2, chapter=0),
                ],
                first,
            ),
            append([move(pg, second, "waiting", generation=1, chapter=0)], second),
            append([move(pg, second, "running", generation=1, chapter=0)], second),
            append(settle(pg, third), third),
        ]
        assert [result.request for result in await put(pg, *batch)] == [None] * len(batch)
        assert pg.writer.batches
        call = calls(pg, first)[_whole(PLAN)]
        assert (call is not None) == quick
        async with pg.read() as tx:
            generations = await tx.all("generations.list", execution_pk=first)
            audit = await tx.all("audit.list", execution_id=f"e{first}", after=0, most=9)
        moved = [await row_of(pg, pk) for pk in (first, second, third)]
        states = [(each.status, each.degraded, each.bytes) for each in moved]
        journal = [(each.idx, each.payload) for each in await entries(pg, new)]
        found.append((states, journal, [tuple(each[1:]) for each in generations], [each.detail for each in audit]))
    assert found[0] == found[1]
    assert found[0][0] == [("waiting", True, 0), ("running", False, 0), ("completed", False, 7)]


@pytest.mark.parametrize("alone", [True, False])
async def test_a_request_is_seen_by_the_appends_of_its_execution(pg: PostgresDatabase, alone: bool) -> None:
    asked, other = await lane_mates(pg, 2)
    async with pg.write() as tx:
        await tx.one("executions.request", request="cancel:x", request_at=1, pk=asked, fence=1)
    for idx in range(LONE_AFTER + 3):
        batch = [entry(pg, asked, idx)] + ([] if alone else [entry(pg, other, idx)])
        results = await put(pg, *batch)
        assert [result.request for result in results] == ["cancel:x"] + [None] * (len(batch) - 1)
        assert results[0][:2] == (asked, 1)


async def test_a_refused_lone_append_writes_nothing(pg: PostgresDatabase) -> None:
    [pk] = await executions(pg)
    assert all(await put(pg, entry(pg, pk, 0)))
    assert await put(pg, append(settle(pg, pk), pk, fence=2)) == [None]
    assert await put(pg, entry(pg, pk, 1, fence=2)) == [None]
    assert (await row_of(pg, pk)).status == "running"
    assert len(await entries(pg, pk)) == 1
    assert [result.fence for result in await put(pg, append(settle(pg, pk), pk))] == [1]
    assert (await row_of(pg, pk)).status == "completed"
    assert await put(pg, entry(pg, pk, 1)) == [None], "it has ended"


async def test_a_lone_append_whose_statements_change_one_row_changes_it_by_all_of_them(pg: PostgresDatabase) -> None:
    [pk] = await executions(pg)
    for _ in range(LONE_AFTER + 1):
        rows = [("executions.degrade", (pk,)), move(pg, pk, "waiting", generation=1, chapter=0)]
        assert all(await put(pg, append(rows, pk)))
    found = await row_of(pg, pk)
    assert (found.status, found.degraded) == ("waiting", True)


async def test_an_end_that_waited_for_a_request_is_not_lost(pg: PostgresDatabase) -> None:
    """The row has changed after the statement began: the guard sees it as it is now, and so does the change."""
    from tests.store.test_postgres import blocked

    [pk] = await executions(pg)
    assert all(await put(pg, entry(pg, pk, 0)))
    ending = append(settle(pg, pk), pk)
    async with pg.write() as tx:
        await tx.one("executions.request", request="pause", request_at=1, pk=pk, fence=1)
        assert pg.writer.offer(ending)
        await blocked(pg)
    assert ending.future is not None
    assert (await ending.future).request == "pause"
    found = await row_of(pg, pk)
    assert (found.status, found.output, found.request) == ("completed", b"out", None)


async def test_a_lone_append_gets_a_call_of_its_own_once_it_is_usual(pg: PostgresDatabase) -> None:
    first, second = await lane_mates(pg, 2)
    assert all(await put(pg, entry(pg, first, 0), entry(pg, second, 0)))
    assert [names for _, names, _ in calls(pg, first)] == [()]
    for idx in range(1, LONE_AFTER + 3):
        assert all(await put(pg, entry(pg, first, idx)))
        assert (len(calls(pg, first)) == 2) == (idx > LONE_AFTER)


async def test_lanes_that_were_not_needed_yet_are_made_ready(pg: PostgresDatabase) -> None:
    [pk] = [each for each in await executions(pg, pg.lanes) if each % pg.lanes == 0]
    for idx in range(PREPARE_AFTER):
        assert pg._lanes[1]._link is None
        assert all(await put(pg, entry(pg, pk, idx)))
    await pg._making.settle(10)
    assert [call is not None for call in calls(pg, pk + 1).values()] == [True]
    link = pg._lanes[1]._link
    assert link is not None
    others: list[str] = []
    link.connection.add_query_logger(lambda record: others.append(record.query))
    twins = [each for each in await executions(pg, 2 * pg.lanes) if each % pg.lanes == 1]
    assert all(await put(pg, *(entry(pg, each, 0) for each in twins)))
    assert others == []


async def test_a_batch_waits_for_a_lane_that_is_being_made_ready(pg: PostgresDatabase) -> None:
    [pk] = [each for each in await executions(pg, pg.lanes) if each % pg.lanes == 1]
    lane = pg._lanes[1]
    making = asyncio.ensure_future(lane.prepare([PLAN]))
    await asyncio.sleep(0)
    assert lane._preparing is not None
    assert all(await put(pg, entry(pg, pk, 0)))
    await making
    link = lane._link
    await lane.prepare([PLAN])
    assert lane._link is link, "a lane that is in use is ready"


async def test_combinations_beyond_count_take_the_function_of_their_plan(
    pg: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.store.postgres_batch.CALLS_MAX", 1)
    [pk] = await executions(pg)
    assert all(await put(pg, entry(pg, pk, 0)))
    for idx, count in itertools.product((1, 2), (1, 2)):
        trail = [("trail.add", values(pg, "trail.add", execution_pk=pk, status="x", fence=1, at=1))] * count
        each: Append = append([*trail, *entry(pg, pk, 10 * count + idx).rows], pk)
        assert all(await put(pg, each))
    assert {names for _, names, _ in calls(pg, pk)} == {("journal.append",), ()}
