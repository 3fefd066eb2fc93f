"""`holdfast bench`: measure on this machine what Holdfast promises about its cost."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.cli.ledger import JsonOption, drive

__all__ = ["commands"]

commands = typer.Typer(help="Measure on this machine what Holdfast promises about its cost.", no_args_is_help=True)


@commands.callback()
def group() -> None:
    """Measure on this machine what Holdfast promises about its cost."""


@commands.command()
def idempotency(
    *,
    postgres: Annotated[
        str | None,
        typer.Option(
            "--postgres",
            metavar="URL",
            help="An empty PostgreSQL database to measure in, too.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Show that it runs, not how fast.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the HTTP middleware against bare applications; exit 1 when a promise is not kept."""
    # The frameworks it measures against are not needed by any other command.
    from holdfast.cli.bench.gates import measure, show
    from holdfast.cli.bench.trials import Sizes

    gates = drive(measure(Sizes.quick() if quick else Sizes(), postgres))
    show(gates, as_json=as_json)
    if not all(gate.kept for gate in gates):
        raise typer.Exit(1)
