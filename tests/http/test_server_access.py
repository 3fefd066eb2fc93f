"""Access keys: made and revoked on the command line, shown to the server, and never to anybody else."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from tests.flow.commandline import ask, tell
from tests.http.backends import server
from tests.http.captured import call

from holdfast.core.errors import ConfigError
from holdfast.testing import ManualClock

ORG = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
SEEN_WITHIN = timedelta(seconds=5)


def test_scopes_are_kept_apart_and_a_revoked_key_is_refused(
    ledger: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def make(*scopes: str, **more: Any) -> dict[str, Any]:
        options = [part for scope in scopes for part in ("--scope", scope)]
        options += [part for name, value in more.items() for part in (f"--{name}", value)]
        made: dict[str, Any] = tell("access", "create", "--db", ledger, *options)
        return made

    reader, operator = make("read", org=ORG, label="the dashboard"), make("admin", "read", days=1)
    assert (reader["scopes"], reader["org_id"], reader["label"]) == (["read"], ORG, "the dashboard")
    assert operator["expires_at"] > operator["created_at"]
    with server(ledger, ManualClock(datetime.now(UTC)), secret_file=tmp_path / "secret") as at:

        def status(path: str, key: str = "", **headers: str) -> int:
            given = {"authorization": f"Bearer {key}"} if key else {}
            return at.client.get(path, headers={**given, **headers}).status_code

        secret, foreign = reader["access_key"], "hfk_" + "a" * 12 + "_" + "b" * 43
        assert [status(path) for path in ("/live", "/ready", "/openapi.json")] == [200, 200, 200]
        assert [status(path) for path in ("/metrics", "/v1/executions")] == [401, 401]
        for bad in (
            foreign,
            secret[:-1],
            secret[:-1] + ("A" if secret[-1] != "A" else "B"),
            secret.upper(),
            "hfk_",
            "x",
        ):
            assert status("/metrics", bad) == 401, bad
        assert status("/metrics", authorization=f"Basic {secret}") == 401
        assert status("/metrics", secret) == status("/metrics", **{"x-api-key": secret}) == 200
        assert status("/v1/executions", secret) == 403
        assert status("/v1/executions", operator["access_key"]) == 200
        assert status("/v1/executions", operator["access_key"], host="any.example", origin="https://any.example") == 200
        unauthenticated = at.client.get("/v1/executions")
        assert unauthenticated.headers["www-authenticate"].startswith("Bearer")
        assert unauthenticated.json()["code"] == "unauthenticated"

        assert tell("access", "revoke", reader["id"], "--db", ledger) == {"id": reader["id"], "revoked": True}
        at.advance(SEEN_WITHIN)
        assert status("/metrics", secret) == 401
        assert status("/metrics", operator["access_key"]) == 200
        at.advance(timedelta(days=1))
        assert status("/metrics", operator["access_key"]) == 401, "it has expired"

    listed = tell("access", "list", "--db", ledger)["items"]
    assert [each["id"] for each in listed] == [reader["id"], operator["id"]]
    assert all(each["last_used_at"] for each in listed)
    assert [each["id"] for each in tell("access", "list", "--db", ledger, "--org", ORG)["items"]] == [reader["id"]]
    shown = ask("access", "list", "--db", ledger).out
    for key in (reader, operator):
        whole = key["access_key"].rpartition("_")[2] if key["access_key"].count("_") == 2 else key["access_key"][17:]
        assert whole not in caplog.text
        assert whole not in shown
        if "://" not in ledger:
            files = [path for path in Path(ledger).parent.rglob("*") if path.is_file()]
            assert all(whole.encode() not in path.read_bytes() for path in files)


def test_only_a_trusted_proxy_speaks_for_others(ledger: str, tmp_path: Path) -> None:
    forwarded = {"x-paper-auth-org-id": ORG.upper(), "x-paper-auth-subject": "ada"}

    def capture(name: str, trusted: tuple[str, ...], **session: str) -> tuple[httpx.Response, list[Any], list[Any]]:
        with server(ledger, trusted_proxies=trusted, secret_file=tmp_path / "secret") as at:
            given = call(name, session={"harness_id": "h", "harness_session_id": name, **session})
            answer = at.client.post("/v1/ingest", json=given, headers={**forwarded, "prefer": "wait=10"})
            mine, theirs = (at.client.get("/v1/sessions", headers=who).json() for who in ({}, forwarded))
        return answer, mine.get("items", []), theirs.get("items", [])

    answer, mine, theirs = capture("untrusted", ("192.0.2.1",))
    assert (answer.status_code, len(mine), mine == theirs, mine[0]["auth_subject"]) == (202, 1, True, None)
    answer, mine, theirs = capture("trusted", ("127.0.0.0/8",))
    assert (answer.status_code, len(mine), [each["auth_subject"] for each in theirs]) == (202, 1, ["ada"])
    answer, _, theirs = capture("named", ("127.0.0.1",), auth_subject="grace", org_id=ORG)
    assert (answer.status_code, {each["auth_subject"] for each in theirs}) == (202, {"ada", "grace"})
    assert capture("elsewhere", ("127.0.0.1",), org_id=str(UUID(int=0)))[0].json()["code"] == "org_mismatch"
    forwarded["x-paper-auth-org-id"] = "acme"
    refused = capture("odd", ("127.0.0.1",))[0].json()
    assert (refused["code"], refused["field"]) == ("invalid_field", "x-paper-auth-org-id")
    with pytest.raises(ConfigError, match="no address"), server(ledger, trusted_proxies=("proxy.example",)):
        pass


def test_a_key_is_asked_for_sensibly(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    assert ask("access", "create", "--db", ledger).code == 2
    unknown = ask("access", "create", "--db", ledger, "--scope", "all")
    assert (unknown.code, "scopes are ingest, read, admin" in unknown.err) == (2, True)
    assert ask("access", "create", "--db", ledger, "--scope", "read", "--org", "acme").code == 2
    assert ask("access", "create", "--db", ledger, "--scope", "read", "--label", "x" * 201).code == 2
    made = ask("access", "create", "--db", ledger, "--scope", "read")
    assert (made.code, made.out.startswith("hfk_"), "first access key" in made.err) == (0, True, True)
    assert "first access key" not in ask("access", "create", "--db", ledger, "--scope", "read").err
    assert ask("access", "revoke", "nobody", "--db", ledger).code == 1
    assert ask("access", "list", "--db", tmp_path / "none.db").code == 3


def test_without_a_key_the_server_listens_on_its_machine_only(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):  # noqa: S104 - it has to be refused
        answer = ask("serve", "--db", tmp_path / "ledger.db", "--host", host, "--port", 0)
        assert answer.code == 2, host
        assert "access create" in answer.err
