"""`holdfast run`: run a durable function here, to its end."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from holdfast.cli.ledger import JsonOption, Place, drive, placed

__all__ = ["run"]


@placed
def run(
    place: Place,
    function: Annotated[str, typer.Argument(metavar="MODULE:FN", help="The durable function.", show_default=False)],
    arguments: Annotated[
        str | None,
        typer.Argument(
            metavar="[JSON]", help="Arguments: an array by position, an object by name.", show_default=False
        ),
    ] = None,
    *,
    id: Annotated[
        str | None, typer.Option("--id", help="Id of the execution. Default: a new one.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run or resume a durable function here; its output, or the recorded one, is printed as JSON."""
    from holdfast.cli.program import bind, declared, load_function
    from holdfast.cli.render import payload, print_json, warn
    from holdfast.core.clock import SystemClock
    from holdfast.core.ids import uuid7

    found = load_function(function)
    call = bind(found, function, arguments)
    own_id = str(uuid7(SystemClock().now())) if id is None else id

    async def work() -> Any:
        async with place.making() as hf:
            if id is None:
                # Said before anything runs: whoever loses this process needs it to go on.
                warn(own_id, "id")
            with declared(found):
                output = await hf.run(call, id=own_id)
        return payload(output)

    print_json(drive(work()))
