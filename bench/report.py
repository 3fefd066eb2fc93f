"""What the samples say: ratios, the goals they are to reach, and the table.

The table is Markdown. Figures are medians over the repeats; a figure nobody measured is left out.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from workload import IN_FLIGHT, VALUE_BYTES, Sample, Sizes


@dataclass
class Findings:
    """The samples of a run, by database and by contender and case (`dbos.replay`)."""

    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=lambda: defaultdict(list))
    import_ms: list[float] = field(default_factory=list)

    def rates(self, database: str, key: str) -> list[float]:
        return [sample.rate for sample in self.samples.get((database, key), ())]

    def extras(self, database: str, key: str, name: str) -> list[float]:
        return [sample.extra[name] for sample in self.samples.get((database, key), ())]

    def ratio(self, database: str, over: str, under: str) -> float | None:
        """Median rate of one over that of the other; None if either was not measured."""
        rates, others = self.rates(database, over), self.rates(database, under)
        return statistics.median(rates) / statistics.median(others) if rates and others else None

    def ratios(self, database: str) -> dict[str, float]:
        """The ratios that were measured; `growth` is a ratio of costs, the others are of rates."""
        found = {
            "sequential": self.ratio(database, "holdfast.sequential", "dbos.sequential"),
            "concurrent32": self.ratio(database, "holdfast.concurrent32", "dbos.concurrent32"),
            "concurrent100": self.ratio(database, "holdfast.concurrent100", "dbos.concurrent100"),
            "guarded": self.ratio(database, "holdfast.guarded", "holdfast.unguarded"),
            "replay": self.ratio(database, "holdfast.replay", "dbos.replay"),
            "raw_share": self.ratio(database, "holdfast.unguarded", "raw.limit"),
            "growth": self.ratio(database, "holdfast.small", "holdfast.large"),
        }
        return {name: round(ratio, 3) for name, ratio in found.items() if ratio is not None}

    def p99_ms(self, database: str) -> dict[str, float]:
        """Median p99 of a step's latency with 32 executions in flight, in an idle and in a saturated loop."""
        found = {name: self.extras(database, f"holdfast.{case}", "p99_ms") for name, case in LOOPS}
        return {name: round(statistics.median(values), 2) for name, values in found.items() if values}

    def summary(self, databases: list[str]) -> dict[str, object]:
        """The object that ends the output of `--json`."""
        return {
            "ratios": {name: self.ratios(name) for name in databases},
            "p99_ms": {name: self.p99_ms(name) for name in databases},
            "import_ms": round(statistics.median(self.import_ms), 1) if self.import_ms else None,
        }


@dataclass(frozen=True)
class Goal:
    """A bound on a figure; a database without one has no goal."""

    sqlite: float | None = None
    postgres: float | None = None
    at_most: bool = False

    def verdict(self, database: str, figure: float) -> str:
        bound = self.postgres if database == "postgres" else self.sqlite
        if bound is None:
            return ""
        reached = figure <= bound if self.at_most else figure >= bound
        return f"{'<=' if self.at_most else '>='} {bound:,g}: {'reached' if reached else '**missed**'}"


GOALS = {
    "sequential": Goal(8, 6),
    "concurrent32": Goal(60, 50),
    "concurrent100": Goal(90, 70),
    "guarded": Goal(0.45, 0.45),
    "replay": Goal(30, 20),
    "replay_rate": Goal(100_000),
    "raw_share": Goal(0.25, 0.25),
    "growth": Goal(1.2, 1.2, at_most=True),
    "idle": Goal(10, 10, at_most=True),
    "saturated": Goal(20, at_most=True),
    "import": Goal(150, at_most=True),
}

LOOPS = (("idle", "unguarded"), ("saturated", "saturated"))
"""What else the event loop does while step latencies are taken, and the case that shows it."""

PEER_ROWS = {
    "sequential": "one execution, {steps:,} steps",
    "concurrent32": "{executions:,} executions of {executions_steps} steps, 32 in flight",
    "concurrent100": "the same, 100 in flight",
    "replay": "replay of {replay:,} steps",
}


def report(findings: Findings, sizes: Sizes, databases: dict[str, str], repeats: int) -> Iterator[str]:
    """Yield the lines of the results; `databases` tells what each database is."""
    versions = ", ".join(f"{name} {_version(name)}" for name in ("holdfast", "dbos", "langgraph"))
    machine = f"Python {platform.python_version()}; {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    yield f"{versions}; {machine}; {'; '.join(databases.values())}. Load {os.getloadavg()[0]:.1f} at the end."
    yield f"Steps per second unless a row says otherwise: median (least to greatest) of {repeats}. A step returns a"
    yield f"dict of {VALUE_BYTES} bytes."
    for database in databases:
        yield from _peer_table(findings, sizes, database)
    yield from _own_table(findings, sizes, list(databases))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def _peer_table(findings: Findings, sizes: Sizes, database: str) -> Iterator[str]:
    ratios = findings.ratios(database)
    measured = [name for name in PEER_ROWS if name in ratios]
    if not measured:
        return
    yield f"\n| {database} | Holdfast | DBOS | LangGraph | against DBOS | goal |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name in measured:
        columns = [_spread(findings.rates(database, f"{who}.{name}")) for who in ("holdfast", "dbos", "langgraph")]
        goal = GOALS[name].verdict(database, ratios[name])
        if name == "replay":
            rate = statistics.median(findings.rates(database, "holdfast.replay"))
            goal = "; ".join(filter(None, (goal, GOALS["replay_rate"].verdict(database, rate))))
        title = PEER_ROWS[name].format(**vars(sizes))
        yield f"| {title} | {' | '.join(columns)} | {ratios[name]:.1f}x | {goal} |"


def _own_table(findings: Findings, sizes: Sizes, databases: list[str]) -> Iterator[str]:
    rows = [(database, *row) for database in databases for row in _own_rows(findings, sizes, database)]
    if findings.import_ms:
        title = "`import holdfast`, ms, less a process that does nothing"
        rows.append(("", title, _spread(findings.import_ms), "import", statistics.median(findings.import_ms)))
    if not rows:
        return
    yield "\n| | | measured | figure | goal |"
    yield "| --- | --- | --- | --- | --- |"
    for database, title, measured, name, figure in rows:
        goal = GOALS[name].verdict(database, figure) if name else ""
        yield f"| {title} | {database} | {measured} | {figure:,.2f} | {goal} |"


def _own_rows(findings: Findings, sizes: Sizes, database: str) -> Iterator[tuple[str, str, str, float]]:
    """Yield title, what was measured, name of the goal, and figure of the rows that need no peer."""
    ratios, p99 = findings.ratios(database), findings.p99_ms(database)

    def rates(key: str) -> str:
        return _spread(findings.rates(database, key))

    if "guarded" in ratios:
        measured = f"{rates('holdfast.guarded')} over {rates('holdfast.unguarded')}"
        yield f"guarded over unguarded steps, {IN_FLIGHT} in flight", measured, "guarded", ratios["guarded"]
    if "raw_share" in ratios:
        batch = _spread(findings.extras(database, "holdfast.unguarded", "batch"))
        measured = f"{rates('holdfast.unguarded')} over {rates('raw.limit')} in batches of {batch}"
        yield f"journal rows over the raw limit, {IN_FLIGHT} in flight", measured, "raw_share", ratios["raw_share"]
        commits_ms = [1e3 / rate for rate in findings.rates(database, "raw.one_row")]
        yield "*c*, a bare commit of one row, ms", _spread(commits_ms), "", statistics.median(commits_ms)
    for name, case in LOOPS:
        if name in p99:
            measured = _spread(findings.extras(database, f"holdfast.{case}", "p99_ms"))
            yield f"p99 of a step, ms, {IN_FLIGHT} in flight, {name} loop", measured, name, p99[name]
    if "growth" in ratios:
        measured = f"{rates('holdfast.large')} against {rates('holdfast.small')}"
        title = f"cost of a step with {sizes.growth_large:,} rows over that with {sizes.growth_small:,}"
        yield title, measured, "growth", ratios["growth"]


def _spread(values: list[float]) -> str:
    """Show a median and, behind it, the least and the greatest."""
    if not values:
        return ""
    median = statistics.median(values)
    digits = 0 if median >= 100 else 2
    if len(values) == 1:
        return f"{median:,.{digits}f}"
    return f"{median:,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
