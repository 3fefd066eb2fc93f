"""`holdfast executions`: look at executions, decide what is in doubt, stop them and set them going.

The commands that look open the ledger for reading and need no running process. Those that change it speak to
a live owner through the ledger, which it looks at within seconds.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.ledger import ConfigOption, DbOption, JsonOption, Place, drive, place_of, placed

if TYPE_CHECKING:
    from holdfast import Execution, Holdfast, Verdict

__all__ = ["commands"]

commands = typer.Typer(
    help="Look at executions, decide what is in doubt, stop them and set them going.",
    invoke_without_command=True,
)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the execution.", show_default=False)]
AppOption = Annotated[
    str | None,
    typer.Option(
        "--app",
        metavar="MODULE[:APP]",
        help="Module that registers the kinds, and what it opens: a holdfast.open(…) or a function giving one.",
        show_default=False,
    ),
]


@commands.callback()
def group(context: typer.Context, db: DbOption = None, config: ConfigOption = None) -> None:
    place_of(context, db, config)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(2)


# --- looking ------------------------------------------------------------------------------------------


@commands.command("list")
@placed
def list_executions(  # noqa: PLR0913 - a command's options are its parameters
    place: Place,
    *,
    status: Annotated[
        str | None, typer.Option("--status", help="Only those with this status.", show_default=False)
    ] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only those of this kind.", show_default=False)] = None,
    orphaned: Annotated[
        bool, typer.Option("--orphaned", help="Only those of unknown kind or refused version.")
    ] = False,
    app: Annotated[
        str | None,
        typer.Option(
            "--app", metavar="MODULE", help="Module whose kinds are known, for --orphaned.", show_default=False
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="How many, at most 500.")] = 50,
    cursor: Annotated[
        str | None, typer.Option("--cursor", help="Where the page before ended.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List executions, newest first."""
    from holdfast.cli import views
    from holdfast.cli.program import register
    from holdfast.cli.render import print_json

    if app is not None:
        register(app)

    wanted = views.known_status(status)
    page = drive(
        place.look(
            lambda hf: hf.list(status=wanted, kind=kind, orphaned=orphaned, limit=limit, cursor=cursor),
        )
    )
    if as_json:
        print_json({"items": page.items, "next": page.next})
    else:
        views.show_list(page)


@commands.command()
@placed
def show(
    place: Place,
    id: IdArgument,
    *,
    generation: Annotated[
        int | None, typer.Option("--generation", help="Only the journal of this one.", show_default=False)
    ] = None,
    reveal: Annotated[bool, typer.Option("--reveal", help="Show recorded values; this is audited.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show one execution and its journal, without the values in it."""
    from holdfast.cli import views
    from holdfast.cli.render import warn

    async def read(hf: Holdfast) -> tuple[Execution, list[Any]]:
        execution = await _require(hf, id)
        asked = _existing(execution, generation)
        if reveal:
            warn("recorded values follow; they may hold secrets, and that you saw them is audited")
        return execution, await hf.history(id, generation=asked, reveal=reveal)

    async def audited() -> tuple[Execution, list[Any]]:
        async with place.changing() as hf:  # an audit record is a write
            return await read(hf)

    execution, entries = drive(audited() if reveal else place.look(read))
    if as_json:
        views.print_execution(execution, entries, reveal=reveal)
    else:
        views.show_execution(execution, entries, reveal=reveal)


@commands.command()
@placed
def timeline(place: Place, id: IdArgument, *, as_json: JsonOption = False) -> None:
    """Show what happened to an execution, in order, with durations."""
    from holdfast.cli import views
    from holdfast.cli.render import print_json

    events = drive(place.look(lambda hf: hf.timeline(id)))
    if as_json:
        print_json(events)
    else:
        views.show_timeline(events)


@commands.command()
@placed
def diff(
    place: Place,
    id: IdArgument,
    *,
    left: Annotated[
        int | None,
        typer.Option("--from", metavar="G", help="A generation. Default: the one before.", show_default=False),
    ] = None,
    right: Annotated[
        int | None, typer.Option("--to", metavar="G", help="A generation. Default: the latest.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two generations of an execution, position by position."""
    from holdfast.cli import views
    from holdfast.cli.render import print_json

    async def read(hf: Holdfast) -> tuple[int, int, list[Any]]:
        execution = await _require(hf, id)
        end = _existing(execution, right) or execution.generation
        start = _existing(execution, left) or max(1, end - 1)
        return start, end, await hf.diff(id, start, end)

    start, end, differences = drive(place.look(read))
    if as_json:
        print_json(differences)
    else:
        views.show_differences(start, end, differences)


# --- deciding, stopping -------------------------------------------------------------------------------


@commands.command()
@placed
def decide(  # noqa: PLR0913 - a command's options are its parameters
    place: Place,
    id: IdArgument,
    position: Annotated[
        str,
        typer.Argument(metavar="POSITION", help="Where the open decision is, such as 3 or 0.2.", show_default=False),
    ],
    *,
    by: Annotated[str, typer.Option("--by", metavar="NAME", help="Who decides; this is audited.", show_default=False)],
    happened: Annotated[
        str | None,
        typer.Option("--happened", metavar="JSON", help="It happened and gave this value.", show_default=False),
    ] = None,
    not_happened: Annotated[bool, typer.Option("--not-happened", help="It did not happen: run it.")] = False,
    abort: Annotated[bool, typer.Option("--abort", help="End the execution.")] = False,
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="Why; this is kept.", show_default=False)] = "",
    as_json: JsonOption = False,
) -> None:
    """Say whether an effect in doubt happened."""
    from holdfast.cli.render import line, print_json

    verdict = _verdict(happened, not_happened=not_happened, abort=abort)
    _check_position(position)

    async def work() -> Execution:
        async with place.changing() as hf:
            await hf.decide(id, position, verdict, by=by, note=note)
            return await _require(hf, id)

    execution = drive(work())
    if as_json:
        print_json(
            {
                "id": id,
                "position": position,
                "decision": verdict.answer,
                "by": by,
                "note": note,
                "status": execution.status,
                "open_decisions": execution.open_decisions,
            }
        )
        return
    line(f"{id} {position}: {verdict.answer}, decided by {by}")
    if execution.open_decisions:
        line(f"still open: {', '.join(execution.open_decisions)}")
    else:
        line(f"{id} is {execution.status}")


def _verdict(happened: str | None, *, not_happened: bool, abort: bool) -> Verdict:
    import holdfast
    from holdfast.core.errors import CodecError, ConfigError
    from holdfast.execution.effects import happened_json

    if (happened is not None) + not_happened + abort != 1:
        raise ConfigError("one decision is needed", "give --happened JSON, --not-happened or --abort")
    if happened is not None:
        try:
            return happened_json(happened)
        except CodecError:
            # The reason stays out: it may quote the value.
            raise ConfigError(
                "the value of --happened is not JSON", """quote it for the shell: --happened '"ok"', or null for None"""
            ) from None
    return holdfast.not_happened() if not_happened else holdfast.abort()


def _check_position(position: str) -> None:
    from holdfast.core.errors import ConfigError

    if not (position.isascii() and all(part.isdigit() for part in position.split("."))):
        raise ConfigError(
            f"{position!r} is not a position", "positions look like 3 or 3.0.2; `holdfast executions show` lists them"
        )


@commands.command()
@placed
def cancel(
    place: Place,
    id: IdArgument,
    *,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why.", show_default=False)] = "",
    force: Annotated[bool, typer.Option("--force", help="Do not wait for a live owner to agree.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Cancel an execution, at once or when its live owner sees the request."""

    async def work() -> Any:
        async with place.changing() as hf:
            return await hf.cancel(id, reason=reason, force=force)

    _tell_outcome(id, drive(work()), "cancel", as_json=as_json)


@commands.command()
@placed
def pause(place: Place, id: IdArgument, *, as_json: JsonOption = False) -> None:
    """Pause an execution, at once or when its live owner sees the request."""

    async def work() -> Any:
        async with place.changing() as hf:
            return await hf.pause(id)

    _tell_outcome(id, drive(work()), "pause", as_json=as_json)


def _tell_outcome(id: str, outcome: Any, verb: str, *, as_json: bool) -> None:
    import holdfast
    from holdfast.cli.render import complain, line, print_json

    status = getattr(outcome, "status", None)
    match outcome:
        case holdfast.Canceled():
            name, text, code = "canceled", f"{id} is canceled", 0
        case holdfast.Paused():
            name, text, code = "paused", f"{id} is paused; `holdfast executions resume` sets it going", 0
        case holdfast.Requested():
            name, text, code = "requested", f"{id} has a live owner, which is asked to {verb} it", 0
        case holdfast.AlreadyTerminal():
            name, text, code = "already_terminal", f"{id} had ended: {status}", 0 if verb == "cancel" else 1
        case _:
            name, text, code = "not_found", f"no execution has the id {id!r}", 1
    if as_json:
        print_json({"id": id, "outcome": name} | ({"status": status} if status else {}))
    elif name == "not_found":
        complain(text, "`holdfast executions list` shows what there is")
    else:
        line(text)
    if code:
        raise typer.Exit(code)


# --- setting going ------------------------------------------------------------------------------------


@commands.command()
@placed
def resume(
    place: Place,
    id: IdArgument,
    *,
    app: AppOption = None,
    deadline_ms: Annotated[
        int | None, typer.Option("--deadline-ms", help="New deadline, from now.", min=1, show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Set a paused, failed or aborted execution going again.

    Without --app it becomes claimable; with --app it runs to its end here, and its output is printed.
    """
    from holdfast.cli.program import declared, opened
    from holdfast.cli.views import print_result

    deadline = None if deadline_ms is None else timedelta(milliseconds=deadline_ms)

    async def work() -> tuple[Execution, Any]:
        async with place.changing() if app is None else opened(app, place) as hf:
            await hf.resume(id, deadline=deadline)
            output = None
            if app is not None:
                flight = hf.fly_recorded(id, (await _require(hf, id)).kind)
                if flight is not None:
                    with declared(flight.request.fn):
                        output = await flight.result()
            return await _require(hf, id), output

    execution, output = drive(work())
    print_result(execution, output, ran=app is not None, as_json=as_json)


@commands.command()
@placed
def recover(
    place: Place,
    *,
    app: Annotated[
        str,
        typer.Option(
            "--app",
            metavar="MODULE[:APP]",
            help="Module that registers the kinds, and what it opens.",
            show_default=False,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Take over what dead owners left, and run it to its end here."""
    import contextlib

    from holdfast.cli import views
    from holdfast.cli.program import opened
    from holdfast.cli.render import plain, print_json

    async def work() -> tuple[Any, list[Execution]]:
        async with opened(app, place) as hf:
            report = await hf.recover()
            for each in report.resumed:
                # How it ends is read from the ledger; here only that it does. One that has landed is gone.
                if flight := hf.flights.get(each):
                    with contextlib.suppress(Exception):
                        await flight.result()
            return report, [await _require(hf, each) for each in report.resumed]

    report, ended = drive(work())
    if as_json:
        print_json(plain(report) | {"executions": ended})
    else:
        views.show_recovery(report, ended)
    if report.crash_loops or any(execution.status != "completed" for execution in ended):
        raise typer.Exit(1)


# --- shared -------------------------------------------------------------------------------------------


async def _require(hf: Holdfast, id: str) -> Execution:
    from holdfast import UnknownExecution

    execution = await hf.get(id)
    if execution is None:
        raise UnknownExecution(f"no execution has the id {id!r}", "`holdfast executions list` shows what there is")
    return execution


def _existing(execution: Execution, generation: int | None) -> int | None:
    """Return a generation that was asked for, if there is such a one."""
    from holdfast import UnknownExecution

    if generation is not None and not 1 <= generation <= execution.generation:
        count = f"{execution.generation} generation{'s' if execution.generation != 1 else ''}"
        raise UnknownExecution(f"execution {execution.id!r} has {count}; there is no {generation}")
    return generation
