"""Durable execution side by side: Holdfast, DBOS, LangGraph, and what the databases can do at best.

    python bench/durable.py [--json] [--quick] [--only NAME]... [--on DATABASE]... [--repeats N] [--write]

Every trial runs in a process and a database of its own. The trials of all contenders follow one another and
the whole round is repeated, so that a noisy minute hits everybody. The results go to standard output as
Markdown, progress to standard error. With `--json` the last line of the output is one object with the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ledgers import Ledgers, Postgres, Sqlite
from report import Findings, report
from results import write_into
from workload import CRASHED, Job, Sample, Sizes

HERE = Path(__file__).parent
TRIAL_SECONDS_MAX = 900


@dataclass(frozen=True)
class Trial:
    """One contender doing one thing once.

    Attributes:
        contender: Who.
        case: What it is asked to do.
        start: The database it starts in: an empty one (`fresh`), a copy of what its own crash left (`crashed`),
            the ledger that `UNGUARDED` has just filled (`filled`), or the one kept for growth (`small`, `large`).
        only_on: The one database it runs on; empty: on every.
    """

    contender: str
    case: str
    start: str = "fresh"
    only_on: str = ""

    @property
    def key(self) -> str:
        """What its samples are filed under."""
        return f"{self.contender}.{self.start if self.start in ('small', 'large') else self.case}"


UNGUARDED = Trial("holdfast", "unguarded")


def _against_peers(case: str, start: str = "fresh") -> tuple[Trial, ...]:
    return (
        Trial("holdfast", case, start),
        Trial("dbos", case, start),
        Trial("langgraph", case, start, only_on="sqlite"),
    )


FIGURES: dict[str, tuple[Trial, ...]] = {
    "sequential": _against_peers("sequential"),
    "concurrent32": _against_peers("concurrent32"),
    "concurrent100": _against_peers("concurrent100"),
    "guarded": (UNGUARDED, Trial("holdfast", "guarded")),
    "replay": _against_peers("replay", start="crashed"),
    "raw_share": (UNGUARDED, Trial("raw", "limit", "filled"), Trial("raw", "one_row", "filled")),
    "p99": (UNGUARDED, Trial("holdfast", "saturated")),
    "growth": (Trial("holdfast", "sequential", "small"), Trial("holdfast", "sequential", "large")),
    "import": (),
}
"""What `--only` can ask for, and the trials it takes."""


class Bench:
    """Runs trials and keeps what they found."""

    def __init__(self, sizes: Sizes) -> None:
        self.findings = Findings()
        self._sizes = sizes
        self._kept: dict[tuple[str, str], str] = {}

    def round(self, ledgers: Ledgers, trials: list[Trial]) -> None:
        """Run every trial once on one kind of database."""
        for trial in trials:
            if trial.only_on in ("", ledgers.name):
                sample = self._run(ledgers, trial)
                self.findings.samples[ledgers.name, trial.key].append(sample)
                extra = " ".join(f"{name} {number:.2f}" for name, number in sample.extra.items())
                _say(f"{ledgers.name:9} {trial.key:24} {sample.rate:10,.0f}/s  {extra}")
        filled = self._kept.pop((ledgers.name, "filled"), None)
        if filled is not None:
            ledgers.drop(filled)

    def imports(self) -> None:
        """Time `import holdfast`: the wall of a process that does, less that of one that does nothing."""
        nothing, imported = [], []
        for _ in range(self._sizes.imports):
            nothing.append(_wall_seconds("pass"))
            imported.append(_wall_seconds("import holdfast"))
        self.findings.import_ms = [(seconds - statistics.median(nothing)) * 1e3 for seconds in imported]

    def _run(self, ledgers: Ledgers, trial: Trial) -> Sample:
        match trial.start:
            case "fresh":
                target = ledgers.fresh()
            case "crashed":
                target = ledgers.copy(self._crashed(ledgers, trial.contender))
            case "filled":
                target = self._kept[ledgers.name, "filled"]
            case _:
                target = self._seeded(ledgers, trial.start)
        batch = 0
        if trial.contender == "raw":
            batch = round(self.findings.samples[ledgers.name, UNGUARDED.key][-1].extra["batch"])
        sample = work(trial.contender, trial.case, Job(target, self._sizes, batch))
        if trial == UNGUARDED:
            self._kept[ledgers.name, "filled"] = target
        elif trial.start in ("fresh", "crashed"):
            ledgers.drop(target)
        return sample

    def _crashed(self, ledgers: Ledgers, contender: str) -> str:
        """Return the database in which a contender died once, just before the end."""
        name = ledgers.name, f"crashed {contender}"
        if name not in self._kept:
            target = self._kept[name] = ledgers.fresh()
            _say(f"{ledgers.name:9} {contender} records {self._sizes.replay:,} steps and dies")
            work(contender, "crash", Job(target, self._sizes), status=CRASHED)
            if contender == "holdfast":
                work("raw", "expire", Job(target, self._sizes))
        return self._kept[name]

    def _seeded(self, ledgers: Ledgers, size: str) -> str:
        """Return the small or the large ledger for growth; the rounds share it."""
        name = ledgers.name, size
        if name not in self._kept:
            target = self._kept[name] = ledgers.fresh()
            job = Job(target, self._sizes)
            work("holdfast", "seed", job)
            if size == "large":
                _say(f"{ledgers.name:9} a ledger grows to {self._sizes.growth_large:,} journal rows")
                rows = work("raw", "grow", job).count
                assert rows >= self._sizes.growth_large, f"{rows} rows"
        return self._kept[name]


def work(contender: str, case: str, job: Job, *, status: int = 0) -> Sample:
    """Let a contender do a case in a process of its own, which must end with the given status."""
    done = subprocess.run(
        [sys.executable, HERE / "worker.py", contender, case, job.to_json()],
        capture_output=True,
        check=False,
        text=True,
        timeout=TRIAL_SECONDS_MAX,
    )
    if done.returncode != status:
        raise SystemExit(f"{contender} {case}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return Sample(**json.loads(done.stdout.splitlines()[-1])) if status == 0 else Sample(0, 0.0)


def _wall_seconds(program: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - started


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="end with the ratios as one JSON object")
    parser.add_argument("--quick", action="store_true", help="small and once: shows that it runs, not how fast")
    parser.add_argument("--only", action="append", choices=FIGURES, help="measure only this; may be repeated")
    parser.add_argument("--on", action="append", choices=("sqlite", "postgres"), help="use only this database")
    parser.add_argument("--repeats", type=int, help="rounds (default: 3; quick: 1)")
    parser.add_argument("--write", action="store_true", help="put the results into RESULTS.md")
    return parser.parse_args()


def main() -> None:
    """Measure what was asked for and print the results."""
    options = _options()
    sizes = Sizes.quick() if options.quick else Sizes()
    repeats = options.repeats or (1 if options.quick else 3)
    names = [name for name in FIGURES if name in (options.only or FIGURES)]
    # A trial that several figures need runs once a round.
    trials = list(dict.fromkeys(trial for name in names for trial in FIGURES[name]))
    bench = Bench(sizes)
    with ExitStack() as stack:
        chosen: list[Ledgers] = [each() for each in (Sqlite, Postgres) if each.name in (options.on or each.name)]
        databases = [stack.enter_context(ledgers) for ledgers in chosen]
        for number in range(repeats if trials else 0):
            _say(f"round {number + 1} of {repeats}, load {os.getloadavg()[0]:.1f}")
            for ledgers in databases:
                bench.round(ledgers, trials)
        if "import" in names:
            bench.imports()
        about = {ledgers.name: ledgers.about() for ledgers in databases}
    text = "\n".join(report(bench.findings, sizes, about, repeats))
    print(text)
    if options.write:
        write_into("durable", text)
    if options.json:
        print(json.dumps(bench.findings.summary(list(about))))


if __name__ == "__main__":
    main()
