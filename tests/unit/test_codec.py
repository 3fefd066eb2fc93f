"""Values on disk: round trips, damage, and canonical bytes."""

from __future__ import annotations

import collections
import dataclasses
import enum
import math
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, NoReturn, TypedDict, TypeVar
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast.core.codec import Codec, canonical, codec, decode, encode, json_blob, to_json
from holdfast.core.errors import CodecError

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: float


class Movie(TypedDict):
    title: str
    year: int


@dataclasses.dataclass
class Line:
    sku: str
    price: Decimal
    tags: set[str]


class Order(msgspec.Struct):
    id: UUID
    lines: list[Line]
    colour: Colour | None = None


@attrs.define
class Address:
    street: str
    zip_code: int


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(alias="fullName")
    born: date
    balance: Decimal
    tags: frozenset[str] = frozenset()
    friend: Person | None = None


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")
    id: UUID
    at: datetime
    raw: bytes
    ratio: float

    @pydantic.computed_field
    @property
    def doubled(self) -> float:
        return self.ratio * 2


class Box(pydantic.BaseModel, Generic[T]):
    value: T


class Circle(msgspec.Struct, tag=True):
    radius: float


class Square(msgspec.Struct, tag=True):
    side: float


class Name(str):
    __slots__ = ()


INTS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ZONES = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-8))])
MOMENTS = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1))  # noqa: DTZ001 - naive is one of the cases
LINES = st.builds(Line, TEXTS, st.decimals(allow_nan=False), st.sets(TEXTS, max_size=3))
PEOPLE = st.deferred(
    lambda: st.builds(
        Person,
        fullName=TEXTS,
        born=st.dates(),
        balance=st.decimals(allow_nan=False, allow_infinity=False),
        tags=st.frozensets(TEXTS, max_size=3),
        friend=st.none() | PEOPLE,
    )
)
SUPPORTED: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (None, st.none()),
    (bool, st.booleans()),
    (int, st.integers(-(2**63), 2**64 - 1)),
    (float, st.floats()),
    (str, TEXTS),
    (bytes, st.binary(max_size=20)),
    (bytearray, st.binary(max_size=20).map(bytearray)),
    (datetime, MOMENTS | st.builds(datetime.replace, MOMENTS, tzinfo=ZONES)),
    (date, st.dates()),
    (time, st.times() | st.times(timezones=ZONES)),
    (timedelta, st.timedeltas()),
    (Decimal, st.decimals(allow_nan=False)),
    (UUID, st.uuids()),
    (Colour, st.sampled_from(Colour)),
    (Level, st.sampled_from(Level)),
    (Access, st.sampled_from([Access.READ, Access.READ | Access.WRITE])),
    (Literal["a", 1, None], st.sampled_from(["a", 1, None])),
    (list[int], st.lists(INTS)),
    (set[UUID], st.sets(st.uuids(), max_size=4)),
    (frozenset[int], st.frozensets(INTS)),
    (tuple[int, str], st.tuples(INTS, TEXTS)),
    (tuple[Colour, ...], st.lists(st.sampled_from(Colour)).map(tuple)),
    (dict[int, list[bytes]], st.dictionaries(INTS, st.lists(st.binary(max_size=4), max_size=2), max_size=4)),
    (dict[date, set[str]], st.dictionaries(st.dates(), st.sets(TEXTS, max_size=2), max_size=3)),
    (int | str | None, st.none() | INTS | TEXTS),
    (Point, st.builds(Point, INTS, st.floats(allow_nan=False))),
    (Movie, st.fixed_dictionaries({"title": TEXTS, "year": INTS})),
    (Line, LINES),
    (Order, st.builds(Order, st.uuids(), st.lists(LINES, max_size=2), st.none() | st.sampled_from(Colour))),
    (Circle | Square, st.builds(Circle, INTS.map(float)) | st.builds(Square, INTS.map(float))),
    (Address, st.builds(Address, TEXTS, INTS)),
    (Person, PEOPLE),
    (list[Person | None], st.lists(st.none() | PEOPLE, max_size=3)),
    (Person | str, PEOPLE | TEXTS),
    (Box[int], INTS.map(lambda value: Box[int](value=value))),
    (Strict, st.builds(Strict, id=st.uuids(), at=MOMENTS, raw=st.binary(), ratio=st.floats(allow_nan=False))),
    (Name, TEXTS.map(Name)),
]


def same(left: object, right: object) -> bool:
    return left == right or (
        isinstance(left, float) and isinstance(right, float) and math.isnan(left) and math.isnan(right)
    )


@pytest.mark.parametrize(("type_", "values"), SUPPORTED, ids=lambda each: str(each)[:40])
def test_what_is_encoded_comes_back_as_its_type(type_: Any, values: st.SearchStrategy[Any]) -> None:
    coder = codec(type_)
    assert coder.typed

    @given(values)
    def law(value: object) -> None:
        blob = coder.encode(value)
        back = coder.decode(blob)
        assert same(back, value)
        assert type(back) is type(value)
        assert encode(value) == blob
        decode(blob)

    law()


def json_like(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=12,
    )


PLAIN = json_like(
    st.none() | st.booleans() | INTS | st.floats(allow_nan=False) | TEXTS | st.binary(max_size=8), TEXTS | INTS
)


@given(PLAIN)
def test_without_a_declared_type_plain_data_comes_back(value: object) -> None:
    for undeclared in (..., Any, object):
        coder = codec(undeclared)
        assert not coder.typed
        assert coder.decode(coder.encode(value)) == value


def test_without_a_declared_type_objects_become_plain_data() -> None:
    line = Line("a", Decimal("1.5"), {"x"})
    assert decode(encode(line)) == {"sku": "a", "price": "1.5", "tags": ["x"]}
    assert decode(encode((1, {Name("k"): Level.HIGH}))) == [1, {"k": 2}]
    assert decode(encode(datetime(2026, 1, 1, tzinfo=UTC))) == datetime(2026, 1, 1, tzinfo=UTC)
    assert (
        decode(encode(pydantic.TypeAdapter(pydantic.HttpUrl).validate_python("https://a.test/x"))) == "https://a.test/x"
    )
    assert decode(encode(Person(fullName="a", born=date(2000, 1, 1), balance=Decimal(1))))["name"] == "a"


@pytest.mark.parametrize(
    "value",
    [
        2**64,
        -(2**63) - 1,
        "\ud800",
        [{"a": "x\udfff"}],
        object(),
        print,
        1j,
        range(3),
        collections.deque([1]),
        pydantic.SecretStr("x"),
    ],
)
def test_what_does_not_fit_the_format_is_refused(value: object) -> None:
    for refused in (lambda: encode(value), lambda: codec(Any).encode([value]), lambda: canonical({"a": {1: value}})):
        with pytest.raises(CodecError) as caught:
            refused()
        assert caught.value.code == "codec.encode"


def test_a_value_that_holds_itself_is_refused() -> None:
    knot: list[object] = []
    knot.append(knot)
    for refused in (lambda: encode(knot), lambda: canonical({"a": knot}), lambda: canonical({"a": {1: knot}})):
        with pytest.raises(CodecError, match="holds itself"):
            refused()


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x02")
@example(b"\x00\xdd\xff\xff\xff\xff")
@example(b"\x00\x81\x81\x01\x02\x03")
@example(b"\x00\xa1\xff")
@example(b"\x00\xc1")
@example(b"\x01NaN")
@example(b'\x01"\\ud800"')
@example(b"\x01" + b"9" * 5000)
@example(b"\x00\xc7\x0c\xff" + b"\xff" * 12)
def test_garbage_raises_nothing_but_codec_errors(blob: bytes) -> None:
    for type_ in (Any, int, datetime, list[Line], Order, Person, Person | str, Address, Point, Name, Access):
        for damaged in (blob, b"\x00" + blob, b"\x01" + blob):
            try:
                codec(type_).decode(damaged)
                to_json(damaged)
            except CodecError as error:
                assert error.code == "codec.decode"  # noqa: PT017 - most garbage raises, some is a value


@pytest.mark.parametrize(
    "bomb", [b"\x00" + b"\x91" * 500_000, b"\x00" + b"\x81\xa0" * 300_000, b"\x01" + b"[" * 500_000]
)
def test_a_nesting_bomb_is_refused(bomb: bytes) -> None:
    for damaged in (lambda: decode(bomb), lambda: to_json(bomb), lambda: codec(list[Any]).decode(bomb)):
        with pytest.raises(CodecError):
            damaged()
    with pytest.raises(CodecError):
        json_blob("[" * 500_000)


@given(PLAIN, st.data())
def test_a_truncated_blob_is_refused(value: object, data: st.DataObject) -> None:
    blob = encode(value)
    with pytest.raises(CodecError):
        decode(blob[: data.draw(st.integers(0, len(blob) - 1))])
    with pytest.raises(CodecError):
        decode(blob + b"\x00")


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (int, "secret"),
        (Literal["a"], "secret"),
        (Colour, "secret"),
        (dict[int, int], {"secret": 1}),
        (dict[str, int], {"secret": "x"}),
        (Person, {"name": "secret"}),
        (Person | int, {"name": "secret"}),
        (UUID, "secret"),
        (Circle | Square, {"type": "secret"}),
        (Annotated[str, msgspec.Meta(pattern="^x$")], "secret"),
        (Callable[[], int], "secret"),
        (None, "secret"),
        (UUID, "secret" * 2000),
    ],
)
def test_what_does_not_fit_its_type_is_refused_without_quoting_it(type_: Any, value: object) -> None:
    with pytest.raises(CodecError) as caught:
        codec(type_).decode(encode(value))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_errors_say_what_was_expected_and_where() -> None:
    with pytest.raises(CodecError, match=r"Expected `str`, got `int` - at `\$\[0\]\.sku`"):
        codec(list[Line]).decode(encode([{"sku": 1}]))
    with pytest.raises(CodecError, match="missing required field `lines`"):
        codec(Order).decode(encode({"id": str(UUID(int=1))}))
    with pytest.raises(CodecError, match="of type object is unsupported"):
        encode([object()])


@pytest.mark.parametrize("type_", [NoReturn, "Order", Line | Address, list[int] | set[int]])
def test_a_type_that_nothing_decodes_to_is_refused_at_once(type_: Any) -> None:
    with pytest.raises(CodecError) as caught:
        codec(type_)
    assert caught.value.code == "codec.type"


def test_a_union_that_would_come_back_as_another_member_is_refused() -> None:
    class Twin(pydantic.BaseModel):
        value: int

    coder = codec(Box[int] | Twin)
    assert coder.decode(coder.encode(Box[int](value=1))) == Box[int](value=1)
    with pytest.raises(CodecError, match="does not come back"):
        coder.encode(Twin(value=1))


def test_codecs_are_made_once() -> None:
    assert codec(list[int]) is codec(list[int])
    assert codec(Literal[1]) is not codec(Literal[True])
    unhashable = Annotated[int, ["notes"]]
    assert codec(unhashable).decode(encode(3)) == 3
    assert Codec().decode(encode(3)) == 3


def test_json_stays_json_and_decodes_by_its_rules() -> None:
    blob = json_blob('{"id": "00000000-0000-0000-0000-000000000001", "lines": []}')
    assert blob[0] == 1
    assert codec(Order).decode(blob) == Order(UUID(int=1), [])
    assert decode(blob)["lines"] == []
    assert codec(bytes).decode(json_blob('"QUI="')) == b"AB"
    assert codec(Person).decode(json_blob(b'{"fullName": "a", "born": "2000-01-01", "balance": "1"}')).name == "a"
    for wrong in ("", "{", "NaN", "18446744073709551616", '"\ud800"', b'"\xff"', "1 2"):
        with pytest.raises(CodecError):
            json_blob(wrong)


@given(PLAIN)
def test_every_blob_can_be_shown(value: object) -> None:
    assert isinstance(msgspec.json.decode(to_json(encode(value))), str | int | float | list | dict | None)


def test_what_json_lacks_is_shown_all_the_same() -> None:
    assert to_json(encode({1.5: math.nan, (1, 2): {None: b"\xff"}})) == '{"1.5":null,"(1, 2)":{"None":"/w=="}}'
    assert to_json(json_blob('{"b": 1, "a": [2]}')) == '{"b":1,"a":[2]}'
    assert "Ext" in to_json(b"\x00\xd4\x05\x00")


# --- canonical bytes: a slow reference, written from the specification alone --------------------------


def reference(value: object) -> bytes:
    match value:
        case None:
            return b"\xc0"
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int():
            return reference_int(value)
        case float():
            return b"\xcb" + struct.pack(">d", value)
        case str():
            return reference_head(len(value.encode()), 0xA0, 32, 0xD9) + value.encode()
        case bytes():
            return reference_head(len(value), 0, 0, 0xC4) + value
        case list() | tuple():
            return reference_head(len(value), 0x90, 16, None) + b"".join(map(reference, value))
        case set() | frozenset():
            return reference_head(len(value), 0x90, 16, None) + b"".join(sorted(map(reference, value)))
        case dict():
            text = sorted((key for key in value if isinstance(key, str)), key=str.encode)
            # () and frozenset() are two keys here and one in MessagePack: then the value decides.
            other = sorted(
                (k for k in value if not isinstance(k, str)), key=lambda k: (reference(k), reference(value[k]))
            )
            pairs = (reference(key) + reference(value[key]) for key in (*text, *other))
            return reference_head(len(value), 0x80, 16, None) + b"".join(pairs)
    raise AssertionError(value)


def reference_int(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack(">b", value)
    for code, form, low, high in (
        (0xCC, ">B", 0, 2**8),
        (0xD0, ">b", -(2**7), 0),
        (0xCD, ">H", 0, 2**16),
        (0xD1, ">h", -(2**15), 0),
        (0xCE, ">I", 0, 2**32),
        (0xD2, ">i", -(2**31), 0),
        (0xCF, ">Q", 0, 2**64),
        (0xD3, ">q", -(2**63), 0),
    ):
        if low <= value < high:
            return bytes([code]) + struct.pack(form, value)
    raise AssertionError(value)


def reference_head(size: int, short: int, short_max: int, byte: int | None) -> bytes:
    if size < short_max:
        return bytes([short + size])
    if byte is not None and size < 2**8:
        return bytes([byte]) + struct.pack(">B", size)
    wide = {0xD9: 0xDA, 0xC4: 0xC5, None: 0xDC if short == 0x90 else 0xDE}[byte]
    return bytes([wide]) + struct.pack(">H", size) if size < 2**16 else bytes([wide + 1]) + struct.pack(">I", size)


HASHABLE = st.recursive(
    st.none() | st.booleans() | INTS | st.floats(allow_nan=False) | TEXTS | st.binary(max_size=8),
    lambda inner: st.frozensets(inner, max_size=4) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXTS, inner, max_size=5)
        | st.dictionaries(HASHABLE, inner, max_size=5)
        | st.sets(HASHABLE, max_size=5)
    ),
    max_leaves=12,
)
ARGUMENTS = st.dictionaries(TEXTS, VALUES, max_size=4)


@given(ARGUMENTS)
@example({"é": 1, "z": 2, "\uffff": 3, "\U0001f600": 4, "": 5})
@example({"a": {n: str(n) for n in range(-40, 300)}, "b": set(range(70_000))})
@example({"a": ["x" * n for n in (31, 32, 255, 256, 65_535, 65_536)], "b": [b"x" * n for n in (255, 256, 65_536)]})
@example({"a": {"1": 1, 1: 1, b"1": 1, (1,): 1, None: 1, "k" * 40: 1, "j" * 300: 1, "i" * 70_000: 1}})
@example({"a": 2**64 - 1, "b": -(2**63), "c": 1e300, "d": -0.0})
def test_canonical_bytes_agree_with_the_reference(arguments: dict[str, object]) -> None:
    assert canonical(arguments) == reference(arguments)


def shuffled(value: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    match value:
        case dict():
            return {key: shuffled(inner, draw) for key, inner in draw(st.permutations(list(value.items())))}
        case set():
            # Insertion order shows in a set's own order where hashes collide.
            return set(draw(st.permutations(list(value))))
        case list():
            return [shuffled(inner, draw) for inner in value]
    return value


@given(ARGUMENTS, st.data())
def test_canonical_bytes_do_not_depend_on_order(arguments: dict[str, object], data: st.DataObject) -> None:
    assert canonical(shuffled(arguments, data.draw)) == canonical(arguments)


def told_apart(value: Any) -> Any:
    """A value as MessagePack sees it: numbers by their kind, tuples and lists alike, sets as what they hold."""
    match value:
        case bool() | int() | float():
            return (type(value).__name__, repr(value))
        case list() | tuple():
            return ("array", tuple(map(told_apart, value)))
        case set() | frozenset():
            return ("set", frozenset(map(told_apart, value)))
        case dict():
            return ("map", frozenset((told_apart(key), told_apart(inner)) for key, inner in value.items()))
    return value


SETLESS = st.dictionaries(TEXTS, PLAIN, max_size=3)


@given(SETLESS, SETLESS)
@example({"a": 1}, {"a": 1.0})
@example({"a": True}, {"a": 1})
@example({"a": "1"}, {"a": b"1"})
@example({"a": "", "b": 1}, {"ab": 1})
def test_canonical_bytes_are_injective(left: dict[str, object], right: dict[str, object]) -> None:
    assert (canonical(left) == canonical(right)) == (told_apart(left) == told_apart(right))


@given(ARGUMENTS)
def test_canonical_bytes_decode_to_the_value(arguments: dict[str, object]) -> None:
    plain = decode(b"\x00" + canonical(arguments))
    assert set(plain) == set(arguments)


class Renamed(msgspec.Struct, rename="camel", omit_defaults=True, tag="r"):
    first_name: str
    nick_name: str = ""
    extra: dict[str, int] = msgspec.field(default_factory=dict)


class Packed(msgspec.Struct, array_like=True, tag="p"):
    x: int
    tags: set[int]


class Bare(msgspec.Struct, array_like=True):
    x: int
    y: int | msgspec.UnsetType = msgspec.UNSET


class Partial(msgspec.Struct):
    x: int | msgspec.UnsetType = msgspec.UNSET


@pytest.mark.parametrize(
    "value",
    [
        Line("a", Decimal("1.50"), {"x"}),
        Order(UUID(int=1), [Line("a", Decimal(1), set())], Colour.RED),
        Address("a", 1),
        Point(1, 2.0),
        Renamed("a"),
        Renamed("a", "b", {"k": 1}),
        Packed(1, {2}),
        Bare(1, 2),
        Partial(),
        Person(fullName="a", born=date(2000, 1, 1), balance=Decimal(1)),
        Colour.RED,
        Level.HIGH,
        Name("a"),
        UUID(int=1),
        time(1, 2),
        timedelta(seconds=-1),
        collections.OrderedDict(b=1, a=2),
        collections.Counter("aab"),
        bytearray(b"x"),
        memoryview(b"x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_objects_are_canonical_as_the_data_they_encode_to(value: object) -> None:
    assert canonical({"a": value}) == reference({"a": decode(encode(value))})


def test_instants_are_canonical_whatever_their_zone() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    elsewhere = noon.astimezone(timezone(timedelta(hours=-8)))
    assert canonical({"a": noon}) == canonical({"a": elsewhere})
    assert canonical({"a": noon}).endswith(b"\xd6\xff" + struct.pack(">I", int(noon.timestamp())))


def test_sets_within_objects_are_sorted() -> None:
    one, other = {0, 8}, {8, 0}
    assert list(one) != list(other)  # their hashes collide, so the order they were filled in shows
    assert canonical({"a": Packed(1, one)}) == canonical({"a": Packed(1, other)})
    line = Line("a", Decimal(1), {"bb", "c", "a"})
    assert canonical({"a": line}) == reference({"a": {"sku": "a", "price": "1", "tags": line.tags}})


def test_keys_that_are_equal_once_encoded_keep_both_values() -> None:
    clash = {UUID(int=1): 1, str(UUID(int=1)): 2}
    backwards = dict(reversed(clash.items()))
    assert canonical({"a": clash}) == canonical({"a": backwards})


def test_an_argument_that_does_not_encode_is_named() -> None:
    for value in (object(), {1: object()}, "\ud800", {2**64}):
        with pytest.raises(CodecError, match="argument 'order'") as caught:
            canonical({"a": 1, "order": value, "b": {1, 2}})
        assert caught.value.argument == "order"
    with pytest.raises(CodecError) as caught:
        canonical({"\ud800": 1})
    assert caught.value.argument == ""


def test_any_mapping_of_arguments_is_taken() -> None:
    ordered: Mapping[str, object] = collections.OrderedDict(b=1, a=2)
    assert canonical(ordered) == canonical({"a": 2, "b": 1}) == bytes.fromhex("82a16102a16201")
    assert canonical({}) == b"\x80"
