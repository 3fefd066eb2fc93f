"""Receipts and hooks: recorded a second against raw group commit, verified a second, and what a hook call costs.

    python bench/lifecycle.py [--json] [--quick] [--write] [--only receipts|verify|hooks]

Receipts are emitted through the router, one at a time and with 64 in flight, and set against raw group commit: as many
callers leave a row each, made before, and one task writes all that wait in one commit. Both have their turn in every
round, in one process; beside them the bare driver writes the same rows, as many in a commit. Hook calls are processes
of their own, interleaved with `python -c pass`. The results go to standard output as Markdown, progress to standard
error. With `--json` the last line of the output is one object with the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ledgers import Postgres, Sqlite
from raw import RECEIPTS, written
from report import _spread, _version
from results import write_into

from holdfast.cli.bench.trials import rate
from holdfast.core import trace
from holdfast.core.clock import SystemClock
from holdfast.core.loops import spawn
from holdfast.lifecycle import (
    CallbackRequest,
    CallbackResponse,
    ReceiptContext,
    Registry,
    Router,
    ledger,
    negotiate,
    route,
)
from holdfast.store import Database, Row, open_database

RUNS = 8
"""Runs that events belong to: sessions that are open at once."""
IN_FLIGHT = 64
FILLED = 250
"""Receipts of one transaction while a ledger is filled; not timed."""
STREAM = ("--event", "UserPromptSubmit")


@dataclass(frozen=True)
class Sizes:
    """How much is measured: rounds of emitting, calls of a turn, receipts to verify, starts of each program."""

    rounds: int = 5
    alone: int = 200
    crowd: int = 3_200
    verified: int = 100_000
    starts: int = 41

    @classmethod
    def quick(cls) -> Sizes:
        """Sizes that only show that it runs."""
        return cls(rounds=2, alone=20, crowd=256, verified=1_000, starts=5)


@dataclass
class Found:
    """What was measured: calls a second by database and case, and walls of programs in milliseconds."""

    rates: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    walls: dict[str, list[float]] = field(default_factory=dict)

    def note(self, database: str, case: str, value: float) -> None:
        self.rates.setdefault((database, case), []).append(value)

    def share(self, database: str, over: str, under: str) -> float | None:
        rates, others = self.rates.get((database, over)), self.rates.get((database, under))
        return statistics.median(rates) / statistics.median(others) if rates and others else None

    def ratio(self, program: str, taken_out: float = 0.0) -> float | None:
        walls, bare = self.walls.get(program), self.walls.get("python -c pass")
        return (statistics.median(walls) - taken_out) / statistics.median(bare) if walls and bare else None

    def ratios(self) -> dict[str, float]:
        client = statistics.median(self.walls["client"]) if "client" in self.walls else 0.0
        found = {f"{d}_alone": self.share(d, "emit alone", "raw alone") for d in ("sqlite", "postgres")}
        found |= {f"{d}_crowd": self.share(d, "emit", "raw") for d in ("sqlite", "postgres")}
        found |= {
            "hook_observe": self.ratio("hook, observe"),
            "hook_resident": self.ratio("hook, through the resident", client),
            "hook_cold": self.ratio("hook, dispatch", client),
        }
        return {name: round(ratio, 3) for name, ratio in found.items() if ratio is not None}


GOALS = {
    "sqlite_crowd": (">=", 0.25), "postgres_crowd": (">=", 0.25),
    "hook_observe": ("<=", 3.0), "hook_resident": ("<=", 3.0), "hook_cold": ("<=", 12.0),
}  # fmt: skip


# --- receipts -----------------------------------------------------------------------------------------


class Events:
    """Makes events nobody has seen yet."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.answer = CallbackResponse(schema_version="lifeloop.v0.3", status="delivered")

    def next(self) -> tuple[CallbackRequest, ReceiptContext]:
        number = next(self._numbers)
        run = f"claude:session-{number % RUNS}"
        request = CallbackRequest(
            schema_version="lifeloop.v0.3", event="session.started", event_id=f"evt_{number:032x}",
            adapter_id="claude", adapter_version="0.2.0", integration_mode="native_hook",
            invocation_id=f"inv_{number:032x}", harness_run_id=run, idempotency_key=f"hk_{number:032x}",
            metadata={"source_hook": "SessionStart", "model": "claude"},
        )  # fmt: skip
        context = ReceiptContext(
            client_id="bench", receipt_id=f"rcp_{number:032x}", at_epoch_s=1_800_000_000, harness_run_id=run
        )
        return request, context


@asynccontextmanager
async def opened(target: str) -> AsyncIterator[tuple[Database, Router]]:
    database = await open_database(target, clock=SystemClock())
    try:
        async with Router(database, registry=Registry.builtin(), clock=database.clock) as router:
            yield database, router
    finally:
        await database.close()


async def receipts(found: Found, name: str, target: str, other: str, sizes: Sizes) -> None:
    """Emit events and, in turns with that, write rows of receipts by group commit alone, and by the bare driver."""
    async with opened(target) as (database, router), opened(other) as (bare, _):
        events = Events()

        async def emit() -> None:
            request, context = events.next()
            await router.emit(request, events.answer, context)

        async def dispatch() -> None:
            request, context = events.next()
            await router.dispatch(request, client=answering, context=context)

        await rate(emit, 4 * IN_FLIGHT)
        async with database.read() as tx:
            (like,) = await tx.all("receipts.chain", chain_id='["run","claude:session-1"]', after=0, most=1)
        raw = GroupCommit(bare, like).write
        for _ in range(sizes.rounds):
            found.note(name, "emit alone", await rate(emit, sizes.alone, in_flight=1))
            found.note(name, "raw alone", await rate(raw, sizes.alone, in_flight=1))
            found.note(name, "raw", await rate(raw, sizes.crowd, in_flight=IN_FLIGHT))
            before = _batches()
            found.note(name, "emit", await rate(emit, sizes.crowd, in_flight=IN_FLIGHT))
            entries, commits = (now - then for now, then in zip(_batches(), before, strict=True))
            batch = max(round(entries / commits), 1)
            found.note(name, "batch", batch)
            found.note(name, "driver", (await written(target, RECEIPTS, batch, 1, sizes.crowd)).rate)
            found.note(name, "dispatch", await rate(dispatch, sizes.crowd // 4, in_flight=IN_FLIGHT))
        async with database.read() as tx:
            assert isinstance(await ledger.verify(tx), ledger.Verified)
    _say(f"receipts on {name}: done")


async def answering(request: CallbackRequest, payloads: object) -> CallbackResponse:
    return CallbackResponse(schema_version=request.schema_version, status="delivered")


class GroupCommit:
    """Raw group commit: callers leave a row each, one task writes all that wait in one commit, and wakes them.

    Rows are those of a receipt that was recorded; only what makes them unique changes. Nothing is looked up or checked.
    """

    def __init__(self, database: Database, like: Row) -> None:
        self._database = database
        self._like = like
        self._numbers = itertools.count(1)
        self._waiting: list[tuple[tuple[object, ...], asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def write(self) -> None:
        number = next(self._numbers)
        unique = {
            "chain_index": number, "sequence": number,
            "receipt_id": f"rcp_{number:032x}", "idempotency_key": f"hk_{number:032x}",
        }  # fmt: skip
        row = tuple(self._like._replace(**unique))[1:]  # the database numbers it
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((row, done))
        if self._task is None:
            self._task = spawn(self._run(), "holdfast bench group commit")
        await done

    async def _run(self) -> None:
        while self._waiting:
            some, self._waiting = self._waiting, []
            async with self._database.write() as tx:
                await tx.run("receipts.add", [row for row, _ in some])
            for _, done in some:
                done.set_result(None)
        self._task = None


def _batches() -> tuple[float, float]:
    """Return how many entries shared how many transactions so far."""
    shown = trace.snapshot()
    name = "holdfast_lifecycle_batch_items"
    return shown[f"{name}_sum"].get((), 0), shown[f"{name}_count"].get((), 0)


async def verification(found: Found, name: str, target: str, sizes: Sizes) -> None:
    """Fill a ledger, and check all of it."""
    events, registry = Events(), Registry.builtin()
    async with opened(target) as (database, _):
        for begin in range(0, sizes.verified, FILLED):
            made = (events.next() for _ in range(min(FILLED, sizes.verified - begin)))
            entries = [
                ledger.Emit(
                    ledger.Draft(negotiate(route(request, registry), now_epoch_s=0), events.answer, context), "strict"
                )
                for request, context in made
            ]
            async with database.write() as tx:
                await ledger.record(tx, entries, now=database.clock.now())
        for _ in range(3):
            began = time.perf_counter()
            async with database.read() as tx:
                checked = await ledger.verify(tx)
            assert isinstance(checked, ledger.Verified), checked
            assert checked.receipts_count == sizes.verified
            found.note(name, "verify", sizes.verified / (time.perf_counter() - began))
    _say(f"verification on {name}: done")


# --- hooks --------------------------------------------------------------------------------------------


class Hooks:
    """A user's home with a configuration, a ledger and a state directory, where a flush costs nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._numbers = itertools.count(1)
        self._argv = [sys.executable, "-c", "from holdfast.cli.entry import main; main()", "hook", "claude"]
        self.client = root / "client"
        answer = '{"schema_version":"lifeloop.v0.3","status":"delivered"}'
        self.client.write_text(f"#!/bin/sh\ncat > /dev/null\necho '{answer}'\n")
        self.client.chmod(0o700)

    def environment(self, home: str) -> dict[str, str]:
        """The environment of a user, made when it is not there."""
        place = self.root / home
        place.mkdir(mode=0o700, exist_ok=True)
        folders = {f"XDG_{name}_HOME": str(place / name.lower()) for name in ("CONFIG", "DATA", "STATE")}
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")}
        return {**kept, **folders, "HOME": str(place), "XDG_RUNTIME_DIR": str(place)}

    def bind(self, home: str) -> None:
        """Have the client asked about every prompt."""
        folder = Path(self.environment(home)["XDG_CONFIG_HOME"]) / "holdfast"
        folder.mkdir(parents=True, exist_ok=True)
        command = json.dumps([str(self.client)])
        (folder / "holdfast.toml").write_text(
            f'[[lifecycle.clients]]\nid = "bench"\ncommand = {command}\nevents = ["frame.opening"]\n'
        )

    def call(self, home: str) -> float:
        """Have a hook called; return its wall in milliseconds."""
        prompt = {
            "session_id": "bench", "hook_event_name": "UserPromptSubmit", "cwd": "/", "transcript_path": "/nowhere",
            "permission_mode": "default", "prompt": "go on", "prompt_id": f"prompt-{next(self._numbers)}",
        }  # fmt: skip
        return _wall([*self._argv, *STREAM], self.environment(home), json.dumps(prompt).encode())

    @contextmanager
    def resident(self, home: str) -> Iterator[None]:
        """Let a resident run meanwhile."""
        environment = self.environment(home)
        with subprocess.Popen([sys.executable, "-m", "holdfast", "hook", "serve"], env=environment) as process:
            try:
                sockets = Path(environment["XDG_STATE_HOME"])
                for _ in range(600):
                    if any(each.is_socket() for each in sockets.rglob("*")):
                        break
                    time.sleep(0.05)
                else:
                    raise SystemExit("the resident did not come up")
                yield
            finally:
                process.terminate()


def _wall(argv: list[str], environment: Mapping[str, str], given: bytes = b"") -> float:
    began = time.perf_counter()
    done = subprocess.run(argv, env=environment, input=given, capture_output=True, check=False)
    wall = (time.perf_counter() - began) * 1e3
    if done.returncode or done.stderr:
        raise SystemExit(f"{argv} ended with {done.returncode}: {done.stderr.decode()}")
    return wall


def hooks(found: Found, sizes: Sizes) -> None:
    """Start every program in turn, so that what else the machine does meets all of them."""
    memory = Path("/dev/shm")  # noqa: S108 - flushes are taken out on purpose
    root = Path(tempfile.mkdtemp(prefix="hf-", dir=memory if memory.is_dir() else None))
    try:
        bench = Hooks(root)
        bench.bind("cold")
        bench.bind("served")
        bare = [sys.executable, "-c", "pass"]
        programs: dict[str, Callable[[], float]] = {
            "python -c pass": lambda: _wall(bare, bench.environment("observe")),
            "hook, observe": lambda: bench.call("observe"),
            "hook, dispatch": lambda: bench.call("cold"),
            "hook, through the resident": lambda: bench.call("served"),
            "client": lambda: _wall([str(bench.client)], bench.environment("observe"), b"{}"),
        }
        for home in ("observe", "cold", "served"):  # the ledger, the plan and compiled modules are there from here on
            bench.call(home)
            bench.call(home)
        with bench.resident("served"):
            for name, program in programs.items():
                program()
                found.walls[name] = []
            for _ in range(sizes.starts):
                for name, program in programs.items():
                    found.walls[name].append(program())
    finally:
        shutil.rmtree(root, ignore_errors=True)
    _say("hooks: done")


# --- the table ----------------------------------------------------------------------------------------


def report(found: Found, about: str) -> list[str]:
    lines = [
        f"holdfast {_version('holdfast')}; Python {platform.python_version()}; {os.cpu_count()} cores,"
        f" {platform.system()} {platform.machine()}; {about}. Load {os.getloadavg()[0]:.1f} at the end."
    ]
    if found.rates:
        lines += ["", "| a second | database | measured |", "| --- | --- | --- |"]
        lines += [f"| {CASES[case]} | {name} | {_spread(rates)} |" for (name, case), rates in found.rates.items()]
    if found.walls:
        lines += ["", "| program | wall, ms |", "| --- | --- |"]
        lines += [f"| {name} | {_spread(walls)} |" for name, walls in found.walls.items()]
    lines += ["", "| ratio | figure | goal |", "| --- | --- | --- |"]
    for name, ratio in found.ratios().items():
        lines.append(f"| {RATIOS[name]} | {ratio:.2f} | {_verdict(name, ratio)} |")
    return lines


CASES = {
    "raw alone": "raw group commit, one at a time",
    "emit alone": "receipts emitted, one at a time",
    "raw": f"raw group commit, {IN_FLIGHT} in flight",
    "driver": "the bare driver, as many in a commit",
    "emit": f"receipts emitted, {IN_FLIGHT} in flight",
    "dispatch": f"events dispatched to a callable, {IN_FLIGHT} in flight",
    "batch": f"of them in a commit, {IN_FLIGHT} in flight",
    "verify": "receipts verified",
}
RATIOS = {
    "sqlite_alone": "emitted over raw, one at a time, sqlite",
    "postgres_alone": "emitted over raw, one at a time, postgres",
    "sqlite_crowd": f"emitted over raw, {IN_FLIGHT} in flight, sqlite",
    "postgres_crowd": f"emitted over raw, {IN_FLIGHT} in flight, postgres",
    "hook_observe": "hook that is observed, over `python -c pass`",
    "hook_resident": "hook through the resident, without its client, over `python -c pass`",
    "hook_cold": "hook that asks its client itself, without the client, over `python -c pass`",
}


def _verdict(name: str, ratio: float) -> str:
    if name not in GOALS:
        return ""
    sign, bound = GOALS[name]
    reached = ratio <= bound if sign == "<=" else ratio >= bound
    return f"{sign} {bound:g}: {'reached' if reached else '**missed**'}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def _records(found: Found, sizes: Sizes, only: str | None) -> str:
    with Sqlite() as files, Postgres() as server:
        for each in (files, server):
            if only != "verify":
                await receipts(found, each.name, each.fresh(), each.fresh(), sizes)
            if only != "receipts":
                await verification(found, each.name, each.fresh(), sizes)
        return f"{files.about()}; {server.about()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--quick", action="store_true", help="show that it runs, not how fast")
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    parser.add_argument("--only", choices=("receipts", "verify", "hooks"), help="measure only that")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every start of a program compiles what it imports
    sizes, found, about = Sizes.quick() if options.quick else Sizes(), Found(), "no database"
    if options.only != "hooks":
        about = asyncio.run(_records(found, sizes, options.only))
    if options.only in (None, "hooks"):
        hooks(found, sizes)
    lines = report(found, about)
    print("\n".join(lines))
    if options.write:
        write_into("lifecycle", "\n".join(lines))
    if options.json:
        print(json.dumps({"ratios": found.ratios()}))


if __name__ == "__main__":
    main()
