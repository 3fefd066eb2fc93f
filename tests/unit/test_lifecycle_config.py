"""Settings of hooks and receipts: the user's file is the only source, and what it says makes sense."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from holdfast.core.config import state_directory
from holdfast.core.errors import ConfigError
from holdfast.lifecycle.config import Client, LifecycleConfig
from holdfast.lifecycle.negotiation import PayloadPolicy

CLIENTS = """
[lifecycle]
chain_key_file = "chain.key"
prompt_metadata = "head:200"
payload_integrity = "strict"
context_windows = { "gpt-5" = 400000 }

[[lifecycle.clients]]
id = "memory"
command = ["~/bin/memory", "--fast"]
events = ["frame.opening", "session.ended"]
harnesses = ["claude_code", "codex"]
timeout_ms = 250
env_pass = ["MEMORY_HOME"]
requires = ["lifecycle_event:frame.opening=required:native"]
late = ["session.ended"]

[[lifecycle.clients]]
id = "audit"
command = ["audit"]
events = ["session.ended"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "holdfast.toml"


def configured(file: Path, text: str) -> LifecycleConfig:
    file.write_text(text)
    return LifecycleConfig.load(file)


def test_without_a_file_the_defaults_hold() -> None:
    config = LifecycleConfig.load(None)
    assert config == LifecycleConfig()
    assert (config.label, config.client_id, config.observer) == ("lifeloop.v0.3", "holdfast", "unbound")
    assert (config.on_error, config.ambiguous, config.hook_mode) == ("open", "close", "semantic")
    assert (config.dedupe_window_ms, config.lock_wait_ms, config.inflight_wait_ms) == (3_000, 2_000, 2_000)
    assert (config.raw, config.raw_keep_ms, config.stale_after_ms) == ("metadata", 30 * 86_400_000, 3_600_000)
    assert (config.clients, config.chain_key(), config.policy) == ((), None, PayloadPolicy())
    assert config.prompt_head_chars == 0


def test_clients_are_read_in_their_order_and_found_by_harness_and_event(file: Path) -> None:
    config = configured(file, CLIENTS)
    memory, audit = config.clients
    assert memory.command == (str(Path("~/bin/memory").expanduser()), "--fast")
    assert (memory.harnesses, memory.timeout_ms, memory.env_pass) == (("claude", "codex"), 250, ("MEMORY_HOME",))
    assert [(each.capability, each.level, each.desired) for each in memory.requirements()] == [
        ("lifecycle_event:frame.opening", "required", "native")
    ]
    assert audit == Client(id="audit", command=("audit",), events=("session.ended",))
    assert config.bound("claude", "session.ended") == (memory, audit)
    assert config.bound("gemini", "session.ended") == (audit,)
    assert config.bound("claude", "frame.ended") == ()
    assert (config.prompt_head_chars, config.policy.integrity) == (200, "strict")
    assert config.context_windows == {"gpt-5": 400_000}
    assert config.chain_key_file == file.parent / "chain.key"
    assert LifecycleConfig(prompt_metadata="full").prompt_head_chars is None


def test_every_setting_has_its_meaning() -> None:
    for settings in (LifecycleConfig, Client):
        documented = settings.__doc__ or ""
        assert [each.name for each in dataclasses.fields(settings) if f"        {each.name}: " not in documented] == []


def test_the_environment_says_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project can set variables of who enters it."""
    monkeypatch.setenv("HOLDFAST_LIFECYCLE_ON_ERROR", "closed")
    assert configured(file, "").on_error == "open"


CLIENT = '[[lifecycle.clients]]\nid = "c"\ncommand = ["c"]\nevents = ["frame.ended"]\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[lifecycle]\nflarb = 1", "lifecycle.flarb"),
        ('[lifecycle]\nlabel = "lifeloop.v9"', "label is not one of lifeloop.v0.1"),
        ('[lifecycle]\nclient_id = ""', "client_id is empty"),
        ('[lifecycle]\nprompt_metadata = "head:0"', "prompt_metadata is 'head:0'"),
        ("[lifecycle]\nlock_wait_ms = 8001", "lock_wait_ms is 8001"),
        ("[lifecycle]\nraw_keep_ms = true", "raw_keep_ms is not a whole number"),
        ("[lifecycle]\ncontext_windows = { a = 0 }", "without tokens"),
        ("[lifecycle]\ncontext_windows = { a = 'x' }", "not a table of whole numbers"),
        ("[lifecycle]\nclients = 1", "lifecycle.clients is not a list of tables"),
        ("[lifecycle]\nclients = [1]", "lifecycle.clients is not a list of tables"),
        (CLIENT + "flarb = 1", "lifecycle.clients[0].flarb"),
        (CLIENT + "timeout_ms = 0", "lifecycle.clients[0].timeout_ms is 0"),
        (CLIENT + 'late = ["session.ended"]', "lifecycle.clients[0]: late holds 'session.ended'"),
        (CLIENT + 'harnesses = ["vim"]', "harnesses holds 'vim'"),
        (CLIENT + 'env_pass = ["A=b"]', "no variable's name"),
        (CLIENT + 'requires = ["context_pressure=flarb:native"]', "requires: unknown variant `flarb`"),
        (CLIENT + CLIENT, "two clients have the id 'c'"),
        (CLIENT.replace('"c"', '"holdfast"', 1), "two clients have the id 'holdfast'"),
        (CLIENT.replace('id = "c"\n', ""), "lifecycle.clients[0] has no id"),
        (CLIENT.replace('id = "c"', 'id = ""'), "id is empty"),
        (CLIENT.replace("frame.ended", "receipt.emitted"), "events holds 'receipt.emitted'"),
        (CLIENT.replace('["frame.ended"]', "[]"), "events is empty"),
        (CLIENT.replace('command = ["c"]', "command = []"), "command is empty"),
        (CLIENT.replace('command = ["c"]', 'command = "c"'), "lifecycle.clients[0].command is not a list of texts"),
        (CLIENT.replace('command = ["c"]', 'command = ["./c"]'), "depends on the directory"),
    ],
)
def test_what_makes_no_sense_is_refused_and_named(file: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(file, text)
    assert said in caught.value.message
    assert str(file) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("data", [bytes(range(32)), bytes(range(32)).hex().encode() + b"\n"], ids=["bytes", "digits"])
def test_the_chain_key_is_read_from_a_file_of_ones_own(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "chain.key"
    path.write_bytes(data)
    path.chmod(0o600)
    assert LifecycleConfig(chain_key_file=path).chain_key() == bytes(range(32))


@pytest.mark.parametrize(
    ("data", "mode", "said"),
    [
        (b"k" * 32, 0o640, "open to others"),
        (b"k" * 31, 0o600, "neither 32 bytes"),
        (b"x" * 64, 0o600, "neither 32 bytes"),
        (None, 0, "cannot read"),
    ],
)
def test_another_chain_key_is_refused_and_not_shown(tmp_path: Path, data: bytes | None, mode: int, said: str) -> None:
    path = tmp_path / "chain.key"
    if data is not None:
        path.write_bytes(data)
        path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        LifecycleConfig(chain_key_file=path).chain_key()
    assert caught.value.code == "config.chain_key"
    assert said in caught.value.message
    assert "kkk" not in str(caught.value)
    assert "xxx" not in str(caught.value)


def test_a_directory_is_no_chain_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no file|cannot read"):
        LifecycleConfig(chain_key_file=tmp_path).chain_key()


def test_what_is_kept_beside_the_ledger_has_a_directory(file: Path) -> None:
    assert state_directory(None, {"XDG_STATE_HOME": "/s"}) == Path("/s/holdfast")
    assert state_directory(None, {"HOME": "/h", "XDG_STATE_HOME": "s"}) == Path("/h/.local/state/holdfast")
    file.write_text('state_dir = "here"')
    assert state_directory(file, {"XDG_STATE_HOME": "/s"}) == file.parent / "here"
    file.write_text("state_dir = 1")
    with pytest.raises(ConfigError, match="state_dir is not a path"):
        state_directory(file, {})
