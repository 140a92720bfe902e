"""No program of ours is told a password as an argument: every user of the machine can read another's arguments.

Read from the source, so that it also holds for programs that only `make soak` and the benchmarks start. A URL goes to a
child by standard input, or by its environment.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STARTERS = re.compile(
    r"subprocess\.(run|Popen|call|check_\w+|get\w*output)"
    r"|os\.(exec|spawn|posix_spawn|system|popen)\w*"
    r"|asyncio\.create_subprocess_\w+"
)
SECRETS = re.compile(r"\.to_url\((mask=)?False\)|\.get_secret_value\(|\.password\b")


def commands_with_a_secret(source):
    """Yield the line of each start of a process whose command holds a secret, directly or by a variable."""
    for scope in ast.walk(ast.parse(source)):
        if isinstance(scope, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) and (started := starts(scope)):
            secret = names_of_secrets(scope)
            for call in started:
                command = [*call.args, *(each.value for each in call.keywords if each.arg == "args")]
                if any(holds(each, secret) for each in command):
                    yield call.lineno


def starts(scope):
    """The calls in *scope* that start a process."""
    calls = [each for each in ast.walk(scope) if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute)]
    return [each for each in calls if STARTERS.fullmatch(ast.unparse(each.func))]


def names_of_secrets(scope):
    """The variables of *scope* that a secret was put into, also by way of another variable."""
    secret, before = set(), None
    while secret != before:
        before = set(secret)
        for step in ast.walk(scope):
            if isinstance(step, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.NamedExpr) and step.value is not None:
                targets = step.targets if isinstance(step, ast.Assign) else [step.target]
                if holds(step.value, secret):
                    secret |= {each.id for each in targets if isinstance(each, ast.Name)}
    return secret


def holds(expression, secret):
    names = {each.id for each in ast.walk(expression) if isinstance(each, ast.Name)}
    return bool(names & secret or SECRETS.search(ast.unparse(expression)))


@pytest.mark.parametrize("folder", ["labkit", "tests", "benchmarks"])
def test_no_child_process_is_given_a_secret_as_an_argument(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert len(files) > 5
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        for line in commands_with_a_secret(path.read_text(encoding="utf-8"))
    }
    assert found == set()


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run([program, settings.to_url(mask=False)], check=True)",
        "url = settings.to_url(False)\ncommand: list = [program, url]\nsubprocess.Popen(args=command)",
        "def f(known):\n    known |= {'password': credentials.password}\n    subprocess.run([json.dumps(known)])",
        "os.execv(program, [settings.password.get_secret_value()])",
    ],
)
def test_what_it_looks_for_would_be_found(source):
    assert list(commands_with_a_secret(source))


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run([program], input=settings.to_url(mask=False))",
        "subprocess.run([program], env={'LABKIT_URL': settings.to_url(mask=False)})",
        "subprocess.run([program, settings.to_url()])",
    ],
)
def test_standard_input_the_environment_and_a_masked_url_are_allowed(source):
    assert not list(commands_with_a_secret(source))
