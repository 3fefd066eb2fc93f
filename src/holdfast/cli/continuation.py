"""`holdfast continuation`: blobs under a name in a thread, for whoever goes on later.

Invariants:
    - A blob comes from standard input or a file, and goes to standard output as it is: never into an argument or a
      message.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from holdfast.cli.ledger import ConfigOption, DbOption, JsonOption, Place, drive, place_of, placed

if TYPE_CHECKING:
    from datetime import timedelta

    from holdfast import Holdfast
    from holdfast.lifecycle.continuation import Blob, Kept

__all__ = ["commands"]

commands = typer.Typer(
    help="Keep what is to be found again after a compaction or a restart.", invoke_without_command=True
)

ThreadArgument = Annotated[str, typer.Argument(metavar="THREAD", help="A session, a task.", show_default=False)]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="What it is called in the thread.", show_default=False)
]


@commands.callback()
def group(context: typer.Context, db: DbOption = None, config: ConfigOption = None) -> None:
    place_of(context, db, config)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(2)


@commands.command()
@placed
def put(
    place: Place,
    thread: ThreadArgument,
    name: NameArgument,
    *,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="The blob. Default: standard input.", show_default=False),
    ] = None,
    ttl: Annotated[str, typer.Option("--ttl", metavar="SPAN", help="How long it is kept: 90s, 15m, 12h, 30d.")] = "7d",
    if_version: Annotated[
        int | None,
        typer.Option(
            "--if-version",
            metavar="N",
            min=0,
            help="Only if this version is there; 0: only if there is none.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Put a blob in the place of what is there, and print its version."""
    from holdfast.cli.documents import opened
    from holdfast.lifecycle.continuation import Continuations

    kept = _ttl(ttl)
    body = _blob(file)

    async def work() -> int:
        async with opened(place) as database:
            return await Continuations(database).put(thread, name, body, ttl=kept, if_version=if_version)

    typer.echo(drive(work()))


@commands.command()
@placed
def get(place: Place, thread: ThreadArgument, name: NameArgument) -> None:
    """Print a blob, as it is."""
    from holdfast.lifecycle.continuation import Continuations

    async def look(hf: Holdfast) -> Blob | None:
        return await Continuations(hf.database).get(thread, name)

    found = drive(place.look(look))
    if found is None:
        _absent(f"there is no continuation {name} of {thread}")
    raw = getattr(sys.stdout, "buffer", None)
    sys.stdout.flush()
    if raw is None:  # somebody reads texts
        sys.stdout.write(found.body.decode(errors="replace"))
    else:
        raw.write(found.body)


@commands.command("list")
@placed
def list_entries(
    place: Place,
    thread: Annotated[
        str | None,
        typer.Argument(metavar="THREAD", help="Of this thread. Default: of all.", show_default=False),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """List what is kept: sizes and times, no blobs."""
    from holdfast.cli.render import Column, instant, print_json, size, table
    from holdfast.core.clock import to_datetime
    from holdfast.lifecycle.continuation import Continuations

    async def look(hf: Holdfast) -> list[Kept]:
        return await Continuations(hf.database).list(thread)

    found = drive(place.look(look))
    if as_json:
        times = ("created_at", "expires_at")
        print_json([each._asdict() | {name: to_datetime(getattr(each, name)) for name in times} for each in found])
        return
    columns = [Column("thread", keep=True), Column("name", keep=True), Column("size", right=True)]
    columns += [Column("version", right=True), Column("created", keep=True), Column("expires", keep=True)]
    table(
        columns,
        [
            (
                each.thread,
                each.name,
                size(each.byte_size),
                str(each.version),
                instant(to_datetime(each.created_at)),
                instant(to_datetime(each.expires_at)),
            )
            for each in found
        ],
    )


@commands.command()
@placed
def drop(place: Place, thread: ThreadArgument, name: NameArgument) -> None:
    """Delete a blob."""
    from holdfast.lifecycle.continuation import Continuations

    async def work() -> bool:
        async with place.changing() as hf:
            return await Continuations(hf.database).drop(thread, name)

    if not drive(work()):
        _absent(f"there is no continuation {name} of {thread}")


@commands.command("drop-thread")
@placed
def drop_thread(place: Place, thread: ThreadArgument) -> None:
    """Delete all blobs of a thread, and print how many there were."""
    from holdfast.lifecycle.continuation import Continuations

    async def work() -> int:
        async with place.changing() as hf:
            return await Continuations(hf.database).drop_thread(thread)

    count = drive(work())
    if not count:
        _absent(f"there is no continuation of {thread}")
    typer.echo(count)


def _blob(file: Path | None) -> bytes:
    """Read a blob, up to one byte more than it may have."""
    from holdfast.lifecycle.continuations import BODY_BYTES_MAX
    from holdfast.lifecycle.errors import UndecodableDocument

    if file is None or str(file) == "-":
        return sys.stdin.buffer.read(BODY_BYTES_MAX + 1)
    try:
        with file.open("rb") as stream:
            return stream.read(BODY_BYTES_MAX + 1)
    except OSError as error:
        raise UndecodableDocument(f"{file} cannot be read: {error.strerror}") from error


def _ttl(text: str) -> timedelta:
    from datetime import timedelta

    from holdfast.cli.documents import span_of
    from holdfast.lifecycle.continuations import TTL_MAX

    span = span_of(text)
    if span is None or not timedelta(0) < span <= TTL_MAX:
        raise typer.BadParameter(f"--ttl is a span like 90s, 15m, 12h, 7d, of at most {TTL_MAX.days} days")
    return span


def _absent(message: str) -> NoReturn:
    from holdfast.cli.render import complain

    complain(message)
    raise typer.Exit(1)
