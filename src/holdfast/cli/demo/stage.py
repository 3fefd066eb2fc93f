"""Where a demo takes place: its folder, its console, its watchdog, its exit code."""

from __future__ import annotations

import faulthandler
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from holdfast.cli.demo.display import Display
from holdfast.cli.demo.supervisor import Supervisor, limit_seconds
from holdfast.cli.ledger import drive
from holdfast.core.clock import SystemClock

__all__ = ["run"]

_GRACE_SECONDS = 20.0
"""What a demo that has run into its limit is given to count what happened."""

_SIZES_MAX = 10_000
_NEEDED = ("fastapi", "httpx", "litestar", "uvicorn")


def run(*, json: bool, seed: int, turns: int, kills: int, keep: Path | None) -> int:
    """Run a demo; see `holdfast.cli.demo.run_demo`."""
    console = Console(stderr=json)
    if not (1 <= turns <= _SIZES_MAX and 1 <= kills <= _SIZES_MAX):
        console.print(f"a demo has between 1 and {_SIZES_MAX} turns and as many kills, not {turns} and {kills}")
        return 2
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        console.print(f"the demo's services need {', '.join(missing)}: pip install {' '.join(missing)}", markup=False)
        return 2
    if keep is not None and keep.exists() and any(keep.iterdir()):
        console.print(f"{keep} is not empty: what an earlier demo left there would be counted again", markup=False)
        return 2
    # Should even the event loop hang, this ends the process with exit code 1 and says where it hung.
    faulthandler.dump_traceback_later(limit_seconds(turns, kills) + _GRACE_SECONDS, exit=True)
    try:
        with _folder(keep) as folder, Display(console, SystemClock(), turns=turns, kills=kills) as display:
            supervisor = Supervisor(folder, seed=seed, turns=turns, kills=kills)
            figures, trouble = drive(supervisor.run(display))
    finally:
        faulthandler.cancel_dump_traceback_later()
    console.print(figures.table())
    if trouble:
        _complain(console, trouble)
    if json:
        sys.stdout.write(figures.json() + "\n")
        sys.stdout.flush()
    return 0 if figures.ok and not trouble else 1


def _complain(console: Console, trouble: str) -> None:
    console.print(f"the demo has failed: {trouble}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with TemporaryDirectory(prefix="holdfast-demo-") as name:
            yield Path(name)
    else:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
