"""Ten steps of every class and policy, killed at random moments until they are through.

`python -m tests.crash.torture LEDGER FOLDER FIRST COUNT` does so for some seeds and says `seed deaths` for each.
Every life is a child forked from this process, which itself never opens a ledger: a fork is a start in no time.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

from tests.crash.journeys import Journey, arrive, flaky, inspect, look, pay, place, send, threaded, traces
from tests.stage import DURABLE_POINTS, Stage

import holdfast
from holdfast.core import points

LIVES_MAX = 12
"""So often a seed may kill; then it lets the program end."""
PATIENCE_SECONDS = 60
EXPECTED = [2, "sent 2", "paid", "paid", "paid", "paid", "paid", 16, 9, ["sent 10", 11]]


@holdfast.durable(kind="torture.ten")
async def ten() -> list[Any]:
    guarded = ("skip", "fail", "rerun", "rerun_with_key", "reconcile")
    found: list[Any] = [await look(1), await send(2)]
    found += [await pay[policy](number) for number, policy in enumerate(guarded, 3)]
    found += [await threaded.call(8), await flaky(9)]
    return [*found, list(await holdfast.gather(send(10), look(10)))]


JOURNEY = Journey(
    lambda hf, id: arrive(hf, ten.bind(), id),
    (("look", 1), ("send", 2), ("skip", 3), ("fail", 4), ("rerun", 5), ("rerun_with_key", 6), ("reconcile", 7),
     ("threaded", 8), ("flaky", 9), ("send", 10), ("look", 10)),
)  # fmt: skip


async def live(stage: Stage, ids: list[str]) -> None:
    """Drive every execution to its end."""
    async with stage.open(poll_ms=50) as hf:
        found = await asyncio.gather(*(JOURNEY.drive(hf, id) for id in ids))
        assert found == [EXPECTED for _ in ids], found


async def judge(stage: Stage, ids: list[str], deaths: int) -> None:
    """See that nothing happened twice and nothing was lost."""
    async with stage.open() as hf:
        for id in ids:
            await inspect(hf, JOURNEY, id, deaths=deaths)
            entries = await hf.history(id)
            audit = [record for record in await hf.audit(id) if record.event in ("ambiguity", "decision")]
            reruns = Counter(record.position for record in audit if record.policy not in ("happened", "not_happened"))
            for name in ("rerun", "rerun_with_key"):
                intents = [entry.position for entry in entries if entry.name == name and entry.part == "opened"]
                assert len(intents) == 1 + reruns[intents[0]], f"{name}: {len(intents)} attempts, {reruns} audited"
                assert len(traces(id, name)) <= len(intents)


def child(work: Callable[[], Coroutine[Any, Any, None]], *, point: str = "", hit: int = 1) -> int:
    """Do something in a forked process; return its id."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        _be_child(work, point, hit)
    return pid


def _be_child(work: Callable[[], Coroutine[Any, Any, None]], point: str, hit: int) -> NoReturn:
    code = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        if point:
            points.arm(point, hit, "kill")
        asyncio.run(work())
        code = 0
    except BaseException:  # noqa: BLE001 - told, and then this process ends
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def end(pid: int, seconds: float) -> int:
    """Wait for the end of a child, and kill it when that takes too long; return how it ended."""
    if signal.sigtimedwait([signal.SIGCHLD], seconds) is None:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    while signal.sigtimedwait([signal.SIGCHLD], 0) is not None:
        pass
    return os.waitstatus_to_exitcode(status)


def torture(stage: Stage, seed: int, life_seconds: float) -> int:
    """Kill as the seed says, until the program is through; return how many lives that ended."""
    rng = random.Random(seed)  # noqa: S311 - a plan, no secret
    ids = [f"seed-{seed}-{number}" for number in range(rng.choice((1, 1, 2)))]
    named = [point for point in DURABLE_POINTS if not point.startswith(("cancel", "generation"))]
    deaths = 0
    while deaths < LIVES_MAX:
        if rng.random() < 0.5:
            point, hit = rng.choice(named), rng.choice((1, 1, 2, 3, 5))
            code = end(child(lambda: live(stage, ids), point=point, hit=hit), PATIENCE_SECONDS)
        else:
            code = end(child(lambda: live(stage, ids)), rng.random() * life_seconds)
        if code == 0:
            break
        if code != -signal.SIGKILL:
            raise SystemExit(f"seed {seed}: a life ended with {code} after {deaths} deaths")
        deaths += 1
    for work in (lambda: live(stage, ids), lambda: judge(stage, ids, deaths)):
        code = end(child(work), PATIENCE_SECONDS)
        if code != 0:
            raise SystemExit(f"seed {seed}: ended with {code} after {deaths} deaths")
    return deaths


def main(target: str, folder: str, first: str, count: str) -> None:
    """Torture some seeds, once it is known how long a life takes."""
    stage = Stage(target, Path(folder))
    place(stage.outside)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    for id in ("first", "second"):
        began = time.perf_counter()
        assert end(child(lambda id=id: live(stage, [id])), PATIENCE_SECONDS) == 0
    life_seconds = time.perf_counter() - began
    for seed in range(int(first), int(first) + int(count)):
        print(json.dumps([seed, torture(stage, seed, life_seconds)]), flush=True)  # noqa: T201 - its answer


if __name__ == "__main__":
    main(*sys.argv[1:])
