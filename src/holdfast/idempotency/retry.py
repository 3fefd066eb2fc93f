"""Decide what a client does with a request that must take effect once.

This module hides the rules of the calling side: which requests carry a key and which of their hops keep it, what an
answer or a broken connection means, whether the request goes out again, and when. The transports only act on it.

Invariants:
    - A request goes out again only under its key, and only if its body can be sent again.
    - No attempt begins before `Retry-After`, past the deadline, or past the time the server keeps outcomes.
    - A key that was made here goes to one origin, with one method.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeAlias

from holdfast.core.errors import ConfigError
from holdfast.idempotency.answers import SITUATIONS
from holdfast.idempotency.errors import IdempotencyError, KeyInvalid, KeyWindowPassed
from holdfast.idempotency.headers import MARKERS, sf_string

__all__ = [
    "PROBLEM_BYTES_MAX",
    "RETENTION",
    "Again",
    "Answer",
    "Budget",
    "Call",
    "CallInfo",
    "Failure",
    "Fate",
    "RetryPolicy",
    "Sending",
    "Stop",
    "decide",
    "decode_key",
    "encode_key",
    "expired",
    "fate",
    "is_problem",
    "is_small",
    "keeps_key",
    "leaves_doubt",
    "problem_code",
    "read_answer",
    "read_date",
    "refusal",
    "takes_key",
]

KEYED = frozenset({"POST", "PUT", "PATCH", "DELETE"})
"""Methods that get a key."""
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
MOMENTARY = frozenset({307, 308, 401, 403, 407, 408, 409, 413, 421, 423, 425, 428, 429, 431})
"""Statuses that say how it is just now, or where to ask: the request did not take effect, and may later."""
RETENTION = timedelta(hours=24)
"""How long a server is taken to keep outcomes when it does not say."""
PROBLEM_BYTES_MAX = 64 * 1024
"""How much of a problem document is read ahead: far more than any of ours has."""
FREE_RETRIES = 10
"""Attempts beyond the first that a new transport may make whatever its budget: it has no calls to its name yet."""
DIGITS_MAX = 12
"""A number in a field is read this far: beyond it is larger than any limit."""
KEY_LENGTH_MAX = 255

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SECOND = 1_000_000
_BARE = re.compile(r"""[!#-+\--:<-\[\]-~]+""")  # visible, without " , ; and \
_QUOTED = re.compile(r"[!-~](?:[ -~]*[!-~])?")

RAISED = frozenset({"key_reused", "outcome_unknown", "executed", "in_flight", "key_window_passed"})
"""Codes of problem documents that are raised; answers with others are returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a request is sent again.

    Attributes:
        attempts_max: Attempts of one sending, the first included.
        deadline: No attempt begins later than this after the first.
        backoff: The first pause is a random part of this; the limit doubles with each attempt.
        backoff_max: Where doubling ends.
        retry_after_max: A server that asks for more patience than this ends the call.
        budget: Retries per call over the life of the transport, beyond the first ten.
    """

    attempts_max: int = 5
    deadline: timedelta = timedelta(seconds=60)
    backoff: timedelta = timedelta(milliseconds=200)
    backoff_max: timedelta = timedelta(seconds=10)
    retry_after_max: timedelta = timedelta(seconds=60)
    budget: float = 0.2

    def __post_init__(self) -> None:
        if self.attempts_max < 1:
            raise ConfigError(f"attempts_max is {self.attempts_max}", "the first attempt counts: give at least 1")
        for name in ("deadline", "backoff", "backoff_max", "retry_after_max"):
            if getattr(self, name) < timedelta(0):
                raise ConfigError(f"{name} is {getattr(self, name)}", "a duration is not negative")
        if not self.budget >= 0:
            raise ConfigError(f"budget is {self.budget}", "it is a share of the calls: give 0 or more")


@dataclass(frozen=True, slots=True)
class CallInfo:
    """What the transport did for a response.

    Attributes:
        key: The key that was sent; None when none was.
        attempts: How often this request went out, redirects and challenges not counted.
        replayed: Whether the server answered from its record.
        first_sent_at: When the call was first sent; None without a key.
    """

    key: str | None
    attempts: int
    replayed: bool
    first_sent_at: datetime | None


@dataclass(slots=True)
class Call:
    """What is known of one logical call, over all its attempts and hops.

    Attributes:
        key: The value of its header.
        minted: The key comes from the transport, not from the caller.
        method: What it was first sent with.
        origin: Where it was first sent: scheme, host, port.
        first_sent_at: When, in microseconds.
        keep_until: From then on the server may have forgotten it.
        doubtful: Some attempt may have taken effect without an answer.
        entry: What a journal knows of it.
    """

    key: str
    minted: bool
    method: str
    origin: tuple[str, str, int | None]
    first_sent_at: int
    keep_until: int
    doubtful: bool = False
    entry: Any = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the head of a response says, and the code of its problem document.

    Attributes:
        status: Its status.
        replayed: It comes from the server's record.
        retry_after: Microseconds to wait at least; None: not said.
        expires_at: When the server forgets the key; None: not said.
        code: Code of the problem document, where it has one.
    """

    status: int
    replayed: bool = False
    retry_after: int | None = None
    expires_at: int | None = None
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """There was no answer.

    Attributes:
        sent: Whether the server may have seen the request.
    """

    sent: bool


Ending: TypeAlias = Answer | Failure
Fate: TypeAlias = Literal["settled", "refused", "open"]


@dataclass(frozen=True, slots=True)
class Sending:
    """Where a sending stands when an attempt has ended.

    Attributes:
        attempt: Which one has ended, from 1.
        resendable: The request has a key, and a body that can be sent again.
        elapsed: Microseconds since the first began.
        keep_until: From then on the server may have forgotten the call.
    """

    attempt: int
    resendable: bool
    elapsed: int
    keep_until: int


@dataclass(frozen=True, slots=True)
class Again:
    """Make another attempt.

    Attributes:
        delay: Microseconds from now.
    """

    delay: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Give the caller what there is."""


@dataclass(slots=True)
class Budget:
    """Keeps a server in trouble from being asked many times over: retries are a share of the calls.

    Attributes:
        share: Retries per call.
        calls: Calls so far.
        retries: Retries so far.
    """

    share: float
    calls: int = field(default=0, init=False)
    retries: int = field(default=0, init=False)

    def begin(self) -> None:
        """Count a call."""
        self.calls += 1

    def spend(self) -> bool:
        """Count a retry, if there is one left; say whether there was."""
        if self.retries >= FREE_RETRIES + self.share * self.calls:
            return False
        self.retries += 1
        return True


def takes_key(method: str) -> bool:
    """Say whether a request without a key gets one."""
    return method in KEYED


def keeps_key(call: Call, method: str, origin: tuple[str, str, int | None]) -> bool:
    """Say whether a hop of a call carries its key: one of ours stays at its origin, and with its method."""
    return not call.minted or (method == call.method and origin == call.origin)


def encode_key(key: str, *, quoted: bool) -> str:
    """Return a key as its header's value: bare, or as a Structured Field String where it asks or needs to be.

    Raises:
        KeyInvalid: No server could read it.
    """
    if not 1 <= len(key) <= KEY_LENGTH_MAX or not _QUOTED.fullmatch(key):
        raise KeyInvalid(
            "a key source gave what cannot be a key",
            "give 1 to 255 printable ASCII characters, the first and the last no space",
        )
    if quoted or not _BARE.fullmatch(key) or key[0] in ":(?@":
        return sf_string(key).decode()
    return key


def decode_key(value: str) -> str:
    """Return the key that a header's value stands for."""
    if len(value) > 1 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value


def read_date(text: str) -> int | None:
    """Return the instant of an HTTP date, in any of its three forms; None when it is none."""
    try:
        moment = parsedate_to_datetime(text.strip())
        return (moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        return None


def read_answer(status: int, headers: Iterable[tuple[bytes, bytes]], *, now: int, code: str | None = None) -> Answer:
    """Read the head of a response. Of several values the most patient and the most forgetful count."""
    replayed, waits, ends = False, [], []
    for name, value in headers:
        match name.lower():
            case marker if marker in MARKERS:
                replayed = replayed or value.strip().lower() == b"true"
            case b"retry-after":
                waits.append(_read_delay(value.decode("latin-1").strip(), now))
            case b"idempotency-expires":
                ends.append(read_date(value.decode("latin-1")))
    return Answer(
        status,
        replayed,
        max((each for each in waits if each is not None), default=None),
        min((each for each in ends if each is not None), default=None),
        code,
    )


def _read_delay(text: str, now: int) -> int | None:
    """Return the microseconds that a `Retry-After` asks for: in seconds, or until a date."""
    if text.isascii() and text.isdigit():
        return int(text[:DIGITS_MAX]) * _SECOND
    until = read_date(text)
    return None if until is None else max(until - now, 0)


def is_small(length: str) -> bool:
    """Say whether a body is known to be small enough to be read with its head."""
    return length.isdecimal() and 0 < int(length[:DIGITS_MAX]) < PROBLEM_BYTES_MAX


def is_problem(status: int, content_type: str, length: str = "") -> bool:
    """Say whether a response of this kind may be a problem document of a guard, and is not too large for one."""
    if length.isdecimal() and int(length[:DIGITS_MAX]) >= PROBLEM_BYTES_MAX:
        return False
    return status >= 400 and content_type.partition(";")[0].strip().lower() == "application/problem+json"


def problem_code(body: bytes) -> str | None:
    """Return the code of a problem document of a Holdfast guard; None for those of others."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    code, kind = document.get("code"), document.get("type", "about:blank")
    if not isinstance(code, str) or not isinstance(kind, str):
        return None
    return code if kind == "about:blank" or kind.endswith(code) else None


def decide(policy: RetryPolicy, sending: Sending, ended: Ending, *, now: int, jitter: float) -> Again | Stop:
    """Decide whether a request goes out again after an attempt has ended.

    Args:
        policy: What its owner wants.
        sending: Where it stands.
        ended: How the attempt ended.
        now: The wall time.
        jitter: A random number from 0 up to 1.
    """
    if not sending.resendable or sending.attempt >= policy.attempts_max or not _is_passing(ended):
        return Stop()
    doubled = _micros(policy.backoff) << min(sending.attempt - 1, 40)
    delay = int(jitter * min(doubled, _micros(policy.backoff_max)))
    if isinstance(ended, Answer) and ended.retry_after is not None:
        if ended.retry_after > _micros(policy.retry_after_max):
            return Stop()
        delay = max(delay, ended.retry_after)
    if sending.elapsed + delay > _micros(policy.deadline) or now + delay >= sending.keep_until:
        return Stop()
    return Again(delay)


def _is_passing(ended: Ending) -> bool:
    """Say whether another attempt may end better."""
    match ended:
        case Failure():
            return True
        case Answer(replayed=True):
            return False
        case Answer(code="in_flight"):
            return True
        case Answer(code=code) if code in RAISED:
            return False
        case Answer(status=409, retry_after=wait):
            return wait is not None
        case _:
            return ended.status in RETRIED


def _micros(duration: timedelta) -> int:
    return duration // _MICROSECOND


def leaves_doubt(ended: Ending) -> bool:
    """Say whether a request may have taken effect in an attempt that ended so."""
    match ended:
        case Failure(sent=sent):
            return sent
        case Answer(replayed=True) | Answer(code="in_flight" | "outcome_unknown" | "key_window_passed"):
            return True
        case Answer(code="key_reused"):
            return False
        case _:
            return ended.status not in MOMENTARY


def fate(answer: Answer, *, doubtful: bool) -> Fate:
    """Say what the last answer of a sending means for its call.

    `settled` is an outcome: the next call is another one. `refused` is none, and nothing has happened. `open`
    leaves it to the same key to find out.

    Args:
        answer: The answer.
        doubtful: Whether the call may have taken effect in an attempt before.
    """
    if answer.code in ("in_flight", "outcome_unknown", "key_window_passed"):
        return "open"
    if answer.replayed or answer.code == "executed":
        return "settled"
    if answer.code == "key_reused" or answer.status in MOMENTARY:
        return "open" if doubtful else "refused"
    return "open" if answer.status >= 500 else "settled"


def refusal(answer: Answer) -> IdempotencyError | None:
    """Return the error that an answer is raised as; None for answers that are returned."""
    if answer.code not in RAISED:
        return None
    said = SITUATIONS[answer.code]
    wait = None if answer.retry_after is None else -(-answer.retry_after // _SECOND)
    assert said.error is not None
    return said.error(said.title, said.detail, retry_after=wait)


def expired() -> KeyWindowPassed:
    """Return the error for a call that is too old to be sent again."""
    return KeyWindowPassed(
        "the call was first sent longer ago than its outcome is kept, and was not sent again",
        "find out whether it took effect; then it may be made anew",
    )
