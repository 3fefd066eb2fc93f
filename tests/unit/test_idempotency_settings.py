"""What the command line is told of a guard: its secrets and its cipher."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from holdfast.core.errors import ConfigError
from holdfast.idempotency.settings import IdempotencySettings

OLD, NEW = b"o" * 32, b"n" * 32


def text(key: bytes) -> str:
    return base64.b64encode(key).decode()


def settings(**environ: str) -> IdempotencySettings:
    return IdempotencySettings.load(None, {f"HOLDFAST_IDEMPOTENCY_{name}": value for name, value in environ.items()})


def test_secrets_come_from_the_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "holdfast.toml"
    file.write_text(f'[idempotency]\nsecrets = ["{text(NEW)}", "{text(OLD)}"]\n')
    assert IdempotencySettings.load(file, {}).decoded() == [NEW, OLD]
    assert settings(SECRETS=f"{text(OLD)},{text(NEW)}").decoded() == [OLD, NEW]


@pytest.mark.parametrize(
    ("secrets", "code"),
    [("", "config.secret_missing"), ("?", "config.invalid"), (text(b"short"), "config.secret_weak")],
)
def test_secrets_that_make_no_sense_are_refused(secrets: str, code: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(SECRETS=secrets).decoded()
    assert refused.value.code == code


def test_a_cipher_is_the_key_that_seals_and_the_one_before_it() -> None:
    assert settings().ring() is None
    assert repr(settings(CIPHER=f"2:{text(NEW)}").ring()) == "KeyRing(current=2, previous=None)"
    both = settings(CIPHER=f"2:{text(NEW)}, 1:{text(OLD)}").ring()
    before = settings(CIPHER=f"1:{text(OLD)}").ring()
    assert both is not None
    assert before is not None
    assert both.open(*before.seal(b"kept", b"here"), b"here") == b"kept"


@pytest.mark.parametrize(
    "cipher",
    [
        text(NEW), f"two:{text(NEW)}", f":{text(NEW)}", "2:", "2:?", f"2:{text(b'short')}", f"0:{text(NEW)}",
        f"2:{text(NEW)},2:{text(OLD)}", f"3:{text(NEW)},2:{text(OLD)},1:{text(OLD)}",
    ],
)  # fmt: skip
def test_a_cipher_that_makes_no_sense_is_refused(cipher: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(CIPHER=cipher).ring()
    for secret in (text(NEW), text(OLD)):
        assert secret not in str(refused.value) + refused.value.hint


def test_no_representation_shows_a_secret() -> None:
    assert text(NEW) not in repr(settings(SECRETS=text(NEW), CIPHER=f"2:{text(NEW)}"))
