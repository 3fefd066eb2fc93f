"""`holdfast manifest`: which harnesses there are adapters for, and what each of them can do.

An ID is an adapter's id or one of its aliases. A manifest is printed as the JSON document that it is: over several
lines for people, on one line with `--json`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.ledger import JsonOption

if TYPE_CHECKING:
    from holdfast.lifecycle.documents import AdapterManifest

__all__ = ["commands"]

commands = typer.Typer(help="Look at the adapters and what they claim.", invoke_without_command=True)


@commands.callback()
def group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(2)


@commands.command("list")
def list_manifests(*, as_json: JsonOption = False) -> None:
    """List the adapters."""
    from holdfast.cli.render import Column, print_json, table
    from holdfast.lifecycle.manifest import Registry

    found = Registry.builtin().list()
    if as_json:
        print_json(found)
        return
    columns = [Column("adapter", keep=True), Column("version", keep=True), Column("conformance"), Column("name")]
    table(columns, [(each.adapter_id, each.adapter_version, each.conformance, each.display_name) for each in found])


@commands.command()
def show(
    adapter: Annotated[str, typer.Argument(metavar="ID", help="The adapter.", show_default=False)],
    *,
    as_json: JsonOption = False,
) -> None:
    """Print an adapter's manifest."""
    from holdfast.lifecycle.errors import AdapterIdNotFound
    from holdfast.lifecycle.manifest import Registry

    found = Registry.builtin().get(adapter)
    if found is None:
        raise AdapterIdNotFound(adapter)
    _print(found, as_json=as_json)


@commands.command()
def inspect(
    adapter: Annotated[
        str, typer.Argument(metavar="ID@VERSION", help="The adapter, in exactly this version.", show_default=False)
    ],
    *,
    as_json: JsonOption = False,
) -> None:
    """Print an adapter's manifest, if it is registered in this version."""
    from holdfast.lifecycle.manifest import Registry

    name, _, version = adapter.rpartition("@")
    if not name or not version:
        raise typer.BadParameter("write ID@VERSION, as in codex@0.1.0")
    _print(Registry.builtin().require(name, version), as_json=as_json)


def _print(manifest: AdapterManifest, *, as_json: bool) -> None:
    import msgspec

    from holdfast.cli.render import json_text, line

    for text in json_text(msgspec.to_builtins(manifest), indent=None if as_json else 2).splitlines():
        line(text)
