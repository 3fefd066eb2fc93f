"""The tree of commands: what `holdfast` can do, and where each noun's commands are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli import (
    access,
    bench,
    conformance,
    continuation,
    crypto,
    db,
    events,
    executions,
    hook_group,
    keys,
    manifest,
    receipts,
    repairs,
    run,
    serve,
    sessions,
    telemetry,
    verify,
)
from holdfast.cli.ledger import ConfigOption, DbOption, JsonOption, place_of

__all__ = ["app"]

app = typer.Typer(
    name="holdfast",
    help="Durable execution with exactly-once effects.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:  # noqa: FBT001 - typer calls it so
    if asked:
        import holdfast

        typer.echo(f"holdfast {holdfast.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def program(
    context: typer.Context,
    db: DbOption = None,
    config: ConfigOption = None,
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    place_of(context, db, config)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(2)


@app.command("demo")
def demo(
    *,
    seed: Annotated[int, typer.Option("--seed", help="Decides orders and moments of the kills.")] = 1,
    turns: Annotated[int, typer.Option("--turns", help="Orders to fulfil.")] = 30,
    kills: Annotated[int, typer.Option("--kills", help="Processes to kill.")] = 24,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="FOLDER", help="Leave ledger, books and logs there.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Watch processes being killed finish their work with every effect once."""
    from holdfast.cli.demo import run_demo

    raise typer.Exit(run_demo(json=as_json, seed=seed, turns=turns, kills=kills, keep=keep))


for name, command in repairs.COMMANDS.items():
    sessions.commands.command(name)(command)
app.command("replay")(repairs.replay)
app.command("run")(run.run)
app.command("serve")(serve.serve)
app.add_typer(access.commands, name="access")
app.add_typer(executions.commands, name="executions")
app.add_typer(keys.commands, name="keys")
app.command("verify")(verify.verify)
app.add_typer(db.commands, name="db")
app.add_typer(crypto.commands, name="crypto")
app.add_typer(bench.commands, name="bench")
app.add_typer(conformance.commands, name="conformance")
app.add_typer(manifest.commands, name="manifest")
app.add_typer(sessions.commands, name="sessions")
app.add_typer(events.commands, name="events")
app.add_typer(receipts.commands, name="receipts")
app.add_typer(telemetry.commands, name="telemetry")
app.add_typer(continuation.commands, name="continuation")
app.add_typer(hook_group.commands, name="hook")
