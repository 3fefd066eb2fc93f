"""What a user says of captured sessions: section `[sessions]`, its environment variables, and two lists of tables.

The later wins: the file, then `HOLDFAST_SESSIONS_<KEY>`, then what the program gives. Rules of redaction and of what
calls are for are lists of tables, `[[redact]]` and `[[classify]]`, which only the file or the program can give.

Invariants:
    - Whatever is configured makes sense by itself; a pattern that could run for ever is refused here.
    - A relative path in the file is relative to the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from holdfast.core.config import TIME_MS_MAX, check, load, setting, tables
from holdfast.core.errors import ConfigError
from holdfast.sessions import redact
from holdfast.sessions.calls import Rule
from holdfast.sessions.limits import CONTINUATION_US, DEPTH_MAX

__all__ = ["Classify", "Derive", "Prices", "Redact", "RedactRule", "Retention", "SessionsConfig"]

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB
"""No body is larger: one has to fit into a row, and both databases stop at or near it."""

HOUR_MS: Final = 3_600_000
DAYS_MAX: Final = 36_500
WORKERS_MAX: Final = 64


@dataclass(frozen=True, kw_only=True)
class RedactRule:
    """A pattern whose matches are taken out of everything before it is kept: one `[[redact]]`.

    Attributes:
        name: What stands in the mark that is left: 1 to 32 of a-z 0-9 _.
        pattern: A regular expression; of a match with a group `secret` only that is taken.
    """

    name: str
    pattern: str

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Classify:
    """What calls are for to which everything applies that it names: one `[[classify]]`; the first that fits counts.

    Attributes:
        kind: What such calls are.
        model: The model's name.
        agent_name: The agent's name.
        system: A piece of the system prompt.
        text: A piece of the last text the user sent.
    """

    kind: str
    model: str = ""
    agent_name: str = ""
    system: str = ""
    text: str = ""

    def __post_init__(self) -> None:
        check(self)
        if not self.kind:
            raise ConfigError("kind is empty", "say what such calls are", keys=("kind",))


@dataclass(frozen=True, kw_only=True)
class Derive:
    """How raw events become turns.

    Attributes:
        workers: How many events of this process are derived at a time; 0: none, another process does it.
        poll_ms: How often is looked for events that nobody announced.
        attempts_max: How often an event is tried before it is set aside.
        backoff_ms: How long an event waits after it failed once; twice as long after each further time, up to 5 min.
    """

    workers: int = setting(2, minimum=0, maximum=WORKERS_MAX)
    poll_ms: int = setting(500, minimum=10, maximum=HOUR_MS)
    attempts_max: int = setting(8, minimum=1, maximum=1000)
    backoff_ms: int = setting(500, minimum=1, maximum=HOUR_MS)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Where prices come from.

    Attributes:
        cards: A file of rate cards, JSON or TOML.
        package: Whether `genai-prices` is asked where no card holds and it is installed.
    """

    cards: Path | None = None
    package: bool = True

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Redact:
    """What is taken out of everything before it is kept.

    Attributes:
        builtin: Whether the rules that come with the slice are applied.
        rules: The user's own, applied after them.
    """

    builtin: bool = True
    rules: tuple[RedactRule, ...] = ()

    def __post_init__(self) -> None:
        check(self)
        self.compiled()

    def compiled(self) -> redact.Rules:
        """Return the rules, ready for use."""
        return redact.rules(((rule.name, rule.pattern) for rule in self.rules), builtin=self.builtin)


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How long is kept what was captured.

    Attributes:
        days: Calls captured longer ago are refused; 0 keeps for ever.
    """

    days: int = setting(0, minimum=0, maximum=DAYS_MAX)

    def __post_init__(self) -> None:
        check(self)

    @property
    def us(self) -> int:
        """The same in microseconds."""
        return self.days * 86_400 * 1_000_000


@dataclass(frozen=True, kw_only=True)
class SessionsConfig:
    """Settings of captured sessions.

    Attributes:
        body_bytes_max: An ingest body as it is received.
        decoded_bytes_max: The same without its content coding.
        json_depth_max: How deep it may nest.
        batch_items_max: Calls of one batch.
        inflight_items_max: Bodies between their first byte and their commit.
        inflight_bytes_max: What these weigh together, decoded.
        admission_wait_ms: How long a body waits for its place before it is told to come again.
        derive: How raw events become turns.
        synthetic_sessions: Whether calls without a session id are put together by what they continue.
        continuation_window_ms: How long after a call another may continue it.
        prices: Where prices come from.
        redact: What is taken out before anything is kept.
        classify: What calls are for.
        retention: How long is kept what was captured.
        encryption: Whether bodies, messages and what events say are sealed with the keys of the ledger.
        pack_after_ms: Requests that came longer ago are kept by how they differ from one another.
        secret_file: The key of fingerprints and marks, 32 bytes; None: made beside the database.
        trusted_proxies: Addresses whose word about a caller counts.
        allow_hosts: Names, besides those of this machine, under which a server without access keys may be called.
        tree_nodes_max: Sessions of one tree that is read.
        graph_nodes_max: Nodes of one graph that is read.
        lag_ready_ms: A server whose oldest underived event is older is not ready.
        shutdown_ms: How long a server takes at most to stop.
    """

    body_bytes_max: int = setting(48 * MIB, minimum=1024, maximum=GIB)
    decoded_bytes_max: int = setting(64 * MIB, minimum=1024, maximum=GIB)
    json_depth_max: int = setting(DEPTH_MAX, minimum=8, maximum=DEPTH_MAX)
    batch_items_max: int = setting(1000, minimum=1, maximum=100_000)
    inflight_items_max: int = setting(256, minimum=1, maximum=1_000_000)
    inflight_bytes_max: int = setting(256 * MIB, minimum=1024, maximum=1024 * GIB)
    admission_wait_ms: int = setting(250, minimum=0, maximum=60_000)
    derive: Derive = field(default_factory=Derive)
    synthetic_sessions: Literal["continuation", "per_call"] = "continuation"
    continuation_window_ms: int = setting(CONTINUATION_US // 1000, minimum=0, maximum=TIME_MS_MAX)
    prices: Prices = field(default_factory=Prices)
    redact: Redact = field(default_factory=Redact)
    classify: tuple[Classify, ...] = ()
    retention: Retention = field(default_factory=Retention)
    encryption: Literal["off", "payload"] = "off"
    pack_after_ms: int = setting(HOUR_MS, minimum=0, maximum=TIME_MS_MAX)
    secret_file: Path | None = None
    trusted_proxies: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    tree_nodes_max: int = setting(5000, minimum=1, maximum=1_000_000)
    graph_nodes_max: int = setting(5000, minimum=1, maximum=1_000_000)
    lag_ready_ms: int = setting(60_000, minimum=1, maximum=TIME_MS_MAX)
    shutdown_ms: int = setting(20_000, minimum=0, maximum=HOUR_MS)

    def __post_init__(self) -> None:
        check(self)
        if self.decoded_bytes_max < self.body_bytes_max:
            raise ConfigError(
                f"decoded_bytes_max is {self.decoded_bytes_max}, less than body_bytes_max, {self.body_bytes_max}",
                "a body without a coding is as long decoded as it is received",
                keys=("decoded_bytes_max", "body_bytes_max"),
            )

    @classmethod
    def load(cls, path: Path | None, environ: Mapping[str, str], **overrides: object) -> SessionsConfig:
        """Read the settings from the file, the environment and keywords; the later wins.

        Args:
            path: The file, from `config_path`; None if there is none.
            environ: The environment, read for `HOLDFAST_SESSIONS_<KEY>`.
            overrides: Values given in the program.

        Raises:
            ConfigError: A key is unknown, or a value has a wrong type, is out of range, or contradicts another.
        """
        found = load(cls, "sessions", path=path, environ=environ, **overrides)
        rules, kinds = tables(RedactRule, "redact", path=path), tables(Classify, "classify", path=path)
        if path is None:
            return found
        folder = path.absolute().parent
        return replace(
            found,
            redact=replace(found.redact, rules=(*rules, *found.redact.rules)),
            classify=(*kinds, *found.classify),
            prices=replace(found.prices, cards=_beside(folder, found.prices.cards, overrides.get("prices"))),
            secret_file=_beside(folder, found.secret_file, overrides.get("secret_file")),
        )

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What calls are for, as the derivation takes it."""
        return tuple(
            Rule(kind=each.kind, model=each.model, agent_name=each.agent_name, system=each.system, text=each.text)
            for each in self.classify
        )

    @property
    def window_us(self) -> int | None:
        """Microseconds within which a call without a session id may continue another; None: none ever does."""
        return self.continuation_window_ms * 1000 if self.synthetic_sessions == "continuation" else None


def _beside(folder: Path, given: Path | None, override: object) -> Path | None:
    """A path of the file or the environment, made absolute; one that the program gave stays as it is."""
    return given if given is None or override is not None else folder / given
