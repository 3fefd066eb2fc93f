"""What a step may be declared as, and what is refused when it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace

import pytest

from holdfast.core.errors import CodecError, ConfigError, LimitError
from holdfast.execution import effects
from holdfast.execution.effects import (
    Retry,
    Skip,
    StepDescriptor,
    StepHandle,
    abort,
    at_least_once,
    exactly_once,
    fail,
    happened,
    happened_json,
    idempotent,
    not_happened,
    reconcile,
    rerun,
    rerun_with_key,
    skip,
    unknown,
)
from holdfast.execution.errors import AmbiguityPolicyRequired
from holdfast.execution.keys import scope_bytes


@dataclass
class Answer:
    text: str


@pytest.mark.parametrize("kind", ["destructive", "security", "money", "custom"])
def test_an_effect_that_matters_needs_a_policy(kind: effects.EffectKind) -> None:
    with pytest.raises(AmbiguityPolicyRequired) as caught:
        StepDescriptor("charge", exactly_once(kind))
    assert caught.value.step == "charge"
    assert "charge" in str(caught.value)
    StepDescriptor("charge", exactly_once(kind, on_ambiguous=fail()))


def test_a_paid_call_defaults_to_skip_none() -> None:
    assert exactly_once("cost_bearing").policy == Skip(None)
    StepDescriptor("ask", exactly_once("cost_bearing"), result_type=str)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown effect kind"):
        exactly_once("free")


def test_a_skip_value_must_fit_the_result_type() -> None:
    effect = exactly_once("money", on_ambiguous=skip("n/a"))
    StepDescriptor("charge", effect, result_type=str)
    with pytest.raises(ConfigError, match="does not fit"):
        StepDescriptor("charge", effect, result_type=int)
    with pytest.raises(ConfigError, match="come back equal"):
        StepDescriptor("charge", exactly_once("money", on_ambiguous=skip(Answer("x"))), result_type=...)
    StepDescriptor("charge", exactly_once("money", on_ambiguous=skip(Answer("x"))), result_type=Answer)


@pytest.mark.parametrize("name", ["", "a\nb", "\x7f", "\ud800", 7])
def test_a_name_is_plain_text(name: str) -> None:
    with pytest.raises(ConfigError):
        StepDescriptor(name, idempotent())


def test_names_and_fingerprints_have_limits() -> None:
    StepDescriptor("é" * 64, idempotent(), fingerprint=b"x" * 65536)
    with pytest.raises(LimitError) as caught:
        StepDescriptor("é" * 65, idempotent())
    assert (caught.value.maximum, caught.value.actual) == (128, 130)
    with pytest.raises(LimitError):
        StepDescriptor("step", idempotent(), fingerprint=b"x" * 65537)


def test_retries_have_limits() -> None:
    with pytest.raises(LimitError):
        Retry(max_attempts=1001)
    for wrong in (
        {"max_attempts": 0},
        {"factor": 0.5},
        {"initial": timedelta(seconds=-1)},
        {"maximum": timedelta(seconds=-1)},
    ):
        with pytest.raises(ConfigError):
            Retry(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 1.5},
        {"factor": float("nan")},
        {"factor": "2"},
        {"initial": 1},
        {"maximum": None},
        {"retry_on": Exception},
        {"give_up_on": (int,)},
    ],
    ids=repr,
)
def test_a_retry_of_wrong_types_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Retry(**wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"effect": "idempotent"}, "effect is"),
        ({"retry": 3}, "retry is"),
        ({"timeout": 5}, "timeout is"),
        ({"timeout": timedelta(0)}, "timeout is"),
        ({"fingerprint": "text"}, "the fingerprint is str"),
        ({"raises": [ValueError]}, "raises is"),
    ],
    ids=repr,
)
def test_a_step_described_by_wrong_types_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        StepDescriptor("step", **{"effect": idempotent(), **wrong})


def test_a_policy_is_one_of_five() -> None:
    with pytest.raises(ConfigError, match="is not a policy"):
        exactly_once("money", on_ambiguous="fail")
    with pytest.raises(ConfigError, match="not callable"):
        reconcile("probe")


def test_policies_and_classes_have_their_names() -> None:
    policies = [skip(), fail(), rerun(), rerun_with_key(), reconcile(lambda handle: unknown())]
    assert [policy.name for policy in policies] == ["skip", "fail", "rerun", "rerun_with_key", "reconcile"]
    assert [idempotent().cls, at_least_once().cls] == ["idempotent", "at_least_once"]


def test_verdicts_say_what_is_known() -> None:
    assert (happened(5).answer, happened(5).value) == ("happened", 5)
    assert happened_json('"ok"').blob == b'\x01"ok"'
    assert [verdict.answer for verdict in (not_happened(), unknown(), abort())] == ["not_happened", "unknown", "abort"]
    with pytest.raises(CodecError):
        happened_json("{")


def handle(policy: effects.Policy | None) -> StepHandle:
    effect = exactly_once("money", on_ambiguous=policy) if policy is not None else idempotent()
    spec = StepDescriptor("pay", effect)
    call = SimpleNamespace(
        run=SimpleNamespace(id="turn-42"), scope=SimpleNamespace(path=scope_bytes((3,))), index=1, spec=spec,
        key=lambda: b"k" * 32,
    )  # fmt: skip
    return StepHandle(call, 2)


def test_a_handle_knows_its_place_and_whether_its_key_was_read() -> None:
    one = handle(rerun_with_key())
    assert (one.position, one.attempt, one.guarded, one.key_missed) == ("3.1", 2, True, True)
    assert one.idempotency_key == b"k" * 32
    assert not one.key_missed
    assert not handle(fail()).key_missed
    assert not handle(None).guarded


def test_the_text_of_a_handle_holds_no_key() -> None:
    text = repr(handle(fail()))
    assert "pay" in text
    assert b"k".hex() * 4 not in text
    assert "kkkk" not in text
