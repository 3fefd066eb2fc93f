"""Take secrets out of what is about to be kept, leaving a mark that tells equal secrets from different ones. Pure.

Invariants:
    - JSON stays JSON: a mark holds nothing that needs escaping, and no rule of ours takes a quote.
    - Redacting twice is redacting once.
    - No rule takes more than time proportional to the bytes; a pattern that could is refused.
    - A secret is found at the start of a line of JSON text too, where the bytes before it are an escape's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from blake3 import blake3

from holdfast.core.errors import ConfigError

__all__ = ["BUILTIN", "Redacted", "Rules", "may_hide", "may_hold", "redact", "rules"]

_NAME = re.compile(r"[a-z0-9_]{1,32}", re.ASCII)
_START = rb"(?:(?<![A-Za-z0-9])|(?<=\\[bfnrt])|(?<=\\u[0-9A-Fa-f]{4}))"

BUILTIN: Mapping[str, bytes] = {
    "provider_key": _START + rb"(?:sk-[A-Za-z0-9_-]{20,512}|AIza[A-Za-z0-9_-]{35}|gsk_[A-Za-z0-9]{20,512})",
    "aws_key": _START + rb"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "github_token": _START + rb"(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})",
    "slack_token": _START + rb"xox[abeoprs]-[A-Za-z0-9-]{10,255}",
    "jwt": _START + rb"eyJ[A-Za-z0-9_-]{8,2048}\.eyJ[A-Za-z0-9_-]{8,8192}\.[A-Za-z0-9_-]{8,2048}",
    "private_key": rb"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----[A-Za-z0-9+/=\s\\]{0,16384}"
    rb"-----END [A-Z ]{0,32}PRIVATE KEY-----",
    "bearer": _START + rb"[Bb]earer (?P<secret>[A-Za-z0-9._~+/=-]{16,4096})",
}
"""The rules that come with the slice; of a match with a group `secret` only that is taken."""

# Where a match of a rule can begin: a byte that text seldom has, what stands round it, and how far the beginning lies
# before it. To look for one byte is many times faster than for several, and that than to try a match at every byte.
_BEGINNINGS: Mapping[bytes, tuple[tuple[re.Pattern[bytes], int], ...]] = {
    BUILTIN[name]: tuple((re.compile(pattern), before) for pattern, before in places)
    for name, places in {
        "provider_key": ((rb"-(?<=sk-)", 2), (rb"z(?<=AIz)(?=a)", 2), (rb"_(?<=gsk_)", 3)),
        "aws_key": ((rb"K(?<=AK)(?=IA)", 1), (rb"S(?<=AS)(?=IA)", 1)),
        "github_token": ((rb"_(?<=gh[pousr]_)", 3), (rb"_(?<=github_pat_)", 10)),
        "slack_token": ((rb"x(?=ox)", 0),),
        "jwt": ((rb"J(?<=eyJ)", 2),),
        "private_key": ((rb"B(?<=-----B)(?=EGIN )", 5),),
        "bearer": ((rb"B(?=earer )", 0), (rb"b(?=earer )", 0)),
    }.items()
}
# All of them, by the byte that is looked for: most bodies lack some of these bytes altogether.
_PLACES = tuple(
    (byte, re.compile(b"|".join(place.pattern for place in found)))
    for byte, found in groupby(
        sorted((place for places in _BEGINNINGS.values() for place, _ in places), key=lambda place: place.pattern),
        key=lambda place: place.pattern[:1],
    )
)

# Escapes of what the rules that come with the slice look for: letters, digits, and `/ . _ ~ + = -` and the blank.
_SPELT = re.compile(
    rb"\\(?:/|u00(?:2[0bdefBDEF]|3[0-9dD]|4[1-9A-Fa-f]|5[0-9AaFf]|6[1-9A-Fa-f]|7[0-9AaEe]))",
)


@dataclass(frozen=True, slots=True)
class Rules:
    """Patterns by name, in the order they are applied.

    Attributes:
        ours: Whether all of them come with the slice.
    """

    patterns: tuple[tuple[str, re.Pattern[bytes]], ...]
    ours: bool


@dataclass(frozen=True, slots=True)
class Redacted:
    """What is left, and how often each rule took something."""

    data: bytes
    counts: Mapping[str, int]


def rules(given: Iterable[tuple[str, str]] = (), *, builtin: bool = True) -> Rules:
    """Return the rules of an installation.

    Args:
        given: The user's, each a name and a pattern.
        builtin: Whether those that come with the slice are applied first.

    Raises:
        ConfigError: A name or a pattern cannot be used, or a pattern nests unbounded repeats.
    """
    found = [(name, re.compile(pattern)) for name, pattern in BUILTIN.items()] if builtin else []
    for name, pattern in given:
        if not _NAME.fullmatch(name):
            raise _wrong(name, "has a name that is not 1 to 32 of a-z 0-9 _")
        try:
            compiled = re.compile(pattern.encode())
        except re.error as error:
            raise _wrong(name, f"has a pattern that is none: {error}") from None
        if compiled.match(b""):
            raise _wrong(name, "has a pattern that matches nothing at all")
        if _nests(pattern):
            raise _wrong(name, "repeats without bound what repeats without bound, which can take for ever")
        found.append((name, compiled))
    return Rules(tuple(found), all(pattern.pattern in _BEGINNINGS for _, pattern in found))


def _wrong(name: str, why: str) -> ConfigError:
    return ConfigError(f"the redaction rule {name[:32]!r} {why}", "see the reference on redaction", keys=("redact",))


_PIECE = re.compile(r"\\.|\[\^?\]?(?:[^\]\\]|\\.)*\]|\(|\)|[*+?]|\{\d*,?\d*\}|.", re.DOTALL)


def _nests(pattern: str) -> bool:
    """Say whether an unbounded repeat stands inside of another."""
    # For each open group, whether something in it repeats without bound.
    groups = [False]
    closed = False  # of what was read last: whether it holds such a repeat
    for piece in _PIECE.findall(pattern):
        if piece == "(":
            groups.append(False)
            closed = False
        elif piece == ")":
            closed = groups.pop()
            groups[-1] = groups[-1] or closed
        elif piece in ("*", "+") or (piece[0] == "{" and piece.endswith(",}")):
            if closed:
                return True
            groups[-1] = True
        else:
            closed = False
    return False


def redact(data: bytes, using: Rules, key: bytes) -> Redacted:
    """Return bytes with every secret that the rules find replaced by `[redacted:<rule>:<length>:<hash>]`.

    Args:
        data: Anything.
        using: The rules.
        key: The installation's secret, 32 bytes, so that a mark is no oracle.
    """
    counts: dict[str, int] = {}
    if using.ours and not may_hold(data):
        return Redacted(data, counts)
    for name, pattern in using.patterns:
        parts: list[bytes] = []
        end = 0
        for found in _matches(pattern, data):
            group = "secret" if "secret" in pattern.groupindex else 0
            secret = found[group]
            if not secret or secret.startswith(b"[redacted:"):
                continue
            counts[name] = counts.get(name, 0) + 1
            sign = f"[redacted:{name}:{len(secret)}:{blake3(secret, key=key).hexdigest(4)}]".encode()
            parts += (data[end : found.start(group)], sign)
            end = found.end(group)
        if parts:
            data = b"".join((*parts, data[end:]))
    return Redacted(data, counts)


def _matches(pattern: re.Pattern[bytes], data: bytes) -> Iterator[re.Match[bytes]]:
    """Give the matches of a pattern, each after the end of the one before."""
    beginnings = _BEGINNINGS.get(pattern.pattern)
    if beginnings is None:
        yield from pattern.finditer(data)
        return
    starts = [found.start() - before for place, before in beginnings for found in place.finditer(data)]
    end = 0
    for start in sorted(starts):
        if start >= end and (found := pattern.match(data, start)):
            yield found
            end = found.end()


def may_hold(data: bytes) -> bool:
    """Say whether a rule that comes with the slice may find something; what it says no of, none does."""
    return any(byte in data and place.search(data) is not None for byte, place in _PLACES)


def may_hide(data: bytes, using: Rules) -> bool:
    """Say whether JSON may hold what the rules look for written with escapes, so that its bytes do not show it."""
    if using.ours:
        return b"\\" in data and _SPELT.search(data) is not None
    return b"\\u" in data or b"\\/" in data
