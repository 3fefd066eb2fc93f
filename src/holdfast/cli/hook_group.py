"""`holdfast hook`: what there is beside the calls themselves, which `cli.entry` takes before the program gets here."""

from __future__ import annotations

import typer

from holdfast.cli import hook_serve, hook_settings

__all__ = ["commands"]

commands = typer.Typer(
    help="Have harnesses call Holdfast, and take their calls.",
    epilog="A harness itself calls: holdfast hook HARNESS [--event NAME], with the hook's input on standard input.",
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
