"""`holdfast access`: the keys that let programs and people in over HTTP.

Invariants:
    - A key is printed once, when it is made; nothing can show it again.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.ledger import ConfigOption, DbOption, JsonOption, Place, drive, place_of, placed

if TYPE_CHECKING:
    from uuid import UUID

    from holdfast import Holdfast
    from holdfast.sessions.access import AccessKey

__all__ = ["commands"]

commands = typer.Typer(help="Make, list and revoke the keys of the HTTP server.", invoke_without_command=True)

OrgOption = Annotated[
    str | None,
    typer.Option("--org", metavar="ID", help="A UUID. Default: the org of a ledger without keys.", show_default=False),
]


@commands.callback()
def group(context: typer.Context, db: DbOption = None, config: ConfigOption = None) -> None:
    place_of(context, db, config)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(2)


@commands.command()
@placed
def create(
    place: Place,
    *,
    scope: Annotated[list[str], typer.Option("--scope", help="ingest, read or admin; several times for several.")],
    org: OrgOption = None,
    label: Annotated[str, typer.Option("--label", metavar="TEXT", help="Whose key it is.", show_default=False)] = "",
    days: Annotated[
        int | None,
        typer.Option("--days", help="How long it is good. Default: for ever.", min=1, max=36_500, show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it: this once."""
    from holdfast.cli.render import line, print_json, warn
    from holdfast.core.clock import micros
    from holdfast.core.config import prepare_folder
    from holdfast.sessions import access

    whose = _org(org)
    prepare_folder(place.target(), os.environ)

    async def work() -> tuple[AccessKey, str, bool]:
        async with place.making() as hf, hf.database.write() as tx:
            first = not await access.exist(tx)
            now = hf.database.clock.now()
            until = None if days is None else now + micros(timedelta(days=days))
            key, token = await access.create(tx, org=whose, scopes=set(scope), label=label, expires_at=until, now=now)
            return key, token, first

    key, token, first = drive(work())
    if first:
        warn("this is the first access key: from now on the server lets nobody in without one")
    if as_json:
        print_json({"access_key": token, **_view(key)})
    else:
        line(token)
        warn("keep it: it cannot be shown again")


@commands.command("list")
@placed
def list_keys(place: Place, *, org: OrgOption = None, as_json: JsonOption = False) -> None:
    """List keys, the oldest first; never the keys themselves."""
    from holdfast.cli.render import Column, instant, line, print_json, table
    from holdfast.core.clock import to_datetime
    from holdfast.sessions import access

    whose = None if org is None else _org(org)

    async def read(hf: Holdfast) -> list[AccessKey]:
        async with hf.database.read() as tx:
            return await access.list(tx, whose)

    keys = drive(place.look(read))
    if as_json:
        print_json({"items": [_view(key) for key in keys]})
        return
    if not keys:
        line("no access keys: the server lets in whoever is on its machine", "dim")
        return

    def at(value: int | None) -> str:
        return "-" if value is None else instant(to_datetime(value))

    rows: list[tuple[Any, ...]] = [
        (key.key_id, " ".join(sorted(key.scopes)), key.label or "-", str(key.org_id), at(key.created_at),
         at(key.expires_at), at(key.revoked_at), at(key.last_used_at))
        for key in keys
    ]  # fmt: skip
    names = ("id", "scopes", "label", "org", "created", "expires", "revoked", "used")
    table([Column(name, keep=name == "id", minor=name == "org") for name in names], rows)


@commands.command()
@placed
def revoke(
    place: Place,
    id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `list` shows it.", show_default=False)],
    *,
    as_json: JsonOption = False,
) -> None:
    """Take a key back; every server refuses it within five seconds."""
    from holdfast.cli.render import complain, line, print_json
    from holdfast.sessions import access

    async def work() -> bool:
        async with place.changing() as hf, hf.database.write() as tx:
            return await access.revoke(tx, id, now=hf.database.clock.now())

    if not drive(work()):
        complain("there is no such key that is still good", "`holdfast access list` shows them")
        raise typer.Exit(1)
    if as_json:
        print_json({"id": id, "revoked": True})
    else:
        line(f"{id} is revoked", "green")


def _org(given: str | None) -> UUID:
    from uuid import UUID

    from holdfast.sessions.values import LOCAL

    try:
        return LOCAL.org_id if given is None else UUID(given)
    except ValueError:
        raise typer.BadParameter("--org is a UUID") from None


def _view(key: AccessKey) -> dict[str, Any]:
    from holdfast.core.clock import to_datetime

    def at(value: int | None) -> Any:
        return None if value is None else to_datetime(value)

    return {
        "id": key.key_id,
        "org_id": str(key.org_id),
        "scopes": sorted(key.scopes),
        "label": key.label,
        "created_at": at(key.created_at),
        "expires_at": at(key.expires_at),
        "revoked_at": at(key.revoked_at),
        "last_used_at": at(key.last_used_at),
    }
