"""Programs that flow tests run as processes of their own: `python -m tests.flow.programs NAME ARGUMENT…`."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from tests.stage import Outside, turns

import holdfast
from holdfast.core.clock import SystemClock

ROOT = Path(__file__).parents[2]


class Program:
    """A program of this module in a process of its own, for a block; at its end it is killed if it still runs."""

    module = "tests.flow.programs"

    def __init__(self, name: str, *arguments: object, **environment: str) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-m", self.module, name, *map(str, arguments)],
            cwd=ROOT, env={**os.environ, **environment}, text=True, stdin=pipe, stdout=pipe,
        )  # fmt: skip

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def say(self) -> None:
        """Tell it to go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    async def hear(self) -> str:
        """Wait for its next line, while the loop goes on."""
        assert self.process.stdout is not None
        return (await asyncio.to_thread(self.process.stdout.readline)).strip()

    def finish(self, code: int = 0) -> list[str]:
        """Wait for its end; return what else it said."""
        output, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == code, (self.process.returncode, output)
        return output.splitlines()


def run(name: str, *arguments: object, code: int = 0, **environment: str) -> list[str]:
    """Run a program to its end; return what it said."""
    with Program(name, *arguments, **environment) as program:
        return program.finish(code)


def say(*words: object) -> None:
    """Tell the test, at once."""
    print(*words, flush=True)  # noqa: T201 - its standard output is how a program answers


async def hear() -> None:
    """Wait until told to go on."""
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def meet(target: str, outside: str, gate: str) -> None:
    """Run one id in two tasks, while another process does the same."""
    world = Outside(Path(outside))

    @holdfast.step(effect=holdfast.at_least_once())
    async def shake() -> str:
        world.happen("step")
        while not Path(gate).exists():  # noqa: ASYNC240 - what the test does is what it waits for
            await SystemClock().sleep(0.005)
        return "met"

    @holdfast.durable(kind="meeting")
    async def meeting() -> str:
        world.happen("body")
        return await shake()

    async with holdfast.open(target, durable=holdfast.DurableConfig(poll_ms=20)) as hf:
        say("ready")
        await hear()
        tasks = [asyncio.ensure_future(hf.run(meeting, id="meeting")) for _ in range(2)]
        while not world.count("step"):
            await SystemClock().sleep(0.005)
        say("asked")
        say(await asyncio.gather(*tasks))


async def identify(target: str, seed: str) -> None:
    """Run a program whose parts end in an order of their own, and say what it was known by."""
    rng = random.Random(int(seed))  # noqa: S311 - an order, no secret

    @holdfast.step(effect=holdfast.at_least_once())
    async def take(words: set[str], table: dict[str, object], *rest: int, flag: bool = False) -> int:
        await turns(rng.randrange(20))
        return len(words)

    @holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()), fingerprint=("cents",))
    async def pay(cents: int, note: object) -> int:
        return cents

    async def helper(name: str) -> int:
        await holdfast.now()
        return await take({name, "x", "y"}, {"b": 1, "a": {"d", "c"}}, 1, 2, flag=True) + await pay(3, object())

    @holdfast.durable(kind="identify")
    async def program(names: list[str]) -> None:
        await take({"p", "q", "r", "s"}, {"z": 1.5, "y": b"bytes", "x": None})
        await asyncio.gather(take({"a", "b"}, {}), take({"b", "a"}, {}), pay(1, 2))
        await holdfast.gather(*(helper(name) for name in names))
        async with holdfast.branch("fetch"):
            await take(set(), {})
        await holdfast.uuid()

    async with holdfast.open(target, namespace=bytes(range(16))) as hf:
        await hf.run(program, ["ann", "bob", "cid"], id="one")
        async with hf.database.read() as tx:
            found = await tx.one("executions.get", id="one")
            assert found is not None
            rows = await tx.all("journal.list", execution_pk=found.pk, generation=None, after=0, most=500)
        say(hf.database.namespace.hex(), found.uid.hex(), found.input_hash.hex())
    for row in sorted(rows, key=lambda row: (row.scope, row.idx, row.part)):
        say(row.scope.hex(), row.idx, row.part, row.shape.hex(), row.key and row.key.hex())


async def crowd(target: str, amount: str, id: str) -> None:
    """Take many steps at once, and say how many commits that took."""

    @holdfast.step(effect=holdfast.at_least_once())
    async def work(number: int) -> int:
        return number

    @holdfast.durable(kind="crowd")
    async def program(count: int) -> int:
        return len(await asyncio.gather(*(work(number) for number in range(count))))

    async with holdfast.open(target) as hf:
        say("opened")
        done = await hf.run(program, int(amount), id=id)
        say(done)
        say(hf.database.writer.batches)


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
