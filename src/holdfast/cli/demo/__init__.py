"""`holdfast demo`: real processes, killed at random moments, that finish their work with every effect once."""

from __future__ import annotations

from pathlib import Path

__all__ = ["run_demo"]


def run_demo(*, json: bool, seed: int, turns: int, kills: int, keep: Path | None = None) -> int:
    """Run the demo and show what happened.

    Args:
        json: End with one JSON object on the last line of standard output; progress goes to standard error.
        seed: Decides orders and moments of the kills.
        turns: How many orders the agent has to fulfil, at least 1.
        kills: How often a process is killed with SIGKILL, at least 1.
        keep: Leave ledger, books and logs in this folder instead of a temporary one.

    Returns:
        The exit code: 0 when everything happened once, 1 when not, 2 for a size that makes no demo.
    """
    # Imported here because the demo's own processes import this package first, and they start often.
    from holdfast.cli.demo.stage import run

    return run(json=json, seed=seed, turns=turns, kills=kills, keep=keep)
