"""What may be configured: the rule of a route, what a declaration names of one, and the settings of a guard.

All check themselves when they are made, so a bad value or a bad pair never reaches a request.

Invariants:
    - A rule says the same to every process that has it: nothing in it depends on the machine or on time.
    - A declaration fills only what it named.
    - What nobody named stays derived: it follows when the value it is derived from is replaced.
    - No representation shows a secret, or a function with what may be bound to it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

from holdfast.core.errors import ConfigError
from holdfast.core.keyring import KeyRing
from holdfast.idempotency.bounds import (
    FLAG,
    FUNCTION,
    Want,
    check,
    conflict,
    duration,
    invalid,
    is_token,
    keep,
    matching,
    maybe,
    methods,
    names,
    number,
    one_of,
    representation,
    statuses,
)
from holdfast.idempotency.templates import compiled, covers, route_path
from holdfast.idempotency.values import Absent, Completed, KeyRecord, Lapse, Mode, Principal, Rerun, Running, Undecided

if TYPE_CHECKING:
    from holdfast.idempotency.events import IdempotencyEvent
    from holdfast.idempotency.fingerprint import RequestParts

__all__ = [
    "CODES",
    "PROFILES",
    "Declaration",
    "IdempotencyConfig",
    "RouteRule",
    "Scope",
    "lapse_by_method",
    "route_path",
]

Scope: TypeAlias = Mapping[str, Any]
"""An ASGI connection scope."""
Body: TypeAlias = "Literal['raw', 'json', 'multipart'] | Callable[[RequestParts], bytes]"
FailurePolicy: TypeAlias = Literal["release", "freeze", "ambiguous"]
StatusPolicy: TypeAlias = Literal["store", "release", "unknown"]
KeyUse: TypeAlias = Literal["optional", "required", "forbidden", "ignored"]
Attach: TypeAlias = Callable[[str], Awaitable[Running | Completed | Absent]]
PrincipalOf: TypeAlias = Callable[[Any], "Principal | str | Awaitable[Principal | str | None] | None"]

MARKED = ("POST", "PUT", "PATCH", "DELETE")
RERUN_METHODS = frozenset({"PUT", "DELETE"})
"""HTTP defines them as idempotent (RFC 9110, 9.2.2), so a lapse may run again."""
LEASE_MIN, LEASE_MAX = timedelta(seconds=1), timedelta(hours=1)
WAIT_MAX = timedelta(seconds=30)
SECRET_BYTES_MIN = 32
KEY_LENGTH_MAX = 255
UUID_CHARS = 36
PROFILES: Mapping[str, Mapping[str, int]] = {
    "draft": {},
    "stripe": {"key_reused": 400, "in_flight": 409},
    "lock423": {"in_flight": 423},
}
CODES = frozenset({
    "body_not_canonical", "body_timeout", "executed", "first_sent_invalid", "handler_failed", "handler_timeout",
    "identity_unproven", "in_flight", "key_forbidden", "key_invalid", "key_missing", "key_reused", "key_window_passed",
    "outcome_unknown", "overloaded", "quota_exceeded", "record_newer", "record_unreadable", "replay_forbidden",
    "request_too_large", "store_busy", "store_unavailable",
})  # fmt: skip
"""Codes of answers, whose status a profile may choose."""


# --- what a field must be -----------------------------------------------------------------------

_ISOLATION: Final = ("read committed", "repeatable read", "serializable")


def _spelled(isolation: str) -> str:
    """One spelling for the level, however a driver spells it."""
    return isolation.lower().replace("_", " ")


def _is_profile(value: object) -> bool:
    if isinstance(value, str):
        return value in PROFILES
    return isinstance(value, Mapping) and all(
        code in CODES and type(status) is int and 400 <= status <= 599 for code, status in value.items()
    )


def _is_key_format(value: object) -> bool:
    if isinstance(value, re.Pattern):
        return isinstance(value.pattern, str)
    return isinstance(value, str) and value in ("any", "uuid", "uuid4", "uuid7")


_RULE: Mapping[str, Want] = {
    "path": maybe(
        Want(
            lambda value: isinstance(value, str) and compiled(value) is not None,
            "a template such as /orders/{id} or /files/{rest:path}",
            "one parameter in a segment, {name}; one {name:path}, which takes slashes too; no query; each name once",
        )
    ),
    "methods": maybe(methods()),
    "key": one_of("optional", "required", "forbidden", "ignored"),
    "mode": one_of("transaction", "separate", "execution"),
    "ttl": duration(),
    "tombstone_ttl": maybe(duration()),
    "lease": duration(LEASE_MIN, LEASE_MAX),
    "on_5xx": one_of("release", "freeze", "ambiguous"),
    "on_lapse": maybe(one_of("ambiguous", "rerun")),
    "irreversible": FLAG,
    "statuses": statuses("store", "release", "unknown"),
    "on_in_flight": one_of("reject", "wait"),
    "wait_max": duration(maximum=WAIT_MAX),
    "on_store_error": one_of("closed", "open"),
    "on_lost": one_of("continue", "cancel"),
    "handler_timeout": maybe(duration(maximum=LEASE_MAX)),
    "body": Want(
        lambda value: callable(value) or (isinstance(value, str) and value in ("raw", "json", "multipart")),
        "'raw', 'json', 'multipart' or a function",
        "a function takes RequestParts and returns the bytes to compare",
    ),
    "key_scope": one_of("principal", "route"),
    "stream": FLAG,
    "stream_after": duration(),
    "flush": one_of("after_settle", "early"),
    "set_cookie": one_of("drop", "refuse", "keep"),
    "header_deny": names(),
    "request_bytes_max": number(1),
    "response_bytes_max": number(1),
    "isolation": maybe(
        Want(
            lambda value: isinstance(value, str) and _spelled(value) in _ISOLATION,
            f"one of {', '.join(_ISOLATION)}",
            "None takes the database's own",
        )
    ),
    "lock_timeout": duration(),
    "retries": number(0, 100),
    "on_4xx_writes": one_of("rollback", "commit"),
    "attach": maybe(FUNCTION),
}

_CONFIG: Mapping[str, Want] = {
    "principal": FUNCTION,
    "secrets": Want(
        lambda value: isinstance(value, list | tuple) and all(type(secret) is bytes for secret in value),
        "a sequence of bytes",
        "make one with `openssl rand -base64 32` and decode it; the first writes, all are accepted",
        plain=False,
    ),
    "rule": maybe(Want(lambda value: isinstance(value, RouteRule), "a RouteRule", "write RouteRule(…)")),
    "routes": Want(
        lambda value: isinstance(value, tuple) and all(isinstance(rule, RouteRule) for rule in value),
        "a tuple of RouteRule",
        "one rule is written (RouteRule(…),)",
    ),
    "headers": names(least=1, folded=True),
    "strict_sf": FLAG,
    "key_format": Want(
        _is_key_format,
        "'any', 'uuid', 'uuid4', 'uuid7' or a compiled pattern of text",
        'a pattern is written re.compile("…")',
    ),
    "key_length_min": number(1, KEY_LENGTH_MAX),
    "fingerprint_headers": names(),
    "content_type_ignore": Want(
        lambda value: isinstance(value, set | frozenset) and all(is_token(name) for name in value),
        "a set of parameter names",
        'one name is written frozenset({"boundary"})',
    ),
    "profile": Want(
        _is_profile,
        f"one of {', '.join(map(repr, PROFILES))}, or a mapping of codes to 4xx and 5xx statuses",
        f"the codes are {', '.join(sorted(CODES))}",
    ),
    "problem_base": Want(matching(r"[!-~]+"), "a URI without spaces", "the code is put behind it"),
    "help_url": Want(matching(r"[!#-;=?-~]+"), "a URL", "it goes into a Link header"),
    "challenge": maybe(Want(matching(r"[!-~]([ -~]*[!-~])?"), "a header value", "for instance 'Bearer realm=\"api\"'")),
    "mark_first": FLAG,
    "echo_key": FLAG,
    "expires_header": FLAG,
    "policy_path": maybe(
        Want(
            lambda value: isinstance(value, str) and value.startswith("/") and "?" not in value,
            "a path that begins with /",
            'for instance "/.well-known/idempotency"',
        )
    ),
    "in_flight_max": number(1),
    "waiters_max": number(1),
    "keys_per_hour_max": maybe(number(1)),
    "stored_bytes_max": maybe(number(1)),
    "buffered_bytes_max": number(1),
    "body_timeout": duration(),
    "store_timeout": duration(),
    "settle_retry_for": duration(),
    "pending_settle_bytes_max": number(1),
    "breaker_failures": number(1),
    "breaker_open": duration(),
    "release_timeout": duration(),
    "compress_over_bytes": number(0),
    "cipher": maybe(
        Want(lambda value: isinstance(value, KeyRing), "a KeyRing", "write KeyRing(current=(1, key))", plain=False)
    ),
    "redact": maybe(FUNCTION),
    "authorize_replay": maybe(FUNCTION),
    "reconcile": maybe(FUNCTION),
    "sweep_every": duration(),
    "prune_batch": number(1),
    "observe": FLAG,
    "allow_memory": FLAG,
    "on_event": maybe(FUNCTION),
}


# --- the rule of a route ------------------------------------------------------------------------


def lapse_by_method(method: str) -> Lapse:
    """Say what a lapsed claim means where nobody said it: HTTP lets PUT and DELETE run again, nothing else."""
    return "rerun" if method in RERUN_METHODS else "ambiguous"


class _Derived(str):
    """The policy of a rule that named none. It reads as a plain one, and is derived again when the rule is replaced."""

    __slots__ = ()


def _derived(policy: FailurePolicy) -> FailurePolicy:
    return cast("FailurePolicy", _Derived(policy))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RouteRule:
    """What holds for the requests of one route. Fields are described in the reference.

    Attributes:
        path: Template such as `/orders/{id}` or `/files/{rest:path}`; None: every path.
        methods: Methods covered.
        key: Whether a request may, must or must not carry a key; `ignored` treats keyed requests as keyless.
        mode: Where claim and outcome are committed.
        ttl: How long an outcome answers retries, from its settlement.
        tombstone_ttl: The same for tombstones; None: `ttl`.
        lease: How long a claim holds without renewal; 1 s to 1 h, below `ttl`.
        on_5xx: What a 5xx becomes; unless named, `ambiguous` when irreversible, `freeze` under the profile `stripe`.
        on_lapse: What a lapsed claim means; None: by method.
        irreversible: Effects of this route cannot be taken back; without `on_5xx` and `on_lapse`, both are ambiguous.
        statuses: Policy by status (409) or class ("5xx"); the most specific wins.
        on_in_flight: Refuse a duplicate at once, or let it wait.
        wait_max: How long it waits; at most 30 s.
        on_store_error: Refuse without the ledger, or run unprotected.
        on_lost: What a lost claim does to its running handler.
        handler_timeout: After that the handler is cancelled; shorter than the lease.
        body: What of the body is compared.
        key_scope: Whether one key on two routes is one operation or two.
        stream: Every response of this route is a stream.
        stream_after: A response whose last byte has not come by then is a stream.
        flush: Hold the response until it is settled, or let all but its last part go early.
        set_cookie: Drop cookies from the record, refuse to record, or keep them.
        header_deny: More response fields never to record.
        request_bytes_max: Larger requests are refused.
        response_bytes_max: Larger responses are not kept.
        isolation: Mode `transaction`: `read committed`, `repeatable read`, `serializable`; None: the database's own.
        lock_timeout: Mode `transaction`: how long a duplicate waits for the first.
        retries: Mode `transaction`: runs after a serialisation failure.
        on_4xx_writes: Mode `transaction`: whether a recorded 4xx keeps the handler's writes.
        attach: Mode `execution`: asks what became of an execution.
    """

    path: str | None = None
    methods: tuple[str, ...] | None = MARKED
    key: KeyUse = "optional"
    mode: Mode = "separate"
    ttl: timedelta = timedelta(hours=24)
    tombstone_ttl: timedelta | None = None
    lease: timedelta = timedelta(seconds=30)
    on_5xx: FailurePolicy = _derived("release")  # noqa: RUF009 - a string
    on_lapse: Lapse | None = None
    irreversible: bool = False
    statuses: Mapping[int | str, StatusPolicy] = field(default_factory=dict, hash=False)
    on_in_flight: Literal["reject", "wait"] = "reject"
    wait_max: timedelta = timedelta(seconds=2)
    on_store_error: Literal["closed", "open"] = "closed"
    on_lost: Literal["continue", "cancel"] = "continue"
    handler_timeout: timedelta | None = None
    body: Body = field(default="raw", hash=False)
    key_scope: Literal["principal", "route"] = "principal"
    stream: bool = False
    stream_after: timedelta = timedelta(seconds=1)
    flush: Literal["after_settle", "early"] = "after_settle"
    set_cookie: Literal["drop", "refuse", "keep"] = "drop"
    header_deny: tuple[str, ...] = ()
    request_bytes_max: int = 2 * 1024 * 1024
    response_bytes_max: int = 2 * 1024 * 1024
    isolation: str | None = None
    lock_timeout: timedelta = timedelta(seconds=1)
    retries: int = 3
    on_4xx_writes: Literal["rollback", "commit"] = "rollback"
    attach: Attach | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        """Check every field and every pair.

        Raises:
            ConfigError: `config.rule_invalid`, or `config.mode_conflict` for what the mode cannot keep.
        """
        for name, want in _RULE.items():
            check("RouteRule", name, want, getattr(self, name))
        keep(self, "statuses", dict(self.statuses))
        keep(self, "header_deny", tuple(name.lower() for name in self.header_deny))
        keep(self, "isolation", self.isolation and _spelled(self.isolation))
        if isinstance(self.on_5xx, _Derived):
            calm: FailurePolicy = "freeze" if self.on_5xx == "freeze" else "release"
            keep(self, "on_5xx", _derived("ambiguous" if self.irreversible else calm))
        if self.lease >= self.ttl:
            raise invalid(
                "a lease must be shorter than ttl", "shorten the lease, or keep outcomes longer", "lease", "ttl"
            )
        if self.handler_timeout is not None and self.handler_timeout >= self.lease:
            raise invalid(
                "handler_timeout must be shorter than the lease", "lengthen the lease", "handler_timeout", "lease"
            )
        self._check_mode()

    def _check_mode(self) -> None:
        if self.mode == "transaction":
            # A mark inside a transaction dies with it, and bytes on the wire outlive its rollback.
            impossible = {"irreversible": self.irreversible, "stream": self.stream, "flush": self.flush == "early"}
            for name, named in impossible.items():
                if named:
                    raise conflict(
                        f"mode 'transaction' cannot keep {name}={getattr(self, name)!r}",
                        "use mode 'separate' for a route that streams or whose effects cannot be rolled back",
                        "mode",
                        name,
                    )
        if (self.mode == "execution") != (self.attach is not None):
            raise conflict(
                "mode 'execution' needs attach, and no other mode takes it",
                "attach says what became of an execution: Running, Completed or Absent",
                "mode",
                "attach",
            )

    def __repr__(self) -> str:
        return representation(self)

    def matches(self, method: str, path: str) -> bool:
        """Say whether the rule covers a request.

        Args:
            method: Its method.
            path: What `route_path` gives for it.
        """
        if self.methods is not None and method not in self.methods:
            return False
        return self.path is None or covers(self.path, path)

    def lapse(self, method: str) -> Lapse:
        """Say what a lapsed claim of a request with this method means."""
        if self.on_lapse is not None:
            return self.on_lapse
        return "ambiguous" if self.irreversible else lapse_by_method(method)


@dataclass(frozen=True, slots=True, repr=False)
class Declaration:
    """What a declaration at an endpoint names of its rule.

    Values are checked one by one when it is made. Pairs are checked when it is filled in, because the other
    half may come from the rule beneath.

    Attributes:
        fields: Fields of `RouteRule`, except `path` and `methods`, by name.
    """

    fields: Mapping[str, object] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check every field that is named.

        Raises:
            ConfigError: `config.rule_invalid`.
        """
        known = [name for name in _RULE if name not in ("path", "methods")]
        for name, value in keep(self, "fields", dict(self.fields)).items():
            if name not in known:
                raise invalid(f"a declaration cannot name {name}", f"it can name {', '.join(known)}", name)
            check("RouteRule", name, _RULE[name], value)

    def __repr__(self) -> str:
        return f"Declaration({', '.join(self.fields)})"

    def over(self, base: RouteRule) -> RouteRule:
        """Return a rule with what is named here in the place of its own.

        A declaration that says `irreversible` speaks of the effects of its own endpoint. So policies that the
        rule beneath named for the whole application hold only where the declaration names them again.

        Raises:
            ConfigError: Together they are a bad pair.
        """
        named: dict[str, Any] = dict(self.fields)
        if named.get("irreversible"):
            named = {"on_5xx": _derived("ambiguous"), "on_lapse": None, **named}
        return dataclasses.replace(base, **named)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class IdempotencyConfig:
    """The settings of a guard. Fields are described in the reference.

    Attributes:
        principal: Who asks: a function of the scope, sync or async, to `Principal`, a subject, or None (refused).
        secrets: At least 32 bytes each; the first writes, all are accepted.
        rule: What holds where no other rule does; None: only declared and listed routes are guarded.
        routes: Rules by path and method, the first that matches wins.
        headers: Names of the header, preferred first.
        strict_sf: Refuse a key that is not a Structured Field String.
        key_format: `any`, a kind of UUID, or a pattern the whole key must match.
        key_length_min: Shorter keys are refused.
        fingerprint_headers: Request fields that must not differ.
        content_type_ignore: Parameters of the content type that may differ.
        profile: Statuses of refusals: a name, or code to status.
        problem_base: What the codes of problem documents stand behind.
        help_url: Where the documents point for help.
        challenge: `WWW-Authenticate` of an unproven caller; makes the answer a 401.
        mark_first: Send the marker with `false` on first runs.
        echo_key: Send the key back as a Structured Field String.
        expires_header: Send `Idempotency-Expires`.
        policy_path: Where the policy is served.
        in_flight_max: Claims of one principal at a time.
        waiters_max: Waiting duplicates of one principal.
        keys_per_hour_max: New keys of one principal in an hour.
        stored_bytes_max: Recorded bytes of one principal.
        buffered_bytes_max: Request bytes held by this process.
        body_timeout: How long a body may take to arrive.
        store_timeout: How long one call of the ledger may take.
        settle_retry_for: How long a failed settle is tried again.
        pending_settle_bytes_max: Bodies waiting for that; what is beyond shrinks to tombstones.
        breaker_failures: Failures in a row that open the breaker.
        breaker_open: How long it stays open.
        release_timeout: How long a failing request may take to let go of its key.
        compress_over_bytes: Larger bodies are compressed.
        cipher: Seals header blocks and bodies.
        redact: Changes what is kept of a response; None from it: keep nothing.
        authorize_replay: Says whether this caller may see the record: (record, principal, scope), sync or async.
        reconcile: Asked by the sweep what became of an unknown record.
        sweep_every: How often the ledger is tidied.
        prune_batch: Rows deleted in one transaction.
        observe: Record and count only; refuse nothing.
        allow_memory: Accept `:memory:`.
        on_event: Called with every event, in order.
    """

    principal: PrincipalOf = field(hash=False)
    secrets: Sequence[bytes]
    rule: RouteRule | None = field(default_factory=RouteRule)
    routes: tuple[RouteRule, ...] = ()
    headers: tuple[str, ...] = ("Idempotency-Key",)
    strict_sf: bool = False
    key_format: Literal["any", "uuid", "uuid4", "uuid7"] | re.Pattern[str] = "any"
    key_length_min: int = 1
    fingerprint_headers: tuple[str, ...] = ("if-match", "if-none-match", "x-http-method-override")
    content_type_ignore: frozenset[str] = frozenset({"boundary"})
    profile: Literal["draft", "stripe", "lock423"] | Mapping[str, int] = field(default="draft", hash=False)
    problem_base: str = "urn:holdfast:idempotency:"
    help_url: str = "https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/"
    challenge: str | None = None
    mark_first: bool = False
    echo_key: bool = False
    expires_header: bool = False
    policy_path: str | None = None
    in_flight_max: int = 100
    waiters_max: int = 8
    keys_per_hour_max: int | None = None
    stored_bytes_max: int | None = None
    buffered_bytes_max: int = 256 * 1024 * 1024
    body_timeout: timedelta = timedelta(seconds=30)
    store_timeout: timedelta = timedelta(seconds=2)
    settle_retry_for: timedelta = timedelta(seconds=60)
    pending_settle_bytes_max: int = 64 * 1024 * 1024
    breaker_failures: int = 5
    breaker_open: timedelta = timedelta(seconds=5)
    release_timeout: timedelta = timedelta(seconds=2)
    compress_over_bytes: int = 16 * 1024
    cipher: KeyRing | None = field(default=None, hash=False)
    redact: Callable[[Completed], Completed | None] | None = field(default=None, hash=False)
    authorize_replay: Callable[[KeyRecord, Principal, Any], bool | Awaitable[bool]] | None = field(
        default=None, hash=False
    )
    reconcile: Callable[[KeyRecord], Awaitable[Rerun | Completed | Undecided]] | None = field(default=None, hash=False)
    sweep_every: timedelta = timedelta(seconds=60)
    prune_batch: int = 500
    observe: bool = False
    allow_memory: bool = False
    on_event: Callable[[IdempotencyEvent], object] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        """Check every field and every pair.

        Raises:
            ConfigError: `config.rule_invalid`, or `config.secret_weak` for secrets that protect nothing.
        """
        for name, want in _CONFIG.items():
            check("IdempotencyConfig", name, want, getattr(self, name))
        self._check_secrets()
        if self.key_format in ("uuid", "uuid4", "uuid7") and self.key_length_min > UUID_CHARS:
            raise invalid("no UUID is as long as key_length_min", "lower it", "key_length_min", "key_format")
        keep(self, "secrets", tuple(self.secrets))
        keep(self, "fingerprint_headers", tuple(name.lower() for name in self.fingerprint_headers))
        keep(self, "content_type_ignore", frozenset(name.lower() for name in self.content_type_ignore))
        if not isinstance(self.profile, str):
            profile = keep(self, "profile", dict(self.profile))
            if profile.get("identity_unproven") == 401 and self.challenge is None:
                raise invalid("a 401 must carry a challenge", "set challenge", "profile", "challenge")
        if self.rule is not None:
            keep(self, "rule", self.ruled(self.rule))
        keep(self, "routes", tuple(self.ruled(rule) for rule in self.routes))

    def _check_secrets(self) -> None:
        weak = ""
        if not self.secrets:
            weak = "a guard needs a secret"
        elif min(map(len, self.secrets)) < SECRET_BYTES_MIN:
            weak = f"a secret has at least {SECRET_BYTES_MIN} bytes"
        elif len(set(self.secrets)) < len(self.secrets):
            weak = "a secret is listed twice"
        if weak:
            raise ConfigError(weak, _CONFIG["secrets"].hint, code="config.secret_weak", keys=("secrets",))

    def __repr__(self) -> str:
        return representation(self, "secrets", "cipher")

    def ruled(self, rule: RouteRule) -> RouteRule:
        """Return a rule as this configuration reads it: the profile decides about 5xx where the rule does not."""
        calm: FailurePolicy = "freeze" if self.profile == "stripe" else "release"
        if not isinstance(rule.on_5xx, _Derived) or rule.on_5xx in ("ambiguous", calm):
            return rule
        return dataclasses.replace(rule, on_5xx=_derived(calm))

    def declared(self, declaration: Declaration) -> RouteRule:
        """Return the rule of an endpoint: what it declares over `rule`, or over the defaults where that is None.

        Raises:
            ConfigError: Together they are a bad pair.
        """
        return self.ruled(declaration.over(RouteRule() if self.rule is None else self.rule))
