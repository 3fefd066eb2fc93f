"""The synchronous face: the same contract without `await`, each execution in a thread of its own."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest

import holdfast
import holdfast.sync
from holdfast.core.errors import Closed
from holdfast.execution.errors import ExecutionFailed, ForeignTask, NestedEffect, OutsideExecution

runs: list[str] = []


@holdfast.step(effect=holdfast.at_least_once())
def double(n: int) -> int:
    runs.append(f"double {n}")
    return 2 * n


@holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
def pay(n: int) -> str:
    runs.append(f"pay {n}")
    return f"{n}:{holdfast.current_step().idempotency_key.hex()[:8]}"


@holdfast.step(effect=holdfast.idempotent())
async def asynchronous() -> int:
    return 1


@holdfast.durable(kind="sync_turn")
def turn(n: int) -> list[object]:
    out: list[object] = [double(n), pay(n)]
    out += holdfast.sync.gather(lambda: double(n + 1), lambda: double(n + 2))
    out.append(holdfast.sync.random())
    out.append(str(holdfast.sync.uuid()))
    out.append(holdfast.sync.now().isoformat())
    out.append(holdfast.sync.patched("new"))
    with holdfast.sync.branch("tail"):
        out.append(double(n + 3))
    return out


@holdfast.durable(kind="sync_first")
def race() -> list[object]:
    gate = threading.Event()

    def slow() -> int:
        gate.wait(5)
        return double(1)

    index, value = holdfast.sync.first(slow, lambda: double(5))
    gate.set()
    return [index, value]


@holdfast.durable(kind="sync_failing")
def failing() -> None:
    raise ValueError("no")


@holdfast.durable(kind="sync_misuse")
def misuse(what: str) -> str:
    try:
        if what == "async step":
            asynchronous()
        else:
            found: list[BaseException] = []

            def elsewhere() -> None:
                try:
                    double(1)
                except BaseException as error:  # noqa: BLE001 - raised again below
                    found.append(error)

            import contextvars

            thread = threading.Thread(target=contextvars.copy_context().run, args=(elsewhere,))
            thread.start()
            thread.join()
            raise found[0]
    except (OutsideExecution, ForeignTask) as error:
        return type(error).__name__
    return "nothing"


@pytest.fixture(autouse=True)
def _forget() -> None:
    runs.clear()


def test_a_plain_program_runs_and_replays(ledger: str) -> None:
    with holdfast.sync.open(ledger) as hf:
        first = hf.run(turn, 3, id="t")
        assert first[:4] == [6, first[1], 8, 10]
        assert first[-2:] == [True, 12]
        done = len(runs)
    with holdfast.sync.open(ledger) as hf:
        assert hf.run(turn, 3, id="t") == first
        assert len(runs) == done
        assert hf.verify("t").ok
        found = hf.get("t")
        assert found is not None
        assert found.status == "completed"
        assert [item.id for item in hf.list().items] == ["t"]
        assert len(hf.history("t")) == found.entries_count
        assert hf.timeline("t")
        assert hf.audit("t") == []


def test_start_gives_a_handle_whose_result_can_be_waited_for(ledger: str) -> None:
    with holdfast.sync.open(ledger) as hf:
        handle = hf.start(turn.bind(1), id="h")
        assert handle.created
        assert handle.result(timedelta(seconds=30))[0] == 2
        assert handle.info().id == "h"
        assert hf.handle("h").result()[0] == 2


def test_the_first_to_settle_is_recorded(ledger: str) -> None:
    with holdfast.sync.open(ledger) as hf:
        assert hf.run(race, id="r") == [1, 10]
        assert hf.run(race, id="r") == [1, 10]


def test_a_failure_is_raised_live_and_from_the_record(ledger: str) -> None:
    with holdfast.sync.open(ledger) as hf:
        for _ in range(2):
            with pytest.raises(ExecutionFailed) as caught:
                hf.run(failing, id="f")
            assert caught.value.error_type == "ValueError"


def test_a_block_makes_its_steps_in_this_thread(ledger: str) -> None:
    step = holdfast.StepDescriptor("read", holdfast.at_least_once(), result_type=int)
    with holdfast.sync.open(ledger) as hf:
        with hf.execution("b", kind="block") as ctx:
            assert ctx.step(step, lambda handle: handle.attempt) == 1
            with ctx.parallel() as parallel:
                results = [parallel.step(step, lambda handle, n=n: n) for n in (7, 8)]
            assert [result.result() for result in results] == [7, 8]
            assert isinstance(ctx.now().year, int)
            ctx.set_output("done")
        with hf.execution("b", kind="block") as ctx:
            record = ctx.step_recorded(step, lambda handle: 99)
            assert record.outcome == holdfast.Replayed(1)


def test_a_block_that_raises_fails_the_execution(ledger: str) -> None:
    with holdfast.sync.open(ledger) as hf:
        with pytest.raises(KeyError), hf.execution("b", kind="block"):
            raise KeyError("x")
        found = hf.get("b")
        assert found is not None
        assert found.status == "failed"


def test_misuse_is_named(ledger: str) -> None:
    with holdfast.sync.open(ledger) as hf:
        assert hf.run(misuse, "async step") == "OutsideExecution"
        assert hf.run(misuse, "other thread") == "ForeignTask"

        @holdfast.durable(kind="sync_nested")
        def nested() -> str:
            try:
                hf.run(failing)
            except NestedEffect:
                return "nested"
            return "ran"

        assert hf.run(nested) == "nested"


def test_a_closed_ledger_says_so(tmp_path: Path) -> None:
    hf = holdfast.sync.open(tmp_path / "x.db")
    with pytest.raises(Closed):
        hf.run(failing)
    with hf:
        pass
    with pytest.raises(Closed):
        hf.get("x")
    hf.close()


def test_operators_use_the_same_verbs(ledger: str) -> None:
    with holdfast.sync.open(ledger) as hf:
        with pytest.raises(ExecutionFailed):
            hf.run(failing, id="f")
        hf.resume("f")
        assert hf.pause("f") == holdfast.Paused()
        assert hf.cancel("f") == holdfast.Canceled()
        assert hf.cancel("f") == holdfast.AlreadyTerminal("canceled")
        assert hf.recover().resumed == ()
        assert hf.diff("f", 1, 1) == []
