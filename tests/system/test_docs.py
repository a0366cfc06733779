"""README.md and docs/tutorial.md: what a command or a piece of code there is said to print is what it prints."""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.kit.processes import ROOT, environment
from tests.kit.service import Service

pytestmark = pytest.mark.system

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VOLATILE = (
    (r"http://127\.0\.0\.1:\d+", "URL"),
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "INSTANT"),
    (r"\d{4}-\d\d-\d\d", "DATE"),
    (r"\([\d.]+ (m?s)\)", r"(N \1)"),
)
SECONDS = 60


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_what_a_page_shows_is_what_is_printed(page: str, start_service: Callable[..., Service]) -> None:
    service = start_service()
    blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    program: dict[str, Any] = {}
    compared = 0
    for (language, source), (shown_as, shown) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language == "python":
            printed = run_python(source.replace("http://127.0.0.1:8000", service.url), program)
        elif language == "sh" and shown_as in ("json", "text"):
            printed = run_shell(source, service)
        else:
            continue
        if shown_as == "json":
            assert json.loads(masked(printed)) == json.loads(masked(shown)), source
        else:
            assert matches(printed, shown), f"{source}\nprinted:\n{printed}\nshown:\n{shown}"
        compared += 1
    assert compared >= 3


def run_python(source: str, program: dict[str, Any]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(source, program)
    return printed.getvalue()


def run_shell(source: str, service: Service) -> str:
    """What the lines print, with `./payments` and the address of the test's own service."""
    command = " ".join(map(shlex.quote, [sys.executable, "-m", "local"]))
    source = re.sub(r"\./payments (\w+)", rf"{command} \1 --data {shlex.quote(str(service.data))}", source)
    source = source.replace("http://127.0.0.1:8000", service.url).replace("curl ", "curl --silent --show-error ")
    done = subprocess.run(
        ["sh", "-e", "-c", source],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{source}\n{done.stderr}"
    return done.stdout


def matches(printed: str, shown: str) -> bool:
    """Whether the text is as it is shown; a line `...` stands for any lines."""
    parts = [re.escape(part) for part in re.split(r"^\.\.\.\n", masked(shown), flags=re.MULTILINE)]
    return re.fullmatch(r"(?:.*\n)*".join(parts), masked(printed)) is not None


def masked(text: str) -> str:
    for pattern, word in VOLATILE:
        text = re.sub(pattern, word, text)
    return text


def test_a_page_that_shows_something_else_is_found() -> None:
    assert matches("a 2026-11-23\nb\nc\n", "a 2026-01-01\n...\n")
    assert matches("b\n", "b\n...\n")
    assert not matches("a\nb\n", "b\n")
    assert not matches("a\nb\n", "a\n...\nc\n")
