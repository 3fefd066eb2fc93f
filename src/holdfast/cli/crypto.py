"""`holdfast crypto`: with which keys the ledger is sealed, and sealing it with a new one.

Invariants:
    - No key is printed, only numbers of keys.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.ledger import ConfigOption, DbOption, JsonOption, Place, drive, place_of, placed

if TYPE_CHECKING:
    from holdfast.sessions.resealing import KeyCount

__all__ = ["commands"]

commands = typer.Typer(help="Look at the keys of the ledger; change them.", invoke_without_command=True)


@commands.callback()
def group(context: typer.Context, db: DbOption = None, config: ConfigOption = None) -> None:
    place_of(context, db, config)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(2)


@commands.command()
@placed
def status(place: Place, *, as_json: JsonOption = False) -> None:
    """Count what is sealed with each key, and what is not sealed."""
    from holdfast.cli.render import Column, print_json, table
    from holdfast.sessions.resealing import count_keys

    async def count() -> list[KeyCount]:
        return await place.look(lambda hf: count_keys(hf.database))

    found = drive(count())
    if as_json:
        print_json({"items": found})
    else:
        table(
            [Column("TABLE", keep=True), Column("KEY", right=True), Column("VALUES", right=True)],
            [[each.table, str(each.key_id or "none"), f"{each.count:,}"] for each in found],
        )


@commands.command()
@placed
def rotate(
    place: Place,
    *,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows of one transaction.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Seal with HOLDFAST_KEY whatever is not, beside whoever uses the ledger; may be stopped and begun again."""
    from holdfast.cli.render import counted, line, print_json
    from holdfast.core.errors import ConfigError
    from holdfast.sessions.resealing import reseal
    from holdfast.sessions.sealing import SealedDatabase, check_keys, stand_before

    async def change() -> int:
        async with place.changing() as hf:
            database = stand_before(hf.database, place.sessions().encryption, os.environ)
            if not isinstance(database, SealedDatabase):
                raise ConfigError("encryption is off", 'set encryption = "payload" in [sessions]', keys=("encryption",))
            await check_keys(database)
            return await reseal(database, batch=batch)

    count = drive(change())
    if as_json:
        print_json({"resealed": count})
    else:
        line(f"{counted(count, 'row')} sealed anew")
