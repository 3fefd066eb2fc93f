"""Crash points: arming, passing, and what the environment may ask for."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from holdfast.core import points
from holdfast.core.errors import ConfigError
from holdfast.testing import Crashed, WriterFaults, crash, crash_points

POINT, OTHER = "test.here", "test.there"


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    before = set(points._registered)
    points.register(POINT, OTHER)
    yield
    points._registered.intersection_update(before)
    assert not points.armed


def test_a_point_acts_at_its_hit_and_only_then() -> None:
    calls: list[str] = []
    with crash(POINT, hit=2, action=lambda: calls.append("hit")) as armed:
        assert points.armed
        points.reach(OTHER)
        points.reach(POINT)
        assert (calls, armed.passed) == ([], 1)
        points.reach(POINT)
        points.reach(POINT)
    assert (calls, armed.passed) == (["hit"], 3)
    assert not points.armed
    points.disarm(armed)


def test_raise_drops_what_is_in_memory_first() -> None:
    class Engine:
        dropped = 0

        def drop(self) -> None:
            self.dropped += 1

    def also() -> None:
        dropped.append("function")

    dropped: list[str] = []
    kept, gone = Engine(), Engine()
    points.on_crash(kept.drop)
    points.on_crash(gone.drop)
    points.on_crash(also)
    del gone
    gc.collect()
    with pytest.raises(Crashed, match=POINT), crash(POINT, action="raise"):
        points.reach(POINT)
    assert kept.dropped == 1
    assert dropped == ["function"]
    assert not issubclass(Crashed, Exception)


def test_blocks_nest() -> None:
    calls: list[int] = []
    with crash(POINT, action=lambda: calls.append(1)):
        with crash(POINT, action=lambda: calls.append(2)):
            points.reach(POINT)
        assert points.armed
    assert calls == [1, 2]


def test_what_makes_no_sense_is_refused() -> None:
    for arguments in (("test.nowhere",), (POINT, 0), (POINT, 1, "explode")):
        with pytest.raises(ConfigError), crash(*arguments):
            pytest.fail("must not run")
    with pytest.raises(ConfigError, match="not registered"):
        points.reach("test.nowhere")


def test_all_points_are_listed_in_order() -> None:
    listed = crash_points()
    assert POINT in listed
    assert list(listed) == sorted(listed)


def run(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    code = f"from holdfast.core import points\npoints.register('a.b')\n{code}"
    path = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path, **environ}, capture_output=True, text=True, check=False
    )


TWICE = "for n in (1, 2):\n    if points.armed: points.reach('a.b')\n    print(n, flush=True)"


def test_the_environment_kills_at_the_named_pass() -> None:
    killed = run(TWICE, HOLDFAST_TESTING="1", HOLDFAST_TEST_CRASH="a.b:2")
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "1\n")


def test_the_environment_does_nothing_unless_it_says_that_this_is_a_test() -> None:
    assert run(TWICE, HOLDFAST_TEST_CRASH="a.b").stdout == "1\n2\n"


def test_the_environment_is_checked_before_anything_runs() -> None:
    for wrong in ("a.c", "a.b:0", "a.b:x", "a.b:"):
        outcome = run("points.verify()", HOLDFAST_TESTING="1", HOLDFAST_TEST_CRASH=wrong)
        assert "ConfigError: HOLDFAST_TEST_CRASH" in outcome.stderr
        assert "ConfigError: HOLDFAST_TEST_CRASH" in run(TWICE, HOLDFAST_TESTING="1", HOLDFAST_TEST_CRASH=wrong).stderr


def test_faults_are_passed_on_to_the_writer() -> None:
    calls: list[tuple[str, tuple[object, ...]]] = []

    class Recorder:
        def __getattr__(self, name: str) -> object:
            return self if name in {"database", "writer", "faults"} else lambda *given: calls.append((name, given))

    faults = WriterFaults(Recorder())
    faults.stall()
    faults.resume()
    faults.die()
    faults.fail_next(3)
    assert calls == [("stall", ()), ("resume", ()), ("die", ()), ("fail_next", (3,))]
