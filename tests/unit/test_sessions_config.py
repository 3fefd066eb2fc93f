"""Settings of captured sessions: the file, the environment, the program; the later wins, and all of it makes sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.core.errors import ConfigError
from holdfast.sessions.calls import Rule
from holdfast.sessions.config import Classify, Redact, RedactRule, SessionsConfig

FILE = """
[sessions]
inflight_items_max = 9
secret_file = "s.key"
trusted_proxies = ["10.0.0.1"]
derive.workers = 4
prices.cards = "cards.json"
retention.days = 30

[[redact]]
name = "badge"
pattern = "B-[0-9]{6}"

[[classify]]
kind = "nightly"
agent_name = "cron"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "holdfast.toml"
    path.write_text(FILE)
    return path


def test_the_later_source_wins(file: Path) -> None:
    environ = {"HOLDFAST_SESSIONS_INFLIGHT_ITEMS_MAX": "10", "HOLDFAST_SESSIONS_DERIVE__WORKERS": "5"}
    config = SessionsConfig.load(file, environ, derive={"workers": 6})
    assert (config.inflight_items_max, config.derive.workers, config.derive.poll_ms) == (10, 6, 500)
    assert config.trusted_proxies == ("10.0.0.1",)
    assert config.retention.us == 30 * 86_400_000_000


def test_paths_of_the_file_are_relative_to_it(file: Path) -> None:
    config = SessionsConfig.load(file, {})
    assert (config.secret_file, config.prices.cards) == (file.parent / "s.key", file.parent / "cards.json")
    assert SessionsConfig.load(file, {}, secret_file=Path("x")).secret_file == Path("x")


def test_lists_of_tables_stand_by_themselves(file: Path) -> None:
    config = SessionsConfig.load(file, {})
    assert config.redact.rules == (RedactRule(name="badge", pattern="B-[0-9]{6}"),)
    assert [name for name, _ in config.redact.compiled().patterns][-1] == "badge"
    assert config.rules == (Rule(kind="nightly", agent_name="cron"),)


def test_without_anything_the_defaults_hold() -> None:
    config = SessionsConfig.load(None, {})
    assert config == SessionsConfig()
    assert (config.body_bytes_max, config.decoded_bytes_max, config.batch_items_max) == (50_331_648, 67_108_864, 1000)
    assert (config.window_us, config.retention.us, config.secret_file) == (86_400_000_000, 0, None)
    assert SessionsConfig(synthetic_sessions="per_call").window_us is None


@pytest.mark.parametrize(
    "text",
    [
        "[sessions]\nnope = 1",
        "[sessions]\nderive.attempts_max = 0",
        '[sessions]\nsynthetic_sessions = "often"',
        "[sessions]\nbody_bytes_max = 2048\ndecoded_bytes_max = 1024",
        '[[redact]]\nname = "x"',
        '[[redact]]\nname = "x"\npattern = "(a+)+"',
        '[[redact]]\nname = "X Y"\npattern = "a"',
        '[[classify]]\nkind = ""',
        "redact = 1",
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "holdfast.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        SessionsConfig.load(path, {})


def test_a_rule_of_the_program_is_checked_like_one_of_the_file() -> None:
    with pytest.raises(ConfigError):
        Redact(rules=(RedactRule(name="x", pattern="("),))
    with pytest.raises(ConfigError):
        Classify(kind="")
