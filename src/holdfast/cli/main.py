"""The program `holdfast`: from its arguments to its exit code.

This is the one place that turns errors into messages and exit codes; commands raise, or `typer.Exit`.

    0    ok
    1    the answer is no: an unknown id, no open decision, problems found, an execution that failed
    2    wrong usage or configuration
    3    unreadable input: no ledger, not a ledger, a database that cannot be reached
    130  interrupted (Ctrl-C); 143 terminated; 141 whoever read the output went away

Invariants:
    - Nobody sees a traceback for a `HoldfastError`, a mistyped command or an interrupt.
    - Without the extra `cli` the program says so, instead of failing to import.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from holdfast.core.errors import HoldfastError

try:
    import rich  # noqa: F401 - asked for here, where its absence can be told in words
    import typer

    from holdfast.cli.commands import app
except ModuleNotFoundError as error:
    if error.name not in {"typer", "rich"}:
        raise
    _missing = error.name
else:
    _missing = ""

__all__ = ["invoke", "main"]

OK, NO, USAGE, UNREADABLE = 0, 1, 2, 3
INTERRUPTED, READER_GONE, TERMINATED = 130, 141, 143

# What a code means for whoever called the program; the longest prefix wins.
_EXIT_CODES = {
    "config.": USAGE,
    "limit.": USAGE,
    "durable.": NO,
    "idempotency.": NO,
    "lifecycle.": NO,
    "sessions.": NO,
    "sessions.invalid_field": USAGE,
    "sessions.invalid_query": USAGE,
    "sessions.cursor_mismatch": USAGE,
    "sessions.no_price_source": USAGE,
    "sessions.store_unavailable": UNREADABLE,
    "sessions.disk_full": UNREADABLE,
    "server.invalid_field": USAGE,
    "lifecycle.undecodable_document": UNREADABLE,
    "lifecycle.settings_unreadable": UNREADABLE,
    "durable.disabled": USAGE,
    "durable.policy_required": USAGE,
    "durable.unknown_kind": USAGE,
    "codec.cursor": USAGE,
    "": UNREADABLE,
}


def main() -> NoReturn:
    """Run the program and end the process."""
    code = invoke(sys.argv[1:])
    if code == READER_GONE:
        # What is still buffered has no reader; flushing it at the end of the interpreter would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if code in (INTERRUPTED, TERMINATED) and threading.active_count() > 1:
        # A plain function's thread cannot be stopped, and the interpreter would wait for it. The ledger is closed.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def invoke(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code."""
    if _missing:
        sys.stderr.write(f"error: the command line needs {_missing}\nhint: pip install 'holdfast[cli]'\n")
        return USAGE
    from holdfast.cli.ledger import Terminated
    from holdfast.cli.render import complain
    from holdfast.core.errors import HoldfastError

    # typer exports the leaf of its own errors only; their root knows message and context.
    usage_error: type[Exception] = typer.BadParameter.__mro__[2]
    try:
        answer = app(args=list(arguments), prog_name="holdfast", standalone_mode=False)
        sys.stdout.flush()
    except HoldfastError as error:
        complain(error.message, _raised_at(error) or error.hint)
        return exit_code(error)
    except usage_error as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "holdfast")
        complain(getattr(error, "format_message", error.__str__)(), f"{command} --help")
        return USAGE
    except BrokenPipeError:
        return READER_GONE
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # typer makes an exit of it, with a code of its own
            return READER_GONE
        raise
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Terminated:
        return TERMINATED
    return answer if isinstance(answer, int) else OK


def _raised_at(error: HoldfastError) -> str:
    """Say where the user's program raised what ended its execution."""
    if error.code != "durable.execution_failed" or error.__cause__ is None:
        return ""
    import traceback

    frames = traceback.extract_tb(error.__cause__.__traceback__)
    own = os.path.dirname(os.path.dirname(__file__)) + os.sep
    places = [f"{frame.filename}:{frame.lineno}" for frame in frames if not frame.filename.startswith(own)]
    return f"it was raised at {places[-1]}" if places else ""


def exit_code(error: HoldfastError) -> int:
    """Choose the exit code that an error ends the program with."""
    prefix = max((known for known in _EXIT_CODES if error.code.startswith(known)), key=len)
    return _EXIT_CODES[prefix]
