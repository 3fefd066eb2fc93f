"""Sealing: what opens, what does not, and what is said of it."""

from __future__ import annotations

import base64
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import CodecError, ConfigError
from holdfast.core.keyring import KeyRing, ring_of

OLD, NEW, OTHER = bytes(32), bytes(range(32)), b"\xff" * 32
RING = KeyRing((2, NEW), (1, OLD))


@given(st.binary(max_size=100), st.binary(max_size=20))
def test_what_was_sealed_opens(plain: bytes, aad: bytes) -> None:
    key_id, sealed = RING.seal(plain, aad)
    assert key_id == 2
    assert RING.open(key_id, sealed, aad) == plain


def test_the_same_text_is_never_sealed_alike() -> None:
    assert len({RING.seal(b"text", b"")[1] for _ in range(50)}) == 50


def test_the_key_before_still_opens() -> None:
    key_id, sealed = KeyRing((1, OLD)).seal(b"text", b"row")
    assert (key_id, RING.open(key_id, sealed, b"row")) == (1, b"text")


def test_a_key_of_another_number_is_named() -> None:
    _, sealed = RING.seal(b"text", b"")
    with pytest.raises(ConfigError, match="no key 7") as caught:
        RING.open(7, sealed, b"")
    assert caught.value.code == "config.unknown_cipher_key"


def test_no_changed_byte_opens() -> None:
    key_id, sealed = RING.seal(b"text", b"row")
    for at in range(len(sealed)):
        changed = sealed[:at] + bytes((sealed[at] ^ 1,)) + sealed[at + 1 :]
        with pytest.raises(CodecError):
            RING.open(key_id, changed, b"row")
    for broken in (b"", sealed[:23], sealed[:24], sealed[:39], sealed[:-1], sealed + b"\0"):
        with pytest.raises(CodecError):
            RING.open(key_id, broken, b"row")


def test_nothing_opens_for_another_row_or_with_another_key() -> None:
    key_id, sealed = RING.seal(b"text", b"row")
    with pytest.raises(CodecError, match="key 2") as caught:
        RING.open(key_id, sealed, b"other")
    assert caught.value.code == "codec.decode"
    with pytest.raises(CodecError):
        RING.open(1, sealed, b"row")
    with pytest.raises(CodecError):
        KeyRing((2, OTHER)).open(2, sealed, b"row")


def test_keys_are_not_shown() -> None:
    assert repr(RING) == "KeyRing(current=2, previous=1)"
    assert repr(KeyRing((3, NEW))) == "KeyRing(current=3, previous=None)"


@pytest.mark.parametrize(
    "keys",
    [
        {"current": (0, NEW)},
        {"current": (2**31, NEW)},
        {"current": (True, NEW)},
        {"current": ("1", NEW)},
        {"current": (1, NEW[:-1])},
        {"current": (1, NEW + b"x")},
        {"current": (1, "k" * 32)},
        {"current": (1, NEW), "previous": (-1, OLD)},
        {"current": (1, NEW), "previous": (1, OLD)},
    ],
)
def test_what_is_no_key_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        KeyRing(**keys)
    assert caught.value.code == "config.invalid"
    assert "kkk" not in str(caught.value)


def test_the_ledgers_keys_are_in_the_environment() -> None:
    roots = {1: base64.b64encode(OLD).decode(), 255: base64.b64encode(NEW).decode()}
    assert ring_of({}) is None
    assert ring_of({"HOLDFAST_KEY": "", "HOLDFAST_KEY_PREVIOUS": f"1:{roots[1]}"}) is None
    old = ring_of({"HOLDFAST_KEY": f"1:{roots[1]}"})
    both = ring_of({"HOLDFAST_KEY": f"255:{roots[255]}", "HOLDFAST_KEY_PREVIOUS": f"1:{roots[1]}"})
    assert old is not None
    assert both is not None
    assert (old.numbers, both.numbers) == ((1,), (255, 1))
    key_id, sealed = old.seal(b"text", b"for this")
    assert both.open(key_id, sealed, b"for this") == b"text"
    with pytest.raises(CodecError):
        KeyRing((1, OLD)).open(key_id, sealed, b"for this")  # the root itself seals nothing


@pytest.mark.parametrize("text", ["1", "0:{}", "256:{}", "x:{}", "²:{}", "1:short", "1:{}=", ":{}"])
def test_what_is_no_root_is_refused_and_not_repeated(text: str) -> None:
    root = base64.b64encode(NEW).decode()
    with pytest.raises(ConfigError, match="HOLDFAST_KEY_PREVIOUS") as caught:
        ring_of({"HOLDFAST_KEY": f"1:{root}", "HOLDFAST_KEY_PREVIOUS": text.format(root)})
    assert root not in str(caught.value)


def test_without_the_package_it_says_which_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nacl.bindings", None)
    with pytest.raises(ConfigError, match="PyNaCl") as caught:
        KeyRing((1, NEW))
    assert caught.value.code == "config.missing_extra"
    assert "holdfast[crypto]" in caught.value.hint


def test_another_missing_module_is_not_blamed_on_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "nacl").mkdir()
    (tmp_path / "nacl" / "__init__.py").touch()
    (tmp_path / "nacl" / "bindings.py").write_text("import no_such_module_of_anybody\n")
    for name in [name for name in sys.modules if name == "nacl" or name.startswith("nacl.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_of_anybody"):
        KeyRing((1, NEW))
    monkeypatch.delitem(sys.modules, "nacl")
