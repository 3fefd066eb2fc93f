"""`holdfast db`: the ledger as a database: its schema, and how much is in it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import typer

from holdfast.cli.ledger import ConfigOption, DbOption, JsonOption, Place, drive, place_of, placed

if TYPE_CHECKING:
    from holdfast import Holdfast

__all__ = ["commands"]

_PAGE_ROWS = 500

commands = typer.Typer(help="The ledger as a database: its schema, its size.", invoke_without_command=True)


@commands.callback()
def group(context: typer.Context, db: DbOption = None, config: ConfigOption = None) -> None:
    place_of(context, db, config)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(2)


@commands.command()
@placed
def migrate(place: Place, *, as_json: JsonOption = False) -> None:
    """Make the ledger if there is none, and bring its schema up to date."""

    async def work() -> dict[str, Any]:
        async with place.making() as hf:
            return await _state(hf)

    _show(drive(work()), as_json=as_json)


@commands.command()
@placed
def status(place: Place, *, as_json: JsonOption = False) -> None:
    """Show the ledger's schema, and how many executions it has."""
    from holdfast import SchemaMismatch

    try:
        state = drive(place.look(_state))
    except SchemaMismatch as mismatch:
        if not mismatch.applied:
            raise
        # Its schema is all that can be told of a ledger that is older than this Holdfast, or newer.
        state = _schema(place.target(), mismatch.applied)
        _show(state, as_json=as_json)
        if state["pending"]:
            return
        raise
    _show(state, as_json=as_json)


def _schema(target: str, applied: int) -> dict[str, Any]:
    from holdfast.store.migrate import load

    label, dialect = target, "sqlite"
    if target.startswith("postgres"):
        from holdfast.store.postgres_errors import label_of

        label, dialect = label_of(target), "postgres"
    known = load(dialect)
    return {
        "label": label,
        "dialect": dialect,
        "schema": applied,
        "newest": len(known),
        "pending": [f"{migration.number:04}_{migration.name}" for migration in known[applied:]],
        "executions": None,
        "executions_count": None,
        "bytes_count": None,
    }


async def _state(hf: Holdfast) -> dict[str, Any]:
    from holdfast import DurabilityDisabled
    from holdfast.store.migrate import decode_number
    from holdfast.store.migrate import status as schema_status

    if not hf.config.enabled:
        raise DurabilityDisabled("durability is disabled (enabled=false), so there is no ledger", "set enabled=true")
    database = hf.database
    counts: Counter[str] = Counter()
    bytes_count = 0
    async with database.read() as tx:
        schema = await tx.one("ledger.get", name="schema")
        before: int | None = None
        while rows := await tx.all(
            "executions.list", status=None, kind=None, queue=None, before=before, most=_PAGE_ROWS
        ):
            for row in rows:
                counts[row.status] += 1
                bytes_count += row.bytes
            before = rows[-1].pk
    number = decode_number(None if schema is None else schema.value, label=database.label)
    found = schema_status(number, database.dialect, label=database.label)
    return {
        "label": database.label,
        "dialect": database.dialect,
        "schema": found.applied,
        "newest": found.newest,
        "pending": [f"{migration.number:04}_{migration.name}" for migration in found.pending],
        "executions": dict(sorted(counts.items())),
        "executions_count": counts.total(),
        "bytes_count": bytes_count,
    }


def _show(state: dict[str, Any], *, as_json: bool) -> None:
    from holdfast.cli.render import facts, print_json, size
    from holdfast.cli.render import status as coloured

    if as_json:
        print_json(state)
        return
    pending = ", ".join(state["pending"])
    executions = "not known"
    if state["executions"] is not None:
        executions = f"{state['executions_count']}, {size(state['bytes_count'])}"
    facts(
        [
            ("ledger", (state["label"], "bold")),
            ("dialect", state["dialect"]),
            ("schema", f"{state['schema']} of {state['newest']}"),
            ("pending", (pending, "yellow") if pending else "none"),
            ("executions", executions),
            *((f"  {name}", (str(count), coloured(name)[1])) for name, count in (state["executions"] or {}).items()),
        ]
    )
