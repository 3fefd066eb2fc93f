"""The hash of a message: the golden hashes, the vectors, and the rules one by one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.sessions_data import FIXTURES, SHARED, recorded

from holdfast.sessions import jcs, nodes
from holdfast.sessions.errors import ChainBroken, NumberRange
from holdfast.sessions.nodes import answer_hash, canonical, chain, check_chain, node_hash, normalised, project
from holdfast.sessions.values import Block, Message, block_of, plain

ROOT_HASH = "613442d3481093478e32aaab30668596b839c250a01a4f5584bdd3cddb9d84c0"
TITLE = '{"title": "Exercise the Claude harness advanced"}'


def test_the_worked_vectors_of_the_contract() -> None:
    tagged = [Block("text", text="<session>\nI want to exercise the claude harness advanced\n</session>")]
    assert canonical("user", tagged) == b'{"content":{"content":[],"role":"user","type":"message"},"parent":""}'
    assert node_hash("user", tagged) == ROOT_HASH
    title = [Block("text", text=TITLE)]
    assert (
        node_hash("assistant", title, ROOT_HASH) == "e211339b8b14fe25e7d0a08c7761905ba6325686e3423315537837e5417408dd"
    )
    tool = [
        Block("thinking", thinking_signature="EqQCCmMI"),
        Block(
            "tool_use",
            tool_use_id="toolu_014VCp69homJagbaZLwQtevJ",
            tool_name="Skill",
            tool_input={"skill": "exercise-claude-harness-advanced"},
        ),
    ]
    parent = "3efdf5855c0e3e7688738dd46b33e673775b4c27d29c88cf7b132dfe362a6b0b"
    assert node_hash("assistant", tool, parent) == "4bc738abf02a99ae0cd62e717cb3497d5c74a271daf453f4a14e9aab950bede1"


@SHARED
def test_every_shared_vector_reproduces() -> None:
    """SA-57."""
    vectors = jcs.read((FIXTURES / "golden" / "hash-vectors.json").read_bytes())
    assert len(vectors) == 20
    for vector in vectors:
        blocks = [block_of(each) for each in vector["blocks"]]
        assert canonical(vector["role"], blocks, vector["parent"]).decode() == vector["canonical"], vector["name"]
        assert node_hash(vector["role"], blocks, vector["parent"]) == vector["hash"], vector["name"]


@SHARED
def test_every_golden_hash_reproduces() -> None:
    """SA-57."""
    lines = (FIXTURES / "golden" / "responses-cb9a87e5.jsonl").read_bytes().splitlines()
    assert len(lines) == 45
    for line in lines:
        golden = json.loads(line)
        blocks = [block_of(each) for each in golden["blocks"]]
        assert node_hash(golden["role"], blocks, golden["parent"]) == golden["hash"]


@SHARED
def test_the_recorded_session_has_the_nodes_it_should() -> None:
    calls = recorded()
    found: set[str] = set()
    for call in calls:
        hashes = [node.hash for node in call.chain]
        check_chain(call.chain)
        wanted = call.expected
        assert (hashes[0], hashes[-2], hashes[-1]) == (
            wanted["root_hash"],
            wanted["head_hash"],
            wanted["response_hash"],
        )
        assert len(hashes) == wanted["chain_length"]
        assert len(set(hashes) - found) == 2
        found.update(hashes)
    assert (len(found), sum(len(call.chain) for call in calls)) == (34, 218)


def slowly(text: str, opening: str, closing: str) -> str:
    """The rule as it is written."""
    while (start := text.find(opening)) >= 0:
        end = text.find(closing, start + len(opening))
        text = text[:start] if end < 0 else text[:start] + text[end + len(closing) :]
    return text


@given(
    st.lists(st.sampled_from(["<status>", "</status>", "<sta", "tus>", "</sta", "<", "x"]), max_size=24).map("".join)
)
def test_tags_are_removed_as_if_searched_again_from_the_start(text: str) -> None:
    assert nodes._without(text, "<status>", "</status>") == slowly(text, "<status>", "</status>")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a<sta<status>1</status>tus>2</status>b", "ab"),
        ("a<sta<status>1</status>tus>2", "a"),
        ("<status></status>", ""),
        ("<s<status></status>tatus>x</status><status>y</status>z", "z"),
        ("keep <status>gone", "keep"),
        ("a \t\r\n\r\n\n b\x85\u2028", "a\n b"),
        ("\x1ckept\x1f", "\x1ckept\x1f"),
        ("a\rb", "a\rb"),
        ("<status>a</status><event>b</event>", ""),
        ("a\n\xa0\nb", "a\n\xa0\nb"),
        ("plain", "plain"),
    ],
)
def test_injected_text_and_white_space_go(text: str, left: str) -> None:
    assert normalised(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "<status></status>" * 100_000 + "x" * 8_000_000,
        "<status>" * 100_000,
        " " * 10_000_000,
        "x" * 5_000_000 + "<sta" * 50_000 + "<status></status>" + "tus></status>" * 50_000,
        "\n" * 10_000_000,
    ],
)
@pytest.mark.timeout(20)
def test_projection_is_linear(text: str) -> None:
    """SX-41: what is quadratic takes minutes."""
    assert len(normalised(text)) <= 8_000_000


def test_inputs_lose_what_says_nothing_but_not_inside_of_lists() -> None:
    given_input = {
        "a": 0,
        "b": -0.0,
        "c": {"d": {"e": ""}, "f": None},
        "g": [0, {}],
        "h": False,
        "i": {"j": 1, "k": []},
        "l": True,
        "m": {},
    }
    block = Block("tool_use", tool_input=given_input)
    [projected] = project([block])
    assert projected.tool_input == {"g": [0, {}], "i": {"j": 1}, "l": True}
    assert given_input["c"] == {"d": {"e": ""}, "f": None}
    assert b"tool_input" not in canonical("assistant", [Block("tool_use", tool_input={"x": {"y": 0}})])


def test_blocks_keep_or_lose_their_place() -> None:
    empty, nothing = Block("text", text=""), Block("text", text=" <status>x</status> ")
    output = Block("tool_result", tool_result_id="t", tool_output="<status>x</status>", is_error=True)
    assert project([empty, nothing, output]) == [
        empty,
        Block("tool_result", tool_result_id="t", tool_output="", is_error=True),
    ]
    assert canonical("user", [Block("x", content=0), Block("y", content=[])]) == (
        b'{"content":{"content":[{"content":0,"is_error":false,"type":"x"},{"is_error":false,"type":"y"}],'
        b'"role":"user","type":"message"},"parent":""}'
    )


def test_deep_input_is_pruned_without_recursion() -> None:
    deep: dict[str, object] = {}
    for _ in range(5_000):
        deep = {"a": deep}
    assert b"tool_input" not in canonical("assistant", [Block("tool_use", tool_input=deep)])


def test_a_number_without_binary64_has_no_hash() -> None:
    with pytest.raises(NumberRange):
        chain([Message("user", (Block("x", content=10**400),))])


def test_a_chain_is_whole_or_says_where_it_breaks() -> None:
    first, second = chain([Message("user", (Block("text", text="hi"),)), Message("assistant")])
    assert second.parent == first.hash
    assert answer_hash(Message("assistant")) == node_hash("assistant", ())
    check_chain([])
    with pytest.raises(ChainBroken, match="broken at 1: the node is missing") as caught:
        check_chain([first, None])
    assert caught.value.index == 1
    with pytest.raises(ChainBroken, match="not the node before it"):
        check_chain([first, second, second])
    with pytest.raises(ChainBroken, match="first node has a parent"):
        check_chain([second])


def test_blocks_come_from_json_and_go_back() -> None:
    given_block = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    assert plain(block_of(given_block)) == {"type": "text", "text": "x"}
    for wrong in ({"text": "x"}, {"type": "text", "text": 1}):
        with pytest.raises(ValueError, match=r"text|type"):
            block_of(wrong)


def test_a_long_text_is_hashed_in_pieces_as_if_it_were_one() -> None:
    """SX-172: an image of many megabytes is never copied whole."""
    image = "QUJD" * 50_000 + "\ud83d\ude00"
    said = ("line  \r\n\n \t \n  more\n" * 9000 + 'quote " and \x01 ') * 2
    block = Block("image", text=said, image_base64=image)
    written = {"image_base64": image, "is_error": False, "text": normalised(said), "type": "image"}
    whole = jcs.write({"content": {"content": [written], "role": "user", "type": "message"}, "parent": ""})
    assert canonical("user", [block]) == whole
    assert normalised(said).splitlines()[:3] == ["line", "  more", "line"]
    assert not [line for line in normalised(said).split("\n") if not line.strip() or line.endswith((" ", "\t"))]
