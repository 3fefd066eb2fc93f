"""What was measured of captured sessions, what it is held against, and the table of it."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import dataclass, field

from report import _spread, _version

LIMITS = {
    "sqlite_http": (">=", 0.25), "postgres_http": (">=", 0.25), "list_growth": ("<=", 3.0),
    "accepted_over_phoenix": (">=", 1.0), "http": (">=", 2000.0), "burst": (">=", 800.0),
    "sustained_p99_ms": ("<=", 50.0), "sustained_behind_s": ("<=", 1.0), "sqlite_recorded_s": ("<=", 1.0),
    "growth": ("<=", 3.0), "page_many_ms": ("<=", 100.0), "large": ("<=", 4.0),
}  # fmt: skip

CASES = {
    "raw": "raw group commit of the same bytes, 64 in flight",
    "raw packed": "raw group commit of the rows that are stored, bodies compressed",
    "driver": "the bare driver, 64 in a commit",
    "receive": "taken in process, 64 in flight",
    "http": "taken over HTTP, 64 clients",
    "http alone": "taken over HTTP, one client",
    "http recorded": "recorded calls taken over HTTP, 64 clients",
    "burst": "a burst over HTTP, 64 clients, deriving meanwhile",
    "derive made 1": "turns made of calls of 4 KiB, one worker",
    "derive made 2": "the same, two workers",
    "derive recorded 1": "turns made of recorded calls, one worker",
    "derive recorded 2": "the same, two workers",
    "nobody": "answers of a server that does nothing to the same client",
    "acknowledged batch": "Phoenix: spans acknowledged, batch processor",
    "rows batch": "Phoenix: of these in its database",
    "acknowledged simple": "Phoenix: spans acknowledged, simple processor",
    "rows simple": "Phoenix: of these in its database, simple processor",
}

RATIOS = {
    "sqlite_http": "taken over HTTP over raw group commit, 64 clients, sqlite",
    "postgres_http": "taken over HTTP over raw group commit, 64 clients, postgres",
    "sqlite_in_process": "taken in process over raw group commit, 64 in flight, sqlite",
    "postgres_in_process": "taken in process over raw group commit, 64 in flight, postgres",
    "list_growth": "p99 of the list of sessions, 100,000 over 1,000",
    "accepted_over_phoenix": "calls taken in over spans in Phoenix's database, a second",
    "derived_over_phoenix": "turns made over spans in Phoenix's database, a second",
}

FIGURES = {
    "sustained_p50_ms": "p50 of the answer at 250 calls a second, ms",
    "sustained_p99_ms": "p99 of the answer at 250 calls a second, ms",
    "sustained_behind_s": "until all of them were turns, after the last, s",
    "sqlite_recorded_s": "the recorded session made turns of, sqlite, s",
    "postgres_recorded_s": "the recorded session made turns of, postgres, s",
    "growth": "deriving turn 2,000 of a session over turn 20, a byte of the request",
    "page_few_ms": "p99 of the first page of 1,000 sessions, ms",
    "page_many_ms": "p99 of the first page of 100,000 sessions, ms",
    "by_cost_many_ms": "the same by cost, ms",
    "of_model_many_ms": "the same of one model, ms",
    "stored": "bytes of the ledger per captured byte, the recorded session",
    "stored_packed": "the same once packed",
    "stored_bodies_packed": "of these the bodies",
    "large": "memory that one call of 45 MB takes, of its size",
    "phoenix_lost": "acknowledged spans that Phoenix has not after a kill, of all",
    "sqlite_http_server_ms": "processor time of the server for a call, 64 clients, sqlite, ms",
    "sqlite_http_recorded_server_ms": "the same for a recorded call, ms",
    "postgres_http_server_ms": "the same for a call, postgres, without the database's own, ms",
    "client_ms": "processor time of the client for a call, ms",
}


@dataclass
class Found:
    """What was measured: a second, by database and case; and figures by name."""

    rates: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    figures: dict[str, list[float]] = field(default_factory=dict)

    def note(self, database: str, case: str, value: float) -> None:
        self.rates.setdefault((database, case), []).append(value)

    def figure(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)

    def told(self) -> dict[str, float]:
        """Medians of the figures."""
        return {name: round(statistics.median(values), 4) for name, values in self.figures.items()}

    def _over(self, one: tuple[str, str], other: tuple[str, str]) -> float | None:
        rates, others = self.rates.get(one), self.rates.get(other)
        return statistics.median(rates) / statistics.median(others) if rates and others else None

    def ratios(self) -> dict[str, float]:
        found: dict[str, float | None] = {}
        for database in ("sqlite", "postgres"):
            found[f"{database}_http"] = self._over((database, "http"), (database, "raw"))
            found[f"{database}_in_process"] = self._over((database, "receive"), (database, "raw"))
        figures = self.told()
        if "page_many_ms" in figures:
            found["list_growth"] = figures["page_many_ms"] / figures["page_few_ms"]
        peer = "phoenix", "rows batch"
        found["accepted_over_phoenix"] = self._over(("sqlite", "http"), peer)
        found["derived_over_phoenix"] = self._over(("sqlite", "derive made 2"), peer)
        return {name: round(ratio, 3) for name, ratio in found.items() if ratio is not None}


def report(found: Found, about: str) -> list[str]:
    """Return the lines of the results."""
    versions = ", ".join(f"{name} {_version(name)}" for name in ("holdfast", "arize-phoenix"))
    machine = f"Python {platform.python_version()}; {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    lines = [f"{versions}; {machine}; {about}. Load {os.getloadavg()[0]:.1f} at the end."]
    if found.rates:
        lines += ["", "| a second | database | measured | goal |", "| --- | --- | --- | --- |"]
        for (database, case), rates in found.rates.items():
            goal = _verdict(case, statistics.median(rates)) if database == "sqlite" else ""
            lines.append(f"| {CASES[case]} | {database} | {_spread(rates)} | {goal} |")
    lines += ["", "| ratio | figure | goal |", "| --- | --- | --- |"]
    lines += [f"| {RATIOS[name]} | {ratio:.2f} | {_verdict(name, ratio)} |" for name, ratio in found.ratios().items()]
    lines += ["", "| | measured | goal |", "| --- | --- | --- |"]
    told = found.told()
    for name, title in FIGURES.items():
        if name in told:
            lines.append(f"| {title} | {_spread(found.figures[name])} | {_verdict(name, told[name])} |")
    return lines


def _verdict(name: str, figure: float) -> str:
    if name not in LIMITS:
        return ""
    sign, bound = LIMITS[name]
    reached = figure <= bound if sign == "<=" else figure >= bound
    return f"{sign} {bound:,g}: {'reached' if reached else '**missed**'}"
