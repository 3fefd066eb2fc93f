"""Where settings come from, and what may be one.

A settings class is a frozen, keyword-only dataclass whose fields are made with `setting`. It reads
itself from a section of the TOML file, then the environment, then keywords; the later wins. A field that
is a tuple of another settings class is a list of tables, which only the file can give.

Invariants:
    - An unknown key, a wrong type or a value out of range is a `ConfigError` naming the key and where
      it came from, however it was given. Nothing is ever rounded, clipped or ignored.
    - No file in the working directory is read unless it was named.
"""

from __future__ import annotations

import dataclasses
import functools
import stat
import tomllib
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

from holdfast.core.errors import ConfigError

__all__ = [
    "check",
    "config_path",
    "in_memory",
    "ledger_target",
    "load",
    "prepare_folder",
    "setting",
    "state_directory",
    "tables",
]

T = TypeVar("T")

# The file is never looked for in the working directory: a project one enters must not redirect the ledger.
FILE_NAME = "holdfast.toml"
DAY_MS = 86_400_000
TIME_MS_MAX = 36_500 * DAY_MS
"""A century: instants stay well inside what a datetime can hold."""


class _Settings(Protocol):
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


S = TypeVar("S", bound=_Settings)


def setting(default: T, *, minimum: int | None = None, maximum: int | None = None) -> T:
    """Declare a field of a settings class: its default, and the range of a number (both ends allowed)."""
    return dataclasses.field(default=default, metadata={"minimum": minimum, "maximum": maximum})


def check(settings: _Settings) -> None:
    """Check types and ranges of all fields; a settings class calls it in `__post_init__`.

    Raises:
        ConfigError: A field has a wrong type or is out of range.
    """
    for name, field in settings.__dataclass_fields__.items():
        _check_value(name, field, _hints(type(settings))[name], getattr(settings, name), "")


def load(
    cls: type[S],
    section: str,
    *,
    path: Path | None,
    environ: Mapping[str, str],
    **overrides: object,
) -> S:
    """Build a settings object from file, environment and keywords; the later wins.

    Args:
        cls: The settings class.
        section: Name of its section; a dotted one is a section within a section.
        path: The configuration file, from `config_path`; None if there is none.
        environ: The environment, read for `HOLDFAST_<SECTION>_<KEY>`, dots written `__`.
        overrides: Values given in the program.

    Raises:
        ConfigError: A key is unknown, or a value has a wrong type, is out of range, or contradicts another.
    """
    known = _leaves(cls)
    values: dict[str, object] = {}
    origins: dict[str, str] = {}

    def take(key: str, shown: str, value: object, origin: str) -> None:
        _known(known, key, shown, origin)
        _check_value(key, *known[key], value, origin)
        values[key], origins[key] = value, origin

    for key, value in _flatten(cls, _section(path, section)):
        shown, origin = f"{section}.{key}", f"from {path}"
        _known(known, key, shown, origin)
        row = _row(known[key][1])
        given = _from_toml(known[key][1], value) if row is None else _rows(row, shown, value, origin)
        take(key, shown, given, origin)
    prefix = f"HOLDFAST_{section.upper().replace('.', '__')}_"
    for variable in sorted(environ):
        # `HOLDFAST_A__B_KEY` belongs to section a.b; key b.c of section a is `HOLDFAST_A_B__C`.
        if variable.startswith(prefix) and not variable.startswith(prefix + "_"):
            key = variable[len(prefix) :].lower().replace("__", ".")
            hint = known[key][1] if key in known else str
            take(key, variable, _from_text(key, hint, environ[variable], variable), f"from {variable}")
    for key, value in _flatten(cls, overrides):
        take(key, key, value, "given as a keyword")
    try:
        loaded: S = _assemble(cls, values)
    except ConfigError as error:
        given = ", ".join(f"{key} {origins.get(key, 'is the default')}" for key in error.keys)
        raise ConfigError(f"{error.message} ({given})", error.hint, code=error.code, keys=error.keys) from None
    return loaded


def tables(cls: type[S], name: str, *, path: Path | None) -> tuple[S, ...]:
    """Read a list of tables that stands in the file by itself, each `[[name]]` one settings object.

    Raises:
        ConfigError: It is no such list, or one of them breaks a rule.
    """
    value = _document(path).get(name)
    return () if value is None else _rows(cls, name, value, f"from {path}")


def config_path(explicit: str | Path | None, environ: Mapping[str, str]) -> Path | None:
    """Find the configuration file: the one named, else the user's own if there is one.

    Raises:
        ConfigError: A file was named that does not exist, or its folder may not be looked into.
    """
    if explicit is not None:
        path = Path(explicit).expanduser()
    else:
        path = _base_directory(environ, "XDG_CONFIG_HOME", ".config") / "holdfast" / FILE_NAME
    try:
        found = stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        found = False
    except OSError as error:
        raise _unreadable(path, error) from error
    if explicit is not None and not found:
        raise ConfigError(f"no configuration file at {path}", "check --config", code="config.missing_file")
    return path if found else None


def ledger_target(explicit: str | Path | None, path: Path | None, environ: Mapping[str, str]) -> str:
    """Choose the ledger: the one named, else `HOLDFAST_DB`, else `db` in the file, else the user's own.

    A relative path in the file is relative to the file, so it names one ledger wherever a command runs.

    Returns:
        A path, `:memory:` or a URL.

    Raises:
        ConfigError: `db` in the file is no text, or empty.
    """
    if explicit is not None:
        return str(explicit)
    if environ.get("HOLDFAST_DB"):
        return environ["HOLDFAST_DB"]
    configured = _document(path).get("db")
    if configured is not None:
        if not isinstance(configured, str) or not configured:
            raise ConfigError(f"db is not a path or URL (from {path})", "write it as text in quotes", keys=("db",))
        if path is None or in_memory(configured) or "://" in configured:
            return configured
        return str(path.absolute().parent / Path(configured).expanduser())
    return str(_base_directory(environ, "XDG_DATA_HOME", ".local/share") / "holdfast" / "holdfast.db")


def in_memory(target: str) -> bool:
    """Say whether a ledger's name is one that SQLite has for a database that ends with the process.

    Example:
        >>> [in_memory(name) for name in (":memory:", "file::memory:?cache=shared", "file:x?mode=memory", "", "x.db")]
        [True, True, True, True, False]
    """
    if not target.startswith("file:"):
        return target in ("", ":memory:")
    from urllib.parse import unquote  # which nobody else needs

    name, _, query = unquote(target.removeprefix("file:")).partition("#")[0].partition("?")
    return name in ("", ":memory:") or "mode=memory" in query.split("&")


def state_directory(path: Path | None, environ: Mapping[str, str]) -> Path:
    """Choose the directory of what is kept beside the ledger: `state_dir` in the file, else the user's own.

    A relative path in the file is relative to the file. The directory need not exist.

    Raises:
        ConfigError: `state_dir` in the file is no text, or empty.
    """
    configured = _document(path).get("state_dir")
    if configured is None:
        return _base_directory(environ, "XDG_STATE_HOME", ".local/state") / "holdfast"
    if not isinstance(configured, str) or not configured or path is None:
        raise ConfigError(f"state_dir is not a path (from {path})", "write it as text in quotes", keys=("state_dir",))
    return path.absolute().parent / Path(configured).expanduser()


def prepare_folder(target: str, environ: Mapping[str, str]) -> None:
    """Make the folder of the user's own ledger, if that is the target; any other folder has to be there.

    Raises:
        ConfigError: It cannot be made.
    """
    own = {name: value for name, value in environ.items() if name != "HOLDFAST_DB"}
    if target == ledger_target(None, None, own):
        try:
            Path(target).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            message = f"the folder of {target} cannot be made: {error.strerror}"
            raise ConfigError(message, "make it, or name another ledger") from error


def _base_directory(environ: Mapping[str, str], variable: str, default: str) -> Path:
    named = Path(environ.get(variable, ""))
    if named.is_absolute():  # the base directory specification has relative ones ignored
        return named
    home = environ.get("HOME")
    return (Path(home) if home else Path.home()) / default


def _document(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise ConfigError(f"{path} is not TOML: {error}", "correct the file", code="config.unreadable") from error


def _unreadable(path: Path, error: OSError) -> ConfigError:
    message = f"cannot read {path}: {error.strerror}"
    return ConfigError(message, "check that it is a readable file", code="config.unreadable")


def _section(path: Path | None, section: str) -> dict[str, Any]:
    table = _document(path)
    for name in section.split("."):
        inner = table.get(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{section} in {path} is not a section", f"write it as [{section}]", keys=(section,))
        table = inner
    return table


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _group(cls: Any, name: str) -> Any:
    """The settings class that a field holds, or None if it holds a value."""
    hint = _hints(cls).get(name)
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


@functools.cache
def _leaves(cls: Any) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """All settings with their types; those of a settings class within this one by dotted keys."""
    leaves: dict[str, tuple[dataclasses.Field[Any], Any]] = {}
    for name, field in cls.__dataclass_fields__.items():
        if group := _group(cls, name):
            leaves |= {f"{name}.{key}": leaf for key, leaf in _leaves(group).items()}
        else:
            leaves[name] = (field, _hints(cls)[name])
    return leaves


def _flatten(cls: type[Any], values: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The values by dotted key; tables, and settings objects, stand for the keys within them."""
    for name, value in values.items():
        group = _group(cls, name)
        if group is None:
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}.{key}", inner) for key, inner in _flatten(group, value))
        elif isinstance(value, group):
            yield from ((f"{name}.{key}", inner) for key, inner in _flatten(group, vars(value)))
        else:
            raise ConfigError(f"{name} is not a group of settings", f"give a table or a {group.__name__}", keys=(name,))


def _assemble(cls: type[Any], values: Mapping[str, object]) -> Any:
    arguments: dict[str, object] = {}
    for name in cls.__dataclass_fields__:
        if group := _group(cls, name):
            inner = {key[len(name) + 1 :]: value for key, value in values.items() if key.startswith(f"{name}.")}
            arguments[name] = _assemble(group, inner)
        elif name in values:
            arguments[name] = values[name]
    return cls(**arguments)


def _known(known: Mapping[str, object], key: str, shown: str, origin: str) -> None:
    if key not in known:
        raise ConfigError(
            f"unknown setting {shown} ({origin})",
            f"known are {', '.join(known)}",
            code="config.unknown_key",
            keys=(key,),
        )


def _row(hint: Any) -> Any:
    """The settings class of a list of tables, or None for another type."""
    inner = get_args(hint)[0] if get_origin(hint) is tuple else None
    return inner if dataclasses.is_dataclass(inner) else None


def _rows(cls: Any, shown: str, value: object, origin: str) -> tuple[Any, ...]:
    """Read a list of tables; what is said of one names it by its number."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ConfigError(f"{shown} is not a list of tables ({origin})", f"write each as [[{shown}]]", keys=(shown,))
    known = _leaves(cls)
    found = []
    for number, table in enumerate(value):
        values: dict[str, object] = {}
        for key, item in table.items():
            name = f"{shown}[{number}].{key}"
            _known(known, key, name, origin)
            values[key] = _from_toml(known[key][1], item)
            _check_value(name, *known[key], values[key], origin)
        for key, (field, _) in known.items():
            if key not in values and field.default is dataclasses.MISSING:
                raise ConfigError(f"{shown}[{number}] has no {key} ({origin})", f"give it {key}", keys=(key,))
        try:
            found.append(cls(**values))
        except ConfigError as error:
            message = f"{shown}[{number}]: {error.message} ({origin})"
            raise ConfigError(message, error.hint, code=error.code, keys=error.keys) from None
    return tuple(found)


def _choices(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(hint: Any, value: object) -> bool:
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(get_args(hint)[0], item) for item in value)
    if get_origin(hint) is Mapping:
        name, inner = get_args(hint)
        return isinstance(value, Mapping) and all(_fits(name, k) and _fits(inner, v) for k, v in value.items())
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _check_value(name: str, field: dataclasses.Field[Any], hint: Any, value: object, origin: str) -> None:
    where = f" ({origin})" if origin else ""
    if not any(_fits(choice, value) for choice in _choices(hint)):
        raise ConfigError(f"{name} is not {_wanted(hint)}{where}", f"give {_wanted(hint)}", keys=(name,))
    low, high = field.metadata.get("minimum"), field.metadata.get("maximum")
    if isinstance(value, int) and ((low is not None and value < low) or (high is not None and value > high)):
        ends = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
        raise ConfigError(
            f"{name} is {value}, but has to be {' and '.join(ends)}{where}",
            f"give a value that is {' and '.join(ends)}",
            code="config.out_of_range",
            keys=(name,),
        )


def _wanted(hint: Any) -> str:
    names = {int: "a whole number", bool: "true or false", str: "text", Path: "a path", type(None): "none"}

    def one(choice: Any) -> str:
        if get_origin(choice) is Literal:
            return "one of " + ", ".join(get_args(choice))
        if get_origin(choice) is tuple:
            return "a list of texts" if _row(choice) is None else "a list of tables"
        if get_origin(choice) is Mapping:
            return "a table of whole numbers"
        return names.get(choice, str(choice))

    return " or ".join(one(choice) for choice in _choices(hint))


def _from_toml(hint: Any, value: object) -> object:
    """What TOML has no type for: tuples and paths."""
    choices = _choices(hint)
    if isinstance(value, list) and any(get_origin(choice) is tuple for choice in choices):
        return tuple(value)
    if isinstance(value, str) and Path in choices:
        return Path(value).expanduser()
    return value


def _from_text(key: str, hint: Any, text: str, variable: str) -> object:
    """Read an environment variable as the field's type; lists are comma-separated, empty is none."""
    choices = _choices(hint)
    if not text and type(None) in choices:
        return None
    if bool in choices:
        word = text.strip().lower()
        if word not in ("true", "false", "1", "0"):
            raise ConfigError(f"{key} is not true or false (from {variable})", "write true or false", keys=(key,))
        return word in ("true", "1")
    if int in choices:
        try:
            return int(text)
        except ValueError:
            message = f"{key} is not a whole number (from {variable})"
            raise ConfigError(message, "write digits only", keys=(key,)) from None
    if any(get_origin(choice) is tuple for choice in choices):
        return tuple(item.strip() for item in text.split(",") if item.strip())
    return _from_toml(hint, text)
