"""What a checker infers of `holdfast.testing`. Checked, never run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import assert_type

import holdfast
from holdfast.store import Database
from holdfast.testing import Crashed, CrashingDatabase, ManualClock, WriterFaults, assert_replayed, crash, crash_points
from holdfast.testing.key_contract import Verdict, key_contract
from holdfast.testing.store_contract import LocalStore


async def a_manual_clock_is_a_clock(hf: holdfast.Holdfast) -> None:
    """And drives whatever takes one."""
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    taken: holdfast.Clock = clock
    assert_type(taken.now(), int)
    holdfast.open(":memory:", clock=clock)
    clock.advance(timedelta(seconds=3))
    await clock.advance(timedelta(seconds=3))
    await clock.set(datetime(2026, 1, 2, tzinfo=UTC))
    clock.advance(3)  # type: ignore[arg-type]  # durations are timedeltas


async def crashes_have_points_and_actions(hf: holdfast.Holdfast) -> None:
    """Points are text, checked when armed; actions are literals or callables."""
    assert_type(crash_points(), tuple[str, ...])
    with crash("effect.returned", 2, "raise") as armed:
        assert_type(armed.passed, int)
    with crash("effect.returned", action=lambda: None):
        pass
    crash("effect.returned", action="explode")  # type: ignore[arg-type]  # there is no such action
    died: BaseException = Crashed("effect.returned")
    failure: Exception = Crashed("effect.returned")  # type: ignore[assignment]  # nobody may take it for a failure
    faults = WriterFaults(hf)
    faults.stall()
    faults.fail_next(3)
    raise died from failure


async def a_crashing_database_is_a_database(hf: holdfast.Holdfast, inner: Database) -> None:
    """And goes where one goes."""
    crashing = CrashingDatabase(inner, 3, "after_ack_lost", failure=TimeoutError())
    taken: Database = crashing
    async with taken.write() as tx:
        tx.notify("channel")
    assert_type(crashing.boundaries, int)
    assert_type(crashing.passed, list[str])
    CrashingDatabase(inner, 3, "somewhere")  # type: ignore[arg-type]  # there is no such boundary


async def the_contract_of_keys_gives_verdicts(response: object) -> None:
    """For whatever opens a database."""
    assert_type(await key_contract(LocalStore(":memory:").opened), list[Verdict])
    assert_replayed(response)
