"""Which ledger a command works on, and how it is opened.

`--db` and `--config` are accepted by the program, by every group and by every command; the one nearest to
the end of the line wins. A command asks for them by taking a `Place` first and being decorated with `placed`.

Invariants:
    - A command that only reads opens the ledger for reading: no lock, no write, no new file.
    - A command that changes a ledger never makes one; `run` and `db migrate` do.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, TypeVar

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from holdfast import DurableConfig, Holdfast
    from holdfast.idempotency.settings import IdempotencySettings
    from holdfast.lifecycle.config import LifecycleConfig
    from holdfast.sessions.config import SessionsConfig

__all__ = ["ConfigOption", "DbOption", "JsonOption", "Place", "Terminated", "drive", "place_of", "placed", "served"]

P = ParamSpec("P")
T = TypeVar("T")

DbOption = Annotated[
    str | None,
    typer.Option(
        "--db",
        metavar="LEDGER",
        help="The ledger: a path or a postgresql:// URL. Default: HOLDFAST_DB, else the configuration's.",
        show_default=False,
    ),
]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="FILE", help="The configuration file. Default: the user's own.", show_default=False
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="Ask the server there instead of opening a ledger.", show_default=False),
]
AccessKeyOption = Annotated[
    str | None,
    typer.Option(
        "--access-key",
        metavar="KEY",
        envvar="HOLDFAST_ACCESS_KEY",
        show_envvar=False,
        help="What the server lets in. Default: HOLDFAST_ACCESS_KEY, which other users of the machine do not see.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_LOOKS_MAX = 20
"""How often a file that changes while it is read is read again: more often than processes come and go."""

_KEY = "holdfast.place"


class Terminated(Exception):
    """The process was sent SIGTERM, and has released what it ran."""


@dataclass(frozen=True, slots=True)
class Place:
    """The ledger a command is about, as far as the command line says.

    Attributes:
        db: `--db`, or None.
        config: `--config`, or None.
        url: `--url`: a server is asked instead; or None.
        access_key: `--access-key`, or None.
    """

    db: str | None = None
    config: str | None = None
    url: str | None = None
    access_key: str | None = field(default=None, repr=False)

    def settings(self) -> DurableConfig:
        """Return the settings of durable execution.

        Raises:
            ConfigError: The configuration cannot be read, or says something that cannot be.
        """
        from holdfast import DurableConfig

        return DurableConfig.load(self._config_path(), os.environ)

    def guard(self) -> IdempotencySettings:
        """Return what is configured of the guard: its secrets and its cipher.

        Raises:
            ConfigError: The configuration cannot be read.
        """
        from holdfast.idempotency.settings import IdempotencySettings

        return IdempotencySettings.load(self._config_path(), os.environ)

    def lifecycle(self) -> LifecycleConfig:
        """Return the settings of hooks, their clients and receipts: the file's, whatever the environment says.

        Raises:
            ConfigError: The configuration cannot be read, or says something that cannot be.
        """
        from holdfast.lifecycle.config import LifecycleConfig

        return LifecycleConfig.load(self._config_path())

    def sessions(self) -> SessionsConfig:
        """Return the settings of captured sessions and of the server.

        Raises:
            ConfigError: The configuration cannot be read, or says something that cannot be.
        """
        from holdfast.sessions.config import SessionsConfig

        return SessionsConfig.load(self._config_path(), os.environ)

    def state_dir(self) -> Path:
        """Return the directory of what is kept beside the ledger; it need not exist.

        Raises:
            ConfigError: The configuration cannot be read, or names no directory where it should.
        """
        from holdfast.core.config import state_directory

        return state_directory(self._config_path(), os.environ)

    def target(self) -> str:
        """Return the path or URL of the ledger.

        Raises:
            ConfigError: The configuration cannot be read, or names no ledger where it should.
        """
        from holdfast.core.config import ledger_target
        from holdfast.core.errors import ConfigError

        if self.db == "":
            raise ConfigError("--db is empty", "give a path or a postgresql:// URL")
        return ledger_target(self.db, self._config_path(), os.environ)

    def _config_path(self) -> Path | None:
        from holdfast.core.config import config_path

        return config_path(self.config, os.environ)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Holdfast]:
        """Open the ledger for reading.

        Raises:
            StoreError: There is none (`store.missing`), or it is not a ledger.
            ConfigError: It is in memory, where no other process can have put anything.
        """
        from holdfast.core.config import in_memory
        from holdfast.core.errors import ConfigError
        from holdfast.execution.engine import open_reader

        target = self.target()
        if in_memory(target):
            raise ConfigError("a ledger in memory ends with the command that made it", "give a path with --db")
        async with open_reader(target, durable=self.settings()) as hf:
            yield hf

    async def look(self, read: Callable[[Holdfast], Awaitable[T]]) -> T:
        """Open the ledger for reading, and read.

        A file that nobody has open is read without locks, so somebody may change it meanwhile: then it is
        read again.

        Raises:
            StoreError: There is no ledger (`store.missing`), it is not one, or it never kept still.
        """
        from holdfast.core.errors import Busy

        for _ in range(_LOOKS_MAX - 1):
            try:
                async with self.reading() as hf:
                    return await read(hf)
            except Busy:
                continue
        async with self.reading() as hf:
            return await read(hf)

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[Holdfast]:
        """Open a ledger that exists for reading and writing.

        Raises:
            StoreError: There is none (`store.missing`), or it is not a ledger.
        """
        await self.look(_nothing)  # opening for writing would make what is missing
        async with self.making() as hf:
            yield hf

    @asynccontextmanager
    async def making(self) -> AsyncIterator[Holdfast]:
        """Open the ledger for reading and writing, and make it when there is none."""
        import holdfast

        async with holdfast.open(self.target(), durable=self.settings()) as hf:
            yield hf


async def _nothing(_: Holdfast) -> None:
    pass


def place_of(context: typer.Context, db: str | None, config: str | None) -> Place:
    """Note what a command or group was told of the place; return what is known so far."""
    place: Place = context.meta.get(_KEY, Place())
    if db is not None:
        place = replace(place, db=db)
    if config is not None:
        place = replace(place, config=config)
    context.meta[_KEY] = place
    return place


def placed(command: Callable[Concatenate[Place, P], None]) -> Callable[..., None]:
    """Give a command the options `--db` and `--config`, and it the `Place` they make."""
    return _with_options(command, {"db": DbOption, "config": ConfigOption})


def served(command: Callable[Concatenate[Place, P], None]) -> Callable[..., None]:
    """As `placed`, with `--url` and `--access-key`: the command can ask a server too."""
    options = {"db": DbOption, "config": ConfigOption, "url": UrlOption, "access_key": AccessKeyOption}
    return _with_options(command, options)


def _with_options(command: Callable[Concatenate[Place, P], None], options: dict[str, Any]) -> Callable[..., None]:
    @functools.wraps(command)
    def wrapper(*args: Any, context: typer.Context, **kwargs: Any) -> None:
        given = {name: kwargs.pop(name) for name in options}
        place = place_of(context, given.pop("db"), given.pop("config"))
        command(replace(place, **given), *args, **kwargs)

    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    parameters = [
        inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *own,
        *(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
            for name, option in options.items()
        ),
    ]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def drive(work: Coroutine[Any, Any, T]) -> T:
    """Run the asynchronous part of a command.

    SIGTERM, like Ctrl-C, cancels it, so that what it runs is released for the next one.

    Raises:
        Terminated: SIGTERM came.
    """
    import asyncio
    import logging
    import signal

    # Speaks only where the user's program has configured no logging.
    logging.lastResort = _handler()
    terminated = False

    async def run() -> T:
        nonlocal terminated
        task = asyncio.current_task()
        assert task is not None

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        return await work

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        if terminated:
            raise Terminated from None
        raise


def _handler() -> Any:
    import logging

    from holdfast.cli.render import warn

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warn(record.getMessage(), "audit" if record.name.endswith(".audit") else record.levelname.lower())

    return Handler(logging.WARNING)
