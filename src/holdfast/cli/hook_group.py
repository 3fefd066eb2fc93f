"""`holdfast hook`: what there is beside the calls themselves, which `cli.entry` takes before the program gets here."""

from __future__ import annotations

import typer

from holdfast.cli import hook_serve, hook_settings

__all__ = ["commands"]

commands = typer.Typer(
    help="Take hook calls of harnesses: holdfast hook HARNESS [--event NAME], called by the harness itself.",
    invoke_without_command=True,
)


@commands.callback()
def group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(2)


commands.command("install")(hook_settings.install)
commands.command("uninstall")(hook_settings.uninstall)
commands.command("status")(hook_settings.status)
commands.command("shim")(hook_settings.shim)
commands.command("serve")(hook_serve.serve)
