"""Run one case of one contender in this process and print its sample as the last line.

    python bench/worker.py CONTENDER CASE JOB

`durable.py` starts one of these per trial, so that no contender lives with the threads, caches and garbage
of another.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib import import_module

from workload import Case, Job

CASES = {
    "holdfast": ("ours", "CASES"),
    "dbos": ("peers", "DBOS_CASES"),
    "langgraph": ("peers", "LANGGRAPH_CASES"),
    "raw": ("raw", "CASES"),
}


def main(contender: str, case: str, job: str) -> None:
    """Run the case and print the sample."""
    module, name = CASES[contender]
    cases: dict[str, Case] = getattr(import_module(module), name)
    print(json.dumps(asdict(cases[case](Job.from_json(job)))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
