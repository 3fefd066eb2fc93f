"""`holdfast events`: the names of the events, and one event taken to a client by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.ledger import ConfigOption, DbOption, Place, drive, place_of, placed

if TYPE_CHECKING:
    from holdfast.lifecycle.documents import CapabilityRequirement, DispatchEnvelope, ReceiptContext
    from holdfast.lifecycle.router import Dispatched

__all__ = ["commands"]

commands = typer.Typer(help="List the events; check and dispatch one.", invoke_without_command=True)


@commands.callback()
def group(context: typer.Context, db: DbOption = None, config: ConfigOption = None) -> None:
    """Print the names of all events."""
    place_of(context, db, config)
    if context.invoked_subcommand is None:
        from holdfast.cli.render import print_json
        from holdfast.lifecycle.enums import EVENTS

        print_json(EVENTS)


@commands.command()
def check() -> None:
    """Read a request from standard input, and print it when it is valid."""
    from holdfast.cli.documents import print_document, read_input
    from holdfast.lifecycle import wire
    from holdfast.lifecycle.documents import CallbackRequest

    print_document(wire.decode(read_input(), CallbackRequest))


@commands.command()
@placed
def invoke(  # noqa: PLR0913 - a command's options are its parameters
    place: Place,
    *,
    client_cmd: Annotated[
        str, typer.Option("--client-cmd", metavar="PROGRAM", help="The client: a program.", show_default=False)
    ],
    client_args: Annotated[
        list[str] | None,
        typer.Option("--client-arg", metavar="ARG", help="An argument of it; may be repeated.", show_default=False),
    ] = None,
    timeout_ms: Annotated[int, typer.Option("--timeout-ms", min=1, help="How long it has.")] = 30_000,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require",
            metavar="CAP=LEVEL:DESIRED",
            help="What the client needs of the adapter; may be repeated.",
            show_default=False,
        ),
    ] = None,
    client_id: Annotated[str, typer.Option("--client-id", help="The client's id.")] = "holdfast",
    receipt_id: Annotated[
        str | None, typer.Option("--receipt-id", help="The receipt's id. Default: a new one.", show_default=False)
    ] = None,
    run_id: Annotated[
        str | None, typer.Option("--run-id", help="The run's id. Default: the request's.", show_default=False)
    ] = None,
) -> None:
    """Read a dispatch envelope from standard input, call the client, and print the recorded receipt."""
    from holdfast.cli.documents import print_document, read_input
    from holdfast.cli.render import complain
    from holdfast.lifecycle import wire
    from holdfast.lifecycle.documents import DispatchEnvelope

    requirements = [_requirement(each) for each in require or []]
    envelope = wire.decode(read_input(), DispatchEnvelope)
    named = (client_id, receipt_id, run_id)
    argv = (_program(client_cmd), *(client_args or []))
    found = drive(_invoke(place, envelope, argv, named, requirements, timeout_ms))
    print_document(found.receipt)
    if found.receipt.status == "failed":
        complain(str(found.error) if found.error is not None else f"the receipt says {found.receipt.failure_class}")
        raise typer.Exit(1)


async def _invoke(
    place: Place,
    envelope: DispatchEnvelope,
    argv: tuple[str, ...],
    named: tuple[str, str | None, str | None],
    requirements: list[CapabilityRequirement],
    timeout_ms: int,
) -> Dispatched:
    from datetime import timedelta

    from holdfast.cli.documents import router_of
    from holdfast.lifecycle.dispatch import Command

    timeout = timedelta(milliseconds=timeout_ms)
    async with router_of(place, mode="semantic") as (router, clock):
        return await router.dispatch(
            envelope.request,
            client=Command(argv, timeout),
            context=_context(envelope, named, clock.now()),
            payloads=envelope.payloads,
            requirements=requirements,
            deadline=timeout,
        )


def _context(envelope: DispatchEnvelope, named: tuple[str, str | None, str | None], now: int) -> ReceiptContext:
    from holdfast.core.ids import uuid7
    from holdfast.lifecycle.documents import ReceiptContext

    client_id, receipt_id, run_id = named
    request = envelope.request
    return ReceiptContext(
        client_id=client_id,
        receipt_id=f"rcp_{uuid7(now)}" if receipt_id is None else receipt_id,
        at_epoch_s=now // 1_000_000,
        harness_session_id=request.harness_session_id,
        harness_run_id=request.harness_run_id if run_id is None else run_id,
        harness_task_id=request.harness_task_id,
    )


def _program(name: str) -> str:
    """Return a program's name, or its path from the root: it is not started in this directory."""
    import os

    if not name:
        raise typer.BadParameter("--client-cmd is empty")
    return os.path.abspath(name) if os.sep in name else name


def _requirement(text: str) -> CapabilityRequirement:
    from holdfast.lifecycle.config import requirement_of
    from holdfast.lifecycle.errors import ValidationError

    try:
        return requirement_of(text)
    except ValidationError as error:
        raise typer.BadParameter(f"--require {text}: {error.message}; write CAP=LEVEL:DESIRED") from None
