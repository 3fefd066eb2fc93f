"""`verify`: a sound ledger is left in peace, a broken row is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.flow.tamper import change, is_postgres, look, until
from tests.stage import Stage, halves

import holdfast
from holdfast.core.errors import HoldfastError


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    return Stage(ledger, tmp_path)


class Left(BaseException):
    """Leaves a block without ending its execution."""


async def furnish(stage: Stage) -> None:
    """Leave executions in every state behind, with branches, generations, decisions, failures and spilled values."""

    @holdfast.step(effect=holdfast.at_least_once())
    async def send(what: str) -> str:
        if what == "bad":
            raise ValueError(what)
        return what

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
    async def pay(what: str) -> str:
        if what == "doubt":
            raise holdfast.OutcomeUnknown
        return what

    @holdfast.step(effect=holdfast.at_least_once(), spill=True)
    async def fetch() -> bytes:
        return b"x" * (5 << 20 >> 1)

    async def part(what: str) -> str:
        return await send(what) + await pay(what)

    whats = ["a", "b"]

    @holdfast.durable(kind="verified.done")
    async def done() -> list[str]:
        await holdfast.now()
        await holdfast.patched("p")
        results = list(await holdfast.gather(part(whats[0]), part("c")))
        await holdfast.first(send("d"))
        await fetch()
        return results

    @holdfast.durable(kind="verified.doubtful")
    async def doubtful() -> str:
        return await pay("doubt")

    @holdfast.durable(kind="verified.failing")
    async def failing() -> str:
        return await send("bad")

    await stage.die("finish.queued", done, id="done")
    whats[0] = "changed"
    async with stage.open() as hf:
        with pytest.raises(holdfast.NeedsDecision) as asked:
            await hf.run(done, id="done")
        for position in asked.value.positions:
            await hf.decide("done", position, holdfast.not_happened(), by="ann")
        await hf.run(done, id="done")
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(doubtful, id="doubt")
        with pytest.raises(holdfast.ExecutionFailed):
            await hf.run(failing, id="failed")
        with pytest.raises(Left):  # noqa: PT012 - the block is what raises
            async with hf.execution("left", kind="verified.left"):
                await send("e")
                raise Left
        await hf.cancel("left")
        found = await hf.get("done")
        assert found is not None
        assert found.generation == 2


async def test_a_ledger_of_every_state_is_sound(stage: Stage) -> None:
    """DX-85."""
    await furnish(stage)
    async with stage.open() as hf:
        report = await hf.verify()
        assert report.problems == ()
        assert (report.ok, report.checked_count) == (True, 4)
        one = await hf.verify("done")
        assert (one.ok, one.checked_count) == (True, 1)
        with pytest.raises(holdfast.UnknownExecution):
            await hf.verify("nobody")


WORDS = {
    "{done}": "(SELECT pk FROM durable_executions WHERE id = 'done')",
    "{failed}": "(SELECT pk FROM durable_executions WHERE id = 'failed')",
}


def fill(target: str, statement: str) -> str:
    """Put the words of the database into a statement."""
    garbage = r"'\xc1c1c1'" if is_postgres(target) else "x'c1c1c1'"
    for word, meaning in {**WORDS, "{garbage}": garbage}.items():
        statement = statement.replace(word, meaning)
    return statement


BROKEN: dict[str, tuple[str, str, str]] = {
    # What was done: the statement, the table that is named, the code.
    "status changed": (
        "UPDATE durable_executions SET status = 'running', finished_at = NULL WHERE id = 'done'",
        "durable_executions", "status",
    ),
    "end forgotten": (
        "UPDATE durable_executions SET finished_at = NULL WHERE id = 'done'", "durable_executions", "finished",
    ),
    "decision forgotten": ("DELETE FROM durable_decisions WHERE decided_at IS NULL", "durable_executions", "decision"),
    "generation counted up": (
        "UPDATE durable_executions SET generation = 3 WHERE id = 'done'", "durable_generations", "generations",
    ),
    "fence turned back": ("UPDATE durable_executions SET fence = 0 WHERE id = 'done'", "durable_journal", "fence"),
    "generation missing": (
        "DELETE FROM durable_generations WHERE generation = 1", "durable_generations", "generations",
    ),
    "generation of nobody": (
        "INSERT INTO durable_generations (execution_pk, generation, chapter, cause, opened_at) "
        "VALUES (999999, 1, 0, 'start', 0)",
        "durable_generations", "reference",
    ),
    "trail missing": (
        "DELETE FROM durable_trail WHERE execution_pk = {failed} AND status = 'failed'",
        "durable_executions", "status",
    ),
    "trail jumped": (
        "UPDATE durable_trail SET status = 'completed' WHERE execution_pk = {done} "
        "AND status = 'needs_decision'",
        "durable_trail", "transition",
    ),
    "trail of nobody": (
        "INSERT INTO durable_trail (execution_pk, generation, status, fence, at) VALUES (999999, 1, 'running', 1, 0)",
        "durable_trail", "reference",
    ),
    "intent missing": (
        "DELETE FROM durable_journal WHERE part = 0 AND name = 'pay' AND generation = 1", "durable_journal", "intent",
    ),
    "outcome emptied": (
        "UPDATE durable_journal SET payload = NULL WHERE part = 2 AND name = 'send'", "durable_journal", "payload",
    ),
    "outcome of no sort": (
        "UPDATE durable_journal SET outcome = 'maybe' WHERE part = 2 AND name = 'send'", "durable_journal", "payload",
    ),
    "outcome garbled": (
        "UPDATE durable_journal SET payload = {garbage} WHERE part = 2 AND name = 'send'", "durable_journal", "payload",
    ),
    "shape of one part changed": (
        "UPDATE durable_journal SET shape = {garbage} WHERE part = 2 AND name = 'pay'", "durable_journal", "shape",
    ),
    "branch missing": ("DELETE FROM durable_journal WHERE kind = 'branch'", "durable_journal", "reference"),
    "entry of no generation": (
        "UPDATE durable_journal SET generation = 7 WHERE kind = 'now' AND generation = 2",
        "durable_journal", "reference",
    ),
    "entry of nobody": (
        "UPDATE durable_journal SET execution_pk = 999999 WHERE execution_pk = {failed}",
        "durable_journal", "reference",
    ),
    "carried from nowhere": (
        "UPDATE durable_journal SET carried_from = 999999 WHERE carried_from IS NOT NULL",
        "durable_journal", "reference",
    ),
    "decision open at the end": (
        "INSERT INTO durable_decisions (execution_pk, generation, position, reason, key, opened_at) "
        "VALUES ({done}, 2, '2.1', 'ambiguous', {garbage}, 0)",
        "durable_decisions", "decision",
    ),
    "decision of nobody": (
        "INSERT INTO durable_decisions (execution_pk, generation, position, reason, key, opened_at) "
        "VALUES (999999, 1, '0', 'ambiguous', {garbage}, 0)",
        "durable_decisions", "reference",
    ),
    "spilled part missing": ("DELETE FROM durable_blobs WHERE part = 1", "durable_blobs", "spilled"),
    "spilled value of nobody": (
        "UPDATE durable_blobs SET execution_pk = 999999", "durable_blobs", "reference",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("ledger", "case"), halves(*BROKEN), indirect=["ledger"])
async def test_a_broken_row_is_named(stage: Stage, case: str) -> None:
    """DX-85."""
    statement, table, code = BROKEN[case]
    await furnish(stage)
    await change(stage.target, fill(stage.target, statement))
    async with stage.open() as hf:
        report = await hf.verify()
    assert not report.ok
    assert (table, code) in [(problem.table, problem.code) for problem in report.problems], report.problems
    for problem in report.problems:
        assert problem.message
        assert problem.row


async def test_problems_name_their_execution_and_leave_others_alone(stage: Stage) -> None:
    await furnish(stage)
    await change(stage.target, "UPDATE durable_executions SET finished_at = NULL WHERE id = 'done'")
    async with stage.open() as hf:
        report = await hf.verify()
        ((pk,),) = await look(stage.target, "SELECT pk FROM durable_executions WHERE id = 'done'")
        (problem,) = report.problems
        assert (problem.execution_id, problem.row) == ("done", str(pk))
        assert (await hf.verify("failed")).ok
        assert not (await hf.verify("done")).ok


GARBLED = {
    "output": "UPDATE durable_executions SET output = {garbage}",
    "outcome": "UPDATE durable_journal SET payload = {garbage}",
    "shape": "UPDATE durable_journal SET shape = {garbage}",
    "spilled": "UPDATE durable_blobs SET bytes = {garbage}",
}


@pytest.mark.parametrize("what", GARBLED)
async def test_a_corrupt_row_gives_an_error_and_never_a_value(stage: Stage, what: str) -> None:
    """DA-35, DX-83: what is stored is checked when it is read."""
    ran: list[str] = []

    @holdfast.step(effect=holdfast.at_least_once(), spill=True)
    async def fetch(size: int) -> bytes:
        return b"x" * size

    @holdfast.durable(kind="corrupted")
    async def program(size: int) -> int:
        ran.append("program")
        value = await fetch(size)
        ran.append(f"value {len(value)}")
        await fetch(1)
        return len(value)

    size = 2 << 20 if what == "spilled" else 10
    if what == "output":
        await stage.run(program, size, id="e")
    else:
        await stage.die("step.positioned", program, size, id="e", hit=2)
    await change(stage.target, fill(stage.target, GARBLED[what]))
    ran.clear()
    async with stage.open() as hf:
        with pytest.raises(HoldfastError) as raised:
            await hf.run(program, size, id="e", on_divergence="raise")
        assert raised.value.code
    assert not [each for each in ran if each.startswith("value")]


async def test_an_input_that_cannot_be_read_runs_nothing_and_ends_nothing(stage: Stage) -> None:
    ran: list[str] = []

    @holdfast.step(effect=holdfast.at_least_once())
    async def send() -> None:
        return None

    @holdfast.durable(kind="corrupted.input")
    async def program(size: int) -> None:
        ran.append("program")
        await send()

    await stage.die("effect.returned", program, 1, id="e")
    await change(stage.target, fill(stage.target, "UPDATE durable_executions SET input = {garbage}"))
    ran.clear()
    async with stage.open() as hf:
        await hf.recover()
        await until(lambda: "e" not in hf.flights)
        found = await hf.get("e")
        assert found is not None
        assert (found.status, found.owner) == ("pending", None)
        assert ran == []
        await hf.run(program, 1, id="e")
    assert ran == ["program"]
