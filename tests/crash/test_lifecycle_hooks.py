"""A hook call crashed at every named point and every boundary to the store, and derived by who comes after.

At the end every event has one receipt for each client, a client was asked at most once about it, no number is missing,
no delivery waits, and `holdfast verify` finds nothing.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from tests.flow.commandline import ask, start
from tests.flow.hooking import Machine
from tests.flow.tamper import change

from holdfast.core.clock import SystemClock
from holdfast.lifecycle import Client, LifecycleConfig, deliveries
from holdfast.lifecycle import ledger as receipts
from holdfast.lifecycle.deliveries import Delivery
from holdfast.lifecycle.hooks import Hooks
from holdfast.store import StoreSettings, open_database
from holdfast.testing import Crashed, crash
from holdfast.testing.boundaries import CrashingDatabase

pytestmark = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited"  # a dead process awaits nothing
)

POINTS = ("hooks.appended", "hooks.deriving", "lifecycle.dispatching", "lifecycle.settled", "hooks.derived")
ASKED = {"frame.opening"}
EVENTS = [("frame.opened", "holdfast"), ("frame.opening", "ccd")]
ANSWER = '{"schema_version": "lifeloop.v0.3", "status": "delivered"}'


class World:
    """A ledger, and a client that outlives whoever asks it."""

    def __init__(self, target: str, folder: Path) -> None:
        self.target = target
        self.folder = folder
        script = f"cat >> {folder}/asked; echo >> {folder}/asked; echo '{ANSWER}'"
        self.config = LifecycleConfig(
            clients=(Client(id="ccd", command=("/bin/sh", "-c", script), events=("frame.opening",)),)
        )

    async def open(self) -> Any:
        settings = StoreSettings(owner_dir=self.folder / "owners")
        return await open_database(self.target, clock=SystemClock(), settings=settings)

    def delivery(self, name: str, turn: str) -> Delivery:
        fields = {"session_id": "s", "hook_event_name": "UserPromptSubmit", "prompt": "hi", "prompt_id": turn}
        body = json.dumps(fields).encode()
        now = SystemClock().now()
        # Its lease is over at once: nobody has to wait until the dead are given up.
        return Delivery(name, "claude", "", body, len(body), None, now, None, 1)

    async def live(self, turn: str, fate: AbstractContextManager[Any], dies_at: int | None) -> int | None:
        """Take a hook call and die; return how many boundaries were passed, None for a death."""
        database = await self.open()
        crashing = CrashingDatabase(database, dies_at)
        try:
            with fate:
                hooks = Hooks(crashing, config=self.config, clock=database.clock)
                reply = await hooks.receive(self.delivery(f"first {turn}", turn))
                assert (reply.exit_code, reply.stderr) == (0, "")
        except Crashed:
            database.abandon()  # its lock is let go, and nothing else
            return None
        await database.close()
        return crashing.boundaries

    async def judge(self, turn: str) -> None:
        """Derive what was left, have the harness call again, and see that all is well."""
        database = await self.open()
        try:
            async with Hooks(database, config=self.config, clock=database.clock) as hooks:
                await hooks.derive(call_clients=False)
                reply = await hooks.receive(self.delivery(f"second {turn}", turn))
                assert (reply.exit_code, reply.stderr, reply.stdout) == (0, "", b"")
            async with database.read() as tx:
                found = [stored.receipt for stored in await receipts.list_receipts(tx, run_id="claude:s", limit=2)]
                assert await deliveries.unfinished(tx) == []
                assert await receipts.pending(tx) == []
                assert await receipts.gaps(tx) == []
                numbers = await receipts.peek_sequence(tx, "claude:s")
        finally:
            await database.close()
        assert sorted((receipt.event, receipt.client_id) for receipt in found) == EVENTS
        assert {receipt.sequence for receipt in found} == {numbers, numbers - 1}
        assert self.asked(turn) <= 1
        [opening] = [receipt for receipt in found if receipt.client_id == "ccd"]
        if opening.status == "delivered":
            assert self.asked(turn) == 1
        else:
            assert opening.status in ("skipped", "failed")
            assert [each["code"] for each in opening.warnings] in (["derived_late"], ["outcome_unknown"])

    def asked(self, turn: str) -> int:
        """How often the client was asked about a turn."""
        path = self.folder / "asked"
        lines = path.read_text().splitlines() if path.exists() else []
        frames = [json.loads(line)["request"]["frame_context"]["frame_id"] for line in lines if line]
        return max((frames.count(frame) for frame in frames), default=0) if turn else 0


@pytest.fixture
def world(ledger: str, tmp_path: Path) -> Iterator[World]:
    world = World(ledger, tmp_path)
    yield world
    answer = ask("verify", "--db", world.target)
    assert answer.code == 0, answer


async def test_a_hook_call_survives_a_crash_at_every_named_point(world: World) -> None:
    """LA-59, LA-68."""
    for point in POINTS:
        assert await world.live(point, crash(point, 1, "raise"), None) is None, point
        await world.judge(point)


async def test_a_hook_call_survives_a_crash_at_some_store_boundaries(world: World) -> None:
    """LA-68: every third one; all of them where there is time for that."""
    await every(world, 3)


@pytest.mark.torture
async def test_a_hook_call_survives_a_crash_at_every_store_boundary(world: World) -> None:
    """LA-68."""
    await every(world, 1)


async def every(world: World, step: int) -> None:
    dies_at = 1
    while await world.live(f"turn {dies_at}", nullcontext(), dies_at) is None:
        await world.judge(f"turn {dies_at}")
        dies_at += step
    assert dies_at > 8
    await world.judge(f"turn {dies_at}")


def test_a_process_killed_while_its_client_runs_leaves_a_receipt_that_says_so(tmp_path: Path) -> None:
    """LA-42: what the harness started is gone, and whoever reads receipts finds what became of it."""
    machine = Machine(tmp_path)
    machine.bind({}, ["frame.opening"], command=["/bin/sh", "-c", f"echo > {tmp_path}/begun; kill -9 $PPID; sleep 60"])
    body = {"session_id": "s", "hook_event_name": "UserPromptSubmit", "prompt": "hi", "prompt_id": "t"}
    with start("hook", "claude", "--event", "UserPromptSubmit", **machine.environment) as process:
        out, _ = process.communicate(json.dumps(body), timeout=60)
    assert (process.returncode, out) == (-signal.SIGKILL, "")
    assert (tmp_path / "begun").exists()
    [waiting] = [each for each in machine.run("receipts", "pending", "--json").json if "delivery" in each]
    assert waiting["session_id"] == "s"
    # As if the call's time were over.
    asyncio.run(change(str(machine.ledger), "UPDATE lifecycle_hooks SET lease_until = 1"))
    assert machine.told() == [("frame.opening", "ccd", "failed"), ("frame.opened", "holdfast", "observed")]
    assert [each["code"] for each in machine.receipts()[0]["warnings"]] == ["outcome_unknown"]
    assert machine.run("receipts", "pending", "--json").json == []
    assert machine.run("verify").code == 0


def test_a_process_killed_when_it_has_replied_has_lost_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    body = json.dumps({"session_id": "s", "hook_event_name": "AfterAgent", "timestamp": "2026-05-06T20:00:00Z"})
    dying = {**machine.environment, "HOLDFAST_TESTING": "1", "HOLDFAST_TEST_CRASH": "hooks.replied"}
    with start("hook", "gemini", **dying) as process:
        out, _ = process.communicate(body, timeout=60)
    assert (process.returncode, out) == (-signal.SIGKILL, "{}")
    assert [event for event, _, _ in machine.told()] == ["frame.ending", "frame.ended"]
