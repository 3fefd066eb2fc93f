"""RESULTS.md: the one place that keeps what was measured, each benchmark between marks of its own."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_into"]

RESULTS = Path(__file__).parent / "RESULTS.md"


def write_into(name: str, text: str) -> None:
    """Replace what a benchmark has written before."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, marked, rest = RESULTS.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (marked and closed):
        raise SystemExit(f"{RESULTS.name} has no marks for {name}")
    RESULTS.write_text(f"{before}{begin}\n{text}\n{end}{after}")
