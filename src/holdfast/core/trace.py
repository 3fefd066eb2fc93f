"""Spans and metrics: nothing until the user brings an OpenTelemetry SDK, then that SDK's.

Metrics are counted here in any case, in plain dicts; OpenTelemetry reads counters and gauges when it
collects, so counting costs the same with and without it.

Invariants:
    - OpenTelemetry is never imported here; without it, spans and mirrors cost one look at a flag.
    - A span carries what it is given and the type of an error, never an error's message.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from holdfast.core.errors import ConfigError, HoldfastError

__all__ = ["Counter", "Gauge", "Histogram", "Span", "configure", "enabled", "metrics", "snapshot", "span"]

Scalar = str | int | float | bool

enabled: bool = False
"""Whether spans go anywhere. Read it through the module; `configure` refreshes it."""

_tracer: Any = None
_meter: Any = None
_meter_provider: Any = None


class Span(Protocol):
    """A piece of work being timed; use it as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def set(self, **attributes: Scalar) -> None:
        """Add what became known on the way."""
        ...


class _Nothing:
    """The span of a process without a tracer."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def set(self, **attributes: Scalar) -> None:
        return None


class _Recorded:
    """A span of the user's tracer, current while it is open."""

    __slots__ = ("_manager", "_span")

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._span: Any = None

    def __enter__(self) -> Self:
        self._span = self._manager.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if error is not None:
            # Only the type or code: a message may quote a payload.
            shown = error.code if isinstance(error, HoldfastError) else type(error).__qualname__
            self._span.set_attribute("error.type", shown)
            if isinstance(error, Exception):
                self._span.set_status(_status_error(), shown)
        self._manager.__exit__(kind, error, trace)

    def set(self, **attributes: Scalar) -> None:
        for name, value in attributes.items():
            self._span.set_attribute(name, value)


_NOTHING = _Nothing()


def span(name: str, /, **attributes: Scalar) -> Span:
    """Open a span; `with span("holdfast.durable.claim", kind=kind) as opened: …`."""
    if not enabled:
        return _NOTHING
    return _Recorded(
        _tracer.start_as_current_span(
            name, attributes=attributes, record_exception=False, set_status_on_exception=False
        )
    )


def configure(*, tracer_provider: Any = None, meter_provider: Any = None) -> None:
    """Take up the user's OpenTelemetry providers; call it whenever a ledger is opened.

    Without arguments the global ones count, if the program has set any. OpenTelemetry is never imported
    on its own account: a program that set a provider has imported it.
    """
    global enabled, _tracer
    tracers = tracer_provider or _global_provider("opentelemetry.trace", "get_tracer_provider")
    _tracer = tracers.get_tracer("holdfast") if tracers is not None else None
    enabled = _tracer is not None
    meters = meter_provider or _global_provider("opentelemetry.metrics", "get_meter_provider")
    if meters is not None:
        _mirror(meters)


def _global_provider(module: str, getter: str) -> Any:
    """The provider the program has set, or None while there is only the API's own stand-in."""
    api = sys.modules.get(module)
    if api is None:
        return None
    provider = getattr(api, getter)()
    return None if type(provider).__module__.startswith(module) else provider


def _status_error() -> Any:
    return sys.modules["opentelemetry.trace"].StatusCode.ERROR


# --- metrics -----------------------------------------------------------------------------------------

Labels = tuple[str, ...]

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Buckets for durations: from one fast flush to the longest timeouts."""


class _Metric:
    """What all metrics share: a name, its labels, and a place in the registry."""

    kind: str

    def __init__(self, name: str, help: str, *labels: str) -> None:
        if name in _registry:
            raise ConfigError(f"metric {name} is declared twice", "give it another name")
        self.name = name
        self.help = help
        self.labels = labels
        _registry[name] = self
        if _meter is not None:
            self.mirror(_meter)

    def mirror(self, meter: Any) -> None:
        raise NotImplementedError

    def samples(self) -> dict[str, dict[Labels, float]]:
        raise NotImplementedError

    def attributes(self, values: Labels) -> dict[str, str]:
        return dict(zip(self.labels, values, strict=True))


class _Scalar(_Metric):
    def __init__(self, name: str, help: str, *labels: str) -> None:
        self._values: dict[Labels, float] = {}
        super().__init__(name, help, *labels)

    def current(self) -> dict[Labels, float]:
        """The values as they are now."""
        return self._values.copy()

    def samples(self) -> dict[str, dict[Labels, float]]:
        return {self.name: self.current()}

    def _observations(self, _options: object) -> Iterable[Any]:
        observation = sys.modules["opentelemetry.metrics"].Observation
        return [observation(value, self.attributes(labels)) for labels, value in self.current().items()]


class Counter(_Scalar):
    """A number that only grows, one per combination of labels."""

    kind = "counter"

    def add(self, amount: float = 1, /, *labels: str) -> None:
        """Add to it; labels in the order they were declared."""
        # No call between read and write, so threads cannot lose an increment.
        try:
            self._values[labels] += amount
        except KeyError:
            self._values.setdefault(labels, 0)
            self._values[labels] += amount

    def mirror(self, meter: Any) -> None:
        meter.create_observable_counter(self.name, [self._observations], description=self.help)


class Gauge(_Scalar):
    """A number that goes up and down, one per combination of labels."""

    kind = "gauge"
    _read: Callable[[], float] | None = None

    def follow(self, read: Callable[[], float]) -> None:
        """Ask for its one value, without labels, whenever somebody looks."""
        self._read = read

    def current(self) -> dict[Labels, float]:
        return {(): self._read()} if self._read is not None else super().current()

    def set(self, value: float, /, *labels: str) -> None:
        """Set it; labels in the order they were declared."""
        self._values[labels] = value

    def mirror(self, meter: Any) -> None:
        meter.create_observable_gauge(self.name, [self._observations], description=self.help)


class Histogram(_Metric):
    """How observed values are spread over buckets."""

    kind = "histogram"

    def __init__(self, name: str, help: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> None:
        self.buckets = buckets
        self._rows: dict[Labels, list[float]] = {}  # per label: counts of the buckets and beyond, then the sum
        self._instrument: Any = None
        super().__init__(name, help, *labels)

    def observe(self, value: float, /, *labels: str) -> None:
        """Count one value; labels in the order they were declared."""
        row = self._rows.get(labels)
        if row is None:
            row = self._rows.setdefault(labels, [0.0] * (len(self.buckets) + 2))
        row[bisect_left(self.buckets, value)] += 1
        row[-1] += value
        if self._instrument is not None:
            self._instrument.record(value, self.attributes(labels))

    def samples(self) -> dict[str, dict[Labels, float]]:
        counts: dict[Labels, float] = {}
        sums: dict[Labels, float] = {}
        buckets: dict[Labels, float] = {}
        for labels, row in self._rows.copy().items():
            total = 0.0
            for bound, count in zip((*map(str, self.buckets), "+Inf"), row, strict=False):
                total += count
                buckets[*labels, bound] = total
            counts[labels], sums[labels] = total, row[-1]
        return {f"{self.name}_count": counts, f"{self.name}_sum": sums, f"{self.name}_bucket": buckets}

    def mirror(self, meter: Any) -> None:
        self._instrument = meter.create_histogram(
            self.name, description=self.help, explicit_bucket_boundaries_advisory=self.buckets
        )


_registry: dict[str, Any] = {}  # Counter, Gauge or Histogram


def metrics() -> Mapping[str, Counter | Gauge | Histogram]:
    """Return all declared metrics by name."""
    return dict(_registry)


def snapshot() -> dict[str, dict[Labels, float]]:
    """Return all values: by metric, then by label values.

    A histogram appears as `_count`, `_sum` and, with the bound as a last label, cumulative `_bucket`.
    """
    values: dict[str, dict[Labels, float]] = {}
    for metric in list(_registry.values()):
        values |= metric.samples()
    return values


def _mirror(provider: Any) -> None:
    global _meter, _meter_provider
    if provider is _meter_provider:
        return
    _meter_provider, _meter = provider, provider.get_meter("holdfast")
    for metric in list(_registry.values()):
        metric.mirror(_meter)
