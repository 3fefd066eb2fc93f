"""The rules of the house that no linter knows. STYLE.md gives them in words.

A rule that is better broken in one place gets a line in `EXCEPTIONS` under its name: the place as the failure
prints it, and why. A line that is no longer needed fails too.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.tree import PACKAGE, ROOT, Source, package, settle, sources, tracked

FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 600

EXCEPTIONS: dict[str, dict[str, str]] = {
    "function size": {},
    "module size": {},
    "module name": {},
    "sql": {
        "cli/demo/payments.py": "the demo's payment service is an application, with a table of its own",
        "store/postgres_calls.py:_Function.rows": "a type for the rows that a statement of store/sql takes",
        "store/postgres_calls.py:_Values.take": "the row of values in a statement of store/sql",
        "store/postgres_calls.py:_invocation": "the call of what was put together",
        "store/postgres_calls.py:_looked_up": "what a batch runs is put together of statements of store/sql",
        "store/postgres_calls.py:_statement": "what a batch runs is put together of statements of store/sql",
    },
    "drivers": {},
    "time and tasks": {
        "cli/entry.py:_Call.__init__": "a hook call is over before the clock's module is loaded",
    },
    "real time in tests": {
        "tests/flow/units.py": "waits for transactions of other tests, as a reader of the outbox does",
        "tests/crash/units.py": "waits for transactions of other tests, as a reader of the outbox does",
        "tests/flow/test_idempotency_transaction.py": "waits for a lock that the database keeps",
        "tests/flow/test_idempotency_units.py": "waits for a lock that the database keeps",
    },
    "unused statement": {},
}

FORBIDDEN_NAMES = {"utils", "helpers", "common", "base", "manager", "service", "data", "misc"}
DRIVERS = {"apsw", "asyncpg", "sqlite3", "aiosqlite", "psycopg", "psycopg2", "sqlalchemy"}
DRIVER_PACKAGES = ("store/", "integrations/")
TIME_KEEPERS = {"core/clock.py", "core/loops.py"}
BANNED_CALLS = {
    "time.time": "take a Clock",
    "time.time_ns": "take a Clock",
    "datetime.datetime.now": "take a Clock",
    "datetime.datetime.utcnow": "take a Clock",
    "datetime.datetime.today": "take a Clock",
    "datetime.date.today": "take a Clock",
    "uuid.uuid1": "use core.ids",
    "uuid.uuid4": "use core.ids",
    "asyncio.sleep": "use Clock.sleep",
    "asyncio.create_task": "use a Loop or a TaskGroup",
    "asyncio.ensure_future": "use a Loop or a TaskGroup",
}

# Statements on tables: in no Python file.
STATEMENT = re.compile(
    r"""\A\s*(?i:
        select\s.*\bfrom\b | select\s+(\d|\*|\w+\s*\() | insert\s+(or\s+\w+\s+)?into\s | replace\s+into\s
      | update\s+[\w.]+\s+set\s | delete\s+from\s | with\s+(recursive\s+)?\w+\s*(\([^)]*\)\s*)?as\s*\(
      | create\s+((temp|temporary|unique|or|replace|if|not|exists)\s+)*(table|index|view|trigger|function|type)\s
      | alter\s+table\s | drop\s+(table|index|view|trigger)\s | truncate\s+table\s | values\s*\(
    )
    | \b(SELECT|INSERT\ INTO|DELETE\ FROM|CREATE\ TABLE|CREATE\ INDEX|ALTER\ TABLE|DROP\ TABLE)\b
    | \bUPDATE\ \S+\ SET\b""",
    re.VERBOSE | re.DOTALL,
)
# Control of a session (transactions, pragmas, channels): only where the drivers are.
SESSION = re.compile(
    r"""\A\s*(
        (BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE|PRAGMA|LISTEN|UNLISTEN|NOTIFY|SET|SHOW|VACUUM|ATTACH|ANALYZE)\b
      | (?i:begin\s+(immediate|deferred|exclusive)\b | rollback\s+to\s | savepoint\s+\w | pragma\s+\w)
    )""",
    re.VERBOSE,
)

# Written so that this file does not find itself.
NOTE = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|root|farm|home/[a-z]\w*|Users/[A-Za-z]\w*|tmp/plan)/")
DOWNLOAD = re.compile(r"https?://\S+(/simple/|\.(whl|tgz|deb|tar\.gz|zip)\b)")

# An insert that may be repeated after a lost connection has a statement beside it that finds the row it made.
COMPANION = ".recorded"
HEADER = re.compile(r"^-- name: *(\S*?) *(\(|$)", re.MULTILINE)


def functions(source: Source) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for scope, node in source.nodes():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield scope, node


def strings(source: Source) -> Iterator[tuple[str, str]]:
    """The string literals of a file that are not docstrings, formatted ones with `_` for each value."""
    bare = {
        id(part)
        for _, node in source.nodes()
        if isinstance(node, ast.Expr | ast.JoinedStr)
        for part in ([node.value] if isinstance(node, ast.Expr) else node.values)
    }
    for scope, node in source.nodes():
        if isinstance(node, ast.JoinedStr):
            yield scope, "".join(str(part.value) if isinstance(part, ast.Constant) else "_" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield scope, node.value


def imported(source: Source) -> dict[str, str]:
    """What each imported name of a file stands for, dotted."""
    names = {}
    for _, node in source.nodes():
        if isinstance(node, ast.Import):
            for alias in node.names:
                head = alias.name if alias.asname else alias.name.split(".")[0]
                names[alias.asname or head] = head
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def meaning(node: ast.AST, names: dict[str, str]) -> str:
    """The dotted name an expression refers to, through the imports of its file."""
    head, _, rest = dotted(node).partition(".")
    return ".".join(part for part in (names.get(head, ""), rest) if part) if head in names else ""


def place(source: Source, scope: str) -> str:
    return f"{source.place}:{scope}" if scope else source.place


def test_functions_fit_on_a_screen() -> None:
    found = {}
    for source in package():
        for scope, node in functions(source):
            head = node.body[0]
            documented = isinstance(head, ast.Expr) and isinstance(head.value, ast.Constant)
            contract = (head.end_lineno or 0) - head.lineno + 1 if documented else 0
            lines = (node.end_lineno or 0) - node.lineno + 1 - contract
            if lines > FUNCTION_LINES_MAX:
                found[place(source, scope)] = f"{lines} lines without the docstring, of {FUNCTION_LINES_MAX}"
    settle(found, EXCEPTIONS["function size"])


def test_modules_hide_one_thing() -> None:
    lines = {source.place: source.text.count("\n") for source in package()}
    found = {name: f"{n} lines of {MODULE_LINES_MAX}" for name, n in lines.items() if n > MODULE_LINES_MAX}
    settle(found, EXCEPTIONS["module size"])


def test_modules_are_nouns_for_what_they_hide() -> None:
    found = {}
    for source in package():
        names = source.path.relative_to(PACKAGE).with_suffix("").parts
        if bad := sorted({name.strip("_") for name in names} & FORBIDDEN_NAMES):
            found[source.place] = f"{bad[0]!r} says nothing"
    settle(found, EXCEPTIONS["module name"])


def test_every_module_opens_with_its_secret() -> None:
    files = [*package(), *sources("bench"), *sources("tests")]
    silent = [s.place for s in files if s.path.name != "__init__.py" or s.path.is_relative_to(PACKAGE)]
    documented = {s.place for s in files if ast.get_docstring(s.tree)}
    assert [name for name in silent if name not in documented] == []


def test_sql_lives_in_statement_files() -> None:
    found = {}
    for source in package():
        for scope, text in strings(source):
            if STATEMENT.search(text):
                found[place(source, scope)] = f"a statement belongs in store/sql: {text.strip()[:60]!r}"
            elif SESSION.search(text) and not source.place.startswith(DRIVER_PACKAGES):
                found[place(source, scope)] = f"a session is the store's: {text.strip()[:60]!r}"
    settle(found, EXCEPTIONS["sql"])


def test_drivers_live_in_the_store() -> None:
    found = {}
    for source in package():
        if source.place.startswith(DRIVER_PACKAGES):
            continue
        for target in imported(source).values():
            if target.split(".")[0] in DRIVERS:
                found[source.place] = f"imports {target}"
    settle(found, EXCEPTIONS["drivers"])


def task_groups(source: Source) -> set[str]:
    """The names in a file that a task group is bound to."""
    groups = set()
    for _, node in source.nodes():
        if isinstance(node, ast.AsyncWith):
            for item in node.items:
                call = item.context_expr
                if isinstance(call, ast.Call) and dotted(call.func).endswith("TaskGroup") and item.optional_vars:
                    groups.add(dotted(item.optional_vars))
        elif isinstance(node, ast.arg) and node.annotation and dotted(node.annotation).endswith("TaskGroup"):
            groups.add(node.arg)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            groups.update(dotted(each) for each in targets if dotted(node.value.func).endswith("TaskGroup"))
    return groups


def test_the_clock_keeps_time_and_the_loops_make_tasks() -> None:
    found = {}
    for source in package():
        if source.place in TIME_KEEPERS:
            continue
        names, groups = imported(source), task_groups(source)
        for scope, node in source.nodes():
            if isinstance(node, ast.Attribute | ast.Name) and (target := meaning(node, names)) in BANNED_CALLS:
                found[place(source, scope)] = f"{target}: {BANNED_CALLS[target]}"
            elif isinstance(node, ast.Attribute) and node.attr == "create_task" and dotted(node.value) not in groups:
                found[place(source, scope)] = f"{dotted(node)}: use a Loop or a TaskGroup"
    settle(found, EXCEPTIONS["time and tasks"])


def test_tests_take_the_clock_they_are_given() -> None:
    found = {}
    for source in sources("tests"):
        names = imported(source)
        for _, node in source.nodes():
            if not isinstance(node, ast.Call) or meaning(node.func, names) not in {"asyncio.sleep", "time.sleep"}:
                continue
            if not (node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0):
                found[source.place] = "sleeps for real: use ManualClock, or wait for the thing itself"
    settle(found, EXCEPTIONS["real time in tests"])


def statements() -> dict[str, list[str]]:
    """The names of the statements of each file in store/sql."""
    files = sorted((PACKAGE / "store" / "sql").rglob("*.sql"))
    return {path.relative_to(PACKAGE).as_posix(): [m[1] for m in HEADER.finditer(path.read_text())] for path in files}


def tables() -> set[str]:
    """Every table the migrations make, as statements name it: without the prefix of its slice."""
    texts = [path.read_text() for path in (PACKAGE / "store" / "migrations").rglob("*.sql")]
    made = re.findall(r"(?i)create table (?:if not exists )?(\w+)", "\n".join(texts))
    return {name.partition("_")[2] for name in made}


def test_statements_are_named_table_verb() -> None:
    assert statements(), "no statements found"
    wrong = []
    for file, names in statements().items():
        wrong += [f"{file}: {name} is there {n} times" for name, n in Counter(names).items() if n > 1]
        for name in names:
            if (stem := name.removesuffix(COMPANION)) != name and stem in names:
                continue
            if not re.fullmatch(r"[a-z_]+\.[a-z_]+", name):
                wrong.append(f"{file}: {name!r} is not table.verb")
            elif name.partition(".")[0] not in tables():
                wrong.append(f"{file}: {name} names no table of the migrations")
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_statement_is_run_by_somebody() -> None:
    used = {text for source in package() for _, text in strings(source)}
    names = {name.removesuffix(COMPANION) for names in statements().values() for name in names}
    found = dict.fromkeys(sorted(names - used), "no module names it")
    settle(found, EXCEPTIONS["unused statement"])


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        pytest.param(NOTE, "do it, or leave it out", id="notes to self"),
        pytest.param(MACHINE_PATH, "a path of one machine", id="machine paths"),
        pytest.param(DOWNLOAD, "a download address; constraints.txt pins names and versions", id="downloads"),
    ],
)
def test_no_tracked_file_holds(pattern: re.Pattern[str], why: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {why}: {line.strip()[:80]}"
        for path in tracked()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n" + "\n".join(found)


def _silent(comment: str) -> bool:
    """Whether a comment silences a check and does not say why."""
    reasoned = re.search(r"noqa: [A-Z0-9, ]+ [-#] ?\w|type: ignore\[[\w, -]+\] +[-#] ?\w", comment)
    return bool(re.match(r"# *(noqa|type: *ignore)", comment)) and not reasoned


def test_every_silenced_check_says_why() -> None:
    """`# noqa: CODE - why` and `# type: ignore[code]  # why`."""
    silent = []
    for folder in ("src", "tests", "typing_tests", "bench"):
        for source in sources(folder):
            if not any(_silent(each[1]) for each in re.finditer(r"(?=(#.*))", source.text)):
                continue  # which of these are comments only a tokenizer knows, and it takes its time
            silent += [
                f"{source.place}:{token.start[0]}: {token.string}"
                for token in tokenize.generate_tokens(io.StringIO(source.text).readline)
                if token.type == tokenize.COMMENT and _silent(token.string)
            ]
    assert silent == []


def test_every_exception_of_the_tools_has_a_reason() -> None:
    """In pyproject.toml an ignored rule, a tolerated warning and an untyped module carry a comment on their line."""
    bare, section, excusing = [], "", False
    for line in (ROOT / "pyproject.toml").read_text().splitlines():
        if line.startswith("["):
            section, excusing = line, False
        if opening := re.match(r"(\w+) = \[", line):
            excusing = opening[1] in {"ignore", "filterwarnings"}
        if excusing or section == "[tool.ruff.lint.per-file-ignores]":
            excuse = re.search(r'"[A-Z]+[0-9]*"|^  "(?!error")', line)
        else:
            excuse = re.match(r"(ignore_missing_imports|ignore_errors|disable_error_code|ignore_imports)\b", line)
        if excuse and not re.search(r"# \w", line):
            bare.append(line)
    assert bare == []


def test_pure_modules_are_under_the_purity_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    pure = {name for c in contracts if c["name"] == "pure modules are pure" for name in c["source_modules"]}
    machines = {source.module for source in package() if source.path.name == "machine.py"}
    assert machines <= pure, f"not under the contract: {sorted(machines - pure)}"


def test_the_parts_of_execution_know_the_engine_by_its_type_only() -> None:
    """The import contract lets them name it; this is the other half."""
    loud = []
    for source in sources("src/holdfast/execution"):
        body = [n for n in source.tree.body if not (isinstance(n, ast.If) and dotted(n.test) == "TYPE_CHECKING")]
        targets = imported(replace(source, tree=ast.Module(body, []))).values()
        if any(f"{target}.".startswith("holdfast.execution.engine.") for target in targets):
            loud.append(source.place)
    assert loud == []


def test_pins_are_names_and_versions() -> None:
    for path in (ROOT / "constraints.txt", ROOT / "bench" / "constraints.txt"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
