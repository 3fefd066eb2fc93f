"""Hooks in a harness's settings: put in and taken out as text, with every byte of the user's where it was."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.lifecycle.errors import SettingsUnreadable
from holdfast.lifecycle.harness.known import known_hooks
from holdfast.lifecycle.merge import HOOKS, inspect, merge, unmerge
from holdfast.lifecycle.plan import deadline_us
from holdfast.lifecycle.spans import DEPTH_MAX

HOLDFAST = "/opt/tools/holdfast"
HARNESSES = sorted(HOOKS)
FOREIGN = '{"hooks": [{"type": "command", "command": "make lint"}]}'

# --- texts as people and editors write them -----------------------------------------------------------

spaces = st.sampled_from(["", " ", "\n", "\n  ", "\n    ", "\r\n\t", "\t", "\n\n"])
comments = st.sampled_from(["", " ", "\n  ", "// it's mine\n", " /* { */ ", '\n// "hooks": {\n\t'])
scalars = st.sampled_from(['"x"', '"\\u00e9"', '"é \\" , }"', "1.0e3", "-0", "1E+2", "true", "null", '"//"', '""'])
names = st.sampled_from(["model", "env", "permissions", "d\\u0061ta", "a.b"])


@st.composite
def containers(draw: Any, gaps: Any, items: list[str], brackets: str) -> str:
    inside = ",".join(f"{draw(gaps)}{item}{draw(gaps)}" for item in items)
    return brackets[0] + (inside or draw(gaps)) + brackets[1]


@st.composite
def texts(draw: Any, harness: str) -> str:
    """A settings file with whatever a user may have in it, but nothing of ours."""
    gaps = comments if harness == "gemini" else spaces
    foreign = st.sampled_from([FOREIGN, '{"matcher":"Bash","hooks":[]}', "{}", "17", '{"hooks": {}}'])
    members = [f'"{name}"{draw(gaps)}:{draw(gaps)}{draw(scalars)}' for name in draw(st.lists(names, max_size=3))]
    if draw(st.booleans()):
        hooks = []
        known = [hook.name for hook in HOOKS[harness]]
        for name in draw(st.lists(st.sampled_from([*known, "PreToolUse"]), max_size=4, unique=True)):
            array = draw(containers(gaps, draw(st.lists(foreign, max_size=2)), "[]"))
            hooks.append(f'"{name}":{draw(gaps)}{array}')
        if draw(st.booleans()):
            hooks.append('"odd": 1')
        member = draw(st.sampled_from(["hooks", "ho\\u006fks"]))
        members.insert(draw(st.integers(0, len(members))), f'"{member}": {draw(containers(gaps, hooks, "{}"))}')
    return draw(st.sampled_from(["", "\ufeff"])) + draw(gaps) + draw(containers(gaps, members, "{}")) + draw(gaps)


@st.composite
def cases(draw: Any) -> tuple[str, str]:
    harness = draw(st.sampled_from(HARNESSES))
    return harness, draw(texts(harness))


def plain(text: str) -> Any:
    """What the settings say, read by another reader."""
    strings = r'"(?:[^"\\]|\\.)*"'
    bare = re.sub(
        rf"({strings})|//[^\n]*|/\*.*?\*/", lambda m: m[1] or " ", text.removeprefix("\ufeff"), flags=re.DOTALL
    )
    return json.loads(bare)


def commands(text: str) -> list[str]:
    found = re.findall(r'"command": ("(?:[^"\\]|\\.)*")', text)
    return [each for each in map(json.loads, found) if "holdfast" in each]


# --- laws ---------------------------------------------------------------------------------------------


@given(cases())
def test_taking_out_gives_back_every_byte(case: tuple[str, str]) -> None:
    """LX-67."""
    harness, text = case
    merged = merge(text, harness, HOLDFAST)
    assert unmerge(merged, harness) == text
    assert unmerge(text, harness) == text


@given(cases())
def test_what_was_there_stays_and_every_hook_is_there_once(case: tuple[str, str]) -> None:
    harness, text = case
    merged = merge(text, harness, HOLDFAST)
    said, before = plain(merged), plain(text)
    assert sorted(commands(merged)) == sorted(
        f"{HOLDFAST} hook {harness} --event {hook.name}" for hook in HOOKS[harness]
    )
    assert {name: each for name, each in said.items() if name != "hooks"} == {
        name: each for name, each in before.items() if name != "hooks"
    }
    for name, groups in before.get("hooks", {}).items():
        found = said["hooks"][name]
        assert found == groups if not isinstance(groups, list) else found[: len(groups)] == groups
    rest = iter(merged)
    assert all(letter in rest for letter in text), "something was taken away, or moved"


@given(cases(), st.sampled_from([HOLDFAST, "'/home/a b/holdfast'", "/usr/bin/python3.12 -m holdfast"]))
def test_a_second_time_changes_nothing_and_another_program_only_that(case: tuple[str, str], program: str) -> None:
    harness, text = case
    merged = merge(text, harness, HOLDFAST)
    assert merge(merged, harness, HOLDFAST) == merged
    moved = merge(merged, harness, program)
    assert merge(text, harness, program) == moved
    assert unmerge(moved, harness) == text
    assert {each.state for each in inspect(moved, harness, program)} == {"present"}


@given(cases(), st.data())
def test_what_the_user_changes_in_between_is_the_user_s(case: tuple[str, str], data: Any) -> None:
    """One of the user's own values is another by then, and there is a new member behind ours."""
    harness, text = case
    merged = merge(text, harness, HOLDFAST)
    marked = [old for old in ('"x"', "1.0e3", "true", '"make lint"') if old in text]
    old = data.draw(st.sampled_from(marked or ["model"]))
    mine = '"my own, by now"' if marked else "model of mine"
    assert unmerge(merged.replace(old, mine), harness) == text.replace(old, mine)


@pytest.mark.parametrize("harness", HARNESSES)
def test_of_no_settings_at_all_nothing_is_left(harness: str) -> None:
    merged = merge("", harness, HOLDFAST)
    assert merged.endswith("}\n")
    assert list(json.loads(merged)) == ["hooks"]
    assert unmerge(merged, harness) == ""
    assert unmerge("", harness) == ""
    assert {each.state for each in inspect("", harness, HOLDFAST)} == {"missing"}


# --- what exactly is installed ------------------------------------------------------------------------


def test_the_handlers_are_those_of_each_harness() -> None:
    """LX-65."""
    hooks = {harness: json.loads(merge("", harness, HOLDFAST))["hooks"] for harness in HARNESSES}
    assert [len(each) for each in hooks.values()] == [9, 10, 5]
    assert hooks["claude"]["Stop"] == [
        {"hooks": [{"type": "command", "command": f"{HOLDFAST} hook claude --event Stop", "timeout": 10}]}
    ]
    [codex] = hooks["codex"]["SessionEnd"][0]["hooks"]
    assert (codex["timeout"], hooks["claude"]["SessionEnd"][0]["hooks"][0]["timeout"]) == (3, 5)
    assert "Interrupt" in hooks["codex"]
    [gemini] = hooks["gemini"]["BeforeAgent"][0]["hooks"]
    assert (gemini["name"], gemini["timeout"]) == ("holdfast", 10_000)


def test_a_file_keeps_its_own_layout() -> None:
    tabbed = '{\r\n\t"model": "opus",\r\n\t"hooks": {\r\n\t\t"Stop": [\r\n\t\t\t' + FOREIGN + "\r\n\t\t]\r\n\t}\r\n}"
    merged = merge(tabbed, "claude", HOLDFAST)
    assert "\n" not in merged.replace("\r\n", "")
    assert '\r\n\t\t\t\t\t\t"type": "command",\r\n' in merged
    assert "  " not in merged
    assert "\n" not in merge('{"model":"opus"}', "claude", HOLDFAST)


@pytest.mark.parametrize(
    "text", ["{}", "{\n}\n", '{"hooks":{}}', '{"hooks": {"Stop": []}, "a": {}}', '{\n  "hooks": {\n  }\n}']
)
def test_containers_that_were_empty_before_stay(text: str) -> None:
    merged = merge(text, "claude", HOLDFAST)
    assert unmerge(merged, "claude") == text


@pytest.mark.parametrize("text", ["", "{}", '{"model":"opus"}', '{"hooks": {"Stop": [' + FOREIGN + "]}}"])
@pytest.mark.parametrize("layout", [{"indent": 2}, {"indent": 8}, {"separators": (",", ":")}])
def test_where_the_file_was_laid_out_anew_what_we_made_goes_all_the_same(text: str, layout: dict[str, Any]) -> None:
    """Claude Code writes its settings anew when the user changes one in it."""
    written = json.dumps(json.loads(merge(text, "claude", HOLDFAST)), **layout)
    left = unmerge(written, "claude")
    assert json.loads(left or "{}") == json.loads(text or "{}")


def test_what_stands_between_ours_stays_where_it_is() -> None:
    merged = merge('{\n  "a": 1\n}\n', "claude", HOLDFAST)
    ours = re.compile(r'\{\s+"hooks": \[\s+\{[^}]*--event Stop"[^}]*\}\s+\]\s+\}')
    [group] = ours.findall(merged)
    for theirs, left in ((f"{FOREIGN},\n      {group}", FOREIGN), (f"{group},\n      {FOREIGN}", FOREIGN)):
        edited = merged.replace(group, theirs)
        assert merge(edited, "claude", HOLDFAST) == edited
        said = json.loads(unmerge(edited, "claude"))
        assert said == {"a": 1, "hooks": {"Stop": [json.loads(left)]}}
        assert FOREIGN in unmerge(edited, "claude")


def test_a_handler_among_others_of_a_group_goes_alone() -> None:
    mine = '{"type": "command", "command": "make lint"}'
    ours = json.dumps({"type": "command", "command": f"{HOLDFAST} hook claude --event Stop", "timeout": 10})
    for handlers in (f"{mine}, {ours}", f"{ours},{mine}", f"{ours}, {ours}, {mine}", f"{mine}, {ours}, {mine}"):
        text = f'{{"hooks": {{"Stop": [{{"matcher": "", "hooks": [{handlers}]}}]}}}}'
        left = json.loads(unmerge(text, "claude"))["hooks"]["Stop"][0]["hooks"]
        assert left == [json.loads(mine)] * handlers.count("make lint")
        assert commands(merge(text, "claude", HOLDFAST)).count(f"{HOLDFAST} hook claude --event Stop") == 1


def test_a_group_that_the_user_gave_more_members_stays() -> None:
    ours = json.dumps({"type": "command", "command": f"{HOLDFAST} hook claude --event Stop"})
    text = f'{{"hooks": {{"Stop": [{{"description": "mine", "hooks": [{ours}]}}]}}}}'
    assert unmerge(text, "claude") == '{"hooks": {"Stop": [{"description": "mine", "hooks": []}]}}'


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("[OURS /* keep */]", "[ /* keep */]"),
        ("[OURS, OURS // keep\n]", "[ // keep\n]"),
        ("[7 /* keep */, OURS, 8]", "[7 /* keep */ , 8]"),
        ("[OURS /* , */, 8]", "[ /* , */ 8]"),
    ],
)
def test_comments_stay_whatever_goes_around_them(text: str, left: str) -> None:
    ours = '{ "type": "command", "command": "holdfast hook gemini --event Stop" }'
    around = '{"hooks": {"Stop": [ {"hooks": HERE} ]}}'
    text = around.replace("HERE", text).replace("OURS", ours)
    assert unmerge(text, "gemini") == around.replace("HERE", left)
    kept = '{"hooks": { /* keep */ "Stop": [ {"hooks": [HERE]} ] } }'
    assert unmerge(kept.replace("HERE", ours), "gemini") == '{"hooks": { /* keep */  } }'


# --- whose a handler is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "ours"),
    [
        ("/usr/bin/holdfast hook claude --event Stop", True),
        ("holdfast hook claude", True),
        ("holdfast hook claude-code", True),
        ("'/home/a b/holdfast' 'hook' claude --event Stop", True),
        ("/usr/bin/python3 -m holdfast hook claude", True),
        ("python -m holdfast hook claude", True),
        ("holdfast hook codex", False),
        ("holdfast hook", False),
        ("holdfast --db x hook claude", False),
        ("holdfastly hook claude", False),
        ("echo holdfast hook claude", False),
        ("python -m mine hook claude", False),
        ("holdfast hook 'claude", False),
        ("", False),
        (7, False),
        (None, False),
    ],
)
def test_a_handler_is_ours_by_its_words(command: Any, ours: bool) -> None:
    """LX-66."""
    handler = {"type": "command", "command": command}
    text = json.dumps({"hooks": {"PreToolUse": [{"hooks": [handler]}], "Stop": "TYPE"}}).replace('"TYPE"', "[]")
    left = json.loads(unmerge(text, "claude"))["hooks"]
    assert ("PreToolUse" not in left or left["PreToolUse"] == []) == ours
    assert unmerge(text.replace('"command",', '"prompt",'), "claude") == text.replace('"command",', '"prompt",')


# --- what has become of them --------------------------------------------------------------------------


def states(text: str, harness: str = "claude") -> dict[str, str]:
    return {each.hook: each.state for each in inspect(text, harness, HOLDFAST)}


def test_every_hook_is_present_missing_drifted_or_disabled() -> None:
    merged = merge('{\n  "model": "opus"\n}', "claude", HOLDFAST)
    assert set(states(merged).values()) == {"present"}
    drifted = merged.replace('--event Stop",', '--event Stop --verbose",').replace('"timeout": 5', '"timeout": 1')
    assert [hook for hook, state in states(drifted).items() if state == "drifted"] == ["Stop", "SessionEnd"]
    assert merge(drifted, "claude", HOLDFAST) == merged
    assert states(merged.replace("PreCompact", "PreCompacted"))["PreCompact"] == "missing"
    off = merged.replace('"opus"', '"opus",\n  "disableAllHooks": true')
    assert set(states(off).values()) == {"disabled"}
    assert states('{"hooks": {"Stop": []}}')["Stop"] == "missing"


def test_a_handler_that_is_matched_or_there_twice_is_mended() -> None:
    merged = merge('{\n  "model": "opus"\n}', "claude", HOLDFAST)
    ours = re.compile(r'\{\s+"hooks": \[\s+\{[^}]*--event Stop"[^}]*\}\s+\]\s+\}')
    [group] = ours.findall(merged)
    for edited in (
        merged.replace(group, group.replace('"hooks"', '"matcher": "x", "hooks"')),
        merged.replace(group, f"{group}, {group}"),
    ):
        assert states(edited)["Stop"] == "drifted"
        mended = merge(edited, "claude", HOLDFAST)
        assert set(states(mended).values()) == {"present"}
        assert merge(mended, "claude", HOLDFAST) == mended
    everywhere = merged.replace(group, group.replace('"hooks"', '"matcher": "*", "hooks"'))
    assert states(everywhere)["Stop"] == "present"


def test_settings_of_nothing_but_handlers_to_mend_are_made_anew() -> None:
    handler = json.dumps({"type": "command", "command": "holdfast hook claude"}, indent=1)
    text = f'{{ "hooks": {{ "Stop": [ {{ "hooks": [ {handler} ], "matcher": "x" }} ] }} }}'
    assert states(text)["Stop"] == "drifted"
    text = f'{{ "hooks": {{ "Stop": [ {{ "hooks": [ {handler} ] }}, {{ "hooks": [ {handler} ] }} ] }} }}'
    assert set(states(merge(text, "claude", HOLDFAST)).values()) == {"present"}


@pytest.mark.parametrize(
    "switch",
    ['"hooksConfig": {"enabled": false}', '"hooksConfig": {"disabled": ["holdfast"]}', '"disabled": ["holdfast"]'],
)
def test_gemini_has_switches_of_its_own(switch: str) -> None:
    merged = merge('{"a": 1, "hooks": {"notifications": true}, "hooksConfig": {"disabled": []}}', "gemini", HOLDFAST)
    assert set(states(merged, "gemini").values()) == {"present"}
    place = '"notifications": true' if switch.startswith('"disabled"') else '"hooksConfig": {"disabled": []}'
    assert set(states(merged.replace(place, switch), "gemini").values()) == {"disabled"}


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (" ", "line 1, column 2: a value"),
        ("{", "a name in quotes"),
        ('{\n  "a": 1,\n}', "line 3, column 1: a name in quotes"),
        ('{"a": [1,]}', "line 1, column 10: a value"),
        ('{"a" 1}', "`:`"),
        ('{"a": 1 "b": 2}', "`,` or `}`"),
        ("[1 2]", "`,` or `]`"),
        ('{"a": 01}', "a value"),
        ('{"a": 1.}', "a value"),
        ('{"a": NaN}', "a value"),
        ('{"a": truely}', "a value"),
        ('{"a": "\n"}', "a value"),
        ('{"a": "\\x"}', "a value"),
        ("{'a': 1}", "a name in quotes"),
        ("{} {}", "something follows"),
        ('{"a": 1} // mine', "something follows"),
        ('{ /* mine */ "a": 1}', "a name in quotes"),
        ("[]", "no JSON object"),
        ("7", "no JSON object"),
        ('{"hooks": []}', "`hooks` is no object"),
        ('{"hooks": null}', "`hooks` is no object"),
        ('{"hooks": {}, "ho\\u006fks": {}}', "`hooks` is there 2 times"),
        ('{"hooks": {"Stop": {}}}', "`hooks.Stop` is no array"),
        ('{"hooks": {"Stop": [], "Stop": []}}', "`Stop` is there 2 times"),
        ('{"a": ' + "[" * DEPTH_MAX + "]" * DEPTH_MAX + "}", "deep"),
    ],
)
def test_what_cannot_be_understood_is_refused_with_its_place(text: str, why: str) -> None:
    """LX-68."""
    for work in (
        lambda: merge(text, "claude", HOLDFAST),
        lambda: unmerge(text, "claude"),
        lambda: inspect(text, "claude", HOLDFAST),
    ):
        with pytest.raises(SettingsUnreadable) as refused:
            work()
        assert why in refused.value.message


def test_containers_may_lie_deep() -> None:
    text = '{"a": ' + "[" * (DEPTH_MAX - 1) + "]" * (DEPTH_MAX - 1) + "}"
    assert unmerge(merge(text, "claude", HOLDFAST), "claude") == text


def test_what_the_user_installed_under_another_hook_stays_until_it_is_taken_out() -> None:
    handler = json.dumps({"type": "command", "command": f"{HOLDFAST} hook claude --event PreToolUse"})
    text = f'{{"hooks": {{"PreToolUse": [{{"hooks": [{handler}]}}]}}, "a": 1}}'
    merged = merge(text, "claude", HOLDFAST)
    assert handler in merged
    assert json.loads(unmerge(merged, "claude")) == {"a": 1}


@pytest.mark.parametrize("harness", HARNESSES)
def test_the_hooks_that_are_installed_are_those_that_tell_of_events(harness: str) -> None:
    """And the harness waits longer than we take."""
    installed = {hook.name for hook in HOOKS[harness]}
    assert installed == set(known_hooks(harness)) - {"notify"}
    unit = 1_000 if harness == "gemini" else 1_000_000
    assert [hook for hook in HOOKS[harness] if hook.timeout * unit <= deadline_us(harness, hook.name)] == []
