"""`verify`: a sound ledger is left in peace, a broken row is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.flow.tamper import change, is_postgres, look
from tests.stage import Stage

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
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(done, id="done")
        await hf.decide("done", "2.1", holdfast.not_happened(), by="ann")
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


PK = "(SELECT pk FROM durable_executions WHERE id = '{}')"

BROKEN: dict[str, tuple[str, str, str]] = {
    # What was done: (statement, table that is named, code)
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
    "generation missing": ("DELETE FROM durable_generations WHERE generation = 1", "durable_generations", "generations"),
    "generation of nobody": (
        "INSERT INTO durable_generations (execution_pk, generation, chapter, cause, opened_at) "
        "VALUES (999999, 1, 0, 'start', 0)",
        "durable_generations", "reference",
    ),
    "trail missing": (
        f"DELETE FROM durable_trail WHERE execution_pk = {PK.format('failed')} AND status = 'failed'",
        "durable_executions", "status",
    ),
    "trail jumped": (
        f"UPDATE durable_trail SET status = 'completed' WHERE execution_pk = {PK.format('done')} "
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
        "UPDATE durable_journal SET generation = 7 WHERE kind = 'now' AND generation = 2", "durable_journal", "reference",
    ),
    "entry of nobody": (
        f"UPDATE durable_journal SET execution_pk = 999999 WHERE execution_pk = {PK.format('failed')}",
        "durable_journal", "reference",
    ),
    "carried from nowhere": (
        "UPDATE durable_journal SET carried_from = 999999 WHERE carried_from IS NOT NULL", "durable_journal", "reference",
    ),
    "decision open at the end": (
        f"INSERT INTO durable_decisions (execution_pk, generation, position, reason, key, opened_at) "
        f"VALUES ({PK.format('done')}, 2, '2.1', 'ambiguous', {{garbage}}, 0)",
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


@pytest.mark.parametrize("case", BROKEN)
async def test_a_broken_row_is_named(stage: Stage, case: str) -> None:
    """DX-85."""
    statement, table, code = BROKEN[case]
    garbage = r"'\xc1c1c1'" if is_postgres(stage.target) else "x'c1c1c1'"
    await furnish(stage)
    await change(stage.target, statement.replace("{garbage}", garbage))
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


@pytest.mark.parametrize("what", ["input", "output", "outcome", "shape", "spilled"])
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
    garbage = r"'\xc1c1c1'" if is_postgres(stage.target) else "x'c1c1c1'"
    column = {
        "input": "durable_executions SET input =", "output": "durable_executions SET output =",
        "outcome": "durable_journal SET payload =", "shape": "durable_journal SET shape =",
        "spilled": "durable_blobs SET bytes =",
    }[what]  # fmt: skip
    await change(stage.target, f"UPDATE {column} {garbage}")
    ran.clear()
    async with stage.open() as hf:
        with pytest.raises(HoldfastError) as raised:
            if what == "input":
                (await hf.recover()).resumed  # noqa: B018 - what matters is how it ends
                await hf.handle("e").result()
            else:
                await hf.run(program, size, id="e", on_divergence="raise")
        assert raised.value.code
    assert not [each for each in ran if each.startswith("value")]
