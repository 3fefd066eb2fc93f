"""The demo's villain and its operator: kills processes until the work is done all the same.

Kills come at random moments of the *work*, drawn from the seed as points of its progress plus a random
delay, not as points in time: so there is progress between them on a machine of any speed, they fall where
effects are in flight, and all of them come before the end.

One kill is aimed: when the large payment has been applied but not confirmed, the agent dies. Its policy
is `fail()`, so the turn stops for an operator, who asks the payment service what happened and decides by
the command line.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, NoReturn

import holdfast
from holdfast.cli.demo.book import Follower, Outbox
from holdfast.cli.demo.capture import captured, configure
from holdfast.cli.demo.display import Display
from holdfast.cli.demo.figures import Books, Figures, Seen, executions, take_stock
from holdfast.cli.demo.hooks import announced, environment
from holdfast.cli.demo.orders import MODEL_CALLS_PER_TURN, Order, plan
from holdfast.cli.demo.processes import Child, DemoFailed, run_cli
from holdfast.cli.demo.wire import AnswerLost, Refused, call
from holdfast.core.clock import SystemClock

__all__ = ["Supervisor", "limit_seconds"]

_TICK_SECONDS = 0.02
_LOOK_SECONDS = 0.25
_STALL_SECONDS = 30.0
_CALM_SHARE = 0.8
"""Kills are spread over this share of the work, so that the end is not one heap of kills."""


def limit_seconds(turns: int, kills: int) -> float:
    """Return how long a demo of that size may take before it counts as hung."""
    return max(110.0, 1.5 * (turns + kills))


@dataclass(frozen=True, slots=True, order=True)
class _Kill:
    """A kill to come.

    Attributes:
        progress: How many effects have happened when it falls due.
        delay: Seconds of life its victim is given beyond that.
        down: Seconds until the victim is started again.
    """

    progress: int
    delay: float
    down: float
    victim: Literal["agent", "payments"]


def _draw_kills(rng: Random, count: int, effects: int) -> list[_Kill]:
    """Draw the random kills of a demo: one in five, but at least one, hits the payment service."""
    victims: list[Literal["agent", "payments"]] = ["payments"] * min(count, max(1, count // 5))
    victims += ["agent"] * (count - len(victims))
    rng.shuffle(victims)
    return sorted(
        _Kill(
            progress=rng.randrange(1, max(2, int(effects * _CALM_SHARE))),
            delay=rng.uniform(0.05, 1.0),
            down=rng.uniform(0.1, 0.5) if victim == "payments" else 0.0,
            victim=victim,
        )
        for victim in victims
    )


class Supervisor:
    """Runs one demo in one folder."""

    def __init__(self, folder: Path, *, seed: int, turns: int, kills: int) -> None:
        self._ledger = folder / "agent.db"
        self._paths = {name: folder / f"{name}.jsonl" for name in ("model", "payments", "tally")}
        self._shop = folder / "payments.db"
        model, decisions, tally = (Follower(self._paths[name]) for name in ("model", "payments", "tally"))
        self._books = Books(model, decisions, tally, Outbox(self._shop))
        self._model = Child("holdfast.cli.demo.model_server", folder / "model.log")
        self._payments = Child("holdfast.cli.demo.payments", folder / "payments.log")
        self._agent = Child("holdfast.cli.demo.agent", folder / "agent.log")
        configure(folder)
        self._server = Child("holdfast.cli.demo.capture", folder / "server.log", environment(self._ledger))
        self._ports = {"model": 0, "payments": 0, "server": 0}
        self._clock = SystemClock()
        self._seed = seed
        self._orders: Sequence[Order] = plan(seed, turns)
        self._large = next(order.id for order in self._orders if order.large)
        rng = Random(seed)  # noqa: S311 - repeatable moments, no secret
        # The aimed kill is one of those asked for.
        self._kills = _draw_kills(rng, kills - 1, turns * (MODEL_CALLS_PER_TURN + 1))
        self._limit = limit_seconds(turns, kills)
        self._aimed = False
        self._ready_at: float | None = None
        self._revive_at: float | None = None
        self._look_at = 0.0
        self._completed = 0
        self._effects_at_kill = 0

    @property
    def kills(self) -> int:
        """How many processes have died of SIGKILL."""
        return self._agent.kills + self._payments.kills

    async def run(self, display: Display) -> tuple[Figures, str]:
        """Run the demo to its end.

        Returns:
            The figures, and why it could not go on to its end, or nothing.
        """
        trouble = ""
        try:
            async with holdfast.open(self._ledger) as hf:
                try:
                    async with asyncio.timeout(self._limit):
                        await self._start_services()
                        await self._start_agent()
                        await self._supervise(hf, display)
                        await self._agent.dismiss()
                except TimeoutError:
                    trouble = f"it has not ended within {self._limit:.0f} s: {await self._stuck(hf)}"
                except DemoFailed as error:
                    trouble = str(error)
                await self._agent.close()
                seen = Seen(await announced(self._ledger), await captured(self._ports["server"]))
                seconds = display.seconds
                figures = await take_stock(hf, self._orders, self._books, seen, kills=self.kills, seconds=seconds)
                return figures, trouble
        finally:
            for child in (self._agent, self._payments, self._model, self._server):
                await child.close()
            await self._books.payments.close()

    async def _start_services(self) -> None:
        await self._model.start(self._paths["model"], 0)
        await self._payments.start(self._shop, self._paths["payments"], 0)
        await self._server.start()
        children = {"model": self._model, "payments": self._payments, "server": self._server}
        self._ports = {name: await child.port() for name, child in children.items()}

    async def _start_agent(self) -> None:
        self._ready_at = None
        ports = (self._ports[name] for name in ("model", "payments", "server"))
        await self._agent.start(self._ledger, self._paths["tally"], *ports, self._seed, len(self._orders))

    async def _supervise(self, hf: holdfast.Holdfast, display: Display) -> None:
        moved_at, seen = self._clock.monotonic(), (0, 0, 0, 0)
        while self._completed < len(self._orders) or self._kills:
            await self._clock.sleep(_TICK_SECONDS)
            await self._books.follow()
            await self._kill_what_is_due(display)
            await self._revive_payments(display)
            self._check_that_all_live()
            if self._clock.monotonic() >= self._look_at:
                await self._look(hf, display)
                self._look_at = self._clock.monotonic() + _LOOK_SECONDS
            display.show(turns=self._completed, kills=self.kills, paid=self._books.paid, applied=self._books.applied)
            state = (self._completed, self.kills, self._books.paid, self._books.applied)
            if state != seen:
                moved_at, seen = self._clock.monotonic(), state
            elif self._clock.monotonic() > moved_at + _STALL_SECONDS:
                raise DemoFailed(f"nothing has moved for {_STALL_SECONDS:.0f} s: {await self._stuck(hf)}")

    async def _kill_what_is_due(self, display: Display) -> None:
        if not self._aimed and any(receipt["order"] == self._large for receipt in self._books.payments.receipts):
            self._aimed = True
            await self._kill_agent(display, "between the large payment and its confirmation")
            return
        if self._kills and self._effects >= self._kills[0].progress and self._moved_since_last_kill:
            kill = self._kills[0]
            # The more kills are overdue, the shorter the lives, so that the work does not outrun them.
            overdue = sum(other.progress <= self._effects for other in self._kills)
            lived = self._agent_lived(kill.delay / overdue)
            if kill.victim == "agent" and lived:
                self._kills.pop(0)
                await self._kill_agent(display, "at a random moment")
            elif kill.victim == "payments" and lived and self._revive_at is None:
                self._kills.pop(0)
                self._effects_at_kill = self._effects
                await self._payments.kill()
                self._revive_at = self._clock.monotonic() + kill.down
                display.say(f"kill {self.kills}: the payment service, for {kill.down:.1f} s")

    @property
    def _effects(self) -> int:
        return self._books.paid + self._books.applied

    @property
    def _moved_since_last_kill(self) -> bool:
        """Whether a kill would hit new work, or there is none left to be hit."""
        return self._effects > self._effects_at_kill or self._completed == len(self._orders)

    def _agent_lived(self, seconds: float) -> bool:
        """Say whether the agent has worked that long, so that there is something to interrupt."""
        if self._ready_at is None and any(mark["pid"] == self._agent.pid for mark in self._books.tally.of("ready")):
            self._ready_at = self._clock.monotonic()
        return self._ready_at is not None and self._clock.monotonic() >= self._ready_at + seconds

    async def _kill_agent(self, display: Display, when: str) -> None:
        self._effects_at_kill = self._effects
        await self._agent.kill()
        display.say(f"kill {self.kills}: the agent, {when}")
        await self._start_agent()

    async def _revive_payments(self, display: Display) -> None:
        if self._revive_at is not None and self._clock.monotonic() >= self._revive_at:
            self._revive_at = None
            await self._payments.start(self._shop, self._paths["payments"], self._ports["payments"])
            await self._payments.port()
            display.say("the payment service is back")

    def _check_that_all_live(self) -> None:
        for child in (self._agent, self._model, self._payments, self._server):
            if not child.alive and not (child is self._payments and self._revive_at is not None):
                raise DemoFailed(child.obituary())

    async def _look(self, hf: holdfast.Holdfast, display: Display) -> None:
        """Look how the turns stand, and do what an operator has to do."""
        found = await executions(hf)
        self._completed = sum(execution.status == "completed" for execution in found)
        for execution in found:
            match execution.status:
                case "needs_decision" if self._revive_at is None:
                    await self._decide(hf, execution, display)
                case "failed" | "aborted" | "canceled":
                    await self._tell_why(hf, execution)
                case _:
                    pass

    async def _tell_why(self, hf: holdfast.Holdfast, execution: holdfast.Execution) -> NoReturn:
        try:
            await hf.handle(execution.id).result()
        except holdfast.HoldfastError as error:
            raise DemoFailed(f"{execution.id}: {error}") from error
        raise DemoFailed(f"{execution.id} is {execution.status}")

    async def _decide(self, hf: holdfast.Holdfast, execution: holdfast.Execution, display: Display) -> None:
        """Find out from the payment service what became of a payment, and tell Holdfast by the command line."""
        names = {entry.position: entry.name for entry in await hf.history(execution.id)}
        for position in execution.open_decisions:
            if names.get(position) not in ("charge", "charge_large"):
                raise DemoFailed(f"{execution.id} waits for a decision on {names.get(position)} at {position}")
            try:
                status, payment = await call(self._ports["payments"], "GET", f"/v1/payments/{execution.id}")
            except (Refused, AnswerLost):
                return  # asked again at the next look
            happened = status == 200
            verdict = ("--happened", json.dumps(payment)) if happened else ("--not-happened",)
            command = ("executions", "decide", execution.id, position, *verdict, "--by", "demo-operator")
            code, said = await run_cli(command, environment(self._ledger))
            if code != 0:
                raise DemoFailed(f"`holdfast {' '.join(command)}` ended with exit code {code}; it said:\n{said}")
            outcome = "it happened" if happened else "it did not happen"
            display.say(f"{execution.id} asked for a decision on {names[position]}; the operator found: {outcome}")

    async def _stuck(self, hf: holdfast.Holdfast) -> str:
        """Name the turns that have not ended."""
        open_ones = [execution for execution in await executions(hf) if execution.finished_at is None]
        rest = [f"{execution.id} is {execution.status} {execution.waiting_on or ''}".strip() for execution in open_ones]
        return ", ".join(rest) or "every turn has ended"
