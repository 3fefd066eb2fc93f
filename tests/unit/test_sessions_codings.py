"""Content codings: the recorded cases, and the bounds."""

from __future__ import annotations

import base64
import gzip
import os
from typing import Any

import pytest
import zstandard
from tests.unit.sessions_data import SHARED, cases

from holdfast.sessions.codings import CodingError, Decoded, decode

PLAIN = b'{"model":"m"}' * 500


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


COMPRESS = {"gzip": lambda data: gzip.compress(data, 1), "zstd": zstd}


def made(recipe: dict[str, Any]) -> tuple[bytes, bytes]:
    """The plain bytes of a recipe, and the body it describes."""
    match recipe["plaintext"]:
        case {"utf8": text}:
            plain = text.encode()
        case {"repeat_byte": {"byte": byte, "count": count}}:
            plain = bytes([byte]) * count
        case {"repeat_utf8": {"text": text, "count": count}}:
            plain = text.encode() * count
        case _:
            raise AssertionError(recipe)
    body, members = plain, recipe.get("members", 1)
    for layer in recipe["layers"]:
        size = -(-len(body) // members)
        body = b"".join(COMPRESS[layer](body[at : at + size]) for at in range(0, len(body), size))
    cut = recipe.get("truncate", {})
    if "keep_head_bytes" in cut:
        body = body[: cut["keep_head_bytes"]]
    if "keep_head_ratio" in cut:
        part, whole = cut["keep_head_ratio"]
        body = body[: len(body) * part // whole]
    return plain, body


@SHARED
def test_every_recorded_case_comes_out_as_it_states() -> None:
    """SA-35."""
    found = cases("content-encoding")
    assert len(found) == 18
    for case in found:
        if "bytes_b64" in case["body"]:
            plain, body = b"", base64.b64decode(case["body"]["bytes_b64"])
        else:
            plain, body = made(case["body"]["build"])
        wanted = case["expect"]
        if wanted["outcome"] == "error":
            with pytest.raises(CodingError) as caught:
                decode(body, case["encoding"])
            assert caught.value.fault == wanted["error"]["class"], case["name"]
            for word in wanted["error"].get("message_contains", ()):
                assert word in str(caught.value)
        else:
            decoded = decode(body, case["encoding"])
            assert decoded.salvaged == (wanted["outcome"] == "salvaged"), case["name"]
            whole = decoded.data == plain
            assert whole or (decoded.salvaged and decoded.data and plain.startswith(decoded.data)), case["name"]


def test_layers_are_peeled_from_the_right() -> None:
    assert decode(zstd(gzip.compress(PLAIN)), "identity, GZIP ,, zstd") == Decoded(PLAIN)
    assert decode(PLAIN, None).data is PLAIN
    assert decode(PLAIN, " identity ,").data is PLAIN
    assert decode(b"", "") == Decoded(b"")


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "zstd"])
def test_all_members_count_and_the_limit_is_inclusive(coding: str) -> None:
    body = COMPRESS[coding.removeprefix("x-")](PLAIN) * 3
    assert decode(body, coding, limit=3 * len(PLAIN)) == Decoded(PLAIN * 3)
    with pytest.raises(CodingError, match="unfolds to more") as caught:
        decode(body, coding, limit=3 * len(PLAIN) - 1)
    assert caught.value.fault == "oversize"


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_stream_that_ends_early_is_kept_as_far_as_it_goes(coding: str) -> None:
    plain = os.urandom(300_000)
    body = COMPRESS[coding](plain)
    salvaged = decode(body[: len(body) // 2], coding)
    assert salvaged.salvaged
    assert plain.startswith(salvaged.data)
    assert salvaged.data
    assert decode(body[:-1], coding).salvaged


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        pytest.param("gzip", b"no gzip", id="no-gzip"),
        pytest.param("zstd", b"no zstd", id="no-zstd"),
        pytest.param("gzip", gzip.compress(b"x") + b"no member", id="no-member"),
        pytest.param("gzip", gzip.compress(PLAIN)[:-8] + b"?" * 8, id="wrong-sum"),
    ],
)
def test_damage_is_no_early_end(coding: str, body: bytes) -> None:
    with pytest.raises(CodingError, match="damaged") as caught:
        decode(body, coding)
    assert caught.value.fault == "undecodable"


def test_nothing_at_all_is_an_error_under_a_coding_but_an_empty_stream_is_not() -> None:
    for coding in ("gzip", "zstd"):
        with pytest.raises(CodingError, match="no bytes"):
            decode(b"", coding)
        with pytest.raises(CodingError, match="before it gives anything"):
            decode(COMPRESS[coding](PLAIN)[:4], coding)
        assert decode(COMPRESS[coding](b""), coding) == Decoded(b"")


def test_an_unknown_coding_names_itself_and_the_whole_header() -> None:
    with pytest.raises(CodingError, match=r"'br' of 'gzip, br'") as caught:
        decode(PLAIN, "gzip, br")
    assert caught.value.fault == "unsupported"
