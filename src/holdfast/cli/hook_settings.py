"""`holdfast hook install | uninstall | status | shim`: getting a harness to call us, and not to.

Invariants:
    - What was changed is said, with the backup; a second time, that there was nothing to do.
    - `--dry-run` prints a unified diff, and writes nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from holdfast.cli.ledger import ConfigOption, JsonOption, place_of

if TYPE_CHECKING:
    from holdfast.lifecycle.install import Change, Scope
    from holdfast.lifecycle.merge import Inspected

__all__ = ["install", "shim", "status", "uninstall"]

_STYLES = {"present": "green", "missing": "red", "drifted": "yellow", "disabled": "yellow"}
_ADVICE = {
    "claude": "Claude Code calls Holdfast from the next session on",
    "codex": "type /hooks in Codex once and trust the new hooks: until then Codex does not call them",
    "gemini": "Gemini CLI calls Holdfast from the next session on",
    "opencode": "opencode calls Holdfast when it is started in this project the next time",
}

HarnessArgument = Annotated[
    str, typer.Argument(metavar="HARNESS", help="claude, codex, gemini or opencode.", show_default=False)
]
ScopeOption = Annotated[
    Literal["user", "project", "local"] | None,
    typer.Option(
        "--scope",
        help="Whose settings: yours, this project's, or yours in this project. Default: user; of opencode, project.",
        show_default=False,
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would change, and change nothing.")]


def install(
    context: typer.Context,
    harness: HarnessArgument,
    *,
    scope: ScopeOption = None,
    dry_run: DryRunOption = False,
    uninstalled: Annotated[bool, typer.Option("--uninstall", help="Take the hooks out again.")] = False,
    config: ConfigOption = None,
) -> None:
    """Have a harness call Holdfast at every hook that tells of an event."""
    _change(context, harness, scope, config, dry_run=dry_run, taken_out=uninstalled)


def uninstall(
    context: typer.Context,
    harness: HarnessArgument,
    *,
    scope: ScopeOption = None,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
) -> None:
    """Take Holdfast's hooks out of a harness's settings; everything else stays as it is."""
    _change(context, harness, scope, config, dry_run=dry_run, taken_out=True)


def status(
    harness: Annotated[
        str | None,
        typer.Argument(metavar="HARNESS", help="The harness. Default: all that know Holdfast.", show_default=False),
    ] = None,
    *,
    scope: ScopeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which hooks are present, missing, drifted or disabled; the exit code is 1 unless all are present."""
    from holdfast.cli.render import Column, complain, line, print_json, table
    from holdfast.lifecycle import install as installing

    named = [_harness(harness)] if harness is not None else list(installing.HARNESSES)
    found: list[tuple[str, Inspected, Path]] = []
    for each in named:
        if harness is None and scope is not None and _file(each, scope) is None:
            continue
        file = _required(each, scope)
        states = installing.states(file, each, _program())
        if harness is not None or any(state.state != "missing" for state in states):
            found += [(each, state, file) for state in states]
    if as_json:
        print_json(
            [{"harness": each, "hook": at.hook, "state": at.state, "file": str(file)} for each, at, file in found]
        )
    for each, file in () if as_json else dict.fromkeys((each, file) for each, _, file in found):
        line(f"{each}: {file}")
        rows = [(at.hook, (at.state, _STYLES[at.state])) for name, at, _ in found if name == each]
        table([Column("hook", keep=True), Column("state", keep=True)], rows)
    wrong = {each: at.state for each, at, _ in found if at.state != "present"}
    if not found:
        complain("no harness here calls Holdfast", "holdfast hook install claude")
    elif set(wrong.values()) == {"disabled"}:
        complain(f"hooks are switched off in the settings of {', '.join(wrong)}", "switch them on there")
    elif wrong:
        complain(f"not all hooks are present: {', '.join(wrong)}", f"holdfast hook install {next(iter(wrong))}")
    if wrong or not found:
        raise typer.Exit(1)


def shim(
    harness: Annotated[
        str, typer.Argument(metavar="HARNESS", help="opencode, openclaw or hermes.", show_default=False)
    ],
) -> None:
    """Print the lines that a harness without hooks needs inside it; they say where their place is."""
    from holdfast.cli.render import complain
    from holdfast.lifecycle import install as installing

    name = _canonical(harness)
    if name not in installing.SHIMS:
        complain(f"{name} needs no shim", f"holdfast hook install {name}")
        raise typer.Exit(1)
    typer.echo(installing.shim(name, _program()), nl=False)


def _change(
    context: typer.Context, harness: str, scope: Scope | None, config: str | None, *, dry_run: bool, taken_out: bool
) -> None:
    from holdfast.cli.render import line, warn
    from holdfast.core.clock import SystemClock
    from holdfast.lifecycle import install as installing

    name = _harness(harness)
    file = _required(name, scope)
    edit = installing.uninstalling(name) if taken_out else installing.installing(name, _program())
    unchanged = f"{file} {'has no hook of Holdfast' if taken_out else 'has all hooks'}: nothing to change"
    if dry_run:
        change = installing.propose(file, edit)
        for text in change.diff():
            typer.echo("".join(each if each.isprintable() or each == "\t" else repr(each)[1:-1] for each in text))
        if not change.changed:
            warn(unchanged, "note")
        return
    lock = place_of(context, None, config).state_dir() / "settings.lock"
    change = installing.rewrite(file, edit, lock=lock, clock=SystemClock())
    line(_told(change, name, taken_out=taken_out) if change.changed else unchanged)
    if change.backup is not None:
        line(f"what was there is in {change.backup}")
    if not taken_out and (change.changed or name == "codex"):
        line(_ADVICE[name])
    if not taken_out and any(each.state == "disabled" for each in installing.states(file, name, _program())):
        warn(f"hooks are switched off in {file}: until that is changed {name} calls none")


def _told(change: Change, harness: str, *, taken_out: bool) -> str:
    if not taken_out:
        return f"put the hooks of {harness} into {change.path}"
    if change.after is None:
        return f"took the hooks of {harness} out; {change.path} had nothing else, and is gone"
    return f"took the hooks of {harness} out of {change.path}"


def _canonical(harness: str) -> str:
    from holdfast.lifecycle.errors import AdapterIdNotFound
    from holdfast.lifecycle.manifest import ADAPTERS, ALIASES

    name = ALIASES.get(harness, harness)
    if name not in ADAPTERS:
        raise AdapterIdNotFound(harness)
    return name


def _harness(harness: str) -> str:
    """Return the canonical name of a harness that can be installed into; say so of others, and end."""
    from holdfast.cli.render import complain
    from holdfast.lifecycle import install as installing

    name = _canonical(harness)
    if name not in installing.HARNESSES:
        complain(f"{name} has no settings that could be edited", f"holdfast hook shim {name}")
        raise typer.Exit(1)
    return name


def _file(harness: str, scope: Scope | None) -> Path | None:
    import os

    from holdfast.lifecycle.install import settings_file

    chosen: Scope = scope if scope is not None else "project" if harness == "opencode" else "user"
    return settings_file(harness, chosen, home=Path.home(), project=Path.cwd(), environ=os.environ)


def _required(harness: str, scope: Scope | None) -> Path:
    file = _file(harness, scope)
    if file is None:
        raise typer.BadParameter(f"{harness} has no settings in the scope {scope}")
    return file


def _program() -> str:
    from holdfast.lifecycle.install import program

    return program(sys.argv[0], sys.executable)
