"""Say to clients what they may expect of idempotency keys: which header, for how long, and what is kept.

Everything is derived from the rules that requests are decided by, so the two cannot differ.

Invariants:
    - Nothing here names a secret, a principal or a record.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import timedelta

from holdfast.idempotency.machine import classify
from holdfast.idempotency.rules import KEY_LENGTH_MAX, IdempotencyConfig, RouteRule

__all__ = ["iso_duration", "of"]

CLASSES = range(2, 6)


def of(config: IdempotencyConfig) -> dict[str, object]:
    """Return the policy of a configuration, ready for JSON."""
    pattern = config.key_format.pattern if isinstance(config.key_format, re.Pattern) else None
    return {
        "headers": list(config.headers),
        "format": "pattern" if pattern is not None else config.key_format,
        "pattern": pattern,
        "structured_field": config.strict_sf,
        "length_min": config.key_length_min,
        "length_max": KEY_LENGTH_MAX,
        "help": config.help_url,
        "default": None if config.rule is None else _of_rule(config.rule),
        "routes": [_of_rule(rule) for rule in config.routes],
    }


def iso_duration(duration: timedelta) -> str:
    """Return a duration as ISO 8601 has it.

    Example:
        >>> iso_duration(timedelta(days=3, minutes=5))
        'P3DT5M'
    """
    hours, rest = divmod(duration.seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    days = f"{duration.days}D" if duration.days else ""
    fraction = f".{duration.microseconds:06}".rstrip("0") if duration.microseconds else ""
    time = "".join((f"{hours}H" if hours else "", f"{minutes}M" if minutes else ""))
    if seconds or fraction or not (days or time):
        time += f"{seconds}{fraction}S"
    return f"P{days}" + (f"T{time}" if time else "")


def _of_rule(rule: RouteRule) -> dict[str, object]:
    return {
        "path": rule.path,
        "methods": None if rule.methods is None else list(rule.methods),
        "key": rule.key,
        "lifetime": iso_duration(rule.ttl),
        "statuses": _statuses(rule),
        "in_flight": rule.on_in_flight,
        "wait_max": iso_duration(rule.wait_max) if rule.on_in_flight == "wait" else None,
        "request_bytes_max": rule.request_bytes_max,
    }


def _statuses(rule: RouteRule) -> dict[str, str]:
    """What becomes of each status: by class, and one by one where a status differs from its class."""
    named: dict[str, str] = {}
    for kind in CLASSES:
        fates = {status: classify(status, rule, irreversible=False) for status in range(kind * 100, kind * 100 + 100)}
        usual = Counter(fates.values()).most_common(1)[0][0]
        named[f"{kind}xx"] = usual
        named |= {str(status): fate for status, fate in fates.items() if fate != usual}
    return named
