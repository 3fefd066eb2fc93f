"""An agent that works in a process of its own, or in the test's, and is stopped, killed and replaced there.

`python -m tests.flow.agents NAME ARGUMENT…`, by way of `Agent`.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from tests.flow.programs import Program, hear, say
from tests.stage import Outside, Stage

import holdfast


class Agent(Program):
    """A program of this module in a process of its own."""

    module = "tests.flow.agents"

    def __init__(self, name: str, stage: Stage, *arguments: object, **config: Any) -> None:
        super().__init__(name, stage.target, stage.folder, json.dumps(config), *arguments)

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        self.process.kill()
        self.process.wait(10)

    def freeze(self) -> None:
        """Stop it where it is."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)


class Gate:
    """Where an agent in a process of its own tells where it is and waits for a line; open in the test's process."""

    shut = False

    async def __call__(self, *words: object) -> None:
        if self.shut:
            say(*words)
            await hear()


gate = Gate()


@holdfast.step(effect=holdfast.at_least_once())
async def work(folder: str, number: int) -> int:
    """Leave a trace outside."""
    Outside(Path(folder) / "outside").happen("work", number)
    return number


@holdfast.step(effect=holdfast.at_least_once())
async def dawdle(folder: str) -> str:
    """Be in an effect until told to go on."""
    Outside(Path(folder) / "outside").happen("dawdle")
    await gate("in the effect")
    return str(os.getpid())


@holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.fail()))
async def pay(folder: str) -> str:
    """Be in a guarded effect until told to go on."""
    Outside(Path(folder) / "outside").happen("pay")
    await gate("in the payment")
    return str(os.getpid())


@holdfast.durable(kind="agent")
async def agent(folder: str, total: int, waits_after: int) -> list[int]:
    """Work step by step, waiting after one of them."""
    done = []
    for number in range(total):
        done.append(await work(folder, number))
        if number == waits_after:
            await gate("after", number)
    return done


@holdfast.durable(kind="agent.dawdling")
async def dawdling(folder: str) -> str:
    """Spend a long time in one effect."""
    return await dawdle(folder)


@holdfast.durable(kind="agent.paying")
async def paying(folder: str) -> str:
    """Spend a long time in one guarded effect."""
    return await pay(folder)


@holdfast.step(effect=holdfast.exactly_once("cost_bearing"))
async def ask(folder: str, prompt: str) -> str:
    """Make a paid call."""
    Outside(Path(folder) / "outside").happen("paid", prompt)
    return f"answer to {prompt}"


@holdfast.step(effect=holdfast.at_least_once())
async def tell(folder: str, text: str) -> None:
    """Put something out."""
    Outside(Path(folder) / "outside").happen("told", text)


@holdfast.durable(kind="agent.turn")
async def turn(folder: str, prompt: str) -> str:
    """Answer a prompt, with a paid call and output on the way."""
    answer = await ask(folder, prompt)
    await tell(folder, answer)
    await gate("told")
    closing = await ask(folder, f"closing of {prompt}")
    await tell(folder, closing)
    return f"{answer}, {closing}"


async def converse(target: str, folder: str, config: str, id: str, prompt: str) -> None:
    """Take one turn, and wait in the middle of it."""
    gate.shut = True
    async with Stage(target, Path(folder)).open(**json.loads(config)) as hf:
        say(await hf.run(turn, folder, prompt, id=id))


KINDS = {each.kind: each for each in (agent, dawdling, paying)}


async def run(target: str, folder: str, config: str, kind: str, id: str, *arguments: str) -> None:
    """Run an execution to its end, and say how it ended."""
    gate.shut = True
    async with Stage(target, Path(folder)).open(**json.loads(config)) as hf:
        say("open")
        try:
            say("done", json.dumps(await hf.run(KINDS[kind], folder, *map(int, arguments), id=id)))
        except holdfast.DurableError as error:
            say(type(error).__name__, error.code)


async def waiting(target: str, folder: str, config: str, id: str) -> None:
    """Run an execution that others may have, without ever waiting inside it."""
    async with Stage(target, Path(folder)).open(**json.loads(config)) as hf:
        say("open")
        say("done", json.dumps(await hf.run(agent, folder, 3, 0, id=id)))


async def block(target: str, folder: str, config: str, id: str) -> None:
    """Hold an execution open until told to go on."""
    async with Stage(target, Path(folder)).open(**json.loads(config)) as hf, hf.execution(id, kind="block") as ctx:
        say("inside")
        await hear()
        ctx.set_output("done")


async def fork(target: str, folder: str, config: str) -> None:
    """Fork in an effect, use everything in the child, and go on in the parent."""
    async with Stage(target, Path(folder)).open(**json.loads(config)) as hf:

        @holdfast.step(effect=holdfast.at_least_once())
        async def forks() -> str:
            child = os.fork()
            if child == 0:
                os._exit(await refusals(hf))
            _, status = os.waitpid(child, 0)  # noqa: ASYNC222 - it ends at once
            return f"refused {os.waitstatus_to_exitcode(status)}"

        @holdfast.durable(kind="forking")
        async def program() -> list[str]:
            return [await forks(), str(await work(folder, 1))]

        say(await hf.run(program, id="e"))
        say((await hf.verify()).ok, (await hf.list()).items[0].status)


async def fill(target: str, folder: str, config: str) -> None:
    """Run into the end of the disk in the middle of an execution, and go on when there is space again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = asyncio.Event()

    @holdfast.step(effect=holdfast.at_least_once())
    async def note(number: int) -> str:
        Outside(Path(folder) / "outside").happen("note", number)
        return "x" * 800_000

    @holdfast.durable(kind="filling")
    async def filling() -> int:
        for number in range(20):
            if number == 10 and not full.is_set():
                full.set()
                resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(target + "-wal").st_size, hard))
            await note(number)
            if number == 15:
                await pay(folder)
        return number

    async with Stage(target, Path(folder)).open(**json.loads(config)) as hf:
        try:
            say(await hf.run(filling, id="e"))
        except holdfast.JournalUnavailable as error:
            say(error.code)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        say(await hf.run(filling, id="e"))
        say((await hf.verify()).ok)


async def unprivileged(target: str, folder: str, config: str) -> None:
    """Open and run as a user who may not write here, and say what is wrong."""
    async with Stage(str(Path(folder) / "warm.db"), Path(folder)).open() as hf:  # loads all it needs from disk
        await hf.run(agent, folder, 1, 9)
    if os.getuid() == 0:
        os.setuid(65534)
    given = holdfast.DurableConfig(**json.loads(config)) if config != "{}" else None
    try:
        async with holdfast.open(target, durable=given) as hf:
            say(await hf.run(agent, folder, 1, 9, id="e"))
    except holdfast.HoldfastError as error:
        say(error.code, error.hint != "")


async def refusals(hf: holdfast.Holdfast) -> int:
    """Count the calls that refuse to work in this process."""
    refused = 0
    calls = (
        lambda: hf.run(agent, ".", 1, 9), lambda: hf.start(agent, ".", 1, 9), lambda: hf.get("e"), hf.list,
        lambda: hf.cancel("e"), hf.recover, hf.close, hf.handle("e").info,
    )  # fmt: skip
    for call in calls:
        try:
            await call()
        except holdfast.WrongProcess:
            refused += 1
    try:
        hf.execution("x", kind="x")
    except holdfast.WrongProcess:
        refused += 1
    return refused


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
