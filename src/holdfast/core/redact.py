"""Take secrets out of texts that are about to be kept, such as the messages of failures.

Filters are patterns; they err on the side of taking too much. What they take out is replaced by
`[redacted]`. Every pattern is linear in the text, which may be anything an exception says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["FILTERS", "MARK", "redact"]

MARK = "[redacted]"

# A word ends here, or goes on after a dash: `token`, `token_id`, but not `tokens`, `author`.
_NAMES = (
    r"(?:api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|client[_-]?secret|"
    r"password|passwd|passphrase|pwd|secret|token|credentials?|authorization|auth|cookie|session[_-]?id|signature)"
    r"(?:[_-][\w-]{0,64})?(?![a-z])"
)
_SCHEMES = r"(?:bearer|basic|digest|negotiate)"

FILTERS: tuple[tuple[re.Pattern[str], str], ...] = (
    # user:password@ in a URL; a lone user name may be a token as well. The last @ before the path ends it.
    (re.compile(r"(://)[^\s/?#'\"<>]{1,512}@"), rf"\1{MARK}@"),
    # Bearer abc, Basic abc
    (re.compile(rf"(?i)\b({_SCHEMES}\s{{1,8}})[\w.~+/=:-]{{4,}}"), rf"\1{MARK}"),
    # Cookie: a=b; c=d
    (re.compile(r"(?i)\b(cookie\s{0,8}:\s{0,8})[^\r\n]+"), rf"\1{MARK}"),
    # password=abc, "api_key": "abc def", accessToken: abc, and a quote that a cut-off text never closes
    (
        re.compile(
            rf"(?i)({_NAMES}\\?[\"']?\s{{0,8}}[=:]\s{{0,8}})(?!{_SCHEMES}\s+\[redacted\])"
            r"(?:\\?\"[^\"]*\"?|\\?'[^']*'?|[^\s,;&\"'{}()<>\[\]]+)"
        ),
        rf"\1{MARK}",
    ),
    # Keys that carry their maker's prefix.
    (
        re.compile(
            r"\b(?:sk|pk|rk|ak|hfp|ghp|gho|ghu|ghs|ghr|github_pat|glpat|xox[abeoprs]|whsec|hf|gsk|pplx|npm|pypi|dop_v1)"
            r"[-_][A-Za-z0-9_-]{6,}"
        ),
        MARK,
    ),
    (re.compile(r"\b(?:AKIA|ASIA|AIza|ya29\.)[A-Za-z0-9_-]{12,}"), MARK),
    # JSON Web Tokens
    (re.compile(r"\beyJ[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]+){1,4}"), MARK),
    # E-mail addresses
    (re.compile(r"\b[\w.+%-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"), MARK),
    # Long runs: hexadecimal from 32 digits; base64 from 32 characters if it mixes letters and digits.
    (re.compile(r"(?i)(?<![0-9a-z])(?:0x)?[0-9a-f]{32,}(?![0-9a-z])"), MARK),
    (re.compile(r"(?<![\w+/-])(?=[\w+/-]{0,512}\d)(?=[\w+/-]{0,512}[A-Za-z])[\w+/-]{32,}={0,2}"), MARK),
)
"""The filters in the order they are applied: pattern, and what takes its place."""


def redact(text: str, filters: Sequence[tuple[re.Pattern[str], str]] = FILTERS) -> str:
    """Return a text with everything that looks like a secret taken out."""
    for pattern, replacement in filters:
        text = pattern.sub(replacement, text)
    return text
