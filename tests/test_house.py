"""The house rules, as tests: what CI runs is what a developer runs."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.house

ROOT = Path(__file__).parents[1]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "rule",
    ["ruff check", "ruff format --check", "mypy", "lint-imports", "vulture"],
)
def test_the_house_rule_holds(rule: str) -> None:
    program, *arguments = rule.split()
    run = subprocess.run(
        [Path(sys.executable).parent / program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]


MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 50


def test_modules_and_functions_stay_small() -> None:
    """Tripwires: what passes one is looked at and split, or the number is raised with a reason."""
    long = []
    for package in ("shared", "web", "worker", "local", "payments_client", "migrations", "bench", "examples"):
        for path in (ROOT / package).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            lines = source.count("\n")
            if lines > MAX_MODULE_LINES:
                long.append(f"{path.relative_to(ROOT)}: {lines} lines")
            functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
            long += [
                f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"
                for function in functions
                if (function.end_lineno or 0) - function.lineno >= MAX_FUNCTION_LINES
            ]
    assert not long, "\n".join(long)


MAX_FOLDER_FILES = 16


def test_a_folder_holds_at_most_sixteen_files() -> None:
    """A folder has one reason. A folder with more files than that has several reasons, and is divided."""
    folders = Counter(
        str(path.parent.relative_to(ROOT))
        for package in ("shared", "web", "worker", "local", "payments_client")
        for path in (ROOT / package).rglob("*.py")
    )
    assert not {folder: files for folder, files in folders.items() if files > MAX_FOLDER_FILES}


DOCUMENTED = ("web", "shared", "worker")


def test_public_functions_have_docstrings_with_a_verb_first() -> None:
    """A function's first line says what it does or returns, in the third person; what it raises comes after that."""
    bad = [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"
        for package in DOCUMENTED
        for path in (ROOT / package).rglob("*.py")
        for function in public_functions(ast.parse(path.read_text(encoding="utf-8")))
        if not re.match(r"(?!Raises)[A-Z][a-z]+s\b", ast.get_docstring(function) or "")
    ]
    assert not bad, "\n".join(bad)


def public_functions(scope: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The public functions of a module, and the public methods of its public classes."""
    for node in scope.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)
