"""`holdfast telemetry`: what harnesses' own files tell of their sessions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.ledger import ConfigOption, DbOption, Place, drive, place_of, placed

if TYPE_CHECKING:
    from holdfast.lifecycle.telemetry import Seen

__all__ = ["commands"]

commands = typer.Typer(help="See how full a session's context is.", invoke_without_command=True)


@commands.callback()
def group(context: typer.Context, db: DbOption = None, config: ConfigOption = None) -> None:
    place_of(context, db, config)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(2)


@commands.command()
@placed
def snapshot(
    place: Place,
    *,
    host: Annotated[str, typer.Option("--host", metavar="HARNESS", help="claude or codex.", show_default=False)],
    session: Annotated[
        str | None,
        typer.Option("--session", metavar="ID", help="The session. Default: the newest.", show_default=False),
    ] = None,
    repo_root: Annotated[
        Path | None,
        typer.Option(
            "--repo-root", metavar="FOLDER", help="Only sessions begun in this directory.", show_default=False
        ),
    ] = None,
) -> None:
    """Print how full the context of a session is, and keep it as the session's latest observation."""
    from datetime import timedelta

    from holdfast.cli.documents import opened, print_document
    from holdfast.cli.render import complain
    from holdfast.core.clock import SystemClock
    from holdfast.lifecycle import telemetry, wire
    from holdfast.lifecycle.deliveries import press
    from holdfast.lifecycle.manifest import ALIASES

    settings = place.lifecycle()
    harness = ALIASES.get(host, host)
    seen = telemetry.look(
        harness,
        telemetry.data_directory(harness, home=Path.home(), environ=os.environ),
        session,
        now=SystemClock().now(),
        windows=settings.context_windows,
        stale_after=timedelta(milliseconds=settings.stale_after_ms),
        project=repo_root,
    )
    if seen is None:
        which = f"session {session}" if session is not None else "any session"
        complain(f"no observation: no fresh file of {which} tells of usage", "")
        raise typer.Exit(1)

    async def keep(seen: Seen) -> None:
        async with opened(place) as database, database.write() as tx:
            await press(tx, harness, seen.session_id, wire.encode(seen.observation))

    drive(keep(seen))
    print_document(seen.observation)
