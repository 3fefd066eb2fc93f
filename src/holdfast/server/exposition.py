"""Metrics as text, in the format that Prometheus reads.

Invariants:
    - Every metric that the process has declared is there, whether anything was counted or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from holdfast.core import trace
from holdfast.core.trace import Histogram

__all__ = ["MEDIA_TYPE", "exposition"]

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition() -> str:
    """Return all metrics of this process as they are now."""
    lines: list[str] = []
    for name, metric in sorted(trace.metrics().items()):
        lines += [f"# HELP {name} {_escaped(metric.help, quoted=False)}", f"# TYPE {name} {metric.kind}"]
        for series, values in metric.samples().items():
            bounded = isinstance(metric, Histogram) and series.endswith("_bucket")
            lines += _series(series, (*metric.labels, "le") if bounded else metric.labels, values)
    return "\n".join(lines) + "\n"


def _series(name: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> list[str]:
    found = []
    for given, value in values.items():
        pairs = [f'{label}="{_escaped(text, quoted=True)}"' for label, text in zip(labels, given, strict=True)]
        shown = str(int(value)) if float(value).is_integer() else repr(float(value))
        found.append(f"{name}{{{','.join(pairs)}}} {shown}" if pairs else f"{name} {shown}")
    return found


def _escaped(text: str, *, quoted: bool) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quoted else text
