"""`holdfast conformance`: whether this build reads the recorded contract as it was meant."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from holdfast.lifecycle.conformance import Verdict

__all__ = ["commands"]

NO, UNREADABLE = 1, 3

INDEX = "INDEX.json"
"""A list of fixtures, which is none itself."""

commands = typer.Typer(help="Check this build against recorded fixtures of the contract.", invoke_without_command=True)


@commands.callback()
def group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(2)


@commands.command()
def run(root: Annotated[Path, typer.Option("--root", metavar="DIR", help="The folder of the fixtures.")]) -> None:
    """Judge every *.json file below a folder; one JSON line each."""
    import msgspec

    from holdfast.cli.render import complain, json_text, line

    verdicts: list[str] = []
    unseen: list[OSError] = []
    for path in _fixtures(root, unseen.append):
        verdict = _judge(path, path.relative_to(root).as_posix())
        line(json_text(msgspec.to_builtins(verdict)), "red" if verdict.verdict == "fail" else "")
        verdicts.append(verdict.verdict)
    for error in unseen:
        complain(f"{error.filename} cannot be looked into: {error.strerror}")
    if not verdicts:
        complain(f"there is no fixture below {root}", "name the folder of the *.json files with --root")
    if unseen or not verdicts:
        raise typer.Exit(UNREADABLE)
    if "fail" in verdicts:
        raise typer.Exit(NO)


def _fixtures(root: Path, unseen: Callable[[OSError], None]) -> Iterator[Path]:
    """Find the fixtures below a folder, in the order of their names; links to folders are not followed."""
    for folder, inner, names in os.walk(root, onerror=unseen):
        inner.sort()
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".json") and name != INDEX)


def _judge(path: Path, name: str) -> Verdict:
    from holdfast.lifecycle import wire
    from holdfast.lifecycle.conformance import Verdict, judge

    try:
        if not path.is_file():
            return Verdict(name, None, None, "fail", "not a file")
        with path.open("rb") as stream:
            return judge(name, stream.read(wire.DOCUMENT_BYTES_MAX + 1))
    except OSError as error:
        return Verdict(name, None, None, "fail", f"cannot be read: {error.strerror}")
