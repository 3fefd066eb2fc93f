"""`holdfast verify`: check what the ledger promises about its own rows."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.cli.ledger import JsonOption, Place, drive, placed

__all__ = ["verify"]


@placed
def verify(
    place: Place,
    id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="One execution. Default: all.", show_default=False)
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Check every invariant of the ledger; one line per problem."""
    from holdfast.cli.render import line, print_json

    report = drive(place.look(lambda hf: hf.verify(id)))
    if as_json:
        print_json(report)
    else:
        for problem in report.problems:
            where = f"{problem.table} {problem.row}".strip()
            line(f"{problem.execution_id or '-'}: {where}: {problem.code}: {problem.message}", "red")
        what = f"{report.checked_count} {'execution' if report.checked_count == 1 else 'executions'} checked"
        found = len(report.problems)
        line(
            f"{what}, no problem found" if report.ok else f"{what}, {found} problem{'s' if found != 1 else ''} found",
            "green" if report.ok else "bold red",
        )
    if not report.ok:
        raise typer.Exit(1)
