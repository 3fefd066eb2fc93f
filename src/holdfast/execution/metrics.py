"""The counters of durable execution, named as the reference documents them."""

from __future__ import annotations

from holdfast.core.trace import Counter, Gauge, Histogram


class Metrics:
    """What this process has counted."""

    def __init__(self) -> None:
        prefix = "holdfast_durable_"
        self.steps = Counter(
            prefix + "steps_total", "Steps that ended, by effect class and outcome", "effect", "outcome"
        )
        self.ambiguities = Counter(prefix + "ambiguities_total", "Effects in doubt, by policy", "policy")
        self.divergences = Counter(prefix + "divergences_total", "Replays that met a changed program")
        self.degraded = Counter(prefix + "degraded_steps_total", "Steps that ran on without the journal")
        self.retries = Counter(prefix + "retries_total", "Failed attempts that another one follows")
        self.recoveries = Counter(prefix + "recoveries_total", "Executions taken over from dead owners")
        self.lease_lost = Counter(prefix + "lease_lost_total", "Executions lost to another owner")
        self.replay_seconds = Histogram(
            prefix + "replay_seconds", "From taking an execution over to its first live step"
        )
        self.executions = Gauge(prefix + "executions", "Executions in the ledger, by status", "status")
        self.late_results = Counter(prefix + "late_results_total", "Outcomes that came too late")


METRICS = Metrics()
