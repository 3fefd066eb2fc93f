"""Test support for programs that use Holdfast, and for Holdfast itself.

`ManualClock` puts a test in charge of time, `crash` makes a process die, or seem to, at a named point,
`CrashingDatabase` at the n-th boundary to its store, and `WriterFaults` lets the journal fail. `assert_replayed` and
`assert_openapi_matches` look at what a guarded application answers and says of itself.
"""

from holdfast.core.points import Crashed
from holdfast.testing.boundaries import CrashingDatabase
from holdfast.testing.clock import ManualClock
from holdfast.testing.crash import WriterFaults, crash, crash_points
from holdfast.testing.openapi import assert_openapi_matches
from holdfast.testing.replays import assert_replayed

__all__ = [
    "Crashed",
    "CrashingDatabase",
    "ManualClock",
    "WriterFaults",
    "assert_openapi_matches",
    "assert_replayed",
    "crash",
    "crash_points",
]
