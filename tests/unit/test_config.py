"""Settings: where they come from, and what is refused."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast.core.config import check, config_path, in_memory, ledger_target, load, setting
from holdfast.core.errors import ConfigError
from holdfast.execution.config import DurableConfig


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "holdfast.toml"


def test_defaults_are_those_of_the_specification() -> None:
    config = DurableConfig()
    assert (config.ack, config.carry, config.shifted_effect) == ("each", "effects", "decide")
    assert (config.lease_ms, config.renew_ms, config.orphan_after_ms) == (30_000, 10_000, 604_800_000)
    assert config.owner_dir is None
    assert DurableConfig.load(environ={}) == config


def test_every_setting_has_its_unit_and_meaning() -> None:
    documented = DurableConfig.__doc__ or ""
    assert [f.name for f in dataclasses.fields(DurableConfig) if f"        {f.name}: " not in documented] == []


def test_the_later_source_wins(file: Path) -> None:
    file.write_text(
        'db = "x"\n[durable]\npoll_ms = 1\ndrain_ms = 1\nlease_ms = 60000\nack = "pipelined"\n[other]\nx = 1'
    )
    environ = {"HOLDFAST_DURABLE_POLL_MS": "2", "HOLDFAST_DURABLE_DRAIN_MS": "2", "HOLDFAST_DB": "y", "PATH": "/bin"}
    config = DurableConfig.load(file, environ, poll_ms=3)
    assert (config.poll_ms, config.drain_ms, config.lease_ms, config.ack) == (3, 2, 60_000, "pipelined")


def test_values_of_each_kind_come_from_file_and_environment(file: Path) -> None:
    file.write_text('[durable]\naccept_versions = ["a", "b"]\nowner_dir = "~/x"\ncode_version = "v1"\nenabled = false')
    config = DurableConfig.load(file, {})
    assert config.accept_versions == ("a", "b")
    assert config.owner_dir == Path("~/x").expanduser()
    assert (config.code_version, config.enabled) == ("v1", False)
    environ = {
        "HOLDFAST_DURABLE_ACCEPT_VERSIONS": "a, b",
        "HOLDFAST_DURABLE_OWNER_DIR": "/run/x",
        "HOLDFAST_DURABLE_CODE_VERSION": "",
        "HOLDFAST_DURABLE_ENABLED": "TRUE",
    }
    config = DurableConfig.load(file, environ)
    assert (config.accept_versions, config.owner_dir) == (("a", "b"), Path("/run/x"))
    assert (config.code_version, config.enabled) == (None, True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("poll_ms", True),
        ("poll_ms", 1.5),
        ("poll_ms", "1"),
        ("enabled", 1),
        ("ack", "both"),
        ("ack", None),
        ("owner_dir", "text"),
        ("accept_versions", ["a"]),
        ("accept_versions", (1,)),
        ("accept_versions", "a"),
        ("code_version", 3),
        ("poll_ms", 0),
        ("lease_ms", 86_400_001),
        ("fold_at_percent", 101),
        ("orphan_after_ms", -1),
    ],
)
def test_a_wrong_value_is_refused_by_the_constructor_and_by_load(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        DurableConfig(**{key: value})
    with pytest.raises(ConfigError, match=rf"{key}.*keyword") as caught:
        DurableConfig.load(environ={}, **{key: value})
    assert caught.value.keys == (key,)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["poll_ms = true", "poll_ms = 1.0", "ack = 3", "accept_versions = [1]", "poll_ms = 0"])
def test_a_wrong_value_in_the_file_names_key_and_file(file: Path, text: str) -> None:
    file.write_text(f"[durable]\n{text}")
    with pytest.raises(ConfigError) as caught:
        DurableConfig.load(file, {})
    assert text.split()[0] in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("POLL_MS", "soon"), ("POLL_MS", ""), ("POLL_MS", "0"), ("ENABLED", "maybe"), ("ACK", "none"), ("POLLS", "1")],
)
def test_a_wrong_variable_is_named(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"HOLDFAST_DURABLE_{variable}"):
        DurableConfig.load(environ={f"HOLDFAST_DURABLE_{variable}": value})


def test_unknown_keys_are_refused_wherever_they_stand(file: Path) -> None:
    file.write_text("[durable]\nturbo = 1")
    for arguments in (
        {"path": file, "environ": {}},
        {"environ": {"HOLDFAST_DURABLE_TURBO": "1"}},
        {"environ": {}, "turbo": 1},
    ):
        with pytest.raises(ConfigError, match=r"(?i)unknown setting .*turbo") as caught:
            DurableConfig.load(**arguments)
        assert caught.value.code == "config.unknown_key"


def test_an_owner_can_miss_two_renewals() -> None:
    DurableConfig(lease_ms=300, renew_ms=100)
    with pytest.raises(ConfigError, match="more than a third") as caught:
        DurableConfig.load(environ={"HOLDFAST_DURABLE_RENEW_MS": "101"}, lease_ms=300)
    assert "renew_ms from HOLDFAST_DURABLE_RENEW_MS, lease_ms given as a keyword" in str(caught.value)


@pytest.mark.parametrize("text", ["[durable", "durable = 3", "\x00"])
def test_a_damaged_file_is_refused(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=str(file)):
        DurableConfig.load(file, {})
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        DurableConfig.load(file, {})


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        DurableConfig.load(tmp_path, {})


@dataclass(frozen=True, kw_only=True)
class Retention:
    ttl_ms: int = setting(7, minimum=0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Whole:
    size: int = setting(1, maximum=9)
    retention: Retention = dataclasses.field(default_factory=Retention)


def test_settings_within_settings_have_dotted_keys(file: Path) -> None:
    file.write_text("[a.b]\nsize = 2\n[a.b.retention]\nttl_ms = 3")
    assert load(Whole, "a.b", path=file, environ={}) == Whole(size=2, retention=Retention(ttl_ms=3))
    environ = {"HOLDFAST_A__B_RETENTION__TTL_MS": "4", "HOLDFAST_A_SIZE": "wrong section"}
    assert load(Whole, "a.b", path=file, environ=environ).retention.ttl_ms == 4
    assert load(Whole, "a.b", path=None, environ=environ, retention=Retention(ttl_ms=5)).retention.ttl_ms == 5
    assert load(Whole, "a", path=None, environ={"HOLDFAST_A__B_SIZE": "wrong section"}) == Whole()
    with pytest.raises(ConfigError, match=r"retention\.ttl_ms is -1"):
        load(Whole, "a", path=None, environ={"HOLDFAST_A_RETENTION__TTL_MS": "-1"})
    with pytest.raises(ConfigError, match="not a group"):
        load(Whole, "a", path=None, environ={}, retention=3)
    with pytest.raises(ConfigError, match="at most 9"):
        load(Whole, "a", path=None, environ={}, size=10)
    with pytest.raises(ConfigError, match=r"unknown setting retention\.ttl"):
        load(Whole, "a", path=None, environ={}, retention={"ttl": 3})


def test_the_file_is_the_named_one_or_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "config" / "holdfast" / "holdfast.toml"
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "HOME": str(tmp_path)}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "holdfast.toml").write_text("")  # in the working directory: not ours
    assert config_path(None, environ) is None
    own.parent.mkdir(parents=True)
    own.write_text("")
    assert config_path(None, environ) == own
    assert config_path(tmp_path / "holdfast.toml", environ) == tmp_path / "holdfast.toml"
    with pytest.raises(ConfigError, match="no configuration file"):
        config_path("absent.toml", environ)
    relative = {"XDG_CONFIG_HOME": "config", "HOME": str(tmp_path)}
    assert config_path(None, relative) is None  # the base directory specification ignores relative ones


def test_the_ledger_is_named_or_configured_or_the_users_own(tmp_path: Path, file: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    assert ledger_target(None, None, environ) == str(tmp_path / ".local/share/holdfast/holdfast.db")
    assert ledger_target(None, None, {"XDG_DATA_HOME": "/data"}) == "/data/holdfast/holdfast.db"
    file.write_text("[durable]\n")
    assert ledger_target(None, file, environ).endswith("/.local/share/holdfast/holdfast.db")
    for configured, target in {
        "agent.db": str(tmp_path / "agent.db"),
        "/var/agent.db": "/var/agent.db",
        ":memory:": ":memory:",
        "postgresql://db/agents": "postgresql://db/agents",
    }.items():
        file.write_text(f'db = "{configured}"')
        assert ledger_target(None, file, environ) == target
        assert ledger_target(None, file, {**environ, "HOLDFAST_DB": ""}) == target
    assert ledger_target(None, file, {**environ, "HOLDFAST_DB": "env.db"}) == "env.db"
    assert ledger_target(Path("given.db"), file, {**environ, "HOLDFAST_DB": "env.db"}) == "given.db"
    file.write_text("db = 3")
    with pytest.raises(ConfigError, match="db is not"):
        ledger_target(None, file, environ)


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        (":memory:", True), ("", True), ("file:", True), ("file::memory:", True), ("file:%3Amemory%3A?x=1", True),
        ("file:x?cache=shared&mode=memory", True), ("file:x?mode=memory#y", True), ("file:x?mode=rwc", False),
        ("file:x#?mode=memory", False), ("x.db", False), (":memory", False), ("postgresql://h/d?mode=memory", False),
    ],
)  # fmt: skip
def test_a_ledger_in_memory_is_known_by_its_name(name: str, memory: bool) -> None:
    assert in_memory(name) is memory
