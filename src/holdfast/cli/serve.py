"""`holdfast serve`: every slice over HTTP, until it is told to stop."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.cli.ledger import JsonOption, Place, drive, placed

__all__ = ["serve"]

GARBAGE = 20_000, 20, 20
"""When garbage is looked for. A request makes hundreds of objects, few of which are in a cycle."""


@placed
def serve(
    place: Place,
    *,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on. Without access keys: this machine's own.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0: a free one.", min=0, max=65535)] = 4140,
    as_json: JsonOption = False,
) -> None:
    """Serve the ledger over HTTP; SIGTERM or Ctrl-C ends it when what is in flight has its answers."""
    import os

    from holdfast.core.config import prepare_folder
    from holdfast.core.errors import ConfigError
    from holdfast.lifecycle import plan

    try:
        from holdfast.lifecycle.hooks import Hooks
        from holdfast.server.serving import Serving, listen
    except ModuleNotFoundError as error:
        raise ConfigError(f"the server needs {error.name}", "pip install 'holdfast[server]'") from None
    config, ring, lifecycle = place.sessions(), place.guard().ring(), place.lifecycle()
    prepare_folder(place.target(), os.environ)
    spools = plan.spools(str(place.state_dir().absolute()), os.environ)

    async def work() -> None:
        import asyncio
        import gc
        import signal

        import holdfast

        async with (
            holdfast.open(place.target(), durable=place.settings(), recover=True) as hf,
            Hooks(hf.database, config=lifecycle, clock=hf.database.clock, spools=spools) as hooks,
        ):
            serving = Serving(hf, config, ring, hooks)
            await serving.check(host)
            with listen(host, port) as listening:
                bound = listening.getsockname()
                for each in (signal.SIGTERM, signal.SIGINT):
                    asyncio.get_running_loop().add_signal_handler(each, serving.stop)
                gc.collect()
                gc.freeze()  # what is loaded stays: to look through it again and again holds up all requests for 0.1 s
                gc.set_threshold(*GARBAGE)
                await serving.run(listening, lambda: _tell(bound[0], bound[1], hf.database.label, as_json=as_json))

    drive(work())


def _tell(host: str, port: int, label: str, *, as_json: bool) -> None:
    """Say where the server is, once it answers."""
    import sys

    from holdfast.cli.render import line, print_json

    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if as_json:
        print_json({"url": url, "ledger": label})
    else:
        line(f"serving {label} at {url}", "green")
    sys.stdout.flush()
