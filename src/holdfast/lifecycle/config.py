"""What a user says of hooks, their clients and receipts: section `[lifecycle]` of the user's configuration file.

The file is the only source: clients are programs that will be run, and nothing that a project one enters can set,
neither a file of its own nor an environment variable, adds one, changes one, or turns a check off.

Invariants:
    - Whatever is configured here makes sense by itself: an event, a harness or a requirement is one that exists.
    - A program is named so that no directory a hook happens to run in decides which one it is.
    - The chain key is read from a file that is the user's alone, and is never shown.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from holdfast.core.config import TIME_MS_MAX, check, load, setting
from holdfast.core.errors import ConfigError
from holdfast.lifecycle import wire
from holdfast.lifecycle.documents import CapabilityRequirement
from holdfast.lifecycle.enums import EVENTS, Ambiguous, ReplayMode
from holdfast.lifecycle.errors import ValidationError
from holdfast.lifecycle.manifest import ADAPTERS, ALIASES
from holdfast.lifecycle.negotiation import PayloadPolicy
from holdfast.lifecycle.rules import NOTIFICATION

__all__ = ["CHAIN_KEY_BYTES", "Client", "LifecycleConfig", "requirement_of"]

CHAIN_KEY_BYTES: Final = 32
"""What a keyed BLAKE3 takes."""

TIMEOUT_MS_MAX: Final = 600_000
"""Ten minutes: no harness waits longer for a hook."""

WAIT_MS_MAX: Final = 8_000
"""The whole time that a hook has."""

DEDUPE_MS_MAX: Final = 3_600_000
"""An hour: what comes again after that is another moment."""

_HEAD = re.compile(r"head:([1-9][0-9]{0,6})")


def requirement_of(text: str) -> CapabilityRequirement:
    """Read a requirement that is written CAP=LEVEL:DESIRED.

    Raises:
        ValidationError: It is no requirement.
    """
    capability, _, rest = text.rpartition("=")
    level, _, desired = rest.partition(":")
    given = {"capability": capability, "level": level, "desired": desired}
    return wire.decode_value(given, CapabilityRequirement)


@dataclass(frozen=True, kw_only=True)
class Client:
    """A program that is asked about events: one `[[lifecycle.clients]]`.

    Attributes:
        id: The name it has in receipts, for ever.
        command: The program and its arguments; no shell reads them.
        events: The events it is asked about.
        harnesses: Only those of these adapters; empty: of all.
        timeout_ms: How long it has for one event.
        env_pass: Environment variables it gets besides the few that every client gets.
        requires: What the adapter has to be able to do, each CAP=LEVEL:DESIRED.
        late: Events it is asked about even when their moment is over.
    """

    id: str
    command: tuple[str, ...]
    events: tuple[str, ...]
    harnesses: tuple[str, ...] = ()
    timeout_ms: int = setting(5_000, minimum=1, maximum=TIMEOUT_MS_MAX)
    env_pass: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    late: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(self)
        if not self.id or "\0" in self.id:
            raise ConfigError("id is empty, or holds the character NUL", "give the client a name", keys=("id",))
        object.__setattr__(self, "command", _argv(self.command))
        object.__setattr__(self, "harnesses", tuple(ALIASES.get(each, each) for each in self.harnesses))
        if not self.events:
            raise ConfigError("events is empty, so the client would never be called", "name one", keys=("events",))
        _among("events", self.events, tuple(each for each in EVENTS if each != NOTIFICATION))
        _among("harnesses", self.harnesses, ADAPTERS)
        _among("late", self.late, self.events)
        for name in self.env_pass:
            if not name or "=" in name or "\0" in name:
                raise ConfigError("env_pass holds what is no variable's name", "give names only", keys=("env_pass",))
        try:
            self.requirements()
        except ValidationError as error:
            raise ConfigError(f"requires: {error.message}", "write CAP=LEVEL:DESIRED", keys=("requires",)) from None

    def listens(self, harness: str, event: str) -> bool:
        """Say whether it is asked about an event of a harness, given by its canonical id."""
        return event in self.events and (not self.harnesses or harness in self.harnesses)

    def requirements(self) -> tuple[CapabilityRequirement, ...]:
        """Return what the adapter has to be able to do."""
        return tuple(requirement_of(text) for text in self.requires)


@dataclass(frozen=True, kw_only=True)
class LifecycleConfig:
    """Settings of hooks, clients and receipts.

    Attributes:
        label: The label of the requests that hooks make.
        client_id: The client of receipts about events that nobody was asked about.
        observer: Whether such receipts are made where no client is bound, always, or never.
        clients: Who is asked, in this order.
        on_error: Whether a hook that fails lets the harness go on, or blocks it where it can.
        ambiguous: What becomes of a call whose caller died: `close` it, or `rerun` it.
        hook_mode: Whether the receipt of a hook that comes again must have the same receipt id and second.
        payload_integrity: Whether a payload's wrong size or digest is warned of, refused, or not looked for.
        payload_expiry: Whether a payload past its time is kept back.
        prompt_metadata: How much of a prompt requests carry: its `digest`, its first N characters with
            `head:N`, or all with `full`.
        dedupe_window_ms: Within so many milliseconds an equal hook is the same one delivered twice.
        lock_wait_ms: How long a hook waits for the ledger before it uses the spool file.
        inflight_wait_ms: How long a hook waits for the reply to the same one before it answers nothing.
        raw: Whether hooks' bodies are blanked once they are derived, or kept.
        raw_keep_ms: How long they are kept.
        chain_key_file: A file with the key of the chains' hashes.
        context_windows: Tokens that a model holds, by the beginning of its name.
        stale_after_ms: A transcript that has been quiet for longer tells nothing of the present.
    """

    label: Literal["lifeloop.v0.1", "lifeloop.v0.2", "lifeloop.v0.3"] = "lifeloop.v0.3"
    client_id: str = "holdfast"
    observer: Literal["unbound", "always", "off"] = "unbound"
    clients: tuple[Client, ...] = ()
    on_error: Literal["open", "closed"] = "open"
    ambiguous: Ambiguous = "close"
    hook_mode: ReplayMode = "semantic"
    payload_integrity: Literal["warn", "strict", "off"] = "warn"
    payload_expiry: Literal["enforce", "ignore"] = "enforce"
    prompt_metadata: str = "digest"
    dedupe_window_ms: int = setting(3_000, minimum=0, maximum=DEDUPE_MS_MAX)
    lock_wait_ms: int = setting(2_000, minimum=0, maximum=WAIT_MS_MAX)
    inflight_wait_ms: int = setting(2_000, minimum=0, maximum=WAIT_MS_MAX)
    raw: Literal["metadata", "full"] = "metadata"
    raw_keep_ms: int = setting(30 * 86_400_000, minimum=0, maximum=TIME_MS_MAX)
    chain_key_file: Path | None = None
    context_windows: Mapping[str, int] = field(default_factory=dict)
    stale_after_ms: int = setting(3_600_000, minimum=1, maximum=TIME_MS_MAX)

    def __post_init__(self) -> None:
        check(self)
        if not self.client_id or "\0" in self.client_id:
            raise ConfigError("client_id is empty, or holds the character NUL", "give a name", keys=("client_id",))
        ids = [client.id for client in self.clients]
        for each in (self.client_id, *ids):
            if ids.count(each) + (each == self.client_id) > 1:
                raise ConfigError(
                    f"two clients have the id {each!r}, so their receipts would be taken for one another's",
                    f"give each another id, and none {self.client_id!r}, which observed receipts have",
                    keys=("clients",),
                )
        if self.prompt_metadata not in ("digest", "full") and not _HEAD.fullmatch(self.prompt_metadata):
            raise ConfigError(
                f"prompt_metadata is {self.prompt_metadata!r}",
                "write digest, full, or head: and a number",
                keys=("prompt_metadata",),
            )
        for model, tokens in self.context_windows.items():
            if not model or tokens < 1:
                raise ConfigError(
                    "context_windows has a model without a name, or without tokens",
                    "write the beginning of a model's name, and how many tokens it holds",
                    keys=("context_windows",),
                )

    @classmethod
    def load(cls, path: Path | None) -> LifecycleConfig:
        """Read the settings from the user's file, and from nowhere else.

        A relative `chain_key_file` is relative to the file.

        Args:
            path: The file, from `config_path`; None if there is none.

        Raises:
            ConfigError: A key is unknown, or a value has a wrong type, is out of range, or makes no sense.
        """
        found = load(cls, "lifecycle", path=path, environ={})
        if path is None or found.chain_key_file is None:
            return found
        return replace(found, chain_key_file=path.absolute().parent / found.chain_key_file)

    @property
    def policy(self) -> PayloadPolicy:
        """How odd payloads are taken."""
        return PayloadPolicy(integrity=self.payload_integrity, expiry=self.payload_expiry)

    @property
    def prompt_head_chars(self) -> int | None:
        """How many characters of a prompt requests carry; None: all of them."""
        if self.prompt_metadata == "full":
            return None
        head = _HEAD.fullmatch(self.prompt_metadata)
        return 0 if head is None else int(head[1])

    def bound(self, harness: str, event: str) -> tuple[Client, ...]:
        """Return who is asked about an event of a harness, given by its canonical id, in the file's order."""
        return tuple(client for client in self.clients if client.listens(harness, event))

    def chain_key(self) -> bytes | None:
        """Read the key of the chains' hashes; None where no file is configured.

        The file has 32 bytes, or 64 hexadecimal digits.

        Raises:
            ConfigError: It cannot be read, is not the user's own, may be read by others, or holds something else.
        """
        if self.chain_key_file is None:
            return None
        data = _private(self.chain_key_file)
        if len(data) != CHAIN_KEY_BYTES:
            try:
                data = bytes.fromhex(data.decode("ascii").strip())
            except ValueError:
                data = b""
        if len(data) != CHAIN_KEY_BYTES:
            raise _bad_key("the chain key is neither 32 bytes nor 64 hexadecimal digits", "openssl rand -hex 32")
        return data


def _private(path: Path) -> bytes:
    try:
        # Neither a pipe that nobody writes to nor a device may hold up a hook.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise _bad_key(f"{path} is no file", "name a file")
            if about.st_uid not in (0, os.geteuid()):
                raise _bad_key(f"{path} belongs to somebody else", "make it your own")
            if about.st_mode & 0o077:
                raise _bad_key(f"{path} is open to others", "chmod 600 it")
            return file.read(4096)
    except OSError as error:
        raise _bad_key(f"cannot read {path}: {error.strerror}", "check chain_key_file") from error


def _bad_key(message: str, hint: str) -> ConfigError:
    return ConfigError(message, hint, code="config.chain_key", keys=("chain_key_file",))


def _argv(command: tuple[str, ...]) -> tuple[str, ...]:
    if not command or not command[0] or any("\0" in word for word in command):
        raise ConfigError("command is empty, or holds the character NUL", "name a program", keys=("command",))
    program = command[0]
    if program.startswith("~"):
        program = os.path.expanduser(program)
    if "/" in program and not program.startswith("/"):
        raise ConfigError(
            f"command names {program}, which depends on the directory that a hook runs in",
            "give its whole path, or a name that PATH finds",
            keys=("command",),
        )
    return (program, *command[1:])


def _among(name: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    for each in given:
        if each not in known:
            raise ConfigError(f"{name} holds {each!r}", f"known are {', '.join(known)}", keys=(name,))
