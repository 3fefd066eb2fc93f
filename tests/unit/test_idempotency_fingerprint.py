"""What two requests must have in common: the published bytes, and the forms of a body."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import ConfigError
from holdfast.idempotency import request
from holdfast.idempotency.errors import RecordUnreadable, RequestInvalid
from holdfast.idempotency.fingerprint import (
    Hasher,
    Recipe,
    RequestParts,
    canonical_json,
    content_type,
    fingerprint,
    multipart,
    parts_of,
)
from holdfast.idempotency.identity import lp
from holdfast.idempotency.request import Recipes
from holdfast.idempotency.rules import IdempotencyConfig, RouteRule

PUBLISHED = RequestParts(
    method="POST",
    raw_path=b"/pay",
    query=b"dry=1",
    content_type=b"application/json",
    headers=((b"if-match", (b'"v1"',)), (b"if-none-match", ()), (b"x-http-method-override", ())),
    body=b'{"amount":5}',
)
CONFIG = IdempotencyConfig(principal=lambda scope: "user-1", secrets=[bytes(range(32))])


def refused(body: bytes, **limits: int) -> str:
    with pytest.raises(RequestInvalid) as caught:
        canonical_json(body, **limits)
    assert caught.value.code == "idempotency.body_not_canonical"
    return str(caught.value)


# -- the whole request


def test_the_fingerprint_is_the_published_one() -> None:
    assert fingerprint(PUBLISHED).hex() == "9f4e3e6dbbf7c367120b01a57bbd35723b4dfa84e007ed41698c9f15ec648686"


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "PUT"},
        {"raw_path": b"/pay/"},
        {"raw_path": b"//pay"},
        {"raw_path": b"/p%61y"},
        {"query": b""},
        {"content_type": b"text/plain"},
        {"content_type": b"application/json;charset=utf-8"},
        {"content_encoding": b"gzip"},
        {"headers": ()},
        {"headers": ((b"if-match", (b'"v1"', b'"v1"')), (b"if-none-match", ()), (b"x-http-method-override", ()))},
        {"headers": ((b"if-match", ()), (b"if-none-match", (b'"v1"',)), (b"x-http-method-override", ()))},
        {"form": "json"},
        {"form": lambda parts: parts.body},
        {"body": b'{"amount":5} '},
    ],
)
def test_every_part_of_a_request_counts(changes: dict[str, Any]) -> None:
    assert fingerprint(replace(PUBLISHED, **changes)) != fingerprint(PUBLISHED)


@pytest.mark.parametrize(
    "changes",
    [
        {"raw_path": b"/pay?dry=1"},
        {"content_type": b" Application/JSON "},
        {"content_type": b"application/json; boundary=x"},
    ],
)
def test_what_does_not_count_may_differ(changes: dict[str, Any]) -> None:
    assert fingerprint(replace(PUBLISHED, **changes)) == fingerprint(PUBLISHED)


def test_a_long_path_counts_as_a_short_one_does() -> None:
    long = replace(PUBLISHED, raw_path=b"/" + b"a" * 1_000)
    assert fingerprint(long) == fingerprint(long) != fingerprint(replace(long, raw_path=b"/" + b"a" * 999))
    bare = replace(PUBLISHED, headers=((b"if-match", ()),), raw_path=b"/pay")
    assert fingerprint(bare) == fingerprint(bare) != fingerprint(replace(bare, raw_path=b"/play"))


def test_a_version_from_later_is_not_guessed_at() -> None:
    with pytest.raises(RecordUnreadable) as caught:
        fingerprint(PUBLISHED, version=2)
    assert caught.value.code == "idempotency.record_newer"


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_chunks_make_no_difference(body: bytes, cuts: list[int]) -> None:
    hasher = Hasher(Recipe(replace(PUBLISHED, body=b"")))
    assert hasher.streams
    edges = [0, *sorted(cuts), len(body)]
    for begin, end in itertools.pairwise(edges):
        hasher.update(body[begin:end])
    assert hasher.finish() == fingerprint(replace(PUBLISHED, body=body))


def test_a_form_is_made_from_the_whole_body() -> None:
    hasher = Hasher(Recipe(replace(PUBLISHED, form="json", body=b"ignored")))
    assert not hasher.streams
    hasher.update(b'{"amount"')
    assert hasher.finish(b'{"amount" : 5}') == fingerprint(replace(PUBLISHED, form="json"))


def test_a_callable_says_what_is_compared() -> None:
    def amount(parts: RequestParts) -> bytes:
        return bytes(json.loads(parts.body)["amount"])

    ours = replace(PUBLISHED, form=amount)
    assert fingerprint(ours) == fingerprint(replace(ours, body=b'{"amount": 5, "note": "twice"}'))
    assert fingerprint(ours) != fingerprint(replace(ours, body=b'{"amount": 6}'))


def test_a_callable_must_return_bytes() -> None:
    form: Any = lambda parts: "text"  # noqa: E731 - a rule's form as people write it
    with pytest.raises(ConfigError, match="returned str, not bytes") as caught:
        fingerprint(replace(PUBLISHED, form=form))
    assert caught.value.code == "config.rule_invalid"


@pytest.mark.parametrize("kind", [b"application/json", b"text/json", b"application/problem+json; charset=utf-8"])
def test_json_types_have_their_json_compared(kind: bytes) -> None:
    ours = replace(PUBLISHED, form="json", content_type=kind)
    assert fingerprint(ours) == fingerprint(replace(ours, body=b'{ "amount": 5 }'))


@pytest.mark.parametrize(
    "changes", [{"content_type": b"text/plain"}, {"content_type": b""}, {"content_encoding": b"gzip"}]
)
@pytest.mark.parametrize("form", ["json", "multipart"])
def test_another_type_and_an_encoded_body_are_compared_by_their_bytes(changes: dict[str, Any], form: Any) -> None:
    ours = replace(PUBLISHED, **changes)
    assert fingerprint(replace(ours, form=form)) == fingerprint(ours)


def test_the_identity_coding_encodes_nothing() -> None:
    ours = replace(PUBLISHED, form="json", content_encoding=b"Identity")
    assert fingerprint(ours) == fingerprint(replace(ours, body=b'{ "amount": 5 }'))


def test_a_multipart_body_is_compared_by_its_parts() -> None:
    def form(boundary: bytes) -> RequestParts:
        body = b'--%b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--%b--\r\n' % (boundary, boundary)
        kind = b"multipart/form-data; boundary=" + boundary
        return replace(PUBLISHED, form="multipart", content_type=kind, body=body)

    assert fingerprint(form(b"x")) == fingerprint(form(b"yy"))


def test_parts_are_taken_from_a_scope() -> None:
    scope = {"method": "POST", "path": "/a b", "raw_path": b"/a%20b?x", "query_string": b"q=1"}
    headers = [
        (b"Content-Type", b"text/plain "), (b"content-encoding", b"gzip"), (b"content-encoding", b"br"),
        (b"If-Match", b'"a"'), (b"host", b"x"), (b"if-match", b'"b"'),
    ]  # fmt: skip
    parts = parts_of(scope, headers, RouteRule(body="json"), CONFIG)
    assert (parts.method, parts.raw_path, parts.query, parts.form) == ("POST", b"/a%20b?x", b"q=1", "json")
    assert (parts.content_type, parts.content_encoding) == (b"text/plain", b"gzip, br")
    assert parts.headers == ((b"if-match", (b'"a"', b'"b"')), (b"if-none-match", ()), (b"x-http-method-override", ()))
    assert parts.body == b""


@pytest.mark.parametrize(
    ("path", "raw"), [("/a b/ü", b"/a%20b/%C3%BC"), ("/50%/(x);v=1", b"/50%25/(x);v=1"), ("/\udcff", b"/%FF")]
)
def test_without_a_raw_path_the_decoded_one_is_encoded(path: str, raw: bytes) -> None:
    scope = {"method": "POST", "path": path}
    assert parts_of(scope, [], RouteRule(), CONFIG).raw_path == raw
    assert parts_of({**scope, "raw_path": None}, [], RouteRule(), CONFIG).query == b""


def test_requests_that_differ_in_their_bodies_alone_share_a_recipe() -> None:
    recipes, rule = Recipes(CONFIG), RouteRule(body="json")
    scope = {"method": "POST", "path": "/orders", "raw_path": b"/orders", "query_string": b""}
    plain = [(b"content-type", b"application/json")]
    recipe = recipes.find(scope, plain, [], rule)
    assert recipes.find(dict(scope), list(plain), [], rule) is recipe
    assert recipe.form == "json"
    assert Hasher(recipe).finish(b"{}") == fingerprint(replace(parts_of(scope, plain, rule, CONFIG), body=b"{}"))
    for other in ({"method": "PATCH"}, {"path": "/a", "raw_path": b"/a"}, {"query_string": b"a=1"}):
        assert Hasher(recipes.find(scope | other, plain, [], rule)).finish(b"{}") != Hasher(recipe).finish(b"{}")
    assert recipes.find(scope, plain, [], RouteRule()).form == "raw"


def test_recipes_that_hold_what_may_be_secret_or_long_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = Recipes(CONFIG)
    scope = {"method": "POST", "path": "/orders", "raw_path": b"/orders"}
    listed = [(b"if-match", b'"a"')]
    recipe = recipes.find(scope, [], listed, RouteRule())
    assert recipe.parts.headers[0] == (b"if-match", (b'"a"',))
    assert recipes.find(scope, [], listed, RouteRule()) is not recipe
    long = scope | {"query_string": b"x" * 1000}
    assert recipes.find(long, [], [], RouteRule()) is not recipes.find(long, [], [], RouteRule())
    assert recipes.find(scope, [], [], RouteRule(body=lambda parts: parts.body)).form == "custom"
    monkeypatch.setattr(request, "USUAL_MAX", 1)
    first = recipes.find(scope, [], [], RouteRule())
    recipes.find(scope | {"method": "PATCH"}, [], [], RouteRule())
    assert recipes.find(scope, [], [], RouteRule()) is not first


def test_a_body_is_not_shown() -> None:
    assert "amount" not in repr(PUBLISHED)


# -- content type


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (b"", b""),
        (b"Text/HTML", b"text/html"),
        (b"text/html;Charset=utf-8;a=1", b"text/html; a=1; charset=utf-8"),
        (b'text/html ; charset="utf-8" ; ', b"text/html; charset=utf-8"),
        (b'multipart/mixed; boundary="a;b"; type="x y"', b'multipart/mixed; type="x y"'),
        (b'a/b; x="q\\"\\\\"', b'a/b; x="q\\"\\\\"'),
        (b"a/b; boundary=--=_1", b"a/b"),
        (b"a/b; x", b"a/b; x"),
        (b'A/b; x="open', b'A/b; x="open'),
    ],
)
def test_a_content_type_has_one_form(value: bytes, form: bytes) -> None:
    assert content_type(value, {"Boundary"}) == form


# -- JSON

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def shuffled(value: Any, draw: Callable[[Any], Any]) -> Any:
    if isinstance(value, list):
        return [shuffled(each, draw) for each in value]
    if isinstance(value, dict):
        return {name: shuffled(value[name], draw) for name in draw(st.permutations(list(value)))}
    return value


@given(values, st.data())
def test_spacing_order_and_escapes_make_no_difference(value: Any, data: st.DataObject) -> None:
    form = canonical_json(json.dumps(value).encode())
    other = json.dumps(
        shuffled(value, data.draw),
        ensure_ascii=data.draw(st.booleans()),
        indent=data.draw(st.sampled_from([None, 0, 3, "\t"])),
        separators=data.draw(st.sampled_from([(",", ":"), (" ,\r\n", "\t: ")])),
    )
    assert canonical_json(f" {other}\n".encode()) == form
    assert json.loads(form) == value


@given(values)
def test_the_form_of_a_form_is_itself(value: Any) -> None:
    form = canonical_json(json.dumps(value, indent=1).encode())
    assert canonical_json(form) == form


@given(values, values)
def test_other_values_have_another_form(left: Any, right: Any) -> None:
    same = canonical_json(json.dumps(left).encode()) == canonical_json(json.dumps(right).encode())
    assert same == (json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True))


NUMBERS = [b"0", b"-0", b"1", b"1.0", b"1.00", b"1e0", b"1E0", b"1e+0", b"10e-1", b"100000000000000000000000000001"]


def test_numbers_are_their_text() -> None:
    assert [canonical_json(number) for number in NUMBERS] == NUMBERS
    assert canonical_json(b"[ 1.0 ,1e0]") == b"[1.0,1e0]"


@pytest.mark.parametrize(
    ("body", "form"),
    [
        (b"", b""),
        (b" null ", b"null"),
        (b'{"b":1,"a":{"d":[],"c":{}}}', b'{"a":{"c":{},"d":[]},"b":1}'),
        # Sorted as UTF-8, where the astral character comes last; as UTF-16 it would come first.
        ('{"\U0001f600":1,"\uffff":2}'.encode(), '{"\uffff":2,"\U0001f600":1}'.encode()),
        # By the decoded name: the escape is an "a".
        (rb'{"b":1,"\u0061":2}', b'{"a":2,"b":1}'),
        (rb'{"\n":1,"\t" : 2}', rb'{"\t":2,"\n":1}'),
        (rb'"\u0041\/\u000a\u001F\\u0041\"\u00e9\ud83d\uDE00"', '"A/\\n\\u001f\\\\u0041\\"é\U0001f600"'.encode()),
        (b'"\x7f"', b'"\x7f"'),
        (b'{"":0}', b'{"":0}'),
        (b"[ [ ] , { } ]", b"[[],{}]"),
    ],
)
def test_the_form_is_written_so(body: bytes, form: bytes) -> None:
    assert canonical_json(body) == form


@pytest.mark.parametrize(
    "body",
    [
        b" ", b"nul", b"nulll", b"TRUE", b"NaN", b"Infinity", b"-Infinity", b"+1", b"01", b"-", b".5", b"1.", b"1e",
        b"0x1", b"1_0", b"'a'", b"a", b"// c\n1", b"\xef\xbb\xbf1", b"1 1", b"{} {}", b"[1]]", b"\x00", b"1\x00",
        b"[", b"]", b"[1", b"[1,", b"[1,]", b"[,1]", b"[1 2]", b"[1}", b"[[1}", b"[1,2}", b'["a" "b"]',
        b"{", b"}", b'{"a"', b'{"a":', b'{"a":1', b'{"a":1,', b'{"a":1,}', b'{,"a":1}', b'{"a":1]', b'{"a" 1}',
        b"{1:2}", b"{a:1}", b'{"a":1 "b":2}', b'{"a":{}]', b'{"a":1,b:2}', b'{"a","b"}',
        b'"', b'"a', b'"\\"', b'"\\x41"', b'"\\u00g0"', b'"\\u12"', b'"\\', b'"\n"', b'"\x1f"', b'["\t",1]',
        b'{"\r":1}',
        rb'"\ud800"', rb'"\udc00"', rb'"\ud800\u0041"', rb'"\ud800\ud800"', rb'"\udc00\ud800"', rb'{"\ud800":1}',
        b"\xff", b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\xaf"', '"a"'.encode("utf-16"), b"\x0b1", b"\xa01", b"\xc2\xa01",
    ],
)  # fmt: skip
def test_what_is_not_json_is_refused(body: bytes) -> None:
    refused(body)


@pytest.mark.parametrize(
    "body",
    [b'{"a":1,"a":1}', b'{"a":1,"b":[],"a":2}', rb'{"a":1,"\u0061":2}', b'[{"x":{"a":[],"a":{}}}]', b'{"":1, "":1}'],
)
def test_a_member_named_twice_is_refused(body: bytes) -> None:
    assert "twice" in refused(body)


def test_depth_is_limited_for_lists_and_objects_alike() -> None:
    assert canonical_json(b"[" * 64 + b"]" * 64) == b"[" * 64 + b"]" * 64
    assert canonical_json(b'{"a":[' * 32 + b"]}" * 32) == b'{"a":[' * 32 + b"]}" * 32
    for deep in (b"[" * 65 + b"]" * 65, b"[" * 64 + b"{}" + b"]" * 64, b"[" * 64 + b"1,[]" + b"]" * 64):
        assert "nested deeper than 64" in refused(deep)
    assert "nested deeper than 1" in refused(b"[[]]", depth_max=1)
    assert "nested deeper than 0" in refused(b"[]", depth_max=0)
    assert canonical_json(b"1", depth_max=0) == b"1"


def test_no_depth_costs_stack() -> None:
    refused(b"[" * 2_000_000)
    refused(b'{"a":' * 400_000)
    deep = b'[{"a":' * 5_000 + b"1" + b"}]" * 5_000
    assert canonical_json(deep, depth_max=10_000) == deep


def test_the_message_holds_nothing_of_the_body() -> None:
    for body in (b'{"secret":1,"secret":1}', b'{"secret"', b'"secret', b'["secret",x]', b"secret"):
        assert "secret" not in refused(body)


LARGE = {
    "numbers": b"[" + b"1," * 1_000_000 + b"1]",
    "spaced numbers": b"[" + b"1 ,\n" * 500_000 + b"1]",
    "members": b"{%b}" % b",".join(b'"%x":1' % (n * 7919 % 1_000_003) for n in range(180_000)),
    "escapes": b'"' + b"\\n" * 1_000_000 + b'"',
    "broken lines": b'"' + b"twenty characters or so\\n" * 80_000 + b'"',
    "one string": b'{"a":"' + b"x" * 2_000_000 + b'"}',
    "escaped strings": b"[" + b'"\\"",' * 300_000 + b"1]",
    "objects": b"[" + b'{"a":1},' * 250_000 + b"{}]",
    "blanks": b" " * 2_000_000 + b"1",
    "blanks inside": b"[1," + b" " * 1_000_000 + b"2," + b" " * 1_000_000 + b"[]]",
    "blanks in an object": b'{"a":1,' + b"\n" * 1_000_000 + b'"b"' + b" " * 1_000_000 + b":2}",
    "a number": b"1" * 2_000_000,
}


@pytest.mark.parametrize("name", LARGE)
def test_two_mebibytes_are_read_in_linear_time(name: str) -> None:
    form = canonical_json(LARGE[name])
    if name == "a number":
        assert form == LARGE[name]
    else:
        assert json.loads(form) == json.loads(LARGE[name])


# -- multipart

PARTS = [(b'Content-Disposition: form-data; name="a"', b"1"), (b'content-disposition: form-data; name="b"', b"\r\n--")]


def compose(parts: list[tuple[bytes, bytes]], boundary: bytes, before: bytes = b"", after: bytes = b"\r\n") -> bytes:
    lines = [b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, head, content) for head, content in parts]
    return b"".join([before, *lines, b"--%b--" % boundary, after])


def kind(boundary: bytes) -> bytes:
    return b'multipart/form-data; boundary="%b"' % boundary


def test_the_form_of_parts_is_their_lines_and_contents() -> None:
    assert multipart(compose(PARTS, b"x"), kind(b"x")) == lp(b'content-disposition: form-data; name="a"', b"1") + lp(
        b'content-disposition: form-data; name="b"', b"\r\n--"
    )


boundaries = st.text("0123456789abcXYZ'()+_,-./:=?", min_size=1, max_size=70).map(str.encode)
part_lists = st.lists(st.tuples(st.sampled_from([b"A: 1", b"B:2\r\nC: \xc3\xa9"]), st.binary(max_size=30)), max_size=4)


@given(
    part_lists,
    boundaries,
    boundaries,
    st.sampled_from([b"", b"hello\r\n", b"\r\n"]),
    st.sampled_from([b"", b"\r\nbye"]),
)
def test_boundary_preamble_and_epilogue_make_no_difference(
    parts: list[tuple[bytes, bytes]], left: bytes, right: bytes, before: bytes, after: bytes
) -> None:
    free = [(head, content.replace(b"-", b"")) for head, content in parts]
    assert multipart(compose(free, left), kind(left)) == multipart(compose(free, right, before, after), kind(right))


@given(part_lists, part_lists)
def test_other_parts_have_another_form(left: list[tuple[bytes, bytes]], right: list[tuple[bytes, bytes]]) -> None:
    boundary = b"not-in-thirty-bytes-of-any-part-whatever"
    forms = [multipart(compose(parts, boundary), kind(boundary)) for parts in (left, right)]
    lowered = [
        [(head.replace(b"A", b"a").replace(b"B", b"b").replace(b"C", b"c"), c) for head, c in p] for p in (left, right)
    ]
    assert (forms[0] == forms[1]) == (lowered[0] == lowered[1])


@pytest.mark.parametrize(
    ("body", "form"),
    [
        (b"--x--", b""),
        (b"--x-- \t\r\nepilogue", b""),
        (b"--x \t\r\nA: 1\r\n\r\none\r\n--x--", lp(b"a: 1", b"one")),
        (b"preamble --x\r\n--x\r\nA: 1\r\n\r\none\r\n--x--", lp(b"a: 1", b"one")),
        (b"--x\r\n\r\nno header\r\n--x--", lp(b"", b"no header")),
        (b"--x\r\n\r\n--x--", lp(b"", b"")),
        (b"--x\r\nA: 1\r\n\r\n--x--", lp(b"a: 1", b"")),
        (b"--x\r\nA: 1;\r\n\tb=2\r\nB:\r\n\r\n\r\n--x--", lp(b"a: 1;\tb=2\r\nb:", b"")),
        (b"--x\r\nA: 1\r\n\r\n--y\r\n--x--", lp(b"a: 1", b"--y")),
    ],
)
def test_parts_are_read_so(body: bytes, form: bytes) -> None:
    assert multipart(body, kind(b"x")) == form


@pytest.mark.parametrize(
    "body",
    [
        b"", b"text", b"-- x--", b"\n--x--", b"--y--", b"--xy--", b"--x--y", b"--x", b"--x\r\n", b"--x\n--x--",
        b"--x\r\n--x--", b"--x\r\nA: 1\r\n\r\none", b"--x\r\nA: 1\r\n\r\none\r\n--x", b"--x\r\nA: 1\r\n\r\none\r\n--xy",
        b"--x\r\nA: 1\r\none\r\n--x--", b"--x\r\nA: 1\r\n--x--", b"--x\r\nA 1\r\n\r\n1\r\n--x--",
        b"--x\r\n: 1\r\n\r\n1\r\n--x--",
        b"--x\r\nA : 1\r\n\r\n1\r\n--x--", b"--x\r\nA: 1\nB: 2\r\n\r\n1\r\n--x--", b"--x\r\n A: 1\r\n\r\n1\r\n--x--",
        b"--x\r\nA: \x00\r\n\r\n1\r\n--x--", b"--x\r\none\r\n--x--",
    ],
)  # fmt: skip
def test_malformed_parts_are_refused(body: bytes) -> None:
    with pytest.raises(RequestInvalid) as caught:
        multipart(body, kind(b"x"))
    assert caught.value.code == "idempotency.body_not_canonical"


@pytest.mark.parametrize(
    "value",
    [
        b"multipart/form-data", b"multipart/form-data; a=b", b"multipart/form-data; boundary=",
        b"multipart/form-data; boundary",
        b'multipart/form-data; boundary=""', b'multipart/form-data; boundary="x "',
        b'multipart/form-data; boundary="\x01"',
        b"multipart/form-data; boundary=x; boundary=x", b"multipart/form-data; boundary=" + b"x" * 71,
    ],
)  # fmt: skip
def test_a_content_type_must_name_one_boundary(value: bytes) -> None:
    with pytest.raises(RequestInvalid, match="names no boundary"):
        multipart(b"--x--", value)


def test_many_parts_are_read_in_linear_time() -> None:
    many = [(b"A: 1", b"")] * 150_000
    assert len(multipart(compose(many, b"x"), kind(b"x"))) == 150_000 * 20
