"""What may be configured, and that nothing else may."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from holdfast.core.errors import ConfigError
from holdfast.core.keyring import KeyRing
from holdfast.idempotency import bounds, templates
from holdfast.idempotency.rules import (
    CODES,
    PROFILES,
    Declaration,
    IdempotencyConfig,
    RouteRule,
    lapse_by_method,
    route_path,
)
from holdfast.idempotency.values import Absent

SECRET = bytes(range(32))
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def seconds(n: float) -> timedelta:
    return timedelta(seconds=n)


async def attach(_execution_id: str) -> Absent:
    return Absent()


def nobody(_scope: object) -> None:
    return None


def config(**named: Any) -> IdempotencyConfig:
    return IdempotencyConfig(**{"principal": nobody, "secrets": [SECRET], **named})


def rejected(make: Any, code: str, *keys: str, **named: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        make(**named)
    error = caught.value
    assert (error.code, error.keys) == (f"config.{code}", keys)
    assert error.hint
    return error


# --- one field at a time ----------------------------------------------------------------------------

TOO_LONG = timedelta(days=36_501)
TIMES: list[object] = [seconds(0), seconds(-1), TOO_LONG, 5, "5s", True]
COUNTS: list[object] = [0, -1, 1.5, "1", True, 2**62 + 1, None]
FLAGS: list[object] = [None, 0, 1, "yes"]
WORDS: list[object] = ["", "other", None, 1, ["reject"]]
FUNCTIONS: list[object] = ["name", 1, object()]

BAD_RULES: dict[str, list[object]] = {
    "path": ["", "orders", "/a?b", "/a#b", "/{id", "/id}", "/{}", "/{1}", "/{id:int}", "/{a}-{b}", "/{a}/{a}",
             "/{a:path}/{b:path}", "/{a}{b:path}", 5, b"/a"],
    "methods": ["POST", (), ["POST"], ("post",), ("PO ST",), ("",), (1,)],
    "key": WORDS,
    "mode": WORDS,
    "ttl": [*TIMES, None],
    "tombstone_ttl": TIMES,
    "lease": [*TIMES, None, seconds(0.999), HOUR + seconds(1)],
    "on_5xx": WORDS,
    "on_lapse": ["", "unknown", 1],
    "irreversible": FLAGS,
    "statuses": [None, [], {"409": "store"}, {"1xx": "store"}, {"6xx": "store"}, {199: "store"}, {600: "store"},
                 {True: "store"}, {409: "keep"}, {409: None}, {None: "store"}, {409.0: "store"}],
    "on_in_flight": WORDS,
    "wait_max": [*TIMES, None, seconds(30.1)],
    "on_store_error": WORDS,
    "on_lost": WORDS,
    "handler_timeout": TIMES,
    "body": ["xml", None, 1],
    "key_scope": WORDS,
    "stream": FLAGS,
    "stream_after": [*TIMES, None],
    "flush": WORDS,
    "set_cookie": WORDS,
    "header_deny": ["x-a", ["x-a"], ("x a",), ("",), (b"x-a",), ("X-A", "x-a"), None],
    "request_bytes_max": COUNTS,
    "response_bytes_max": COUNTS,
    "isolation": ["", "chaos", 1],
    "lock_timeout": [*TIMES, None],
    "retries": [-1, 101, True, None, "3"],
    "on_4xx_writes": WORDS,
    "attach": FUNCTIONS,
}  # fmt: skip

BAD_CONFIGS: dict[str, list[object]] = {
    "principal": [*FUNCTIONS, None],
    "secrets": [None, SECRET, "s" * 32, ["s" * 32], [bytearray(32)], {SECRET}],
    "rule": [RouteRule, "rule", {}],
    "routes": [None, [RouteRule()], (RouteRule,), RouteRule()],
    "headers": ["Idempotency-Key", (), ("a b",), ("",), ("A", "a"), ("a-b", "a_b"), None],
    "strict_sf": FLAGS,
    "key_format": ["uuid1", None, re.compile(b"x"), 1, ["any"]],
    "key_length_min": [0, 256, True, None, "1"],
    "fingerprint_headers": ["if-match", ["if-match"], ("if match",), ("A", "a"), None],
    "content_type_ignore": ["boundary", ("boundary",), {"a b"}, {1}, None],
    "profile": ["", "Stripe", None, {"key_reuse": 400}, {"key_reused": 200}, {"key_reused": 600},
                {"key_reused": "400"}, {"transaction_misused": 500}, {400: 400}],
    "problem_base": ["", "a b", "a\n", None, "é"],
    "help_url": ["", "a b", "<a>", 'a"', None],
    "challenge": ["", " Basic", "Basic\r\nx: y", "é", 1],
    "mark_first": FLAGS,
    "echo_key": FLAGS,
    "expires_header": FLAGS,
    "policy_path": ["", "policy", "/p?x", 1],
    "in_flight_max": COUNTS,
    "waiters_max": COUNTS,
    "keys_per_hour_max": COUNTS[:-1],
    "stored_bytes_max": COUNTS[:-1],
    "buffered_bytes_max": COUNTS,
    "body_timeout": [*TIMES, None],
    "store_timeout": [*TIMES, None],
    "settle_retry_for": [*TIMES, None],
    "pending_settle_bytes_max": COUNTS,
    "breaker_failures": COUNTS,
    "breaker_open": [*TIMES, None],
    "release_timeout": [*TIMES, None],
    "compress_over_bytes": [-1, True, None],
    "cipher": ["key", SECRET, (1, SECRET)],
    "redact": FUNCTIONS,
    "authorize_replay": FUNCTIONS,
    "reconcile": FUNCTIONS,
    "sweep_every": [*TIMES, None],
    "prune_batch": COUNTS,
    "observe": FLAGS,
    "allow_memory": FLAGS,
    "on_event": FUNCTIONS,
}  # fmt: skip


def each(table: dict[str, list[object]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}-{i}") for name, values in table.items() for i, value in enumerate(values)
    ]


@pytest.mark.parametrize(("name", "value"), each(BAD_RULES))
def test_a_rule_refuses_a_bad_value(name: str, value: object) -> None:
    error = rejected(RouteRule, "rule_invalid", name, **{name: value})
    assert f"RouteRule.{name} must be" in str(error)


@pytest.mark.parametrize(("name", "value"), each(BAD_CONFIGS))
def test_a_configuration_refuses_a_bad_value(name: str, value: object) -> None:
    error = rejected(config, "rule_invalid", name, **{name: value})
    assert f"IdempotencyConfig.{name} must be" in str(error)


@pytest.mark.parametrize(("table", "kind"), [(BAD_RULES, RouteRule), (BAD_CONFIGS, IdempotencyConfig)])
def test_every_field_is_checked(table: dict[str, list[object]], kind: Any) -> None:
    assert list(table) == [field.name for field in dataclasses.fields(kind)]


@pytest.mark.parametrize(
    "named",
    [
        {"ttl": timedelta(days=36_500)}, {"lease": seconds(1)}, {"lease": HOUR}, {"tombstone_ttl": seconds(1)},
        {"wait_max": seconds(30)}, {"retries": 0}, {"header_deny": ("x-a", "x_a")}, {"methods": None},
        {"methods": ("GET", "X-MINE")}, {"on_lapse": "rerun"}, {"body": len}, {"handler_timeout": seconds(29)},
        {"mode": "execution", "attach": attach}, {"mode": "transaction"}, {"statuses": {200: "unknown", 599: "store"}},
    ],
)  # fmt: skip
def test_what_is_within_bounds_is_taken_as_it_is(named: dict[str, Any]) -> None:
    rule = RouteRule(**named)
    assert {name: getattr(rule, name) for name in named} == named


@pytest.mark.parametrize(
    "named",
    [
        {"rule": None}, {"secrets": (SECRET, SECRET[::-1])}, {"key_format": re.compile("x+")}, {"profile": "lock423"},
        {"profile": dict.fromkeys(CODES, 499)}, {"challenge": 'Bearer realm="a b"'}, {"challenge": "X"},
        {"policy_path": "/.well-known/idempotency"}, {"compress_over_bytes": 0}, {"in_flight_max": 1},
        {"keys_per_hour_max": 1}, {"key_length_min": 255}, {"key_format": "uuid", "key_length_min": 36},
        {"headers": ("Idempotency-Key", "X_Key")}, {"observe": True}, {"redact": nobody},
    ],
)  # fmt: skip
def test_a_configuration_takes_what_is_within_bounds(named: dict[str, Any]) -> None:
    made = config(**named)
    assert {name: getattr(made, name) for name in named} == named


def test_a_key_ring_is_a_cipher() -> None:
    pytest.importorskip("nacl")
    ring = KeyRing((1, SECRET))
    assert config(cipher=ring).cipher is ring


# --- pairs ------------------------------------------------------------------------------------------


def test_a_lease_is_shorter_than_what_it_leads_to_and_longer_than_the_handler_may_take() -> None:
    rejected(RouteRule, "rule_invalid", "lease", "ttl", ttl=seconds(30))
    rejected(RouteRule, "rule_invalid", "handler_timeout", "lease", handler_timeout=seconds(30))


@pytest.mark.parametrize(("name", "value"), [("irreversible", True), ("stream", True), ("flush", "early")])
def test_a_transaction_keeps_no_mark_and_sends_no_byte_early(name: str, value: object) -> None:
    """HX-71."""
    rejected(RouteRule, "mode_conflict", "mode", name, mode="transaction", **{name: value})


def test_attach_belongs_to_executions_and_they_need_it() -> None:
    """HX-76."""
    rejected(RouteRule, "mode_conflict", "mode", "attach", mode="execution")
    rejected(RouteRule, "mode_conflict", "mode", "attach", attach=attach)


@pytest.mark.parametrize("secrets", [[], [SECRET[:31]], [SECRET, b"short"], [SECRET, SECRET]])
def test_secrets_are_long_enough_and_not_repeated(secrets: list[bytes]) -> None:
    error = rejected(config, "secret_weak", "secrets", secrets=secrets)
    assert "short" not in str(error)


def test_no_refusal_shows_a_secret() -> None:
    error = rejected(config, "rule_invalid", "secrets", secrets="hunter2" * 8)
    assert "hunter2" not in f"{error} {error.hint}"


def test_a_401_needs_a_challenge() -> None:
    profile = {"identity_unproven": 401}
    rejected(config, "rule_invalid", "profile", "challenge", profile=profile)
    assert config(profile=profile, challenge="Bearer").profile == profile


def test_a_minimum_no_uuid_reaches_is_refused() -> None:
    rejected(config, "rule_invalid", "key_length_min", "key_format", key_format="uuid7", key_length_min=37)
    assert config(key_length_min=37).key_format == "any"


def test_profiles_name_known_codes() -> None:
    assert all(set(statuses) <= CODES for statuses in PROFILES.values())


# --- forms that last --------------------------------------------------------------------------------


def test_names_are_compared_in_lower_case_and_levels_in_one_spelling() -> None:
    assert RouteRule(header_deny=("X-A",)).header_deny == ("x-a",)
    assert RouteRule(isolation="REPEATABLE_READ").isolation == "repeatable read"
    made = config(fingerprint_headers=("API-Version",), content_type_ignore={"Boundary"})
    assert (made.fingerprint_headers, made.content_type_ignore) == (("api-version",), frozenset({"boundary"}))


def test_nobody_changes_a_rule_from_outside() -> None:
    statuses: dict[int | str, Any] = {409: "store"}
    secrets, profile = [SECRET], {"in_flight": 423}
    rule, made = RouteRule(statuses=statuses), config(secrets=secrets, profile=profile)
    statuses[409], profile["in_flight"] = "release", 409
    secrets.clear()
    assert (rule.statuses, made.secrets, made.profile) == ({409: "store"}, (SECRET,), {"in_flight": 423})


def test_rules_and_configurations_compare_and_hash_by_value() -> None:
    def rule() -> RouteRule:
        return RouteRule(statuses={409: "store"}, path="/a")

    assert rule() == rule() != RouteRule()
    assert hash(rule()) == hash(rule())
    assert config(rule=rule(), profile={"in_flight": 423}) == config(rule=rule(), profile={"in_flight": 423})
    assert hash(config(rule=rule())) == hash(config(rule=rule()))
    assert config() != config(observe=True)


def test_rules_survive_copying_and_pickling_and_go_on_deriving() -> None:
    rule = RouteRule(path="/a", statuses={409: "store"})
    for again in (copy.deepcopy(rule), pickle.loads(pickle.dumps(rule)), dataclasses.replace(rule)):  # noqa: S301 - ours
        assert again == rule
        assert dataclasses.replace(again, irreversible=True).on_5xx == "ambiguous"


def test_a_representation_names_what_is_unusual_and_hides_what_is_secret() -> None:
    rule = RouteRule(path="/a", mode="execution", attach=attach)
    assert repr(rule) == "RouteRule(path='/a', mode='execution', attach=...)"
    shown = repr(config(rule=RouteRule(body=len), secrets=[b"hunter2" * 8], observe=True))
    assert shown == "IdempotencyConfig(principal=..., secrets=..., rule=RouteRule(body=...), observe=True)"
    assert repr(Declaration({"attach": attach, "ttl": HOUR})) == "Declaration(attach, ttl)"


# --- policies that are derived ----------------------------------------------------------------------


def test_an_irreversible_route_is_ambiguous_where_it_does_not_say_otherwise() -> None:
    assert RouteRule().on_5xx == "release"
    rule = RouteRule(irreversible=True)
    assert (rule.on_5xx, rule.lapse("POST"), rule.lapse("PUT")) == ("ambiguous", "ambiguous", "ambiguous")
    named = RouteRule(irreversible=True, on_5xx="release", on_lapse="rerun")
    assert (named.on_5xx, named.lapse("POST")) == ("release", "rerun")
    assert dataclasses.replace(rule, irreversible=False).on_5xx == "release"
    assert dataclasses.replace(named, ttl=HOUR).on_5xx == "release"


@pytest.mark.parametrize(
    ("method", "lapse"),
    [("POST", "ambiguous"), ("PATCH", "ambiguous"), ("CALL", "ambiguous"), ("LOCK", "ambiguous"), ("PUT", "rerun"),
     ("DELETE", "rerun")],
)  # fmt: skip
def test_a_lapse_goes_by_method_unless_it_is_named(method: str, lapse: str) -> None:
    assert lapse_by_method(method) == RouteRule().lapse(method) == lapse
    assert RouteRule(on_lapse="rerun").lapse(method) == "rerun"
    assert RouteRule(on_lapse="ambiguous").lapse(method) == "ambiguous"


def test_the_profile_decides_about_5xx_where_no_rule_does() -> None:
    """HX-45."""
    routes = (RouteRule(path="/a"), RouteRule(path="/b", on_5xx="release"), RouteRule(path="/c", irreversible=True))
    stripe = config(profile="stripe", routes=routes)
    assert stripe.rule is not None
    assert stripe.rule.on_5xx == "freeze"
    assert [rule.on_5xx for rule in stripe.routes] == ["freeze", "release", "ambiguous"]
    assert stripe.ruled(RouteRule()).on_5xx == "freeze"
    draft = dataclasses.replace(stripe, profile="draft")
    assert [rule.on_5xx for rule in draft.routes] == ["release", "release", "ambiguous"]


# --- declarations -----------------------------------------------------------------------------------


def test_a_declaration_fills_only_what_it_names() -> None:
    base = RouteRule(ttl=2 * DAY, on_5xx="freeze", methods=("POST",))
    rule = config(rule=base).declared(Declaration({"lease": HOUR, "key": "required"}))
    assert rule == dataclasses.replace(base, lease=HOUR, key="required")


def test_a_declaration_without_a_rule_beneath_fills_the_defaults() -> None:
    made = config(rule=None, profile="stripe").declared(Declaration({"ttl": HOUR}))
    assert made == RouteRule(ttl=HOUR, on_5xx="freeze")
    assert config(rule=None).declared(Declaration()) == RouteRule()


def test_an_irreversible_endpoint_is_not_bound_by_policies_named_for_all() -> None:
    base = RouteRule(on_5xx="freeze", on_lapse="rerun")
    rule = Declaration({"irreversible": True}).over(base)
    assert (rule.on_5xx, rule.on_lapse, rule.lapse("PUT")) == ("ambiguous", None, "ambiguous")
    named = Declaration({"irreversible": True, "on_5xx": "release", "on_lapse": "rerun"}).over(base)
    assert (named.on_5xx, named.on_lapse) == ("release", "rerun")


def test_a_reversible_endpoint_of_an_irreversible_application_is_released_again() -> None:
    base = config(rule=RouteRule(irreversible=True), profile="stripe")
    assert base.declared(Declaration({"irreversible": False})).on_5xx == "freeze"
    assert base.declared(Declaration({"irreversible": False, "on_5xx": "ambiguous"})).on_5xx == "ambiguous"
    assert base.declared(Declaration({"ttl": HOUR})).on_5xx == "ambiguous"


@pytest.mark.parametrize("fields", [{"path": "/a"}, {"methods": ("POST",)}, {"tll": HOUR}, {"ttl": seconds(0)}])
def test_a_declaration_refuses_at_once_what_no_rule_could_take(fields: Mapping[str, object]) -> None:
    rejected(Declaration, "rule_invalid", *fields, fields=fields)


def test_pairs_of_a_declaration_are_checked_when_it_is_filled_in() -> None:
    halved = Declaration({"attach": attach})
    executed = RouteRule(mode="execution", attach=attach)
    assert halved.over(executed) == executed
    rejected(halved.over, "mode_conflict", "mode", "attach", base=RouteRule())


# --- paths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "covered", "left"),
    [
        ("/orders", ["/orders"], ["/orders/", "/order", "/Orders", "/orders/1", "//orders", ""]),
        ("/orders/{id}", ["/orders/1", "/orders/a b", "/orders/é", "/orders/{id}", "/orders/\n"],
         ["/orders", "/orders/", "/orders/1/", "/orders/1/2", "/x/orders/1"]),
        ("/a.b/{id}", ["/a.b/1"], ["/axb/1"]),
        ("/o/{id}.json", ["/o/1.json", "/o/a.json.json"], ["/o/.json", "/o/1.jsonx"]),
        ("/o/{id}:cancel", ["/o/1:cancel"], ["/o/1"]),
        ("/{a}/{b}", ["/x/y"], ["/x", "/x/", "/x/y/z"]),
        ("/files/{rest:path}", ["/files/", "/files/a", "/files/a/b\n"], ["/files", "/file/a"]),
        ("/f/{rest:path}/meta/{id}", ["/f/a/b/meta/1", "/f//meta/1"], ["/f/a/meta/", "/f/meta/1"]),
        ("{rest:path}", ["", "/", "/a/b"], []),
        ("/", ["/"], ["", "/a"]),
    ],
)  # fmt: skip
def test_a_template_covers_paths(template: str, covered: list[str], left: list[str]) -> None:
    rule = RouteRule(path=template)
    assert [path for path in [*covered, *left] if rule.matches("POST", path)] == covered


def test_a_hostile_path_is_matched_in_linear_time() -> None:
    rule = RouteRule(path="/f/{rest:path}/meta/{id}.json/{end}")
    assert not rule.matches("POST", "/f" + "/meta/x.json" * 20_000 + "/")


def test_a_rule_covers_its_methods() -> None:
    assert [m for m in ("POST", "PUT", "PATCH", "DELETE", "GET", "HEAD") if RouteRule().matches(m, "/")] == [
        "POST", "PUT", "PATCH", "DELETE",
    ]  # fmt: skip
    assert RouteRule(methods=None).matches("GET", "/any/where")
    assert not RouteRule(methods=("PUT",), path="/a").matches("POST", "/a")


def test_what_is_no_template_covers_nothing() -> None:
    assert not templates.covers("/{", "/{")


@pytest.mark.parametrize(
    ("path", "root", "seen"),
    [
        ("/api/orders", "/api", "/orders"), ("/api/orders", "/api/", "/orders"), ("/api", "/api", "/"),
        ("/apis/x", "/api", "/apis/x"), ("/orders", "/api", "/orders"), ("/orders", "", "/orders"),
        ("/orders", "/", "/orders"),
    ],
)  # fmt: skip
def test_a_mounted_application_sees_the_path_below_its_mount(path: str, root: str, seen: str) -> None:
    assert route_path({"path": path, "root_path": root}) == seen


def test_an_application_need_not_be_mounted() -> None:
    assert route_path({"path": "/orders"}) == "/orders"


# --- the words of a refusal -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("want", "words"),
    [
        (bounds.duration(), "a duration longer than 0 and at most 100 years"),
        (bounds.duration(seconds(1), HOUR), "a duration of at least 1 s and at most 3600 s"),
        (bounds.number(1), "a whole number of at least 1"),
        (bounds.number(1, 255), "a whole number from 1 to 255"),
        (bounds.maybe(bounds.FLAG), "True or False, or None"),
        (bounds.one_of("a", "b"), "one of 'a', 'b'"),
    ],
)
def test_a_refusal_says_what_a_value_must_be(want: bounds.Want, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^X.y must be {words}; it is list$"):
        bounds.check("X", "y", want, [])


def test_a_long_value_is_cut_in_a_refusal() -> None:
    with pytest.raises(ConfigError) as caught:
        RouteRule(path="x" * 5000)
    assert len(str(caught.value)) < 200
