"""The user's programs: finding a function or an application by name, and arguments for a function.

Invariants:
    - The folder a command is started in comes first on the import path, as with `python -m`.
    - What goes wrong in the user's module is told with its place there, as an error of usage.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast import Holdfast
    from holdfast.cli.ledger import Place
    from holdfast.execution.declare import Call, Durable

__all__ = ["bind", "declared", "load_function", "opened", "register"]


def load_function(spec: str) -> Durable[..., Any]:
    """Import the durable function that MODULE:FN names.

    Raises:
        ConfigError: There is none, or its module does not import.
    """
    from holdfast.core.errors import ConfigError
    from holdfast.execution.declare import Durable

    module, _, name = spec.partition(":")
    if not module or not name:
        raise ConfigError(f"{spec!r} does not name a function", "write MODULE:FN, such as shop.agent:turn")
    found = _attribute(_import(module), name, spec)
    if not isinstance(found, Durable):
        raise ConfigError(
            f"{spec} is {_article(type(found).__name__)}, not a durable function",
            "decorate it with @holdfast.durable(kind=…)",
        )
    return found


def bind(function: Durable[..., Any], spec: str, text: str | None) -> Call[Any]:
    """Bind JSON arguments to a function: an array by position, an object by name.

    Each is decoded to the annotated type of its parameter.

    Raises:
        ConfigError: The text is not JSON, no array or object, or does not fit the function.
    """
    from holdfast.core.codec import json_blob
    from holdfast.core.errors import CodecError, ConfigError

    text = "[]" if text is None else text
    signature = function.signature.signature
    try:
        json_blob(text)
    except CodecError as error:
        raise ConfigError(
            f"the arguments are not JSON: {_reason(error)}",
            """quote them for the shell: '["buy milk", 2]' or '{"prompt": "buy milk"}'""",
        ) from None
    try:
        named = _by_name(signature, text)
        args, kwargs = function.unpack(json_blob(named))
        signature.bind(*args, **kwargs)
    except CodecError as error:
        raise ConfigError(
            f"the arguments do not fit {spec}: {_reason(error)}", f"its parameters are {signature}"
        ) from None
    except TypeError as error:
        raise ConfigError(f"the arguments do not fit {spec}: {error}", f"its parameters are {signature}") from None
    return function.bind(*args, **kwargs)


def _by_name(signature: Any, text: str) -> bytes:
    """The arguments as a JSON object by parameter name, each still as it was written."""
    import msgspec

    parameters = signature.parameters.values()
    try:
        given = msgspec.json.decode(text, type=list[msgspec.Raw] | dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise TypeError("neither an array nor an object") from None
    named: dict[str, Any] = {}
    if isinstance(given, list):
        rest = list(given)
        for parameter in parameters:
            if parameter.kind is parameter.VAR_POSITIONAL:
                named[parameter.name], rest = rest, []
            elif rest and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                named[parameter.name] = rest.pop(0)
        if rest:
            raise TypeError(f"{len(given)} were given, which is {len(rest)} too many")
        return msgspec.json.encode(named)
    by_name = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    extra = {name: value for name, value in given.items() if name not in by_name}
    named = {name: value for name, value in given.items() if name in by_name}
    if extra:
        catch_all = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
        if catch_all is None:
            raise TypeError(f"there is no parameter {next(iter(extra))!r}")
        named[catch_all] = extra
    return msgspec.json.encode(named)


@contextmanager
def declared(function: Durable[..., Any] | None) -> Iterator[None]:
    """End the command in words when a function raises what it declares to raise as itself."""
    import typer

    from holdfast.cli.render import complain

    listed = function.raises if function is not None else ()
    try:
        yield
    except listed as error:
        complain(f"{type(error).__name__}: {error}")
        raise typer.Exit(1) from error


def register(module: str) -> None:
    """Import a module for the kinds it registers.

    Raises:
        ConfigError: It does not import.
    """
    _import(module)


@asynccontextmanager
async def opened(spec: str, place: Place) -> AsyncIterator[Holdfast]:
    """Import MODULE, which registers its kinds, and open APP, or the ledger of `place`.

    Raises:
        ConfigError: MODULE does not import, or APP is nothing that can be opened.
    """
    import holdfast
    from holdfast.core.errors import ConfigError
    from holdfast.execution.declare import Durable

    module, colon, name = spec.partition(":")
    if not module or (colon and not name):
        raise ConfigError(f"{spec!r} does not name an application", "write MODULE or MODULE:APP")
    imported = _import(module)
    if not colon:
        async with place.changing() as hf:
            yield hf
        return
    app = _attribute(imported, name, spec)
    if place.db is not None:
        raise ConfigError(
            f"{spec} opens a ledger of its own, and --db names one as well", f"leave out --db, or name {module} only"
        )
    if callable(app) and not isinstance(app, Durable):
        app = _called(app, spec)
    if not isinstance(app, holdfast.Holdfast):
        raise ConfigError(
            f"{spec} gives {_article(type(app).__name__)}, not an application",
            "name the result of holdfast.open(…), not yet opened, or a function that returns one",
        )
    async with app as hf:
        yield hf


def _called(function: Callable[[], Any], spec: str) -> Any:
    from holdfast.core.errors import ConfigError, HoldfastError

    try:
        given = function()
    except HoldfastError:
        raise
    except Exception as error:
        raise ConfigError(f"{spec} gives no application: {_told(error)}", "correct it and try again") from error
    if inspect.iscoroutine(given):
        given.close()  # it will never be awaited
    return given


def _import(module: str) -> Any:
    from holdfast.core.errors import ConfigError, HoldfastError

    if module.endswith(".py") or not all(part.isidentifier() for part in module.split(".")):
        hint = "leave out .py" if module.endswith(".py") else "write it as in an import, such as shop.agent"
        raise ConfigError(f"{module!r} is not the name of a module", hint)
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except HoldfastError:
        raise  # it says more than we could
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"there is no module {error.name}", "start in the folder that holds it, or install it"
            ) from None
        raise _broken(module, error) from error
    except Exception as error:
        raise _broken(module, error) from error


def _broken(module: str, error: Exception) -> Exception:
    from holdfast.core.errors import ConfigError

    return ConfigError(f"module {module} does not import: {_told(error)}", "correct it and try again")


def _told(error: Exception) -> str:
    """An exception of the user's program in words, with its place there."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if len(frames) > 1 else ""
    return "".join(traceback.format_exception_only(error)).strip() + where


def _attribute(module: Any, name: str, spec: str) -> Any:
    from holdfast.core.errors import ConfigError

    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{spec}: {module.__name__} has no {name!r}", "name something the module defines")
        found = getattr(found, part)
    return found


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _reason(error: Exception) -> str:
    return str(error).partition("cannot be decoded: ")[2] or str(error)
