"""`holdfast receipts`: record receipts by hand, look at them, prove them, and carry them elsewhere.

Invariants:
    - A receipt is printed as the document that it is; annotations are printed beside it, never in it.
    - What only reads makes no ledger, and changes nothing in one but this: hook calls that were only kept get their
      receipts first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

import typer

from holdfast.cli.ledger import ConfigOption, DbOption, JsonOption, Place, drive, place_of, placed

if TYPE_CHECKING:
    from holdfast.lifecycle.deliveries import Unfinished
    from holdfast.lifecycle.documents import LifecycleReceipt
    from holdfast.lifecycle.errors import ChainBroken
    from holdfast.lifecycle.ledger import Gap, Pending, Pruned, ReplayCounts, Stored, Verified
    from holdfast.store.database import Database, Tx

__all__ = ["commands"]

T = TypeVar("T")

LIMIT_MAX = 500
"""Receipts of one list: a screenful many times over."""

commands = typer.Typer(help="Record, show, prove and export receipts.", invoke_without_command=True)

RunOption = Annotated[str | None, typer.Option("--run", metavar="RUN", help="Only of this run.", show_default=False)]


@commands.callback()
def group(context: typer.Context, db: DbOption = None, config: ConfigOption = None) -> None:
    place_of(context, db, config)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(2)


def _look(place: Place, read: Callable[[Tx], Awaitable[T]]) -> T:
    """Read from the ledger; all readers of receipts come through here."""
    behind = _is_spooled(place)
    if behind:
        drive(_catch_up(place))

    async def look(hf: Any) -> T | None:
        nonlocal behind
        from holdfast.lifecycle import deliveries

        async with hf.database.read() as tx:
            behind = not behind and await deliveries.waiting(tx, now=hf.database.clock.now())
            return None if behind else await read(tx)

    found = drive(place.look(look))
    if behind:
        drive(_catch_up(place))
        found = drive(place.look(look))
    return cast(T, found)


def _spools(place: Place) -> tuple[str, ...]:
    """Return the files where hook calls wait that this ledger could not take; none if it is not theirs, but a copy."""
    from holdfast.lifecycle import plan

    if not plan.serves(plan.state_directory(os.environ), place.db, os.environ):
        return ()
    return plan.spools(str(place.state_dir()), os.environ)


def _is_spooled(place: Place) -> bool:
    """Say whether hook calls wait in a file because the ledger could not take them."""
    from holdfast.store import drop

    try:
        return any(drop.waiting(path, 1) for path in _spools(place))
    except drop.Refused:  # whoever moves them says so
        return True


async def _catch_up(place: Place) -> None:
    """Derive the receipts of hook calls that were only kept. What cannot be derived now stays as it is."""
    from holdfast.cli.documents import opened
    from holdfast.cli.render import warn
    from holdfast.core.errors import StoreError
    from holdfast.lifecycle.hooks import Hooks

    config, spools = place.lifecycle(), _spools(place)
    try:
        async with (
            opened(place) as database,
            Hooks(database, config=config, clock=database.clock, spools=spools) as hooks,
        ):
            while await hooks.derive(call_clients=False) > 0:
                pass
    except StoreError as error:
        warn(f"hook calls that wait have no receipts yet: {error.message}", "note")


# --- recording ----------------------------------------------------------------------------------------


@commands.command()
@placed
def emit(
    place: Place,
    *,
    mode: Annotated[
        Literal["strict", "semantic"],
        typer.Option("--mode", help="Whether a duplicate must be equal in every field, or may be another try."),
    ] = "strict",
) -> None:
    """Read {request, response, context, payloads?} from standard input, and print the recorded receipt."""
    from holdfast.cli.documents import print_document, read_input, router_of

    request, response, context, payloads = _told(read_input())

    async def work() -> LifecycleReceipt:
        async with router_of(place, mode=mode) as (router, _):
            return await router.emit(request, response, context, payloads=payloads)

    print_document(drive(work()))


def _told(data: bytes) -> tuple[Any, Any, Any, tuple[Any, ...]]:
    """Read what `emit` is told.

    Raises:
        ValidationError: It is something else.
    """
    from holdfast.lifecycle import wire
    from holdfast.lifecycle.documents import CallbackRequest, CallbackResponse, PayloadEnvelope, ReceiptContext
    from holdfast.lifecycle.errors import InvalidRequest, UndecodableDocument

    given = wire.parse(data)
    if not isinstance(given, dict):
        raise UndecodableDocument("the input is JSON, but no object")
    for name in ("request", "response", "context"):
        if name not in given:
            raise InvalidRequest(f"missing field `{name}`")
    payloads = given.get("payloads") or []
    if not isinstance(payloads, list):
        raise InvalidRequest("`payloads` is no array")
    for name, part in [(name, given[name]) for name in ("request", "response", "context")] + [
        (f"payloads[{index}]", part) for index, part in enumerate(payloads)
    ]:
        if not isinstance(part, dict) and not (name == "response" and part is None):
            raise InvalidRequest(f"`{name}` is no object")
    response = given["response"]
    return (
        wire.decode_value(given["request"], CallbackRequest),
        None if response is None else wire.decode_value(response, CallbackResponse),
        wire.decode_value(given["context"], ReceiptContext),
        tuple(wire.decode_value(each, PayloadEnvelope) for each in payloads),
    )


# --- looking ------------------------------------------------------------------------------------------


@commands.command()
@placed
def show(
    place: Place,
    name: Annotated[
        str, typer.Argument(metavar="ID", help="The receipt's id; - reads one from standard input.", show_default=False)
    ],
    *,
    annotations: Annotated[
        bool, typer.Option("--annotations", help="Print what the ledger knows beyond the receipt, too.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="An id of several receipts is no failure.")] = False,
) -> None:
    """Print a receipt; where several have the id, the newest first."""
    import msgspec

    from holdfast.cli.documents import print_pretty, read_input
    from holdfast.cli.render import complain
    from holdfast.lifecycle import ledger, wire
    from holdfast.lifecycle.documents import LifecycleReceipt

    if name == "-":
        if annotations:
            raise typer.BadParameter("annotations are in the ledger: give the receipt's id")
        print_pretty(wire.decode(read_input(), LifecycleReceipt))
        return
    found = _look(place, lambda tx: ledger.show(tx, name))
    for stored in found:
        if annotations:
            print_pretty({"receipt": stored.receipt, "annotations": msgspec.json.decode(stored.notes)})
        else:
            print_pretty(stored.receipt)
    if not found:
        complain(f"no receipt has the id {name}", "holdfast receipts list")
        raise typer.Exit(1)
    if len(found) > 1 and not every:
        complain(f"{len(found)} receipts have this id", "with --all that is no failure")
        raise typer.Exit(1)


@commands.command("list")
@placed
def list_receipts(  # noqa: PLR0913 - a command's options are its parameters
    place: Place,
    *,
    run: RunOption = None,
    session: Annotated[
        str | None, typer.Option("--session", help="Only of this session of a harness.", show_default=False)
    ] = None,
    client: Annotated[str | None, typer.Option("--client", help="Only for this client.", show_default=False)] = None,
    event: Annotated[str | None, typer.Option("--event", help="Only of this event.", show_default=False)] = None,
    status: Annotated[str | None, typer.Option("--status", help="Only with this status.", show_default=False)] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="T", help="Only newer ones: 90s, 15m, 12h, 7d or an instant.", show_default=False
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=LIMIT_MAX, help="How many.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List receipts, newest first."""
    from holdfast.cli.documents import instant_of
    from holdfast.core.clock import SystemClock
    from holdfast.lifecycle import ledger
    from holdfast.lifecycle.enums import EVENTS, RECEIPT_STATUSES

    for option, given, known in (("--event", event, EVENTS), ("--status", status, RECEIPT_STATUSES)):
        if given is not None and given not in known:
            raise typer.BadParameter(f"{option} is one of {', '.join(known)}")
    oldest = instant_of(since, SystemClock().now())

    async def read(tx: Tx) -> list[Stored]:
        return await ledger.list_receipts(
            tx,
            run_id=run,
            session_id=session,
            client_id=client,
            event=event,
            status=status,
            since=oldest,
            limit=limit,
        )

    _show_list(_look(place, read), as_json=as_json)


_COLOURS = {"delivered": "green", "observed": "cyan", "skipped": "dim", "degraded": "yellow", "failed": "red"}


def _show_list(found: list[Stored], *, as_json: bool) -> None:
    import msgspec

    from holdfast.cli.render import Column, instant, line, print_json, table
    from holdfast.core.clock import to_datetime

    if as_json:
        print_json([msgspec.to_builtins(stored.receipt) for stored in found])
        return
    if not found:
        line("no receipts", "dim")
        return
    rows: list[tuple[Any, ...]] = []
    for stored in found:
        receipt = stored.receipt
        said = receipt.status + (f" ({receipt.failure_class})" if receipt.failure_class else "")
        rows.append(
            (receipt.receipt_id, receipt.event, (said, _COLOURS[receipt.status]), receipt.client_id, receipt.adapter_id,
             receipt.harness_run_id or "", str(receipt.sequence or ""), instant(to_datetime(stored.recorded_at)))
        )  # fmt: skip
    names = ("receipt", "event", "status", "client", "adapter", "run", "number", "recorded")
    minor = {"receipt", "adapter", "run"}
    table([Column(each, keep=each == "receipt", right=each == "number", minor=each in minor) for each in names], rows)


@commands.command()
@placed
def pending(
    place: Place,
    *,
    close: Annotated[bool, typer.Option("--close", help="Close those whose caller is dead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List events whose clients are being called, or were when their caller died; and hook calls without receipts."""
    from holdfast.cli.documents import router_of
    from holdfast.cli.render import warn
    from holdfast.lifecycle import deliveries, ledger

    async def closed() -> list[LifecycleReceipt]:
        found: list[LifecycleReceipt] = []
        async with router_of(place, mode="strict", told=found.append):
            return found

    async def read(tx: Tx) -> tuple[list[Pending], list[Unfinished]]:
        return await ledger.pending(tx), await deliveries.unfinished(tx)

    if close:
        _look(place, ledger.pending)  # a ledger that is missing is not made
        for receipt in drive(closed()):
            warn(f"receipt {receipt.receipt_id} of {receipt.event} says that its outcome is unknown", "closed")
    _show_pending(*_look(place, read), as_json=as_json)


def _show_pending(found: list[Pending], waiting: list[Unfinished], *, as_json: bool) -> None:
    from holdfast.cli.render import Column, instant, line, print_json, table
    from holdfast.core.clock import to_datetime

    if as_json:
        print_json([*map(_pending_json, found), *map(_waiting_json, waiting)])
        return
    if not found and not waiting:
        line("nothing is pending", "dim")
    if found:
        names = ("intent", "event", "client", "adapter", "receipt", "attempt", "claimed", "lease until")
        rows = [
            (each.intent, each.event, each.client_id, each.adapter_id, each.receipt_id, str(each.attempts),
             instant(to_datetime(each.created_at)), instant(to_datetime(each.lease_until)))
            for each in found
        ]  # fmt: skip
        table([Column(name, keep=name == "intent") for name in names], rows)
    if waiting:
        calls = [
            (each.delivery, each.harness, each.hook, each.session_id or "", instant(to_datetime(each.received_at)))
            for each in waiting
        ]
        table(
            [
                Column(name, keep=name == "hook call")
                for name in ("hook call", "harness", "hook", "session", "received")
            ],
            calls,
        )


def _pending_json(each: Pending) -> dict[str, Any]:
    from holdfast.core.clock import to_datetime

    return {
        "intent": each.intent,
        "client_id": each.client_id,
        "adapter_id": each.adapter_id,
        "receipt_id": each.receipt_id,
        "event": each.event,
        "owner": each.owner,
        "fence": each.fence,
        "attempts": each.attempts,
        "lease_until": to_datetime(each.lease_until),
        "created_at": to_datetime(each.created_at),
    }


def _waiting_json(each: Unfinished) -> dict[str, Any]:
    from holdfast.core.clock import to_datetime

    return {
        "delivery": each.delivery,
        "harness": each.harness,
        "hook": each.hook,
        "session_id": each.session_id,
        "received_at": to_datetime(each.received_at),
        "lease_until": to_datetime(each.lease_until) if each.lease_until else None,
    }


# --- proving ------------------------------------------------------------------------------------------


@commands.command()
@placed
def verify(
    place: Place,
    *,
    anchor: Annotated[
        Path | None,
        typer.Option("--anchor", metavar="FILE", help="Compare with an export, or its last line.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Check an export, not the ledger.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check that no receipt was changed or taken away."""
    from holdfast.cli.documents import read_file
    from holdfast.lifecycle import ledger
    from holdfast.lifecycle.audit import read_heads

    key = place.lifecycle().chain_key()
    if file is not None:
        if anchor is not None:
            raise typer.BadParameter("give --anchor or --file")
        lines = read_file(file).splitlines(keepends=True)
        _show_verified(ledger.verify_file(lines, chain_key=key), as_json=as_json)
        return
    heads = None if anchor is None else read_heads(read_file(anchor))
    _show_verified(_look(place, lambda tx: ledger.verify(tx, chain_key=key, anchor=heads)), as_json=as_json)


def _show_verified(found: Verified | ChainBroken, *, as_json: bool) -> None:
    from holdfast.cli.render import counted, line, print_json
    from holdfast.lifecycle.errors import ChainBroken

    broken = found if isinstance(found, ChainBroken) else None
    if as_json:
        print_json(
            {"ok": True, "chains_count": found.chains_count, "receipts_count": found.receipts_count}
            if not isinstance(found, ChainBroken)
            else {"ok": False, "chain": found.chain, "index": found.index, "receipt_id": found.receipt_id,
                  "why": found.why}
        )  # fmt: skip
    elif not isinstance(found, ChainBroken):
        what = f"{counted(found.receipts_count, 'receipt')} in {counted(found.chains_count, 'chain')}"
        line(f"{what} checked, nothing was changed", "green")
    if broken is not None:
        raise broken


@commands.command()
@placed
def gaps(
    place: Place,
    *,
    run: RunOption = None,
    emit: Annotated[bool, typer.Option("--emit", help="Record a receipt for each that has none.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List numbers of runs that no receipt has."""
    from holdfast.cli.render import Column, line, print_json, table
    from holdfast.lifecycle import ledger

    found: list[Gap] = _look(place, lambda tx: ledger.gaps(tx, run))
    if emit and found:
        key = place.lifecycle().chain_key()

        async def work(database: Database) -> None:
            async with database.write() as tx:
                await ledger.raise_gaps(tx, run, now=database.clock.now(), chain_key=key)

        _change(place, work)
    if as_json:
        print_json(found)
    elif found:
        rows = [(gap.run_id, str(gap.first), str(gap.last)) for gap in found]
        table([Column("run", keep=True), Column("first", right=True), Column("last", right=True)], rows)
    else:
        line("no number is missing", "green")
    if found:
        raise typer.Exit(1)


def _change(place: Place, work: Callable[[Database], Awaitable[T]]) -> T:
    from holdfast.cli.documents import opened

    async def changed() -> T:
        async with opened(place) as database:
            return await work(database)

    return drive(changed())


# --- carrying elsewhere -------------------------------------------------------------------------------


@commands.command()
@placed
def export(place: Place, *, run: RunOption = None) -> None:
    """Print all receipts, or those of a run, as lines that `replay` and `verify --file` read."""
    import tempfile

    from holdfast.lifecycle import ledger

    # A ledger that changes while it is read is read again: nothing is printed before all of it was read.
    with tempfile.TemporaryFile() as file:

        async def read(tx: Tx) -> None:
            file.seek(0)
            file.truncate()
            async for text in ledger.export(tx, run):
                file.write(text)

        _look(place, read)
        file.seek(0)
        for text in file:
            sys.stdout.write(text.decode())


@commands.command()
@placed
def replay(
    place: Place,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An export; - reads standard input.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Put the receipts of an export into the ledger."""
    from holdfast.cli.documents import read_file
    from holdfast.cli.render import complain, line, print_json
    from holdfast.lifecycle import ledger

    lines = read_file(file).splitlines(keepends=True)
    key = place.lifecycle().chain_key()

    async def work(database: Database) -> ReplayCounts:
        async with database.write() as tx:
            return await ledger.replay(tx, lines, now=database.clock.now(), chain_key=key)

    found = _change(place, work)
    counts = {
        "inserted": found.inserted,
        "replayed": found.replayed,
        "conflict": len(found.conflicts),
        "gaps": len(found.gaps),
    }
    if as_json:
        print_json(counts)
    else:
        line(", ".join(f"{count} {name}" for name, count in counts.items()), "red" if found.conflicts else "green")
    for conflict in found.conflicts:
        complain(conflict.error().message)
    if found.conflicts:
        raise typer.Exit(1)


@commands.command()
@placed
def prune(
    place: Place,
    *,
    keep: Annotated[
        str, typer.Option("--keep", metavar="D", help="Drop runs idle for longer: 12h, 30d.", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Drop the receipts of runs that have been idle for long; their keys are forgotten."""
    from holdfast.cli.documents import span_of
    from holdfast.cli.render import counted, line, print_json, warn
    from holdfast.core.clock import micros
    from holdfast.lifecycle import ledger

    span = span_of(keep)
    if span is None:
        raise typer.BadParameter("--keep is a span like 12h or 30d")

    async def work(database: Database) -> tuple[int, int]:
        chains = receipts = 0
        limit = 100
        before = database.clock.now() - micros(span)
        while True:
            async with database.write() as tx:
                found: Pruned = await ledger.prune(tx, before=before, now=database.clock.now(), limit=limit)
            chains += found.chains_count
            receipts += found.receipts_count
            if found.chains_count < limit:
                return chains, receipts

    _look(place, ledger.pending)  # a ledger that is missing is not made
    chains, receipts = _change(place, work)
    if as_json:
        print_json({"chains_count": chains, "receipts_count": receipts})
    else:
        line(f"dropped {counted(receipts, 'receipt')} of {counted(chains, 'chain')}")
    if receipts:
        warn("their keys are forgotten: a duplicate of one of these events would be recorded anew", "note")
