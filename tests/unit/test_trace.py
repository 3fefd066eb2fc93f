"""Spans and metrics, with and without an OpenTelemetry SDK."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from holdfast.core import trace
from holdfast.core.errors import ConfigError, StoreError


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"_registry": {}, "_meter": None, "_meter_provider": None}.items():
        monkeypatch.setattr(trace, name, value)
    yield
    trace.configure()
    assert not trace.enabled


def test_without_a_tracer_a_span_is_nothing() -> None:
    trace.configure()
    assert not trace.enabled
    with trace.span("holdfast.durable.claim", kind="turn") as first, trace.span("holdfast.durable.commit") as second:
        first.set(items=3)
        assert first is second


def test_spans_reach_the_users_tracer_without_messages() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.configure(tracer_provider=provider)
    assert trace.enabled
    with trace.span("outer", items=1) as outer, trace.span("inner"):
        outer.set(bytes=2)
    for error in (ValueError("secret"), StoreError("secret")):
        with pytest.raises(type(error)), trace.span("failed"):
            raise error
    inner, outer_span, failed, coded = exporter.get_finished_spans()
    assert inner.parent is not None
    assert inner.parent.span_id == outer_span.context.span_id
    assert dict(outer_span.attributes or {}) == {"items": 1, "bytes": 2}
    assert failed.attributes == {"error.type": "ValueError"}
    assert coded.attributes == {"error.type": "store.error"}
    assert "secret" not in failed.to_json() + coded.to_json()
    assert not failed.events


def test_metrics_count_by_label() -> None:
    counter = trace.Counter("steps_total", "Steps.", "effect", "outcome")
    counter.add(1, "money", "live")
    counter.add(2, "money", "live")
    counter.add(1, "money", "replayed")
    gauge = trace.Gauge("queue_items", "Items.")
    gauge.set(5)
    gauge.set(4)
    histogram = trace.Histogram("batch_items", "Items.", buckets=(1, 10))
    for value in (1, 2, 11, 10):
        histogram.observe(value)
    assert trace.snapshot() == {
        "steps_total": {("money", "live"): 3, ("money", "replayed"): 1},
        "queue_items": {(): 4},
        "batch_items_count": {(): 4},
        "batch_items_sum": {(): 24},
        "batch_items_bucket": {("1",): 1, ("10",): 3, ("+Inf",): 4},
    }
    assert {name: metric.kind for name, metric in trace.metrics().items()} == {
        "steps_total": "counter",
        "queue_items": "gauge",
        "batch_items": "histogram",
    }
    with pytest.raises(ConfigError, match="twice"):
        trace.Gauge("queue_items", "Again.")


def test_metrics_are_mirrored_whether_declared_before_or_after() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    counter = trace.Counter("steps_total", "Steps.", "effect")
    histogram = trace.Histogram("commit_seconds", "Seconds.")
    counter.add(2, "money")
    trace.configure(meter_provider=provider)
    trace.configure(meter_provider=provider)
    gauge = trace.Gauge("queue_items", "Items.")
    gauge.set(3)
    counter.add(1, "money")
    histogram.observe(0.2)
    data = reader.get_metrics_data()
    assert data is not None
    points = {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    [steps], [queue], [commit] = points["steps_total"], points["queue_items"], points["commit_seconds"]
    assert (steps.value, steps.attributes, queue.value) == (3, {"effect": "money"}, 3)
    assert (commit.count, tuple(commit.explicit_bounds)) == (1, trace.SECONDS)
    provider.shutdown()


def test_open_telemetry_is_not_imported_on_our_account() -> None:
    code = "import sys; from holdfast.core import trace; trace.configure(); print('opentelemetry' in sys.modules)"
    path = ":".join(sys.path)
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert run.stdout == "False\n"


def test_the_api_alone_is_no_tracer() -> None:
    code = (
        "import opentelemetry.trace, opentelemetry.metrics; from holdfast.core import trace; trace.configure();"
        "print(trace.enabled); from opentelemetry.sdk.trace import TracerProvider;"
        "opentelemetry.trace.set_tracer_provider(TracerProvider()); trace.configure(); print(trace.enabled)"
    )
    path = ":".join(sys.path)
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert run.stdout == "False\nTrue\n"
