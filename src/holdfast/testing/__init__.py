"""Test support for programs that use Holdfast, and for Holdfast itself.

`ManualClock` puts a test in charge of time, `crash` makes a process die, or seem to, at a named point,
and `WriterFaults` lets the journal fail.
"""

from holdfast.core.points import Crashed
from holdfast.testing.clock import ManualClock
from holdfast.testing.crash import WriterFaults, crash, crash_points

__all__ = ["Crashed", "ManualClock", "WriterFaults", "crash", "crash_points"]
