"""Who may run an execution: owners alive, dead, stopped, replaced, forked, and nobody at all."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.flow.agents import Agent, agent, dawdling, paying
from tests.flow.tamper import change, counter, look, until
from tests.stage import Stage

import holdfast
from holdfast.testing import ManualClock, crash


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    return Stage(ledger, tmp_path)


def folder(stage: Stage) -> str:
    return str(stage.folder)


async def info(hf: holdfast.Holdfast, id: str = "e") -> holdfast.Execution:
    found = await hf.get(id)
    assert found is not None
    return found


# --- alive ----------------------------------------------------------------------------------------------


async def test_of_two_processes_one_has_the_execution_and_the_other_is_told_who(stage: Stage) -> None:
    """DA-61."""
    with Agent("block", stage, "e") as other:
        assert await other.hear() == "inside"
        async with stage.open() as hf:
            with pytest.raises(holdfast.ExecutionBusy) as raised:
                async with hf.execution("e", kind="block"):
                    pass
            assert raised.value.pid == other.pid
            assert raised.value.host == os.uname().nodename
            assert raised.value.execution_id == "e"
            found = await info(hf)
            assert (found.status, found.owner_alive) == ("running", True)
            assert found.owner == f"{os.uname().nodename}:{other.pid}"
            other.say()
            other.finish()
            assert (await info(hf)).status == "completed"


async def test_run_waits_for_a_live_owner_or_says_that_it_is_busy(stage: Stage) -> None:
    """§2: the table of statuses found."""
    with Agent("run", stage, "agent", "e", 3, 1) as other:
        assert [await other.hear(), await other.hear()] == ["open", "after 1"]
        async with stage.open(poll_ms=20) as hf:
            with pytest.raises(holdfast.ExecutionBusy) as raised:
                await hf.run(agent, folder(stage), 3, 1, id="e", on_busy="raise")
            assert raised.value.pid == other.pid
            with pytest.raises(holdfast.ExecutionBusy):
                await hf.start(agent, folder(stage), 3, 1, id="e", on_busy="raise")
            task = asyncio.ensure_future(hf.run(agent, folder(stage), 3, 1, id="e"))
            handle = await hf.start(agent, folder(stage), 3, 1, id="e")
            assert not handle.created
            await until(task.done, 0.1, anyway=True)
            assert not task.done()
            other.say()
            assert await task == [0, 1, 2]
            assert await handle.result() == [0, 1, 2]
        assert other.finish() == ["done [0, 1, 2]"]
    assert stage.outside.lines() == ["work 0", "work 1", "work 2"]


async def test_a_live_owner_keeps_its_execution_however_long_it_is_stopped(stage: Stage) -> None:
    """DA-64: ten leases, and the kernel still says that it lives."""
    with Agent("run", stage, "agent", "e", 2, 0, lease_ms=60, renew_ms=20) as other:
        assert [await other.hear(), await other.hear()] == ["open", "after 0"]
        other.freeze()
        async with stage.open(lease_ms=60, renew_ms=20) as hf:
            await until(lambda: False, 0.6, anyway=True)
            ((lease,),) = await look(
                stage.target, "SELECT o.lease_until FROM holdfast_owners o JOIN durable_executions e USING (owner_id)"
            )
            assert lease < holdfast.SystemClock().now()
            report = await hf.recover()
            assert (report.resumed, report.live_count) == ((), 1)
            with pytest.raises(holdfast.ExecutionBusy):
                await hf.run(agent, folder(stage), 2, 0, id="e", on_busy="raise")
            found = await info(hf)
            assert (found.status, found.owner_alive, found.fence) == ("running", True, 1)
        other.thaw()
        other.say()
        assert other.finish() == ["done [0, 1]"]


# --- dead -----------------------------------------------------------------------------------------------


async def test_a_killed_owner_is_replaced_at_once(stage: Stage) -> None:
    """DA-62: without waiting for the lease of half a minute."""
    with Agent("run", stage, "agent", "e", 3, 1) as other:
        assert [await other.hear(), await other.hear()] == ["open", "after 1"]
        async with stage.open() as hf:
            other.kill()
            loop = asyncio.get_running_loop()
            begun = loop.time()
            assert await hf.run(agent, folder(stage), 3, 1, id="e") == [0, 1, 2]
            assert loop.time() - begun < 1
            found = await info(hf)
            assert (found.status, found.fence) == ("completed", 2)
            (record,) = [record for record in await hf.audit("e") if record.event == "takeover"]
            assert record.detail is not None
            assert record.detail["pid"] == other.pid
    assert stage.outside.lines() == ["work 0", "work 1", "work 2"]


async def test_a_waiting_run_takes_over_when_the_owner_dies(stage: Stage) -> None:
    """§2: "wait for its end, taking over if the owner dies"."""
    with Agent("run", stage, "agent", "e", 3, 1) as other:
        assert [await other.hear(), await other.hear()] == ["open", "after 1"]
        async with stage.open(poll_ms=20) as hf:
            task = asyncio.ensure_future(hf.run(agent, folder(stage), 3, 1, id="e"))
            await until(task.done, 0.1, anyway=True)
            other.kill()
            assert await asyncio.wait_for(task, 5) == [0, 1, 2]
    assert stage.outside.lines() == ["work 0", "work 1", "work 2"]


async def test_of_many_that_wait_for_a_dead_owner_one_takes_over(stage: Stage) -> None:
    """DX-71."""
    with Agent("run", stage, "agent", "e", 3, 0) as owner:
        assert [await owner.hear(), await owner.hear()] == ["open", "after 0"]
        with Agent("waiting", stage, "e", poll_ms=10) as one, Agent("waiting", stage, "e", poll_ms=10) as two:
            assert [await one.hear(), await two.hear()] == ["open", "open"]
            owner.kill()
            assert one.finish() == ["done [0, 1, 2]"]
            assert two.finish() == ["done [0, 1, 2]"]
    assert stage.outside.lines() == ["work 0", "work 1", "work 2"]
    async with stage.open() as hf:
        assert (await info(hf)).fence == 2
        assert (await hf.verify()).ok


async def test_what_a_killed_agent_left_is_recovered_by_a_new_process(stage: Stage) -> None:
    """DA-63."""
    recovered = counter("recoveries_total")
    with Agent("run", stage, "agent", "e", 3, 1) as other:
        assert [await other.hear(), await other.hear()] == ["open", "after 1"]
        other.kill()
        async with stage.open() as hf:
            found = await info(hf)
            assert (found.status, found.owner_alive) == ("running", False)
            assert found.owner is not None
            assert found.owner.endswith(f":{other.pid}")
            report = await hf.recover()
            assert (report.resumed, report.unknown_kind, report.crash_loops, report.live_count) == (("e",), (), (), 0)
            assert await hf.handle("e").result() == [0, 1, 2]
            assert (await hf.recover()).resumed == ()
    assert counter("recoveries_total") == recovered + 1
    assert stage.outside.lines() == ["work 0", "work 1", "work 2"]


async def test_one_takeover_frees_all_executions_of_the_dead_owner(stage: Stage) -> None:
    """DX-70: the taker ends the owner's lease and removes its file."""

    @holdfast.step(effect=holdfast.idempotent())
    async def nothing() -> None:
        return None

    @holdfast.durable(kind="left")
    async def left() -> str:
        await nothing()
        if waits:
            await asyncio.Event().wait()
        return "done"

    waits = True
    async with stage.open() as hf:
        for id in ("a", "b", "c"):
            await hf.start(left, id=id)
        with crash("step.positioned", action="raise"):
            await until(lambda: len(stage_files(stage)) == 1)
            await asyncio.wait([asyncio.ensure_future(hf.run(left, id="d"))])
    waits = False
    assert len(stage_files(stage)) == 1
    async with stage.open() as hf:
        assert sorted((await hf.recover()).resumed)[:3] == ["a", "b", "c"]
        assert [await hf.handle(id).result() for id in "abc"] == ["done"] * 3
        assert len(stage_files(stage)) == 1, "that of this process"
    assert stage_files(stage) == [], "an owner that closes removes its own"


def stage_files(stage: Stage) -> list[str]:
    owners = stage.folder / "owners"
    return sorted(os.listdir(owners)) if owners.exists() else []


async def test_the_owner_file_is_private(stage: Stage) -> None:
    """DX-69."""
    async with stage.open() as hf:
        await hf.run(agent, folder(stage), 1, 9, id="e")
        (name,) = stage_files(stage)
        assert (stage.folder / "owners" / name).stat().st_mode & 0o777 == 0o600


async def test_without_lock_files_only_the_end_of_the_lease_frees_an_execution(stage: Stage) -> None:
    """DA-65."""
    clock = ManualClock()
    await stage.die("outcome.acked", agent, folder(stage), 3, 9, id="e", clock=clock)
    for name in stage_files(stage):
        (stage.folder / "owners" / name).unlink()
    async with stage.open(clock=clock) as hf:
        clock.advance(timedelta(seconds=29))
        assert (await info(hf)).owner_alive
        report = await hf.recover()
        assert (report.resumed, report.live_count) == ((), 1)
        with pytest.raises(holdfast.ExecutionBusy):
            await hf.run(agent, folder(stage), 3, 9, id="e", on_busy="raise")
        await clock.advance(timedelta(seconds=2))
        assert not (await info(hf)).owner_alive
        assert (await hf.recover()).resumed == ("e",)
        assert await hf.handle("e").result() == [0, 1, 2]
    assert stage.outside.lines() == ["work 0", "work 1", "work 2"]


# --- stopped and replaced -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["agent.dawdling", "agent.paying"])
async def test_an_owner_that_outlives_its_lease_cannot_write_any_more(stage: Stage, kind: str) -> None:
    """DA-71: on another machine its lock file cannot be seen; here it is gone."""
    fn = dawdling if kind == "agent.dawdling" else paying
    with Agent("run", stage, kind, "e", lease_ms=300, renew_ms=100, poll_ms=20) as other:
        assert await other.hear() == "open"
        assert (await other.hear()).startswith("in the")
        other.freeze()
        for name in stage_files(stage):
            (stage.folder / "owners" / name).unlink()
        async with stage.open(lease_ms=30_000, poll_ms=20) as hf:
            if kind == "agent.dawdling":
                assert await asyncio.wait_for(hf.run(fn, folder(stage), id="e"), 5) == str(os.getpid())
            else:
                with pytest.raises(holdfast.NeedsDecision):
                    await asyncio.wait_for(hf.run(fn, folder(stage), id="e"), 5)
            other.thaw()
            other.say()
            if kind == "agent.dawdling":
                assert other.finish() == [f'done "{os.getpid()}"'], "it learns how the other ended it"
            else:
                assert other.finish() == ["NeedsDecision durable.needs_decision"]
            events = [record.event for record in await hf.audit("e")]
            assert events.count("late_result") == 1
            assert events.count("takeover") == 1
            entries = await hf.history("e")
            assert [entry.part for entry in entries] == (["outcome"] if kind == "agent.dawdling" else ["opened"])
            assert (await info(hf)).fence == 2 if kind == "agent.dawdling" else True
            assert (await hf.verify()).ok


async def test_an_owner_starts_no_effect_on_a_stale_lease(stage: Stage) -> None:
    """DX-71: after two thirds of the lease it has to renew first."""
    clock = ManualClock()
    leases: list[int] = []

    @holdfast.step(effect=holdfast.at_least_once())
    async def act() -> None:
        leases.append((await look(stage.target, "SELECT lease_until FROM holdfast_owners"))[0][0])

    @holdfast.durable(kind="stale")
    async def program() -> None:
        await act()
        clock.advance(timedelta(milliseconds=25_000))  # nobody had a chance to renew
        assert not hf.database.owner.fresh()
        await act()

    async with stage.open(clock=clock, lease_ms=30_000, renew_ms=10_000) as hf:
        await hf.run(program, id="e")
    assert leases[1] - leases[0] == 25_000_000


async def test_an_owner_that_cannot_renew_starts_no_effect_at_all(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DX-71."""
    clock = ManualClock()

    @holdfast.step(effect=holdfast.idempotent())
    async def act(number: int) -> None:
        stage.outside.happen("act", number)

    @holdfast.durable(kind="stale.cut")
    async def program() -> None:
        await act(1)
        if cut:
            monkeypatch.setattr(hf.database.owner, "renew", no_answer)
        clock.advance(timedelta(milliseconds=25_000))
        await act(2)

    async def no_answer() -> None:
        raise holdfast.Unavailable("the database is gone")

    cut = True
    async with stage.open(clock=clock) as hf:
        with pytest.raises(holdfast.JournalUnavailable):
            await hf.run(program, id="e")
        assert stage.outside.lines() == ["act 1"]
        monkeypatch.undo()
        cut = False
        await hf.run(program, id="e")
    assert stage.outside.lines() == ["act 1", "act 2"]


async def test_a_row_that_was_taken_over_ends_the_run_without_a_trace(stage: Stage) -> None:
    """DX-46, DX-11: no row back poisons the context, and nothing is recorded after."""

    @holdfast.durable(kind="robbed")
    async def program() -> str:
        await act(1)
        if not robbed:
            robbed.append(True)
            await change(stage.target, "UPDATE durable_executions SET fence = fence + 1")
        try:
            await act(2)
        except Exception:  # noqa: BLE001 - losing a lease is no Exception
            stage.outside.happen("swallowed")
        await act(3)
        return "done"

    @holdfast.step(effect=holdfast.at_least_once())
    async def act(number: int) -> None:
        stage.outside.happen("act", number)

    lost = counter("lease_lost_total")
    robbed: list[bool] = []
    async with stage.open(poll_ms=20) as hf:
        # The row still names this process, which may claim it again.
        assert await asyncio.wait_for(hf.run(program, id="e"), 5) == "done"
        assert "late_result" in [record.event for record in await hf.audit("e")]
    assert counter("lease_lost_total") == lost + 1
    assert stage.outside.lines() == ["act 1", "act 2", "act 2", "act 3"]


# --- nobody ---------------------------------------------------------------------------------------------


async def orphan(stage: Stage, clock: ManualClock, kind: str = "nobody.knows", **config: Any) -> None:
    """Leave an execution that was given back by its process."""
    with pytest.raises(KeyError):
        async with stage.open(clock=clock, **config) as hf, hf.execution("e", kind=kind):
            raise KeyError
    await change(stage.target, "UPDATE durable_executions SET status = 'pending', finished_at = NULL, failure = NULL")


async def ticks(clock: ManualClock, amount: int = 4) -> None:
    """Let the recovery loop come round a few times."""
    for _ in range(amount):
        await clock.advance(timedelta(seconds=5))
        await until(lambda: False, 0.03, anyway=True)


@pytest.mark.parametrize("days", [0, 1])
async def test_an_orphan_is_aborted_after_its_time_or_never(stage: Stage, days: int) -> None:
    """DA-65, `orphan_after_ms`."""
    clock = ManualClock()
    await orphan(stage, clock)
    clock.advance(timedelta(hours=23))
    async with stage.open(clock=clock, recover=True, orphan_after_ms=days * 86_400_000) as hf:
        await ticks(clock)
        assert (await info(hf)).status == "pending"
        assert [each.id for each in (await hf.list(orphaned=True)).items] == ["e"]
        assert (await hf.recover()).unknown_kind == ("e",)
        clock.advance(timedelta(days=400))
        await ticks(clock)
        found = await info(hf)
        if days == 0:
            assert found.status == "pending"
            return
        assert (found.status, found.reason) == ("aborted", "orphaned")
        (record,) = [record for record in await hf.audit("e") if record.event == "aborted"]
        assert record.detail == {"reason": "orphaned"}


async def test_recovery_takes_only_versions_it_accepts(stage: Stage) -> None:
    """DX-7, `accept_versions`."""
    await stage.die("outcome.acked", agent, folder(stage), 2, 9, id="e", code_version="1")
    async with stage.open(code_version="2", accept_versions=("2", "3")) as hf:
        report = await hf.recover()
        assert (report.resumed, report.unknown_kind) == ((), ("e",))
        assert [each.id for each in (await hf.list(orphaned=True)).items] == ["e"]
    async with stage.open(code_version="2", accept_versions=("1", "2")) as hf:
        assert (await hf.list(orphaned=True)).items == []
        assert (await hf.recover()).resumed == ("e",)
        await hf.handle("e").result()
        assert (await info(hf)).code_version == "2"


async def test_recovery_can_be_limited_to_kinds(stage: Stage) -> None:
    """DX-72."""
    await stage.die("outcome.acked", agent, folder(stage), 2, 9, id="a")
    await stage.die("effect.returned", dawdling, folder(stage), id="d")
    async with stage.open() as hf:
        report = await hf.recover(kinds=["agent.dawdling"])
        assert report.resumed == ("d",)
        await hf.handle("d").result()
        assert (await info(hf, "a")).status == "running"
        assert (await hf.recover()).resumed == ("a",)
        await hf.handle("a").result()


async def test_an_opener_that_recovers_goes_on_recovering(stage: Stage) -> None:
    """DX-72, `recover_every_ms`."""
    clock = ManualClock()
    await stage.die("outcome.acked", agent, folder(stage), 2, 9, id="early", clock=clock)
    async with stage.open(clock=clock, recover=True, recover_every_ms=60_000) as hf:
        await until(lambda: stage.outside.count("work", 1) == 1)
        await stage_die_elsewhere(stage)
        clock.advance(timedelta(seconds=50))
        await until(lambda: False, 0.1, anyway=True)
        assert (await info(hf, "late")).status == "running"
        clock.advance(timedelta(seconds=11))
        await until(lambda: stage.outside.count("work", 1) == 2)
        await until(lambda: "late" not in hf.flights)
        assert (await info(hf, "late")).status == "completed"


async def stage_die_elsewhere(stage: Stage) -> None:
    """Have an execution left behind by another process."""
    with Agent("run", stage, "agent", "late", 2, 0) as other:
        assert [await other.hear(), await other.hear()] == ["open", "after 0"]
        other.kill()


async def test_an_execution_that_only_ever_dies_is_aborted(stage: Stage) -> None:
    """DX-73, `stalled_recoveries_max`."""
    for _ in range(4):
        await stage.die("step.looked_up", agent, folder(stage), 2, 9, id="e", stalled_recoveries_max=3)
    async with stage.open(stalled_recoveries_max=3) as hf:
        assert (await info(hf)).recoveries_count == 3
        report = await hf.recover()
        assert (report.resumed, report.crash_loops) == ((), ("e",))
        found = await info(hf)
        assert (found.status, found.reason) == ("aborted", "crash_loop")
        with pytest.raises(holdfast.ExecutionAborted) as raised:
            await hf.run(agent, folder(stage), 2, 9, id="e")
        assert raised.value.reason == "crash_loop"
        assert await hf.run(agent, folder(stage), 2, 9, id="e", reopen=True) == [0, 1]
        assert (await hf.verify()).ok


async def test_an_execution_that_gets_on_is_no_crash_loop(stage: Stage) -> None:
    """DX-73: a new journal entry starts the count again."""
    for _ in range(6):
        await stage.die("outcome.acked", agent, folder(stage), 20, 99, id="e", stalled_recoveries_max=2)
    assert await stage.run(agent, folder(stage), 20, 99, id="e", stalled_recoveries_max=2) == list(range(20))


async def test_run_takes_over_what_was_given_back(stage: Stage) -> None:
    """§3: a process that closes leaves `pending` without owner."""
    released = asyncio.Event()

    @holdfast.durable(kind="given.back")
    async def program() -> str:
        await act()
        if not over:
            released.set()
            await asyncio.Event().wait()
        return "done"

    @holdfast.step(effect=holdfast.at_least_once())
    async def act() -> None:
        stage.outside.happen("act")

    over = False
    async with stage.open() as hf:
        handle = await hf.start(program, id="e")
        await released.wait()
    with pytest.raises(holdfast.Closed):
        await handle.result()
    over = True
    async with stage.open() as hf:
        found = await info(hf)
        assert (found.status, found.owner, found.owner_alive) == ("pending", None, False)
        assert await hf.run(program, id="e") == "done"
        assert "takeover" not in [record.event for record in await hf.audit("e")]
    assert stage.outside.count("act") == 1


# --- forks ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_in_an_effect_refuses_everything_in_the_child_and_harms_nothing(stage: Stage) -> None:
    """DA-70, DX-75."""
    with Agent("fork", stage) as process:
        assert process.finish() == ["['refused 9', '1']", "True completed"]
    assert stage.outside.lines() == ["work 1"]


async def test_another_event_loop_is_refused(stage: Stage) -> None:
    """DX-9."""
    async with stage.open() as hf:
        await hf.run(agent, folder(stage), 1, 9, id="e")

        def elsewhere() -> list[str]:
            calls = (hf.list, lambda: hf.get("e"), lambda: hf.run(agent, folder(stage), 1, 9, id="x"), hf.close)
            raised = []
            for call in calls:
                try:
                    asyncio.run(call())
                except holdfast.WrongLoop as error:
                    raised.append(error.code)
            return raised

        assert await asyncio.to_thread(elsewhere) == ["store.wrong_loop"] * 4
        assert await hf.get("x") is None
