"""Open a ledger and run executions on it.

`Holdfast` is the handle users hold. It owns what lives as long as the ledger is open in this process:
the flights under way, their threads, the loops that notice requests and dead owners. Every verb is one
conductor; what operators do is in `operate`, what is shown in `views`, what is checked in `verify`.

Invariants:
    - One id is flown at most once in this process.
    - Nothing runs after `close` has returned, and everything accepted before it is on disk.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from holdfast.core import points, trace
from holdfast.core.clock import Clock, SystemClock
from holdfast.core.config import config_path
from holdfast.core.errors import Closed, ConfigError
from holdfast.core.loops import Loop, Tasks, spawn_held
from holdfast.core.page import Page
from holdfast.execution import block, journal, operate, verify, views
from holdfast.execution.config import DurableConfig
from holdfast.execution.context import Run, Suspend
from holdfast.execution.declare import Call, Durable, registered, require_kind
from holdfast.execution.effects import StepDescriptor, Verdict
from holdfast.execution.ends import conflict
from holdfast.execution.errors import DurabilityDisabled, NestedEffect, UnknownExecution
from holdfast.execution.flight import Flight
from holdfast.execution.flow import Context
from holdfast.execution.handle import Handle
from holdfast.execution.metrics import METRICS
from holdfast.execution.operate import (
    CancelOutcome,
    RecoverReport,
)
from holdfast.execution.plain import run_plain
from holdfast.execution.request import (
    OnBusy,
    OnDivergence,
    Options,
    Request,
    block_request,
    call_of,
    check_option,
    deadline_of,
    request_of,
)
from holdfast.execution.scope import _scope
from holdfast.execution.threads import Threads
from holdfast.execution.verify import VerifyReport
from holdfast.execution.views import AuditRecord, Difference, Entry, Event, Execution
from holdfast.store import StoreSettings, open_database
from holdfast.store.database import Database
from holdfast.store.home import Home

R = TypeVar("R")
Listed = list
"""`list`, which inside `Holdfast` is a verb."""


def open(
    target: str | Path | None,
    *,
    durable: DurableConfig | None = None,
    clock: Clock | None = None,
    namespace: bytes | None = None,
    recover: bool = False,
) -> Holdfast:
    """Describe a ledger to open: `async with holdfast.open("agent.db") as hf:`.

    Args:
        target: A path, `":memory:"`, or a `postgresql://` URL. None: the configured ledger.
        durable: Settings; default: the configuration file and the environment.
        clock: Replaces the machine's clock.
        namespace: 16 bytes for a new ledger, from which uids of chosen ids derive; default random.
        recover: Take over executions of dead owners, now and every `recover_every_ms`.

    Raises:
        ConfigError: A setting, or the namespace, is not valid.
    """
    return Holdfast(target, durable=durable, clock=clock, namespace=namespace, recover=recover)


@asynccontextmanager
async def open_reader(
    target: str | Path, *, durable: DurableConfig | None = None, clock: Clock | None = None
) -> AsyncIterator[Holdfast]:
    """Open a ledger for reading only: nothing is written, locked or created.

    Raises:
        StoreError: There is no ledger (`store.missing`), or it cannot be read.
    """
    reader = Holdfast(target, durable=durable, clock=clock)
    reader.read_only = True
    async with reader:
        yield reader


class Holdfast:
    """An open ledger and the executions this process runs on it. Made by `open`.

    Attributes:
        database: The open `Database`, for a guard, a router or an archive on the same ledger.
        config: The settings in force.
    """

    database: Database
    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        target: str | Path | None,
        *,
        durable: DurableConfig | None = None,
        clock: Clock | None = None,
        namespace: bytes | None = None,
        recover: bool = False,
    ) -> None:
        if namespace is not None and (not isinstance(namespace, bytes) or len(namespace) != 16):
            raise ConfigError("namespace must be 16 bytes", "leave it out to have one made")
        self.config = durable if durable is not None else DurableConfig.load(config_path(None, os.environ))
        self.target = target if target is not None else operate.configured_ledger()
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.metrics = METRICS
        self.honour = partial(operate.honour, self)
        self.tasks, self.audits = Tasks(), Tasks()
        self.read_only = False
        self.flights: dict[str, Flight] = {}
        self.blocks: set[Context] = set()
        self.flying: set[int] = set()
        self.threads = Threads(self)
        self.crashed = False
        self.closing = False
        self._namespace = namespace
        self._recover = recover
        self._opened = False
        self._home: Home | None = None
        self.numbers: Listed[int] = []
        self._numbering = asyncio.Lock()
        self.owner_id: str | None = None
        self._loops: Listed[Loop] = []

    # --- opening and closing ---

    async def open(self) -> Self:
        """Open the ledger, creating and migrating it if need be.

        Raises:
            ConfigError: The target or a setting cannot work.
            StoreError: The database cannot be opened.
        """
        if self._opened:
            return self
        self.loop = asyncio.get_running_loop()
        self._home = Home("this Holdfast")
        trace.configure()
        self.closing = False
        if self.config.enabled:
            config = self.config
            settings = StoreSettings(
                batch_items_max=config.batch_items_max,
                batch_bytes_max=config.batch_bytes_max,
                queue_items_max=config.queue_items_max,
                queue_bytes_max=config.queue_bytes_max,
                ack_timeout_ms=config.ack_timeout_ms,
                lease_ms=config.lease_ms,
                renew_ms=config.renew_ms,
                owner_dir=config.owner_dir,
                allow_unsafe_storage=config.allow_unsafe_storage,
            )
            self.database = await open_database(
                self.target, clock=self.clock, settings=settings, namespace=self._namespace, read_only=self.read_only
            )
            self.clock = self.database.clock  # on PostgreSQL it knows the server's time
            self.flying = self.database.owner.holds
            points.on_crash(self._crash)
            points.verify()
        self._opened = True
        if self._recover and self.config.enabled and not self.read_only:
            self._loops.append(
                Loop("holdfast.recover", self._recover_round, self.config.recover_every_ms / 1000, self.clock)
            )
            self._loops[-1].start()
        return self

    async def close(self) -> None:
        """Let effects in flight end for at most `drain_ms`, give executions up, commit, and close. Idempotent."""
        if not self._opened or self.closing:
            return
        self.check_here()
        self.closing = True
        for loop in self._loops:
            await loop.stop()
        if self.config.enabled and not self.crashed:
            await self._rest_all()
        await self.tasks.stop()
        await self.audits.drain(self.clock, self.config.drain_ms / 1000)
        self.threads.close()
        if self.config.enabled and not self.crashed:
            await self.database.close()
        self._opened = False

    async def _rest_all(self) -> None:
        flights = Listed(self.flights.values())
        runs = [flight.run for flight in flights if flight.run is not None] + Listed(self.blocks)
        for run in runs:
            run.halt(Suspend("closing"))
        until = self.clock.monotonic() + self.config.drain_ms / 1000
        for run in runs:
            await run.drain(max(0.0, until - self.clock.monotonic()))
        tasks = [flight.task for flight in flights if flight.task is not None and not flight.task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=max(1.0, self.config.drain_ms / 1000))

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        await self.close()

    def _crash(self) -> None:
        """Drop everything in memory, as a crash would: the crash kit's action `raise`."""
        if self.crashed or not self._opened:
            return
        self.crashed = True
        died = points.Crashed("the process crashed")
        for loop in self._loops:
            self.tasks.spawn(loop.stop(), "holdfast.crash")
        for run in [flight.run for flight in self.flights.values() if flight.run is not None] + Listed(self.blocks):
            run.halted, run.over = died, True
        for flight in Listed(self.flights.values()):
            flight.deliver(None, died)
            if flight.task is not None:
                flight.task.cancel()
        self.flights.clear()

    def check_here(self) -> None:
        """Refuse calls from another process or loop, before any I/O."""
        home = self._home
        if home is not None:
            home.check_process()
        if home is None or not self._opened:
            raise Closed("this Holdfast is not open", "use `async with holdfast.open(…)`")
        home.check()

    def check_ready(self) -> None:
        """Refuse calls that need a ledger when there is none, or when it is closing."""
        self.check_here()
        if not self.config.enabled:
            raise DurabilityDisabled("durability is disabled: there is no ledger", "set enabled=true")
        if self.closing:
            raise Closed("this Holdfast is closing", "open it again")

    @property
    def forked(self) -> bool:
        """Whether this is a forked child's copy."""
        return self._home is not None and self._home.foreign

    # --- running ---

    @overload
    async def run(
        self, fn: Call[R], /, *, id: str | None = None, deadline: timedelta | None = None,
        on_divergence: OnDivergence = "restart", on_busy: OnBusy = "wait", reopen: bool = False,
    ) -> R: ...  # fmt: skip
    @overload
    async def run(
        self, fn: Durable[..., R], /, *args: Any, id: str | None = None,
        deadline: timedelta | None = None, on_divergence: OnDivergence = "restart", on_busy: OnBusy = "wait",
        reopen: bool = False, **kwargs: Any,
    ) -> R: ...  # fmt: skip
    async def run(
        self, fn: Any, /, *args: Any, id: str | None = None, deadline: timedelta | None = None,
        on_divergence: OnDivergence = "restart", on_busy: OnBusy = "wait", reopen: bool = False, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Run a durable function to its end, resume it, or return its recorded output.

        Args:
            fn: A durable function, or `fn.bind(…)`.
            id: 1 to 255 bytes of UTF-8 without control characters; default: a new UUIDv7.
            deadline: Longest life of a new execution, waiting included.
            on_divergence: `restart` opens a new generation when the program changed, `raise` aborts.
            on_busy: `wait` for the end when somebody else has it, or `raise` ExecutionBusy.
            reopen: Resume it first when it has failed or was aborted.

        Raises:
            ExecutionConflict: The id exists with another kind or input.
            ExecutionBusy: Somebody else has it, with `on_busy="raise"`.
            ExecutionFailed: The function raised; live, the original is the `__cause__`.
            ExecutionAborted, ExecutionCanceled: It was ended.
            NeedsDecision: An operator must decide about an effect.
            ReplayDivergence: The program changed, with `on_divergence="raise"`.
            JournalUnavailable: The journal does not answer.
        """
        call = call_of(fn, args, kwargs)
        if not self.config.enabled:
            self.check_here()
            return await run_plain(call)
        self.check_ready()
        request = self._request(call, Options(id, deadline, on_divergence, on_busy, reopen))
        flight = self._depart(request, kept=False) or await self._depart_later(request, kept=False)
        return await flight.result()

    @overload
    async def start(
        self, fn: Call[R], /, *, id: str | None = None, deadline: timedelta | None = None,
        on_divergence: OnDivergence = "restart", on_busy: OnBusy = "wait", reopen: bool = False,
    ) -> Handle[R]: ...  # fmt: skip
    @overload
    async def start(
        self, fn: Durable[..., R], /, *args: Any, id: str | None = None,
        deadline: timedelta | None = None, on_divergence: OnDivergence = "restart", on_busy: OnBusy = "wait",
        reopen: bool = False, **kwargs: Any,
    ) -> Handle[R]: ...  # fmt: skip
    async def start(
        self, fn: Any, /, *args: Any, id: str | None = None, deadline: timedelta | None = None,
        on_divergence: OnDivergence = "restart", on_busy: OnBusy = "wait", reopen: bool = False, **kwargs: Any,
    ) -> Handle[Any]:  # fmt: skip
        """Start, or resume, an execution in the background; as `run`, but return a handle once it is on disk."""
        call = call_of(fn, args, kwargs)
        self.check_ready()
        request = self._request(call, Options(id, deadline, on_divergence, on_busy, reopen))
        flight = self._depart(request, kept=True) or await self._depart_later(request, kept=True)
        await flight.departed()
        return Handle(self, flight.id, created=flight.created, fn=call.fn)

    def _request(self, call: Call[Any], asked: Options) -> Request:
        if _scope.get() is not None:
            raise NestedEffect(
                "run and start cannot be called in the body of an execution",
                "call the function directly, or start the other execution from outside",
            )
        return request_of(self.config, self.clock.now(), call, asked)

    def _depart(self, request: Request, *, kept: bool) -> Flight | None:
        """Launch a flight, or join the one under way; None when that one must end first."""
        flight = self.flights.get(request.id)
        if flight is None:
            return self._launch(request, kept=kept)
        theirs = flight.request
        if theirs.kind != request.kind:
            raise conflict(request.id, "kind", theirs.kind, request.kind)
        if theirs.input_hash not in (None, request.input_hash):
            raise conflict(request.id, "input", theirs.kind, request.kind)
        if flight.request.fn is not None and (theirs.on_busy == request.on_busy or flight.run is not None):
            flight.kept = flight.kept or kept
            return flight
        if flight.task is None:
            raise block.busy_here(request.id)
        return None

    async def _depart_later(self, request: Request, *, kept: bool) -> Flight:
        """Depart as soon as flights of the same id that cannot be joined have ended."""
        while (flight := self._depart(request, kept=kept)) is None:
            under_way = self.flights[request.id].task
            assert under_way is not None
            await asyncio.wait([under_way])
        return flight

    def _launch(self, request: Request, *, kept: bool) -> Flight:
        flight = Flight(self, request)
        flight.kept = kept
        self.flights[request.id] = flight
        flight.task = spawn_held(flight.fly(), request.id)
        return flight

    def landed(self, flight: Flight) -> None:
        """A flight has ended."""
        if self.flights.get(flight.id) is flight:
            del self.flights[flight.id]

    def execution(
        self, id: str, *, kind: str, input: Any = ..., deadline: timedelta | None = None,
        on_divergence: OnDivergence = "raise", reopen: bool = False,
    ) -> AbstractAsyncContextManager[Context]:  # fmt: skip
        """Make the block an execution: `async with hf.execution("turn-42", kind="agent_turn") as ctx:`.

        A normal end completes it with the value given to `ctx.set_output`; an `Exception` fails it and
        propagates; any other `BaseException` gives it back. A completed execution opens replay-only.

        Args:
            id: As for `run`.
            kind: As for `run`; no function needs to be registered.
            input: Compared with the recorded input when given.
            deadline: Longest life of a new execution.
            on_divergence: `raise` aborts; `restart` opens a new generation for the next opener.
            reopen: Resume it first when it has failed or was aborted.

        Raises:
            ExecutionBusy: Somebody else has it.
            ExecutionConflict, ExecutionFailed, ExecutionAborted, ExecutionCanceled, NeedsDecision: As `run`.
        """
        if not self.config.enabled:
            self.check_here()
            return block.plain_block(id, kind)
        self.check_ready()
        if _scope.get() is not None:
            raise NestedEffect("an execution cannot be opened in the body of another", "open it outside")
        now = self.clock.now()
        request = block_request(id, kind, input, deadline_of(now, deadline))
        check_option("on_divergence", on_divergence, ("restart", "raise"))
        request = replace(request, on_divergence=on_divergence, reopen=reopen)
        return block.open_block(self, request)

    def handle(self, id: str) -> Handle[Any]:
        """Return a handle of an execution, whether it exists or not."""
        return Handle(self, id, created=False)

    async def watch(self, id: str, fn: Durable[..., Any] | None) -> Any:
        """Wait for the end of an execution wherever it runs, without running it here."""
        self.check_ready()
        flight = self.flights.get(id)
        if flight is not None and flight.request.fn is not None:
            return await flight.result()
        return await operate.watch(self, id, fn)

    # --- what flights need ---

    async def be_owner(self) -> str:
        """Become an owner of the ledger, and start looking for requests."""
        owner = await self.database.owner.ensure()
        if self.owner_id is None:
            self.owner_id = owner
            heed = partial(operate.heed_requests, self)
            self._loops.append(Loop("holdfast.requests", heed, self.config.poll_ms / 1000, self.clock))
            self._loops[-1].start()
        return owner

    async def renewed(self, run: Run) -> None:
        """Return when this owner's lease is fresh again: before that no effect begins."""
        while not self.database.owner.fresh():
            await self.database.owner.ensure()
            if self.database.owner.fresh():
                return
            try:
                await self.database.owner.renew()
            except Exception as error:
                unavailable = run.unavailable()
                run.halt(unavailable)
                raise unavailable from error

    async def number(self) -> int:
        """Take a number for a new execution."""
        if not self.numbers:
            async with self._numbering:
                if not self.numbers:
                    async with self.database.write() as tx:
                        first = await journal.reserve(tx)
                    self.numbers = Listed(range(first + 255, first - 1, -1))
        return self.numbers.pop()

    def unknown(self, id: str) -> UnknownExecution:
        """Say that there is no such execution."""
        return UnknownExecution(f"there is no execution {id!r} in {self.database.label}", "check the id and the ledger")

    async def cancel_effects(self, run: Run) -> None:
        """End effects that did not end by themselves: guarded ones stay an open intent."""
        for handle in Listed(run.inflight):
            if handle.task is not None and handle.task is not asyncio.current_task():
                handle.task.cancel()
        await run.drain(1.0)

    def late_result(self, run: Run, position: str, spec: StepDescriptor, key: bytes) -> None:
        """Leave a trace of an outcome that came too late, without its payload."""
        self.metrics.late_results.add(1)
        if not self.crashed:
            self.audits.spawn(operate.audit_late(self, run, position, spec, key), "holdfast.late_result")

    # --- looking ---

    async def get(self, id: str) -> Execution | None:
        """Return what is known of an execution, or None."""
        self.check_ready()
        return await views.get(self, id)

    async def list(
        self, *, status: str | None = None, kind: str | None = None, queue: str | None = None, orphaned: bool = False,
        limit: int = 50, cursor: str | None = None,
    ) -> Page[Execution]:  # fmt: skip
        """List executions, newest first.

        Args:
            status: Only these.
            kind: Only these.
            queue: Only these.
            orphaned: Only those that nobody here could take over: unknown kind or refused version.
            limit: 1 to 500.
            cursor: `Page.next` of the page before.
        """
        self.check_ready()
        return await views.list_executions(
            self, status=status, kind=kind, queue=queue, orphaned=orphaned, limit=limit, cursor=cursor
        )

    async def history(self, id: str, *, generation: int | None = None, reveal: bool = False) -> Listed[Entry]:
        """Return the journal of an execution, of all generations or one; values only with `reveal`, audited.

        Raises:
            UnknownExecution: There is none.
        """
        self.check_ready()
        return await views.history(self, id, generation=generation, reveal=reveal)

    async def timeline(self, id: str) -> Listed[Event]:
        """Return entries, changes of status and audit of all generations in the order they were written."""
        self.check_ready()
        return await views.timeline(self, id)

    async def diff(self, id: str, left: int, right: int) -> Listed[Difference]:
        """Compare two generations by position."""
        self.check_ready()
        return await views.diff(self, id, left, right)

    async def audit(self, id: str | None = None) -> Listed[AuditRecord]:
        """Return audit records, of one execution or all, oldest first."""
        self.check_ready()
        return await views.audit(self, id)

    async def verify(self, id: str | None = None) -> VerifyReport:
        """Check every invariant of the journal, of one execution or all; problems name the first broken row."""
        self.check_ready()
        return await verify.verify(self, id)

    # --- operating ---

    async def resume(self, id: str, *, deadline: timedelta | None = None) -> Handle[Any]:
        """Make a paused, failed or aborted execution claimable again.

        Raises:
            UnknownExecution: There is none.
            ExecutionFinished: It is completed, canceled, or aborted for `integrity`.
        """
        self.check_ready()
        await operate.resume(self, id, deadline_of(self.clock.now(), deadline))
        return Handle(self, id, created=False)

    async def decide(self, id: str, position: str, decision: Verdict, *, by: str, note: str = "") -> None:
        """Answer an open decision: `happened(value)`, `not_happened()` or `abort()`. The first answer stands.

        Args:
            id: The execution.
            position: As `NeedsDecision.positions` and `Execution.open_decisions` name it.
            decision: The answer.
            by: Who says so; audited.
            note: At most 2000 characters; audited.

        Raises:
            NoDecisionOpen: There is none at this position.
            UnknownExecution, ConfigError, LimitError: The id, the answer or the note is not valid.
        """
        self.check_ready()
        with trace.span("holdfast.durable.decide", execution=id, position=position):
            await operate.decide(self, id, position, decision, by=by, note=note)

    async def cancel(self, id: str, *, reason: str = "", force: bool = False) -> CancelOutcome:
        """Cancel an execution: at once when nobody runs it, else by a request that its owner acknowledges.

        `force`, or a request older than `cancel_grace_ms`, takes it from a live owner. Idempotent.
        """
        self.check_ready()
        return await operate.cancel(self, id, reason=reason, force=force)

    async def pause(self, id: str) -> CancelOutcome:
        """Let an execution rest after its steps in flight, until `resume`."""
        self.check_ready()
        return await operate.pause(self, id)

    async def recover(self, *, kinds: Iterable[str] | None = None) -> RecoverReport:
        """Take over what dead owners left and start it in the background.

        Args:
            kinds: Only these; default all registered ones.
        """
        self.check_ready()
        with trace.span("holdfast.durable.recover"):
            return await operate.recover(self, frozenset(kinds) if kinds is not None else registered())

    async def _recover_round(self) -> None:
        await operate.tend(self, registered())

    def fly_recorded(self, id: str, kind: str) -> Flight | None:
        """Fly an execution from its record, unless it is under way here."""
        if id in self.flights:
            return None
        request = Request(id=id, kind=kind, fn=require_kind(kind), call=None, create=False, on_busy="raise")
        return self._launch(request, kept=True)
