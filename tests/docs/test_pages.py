"""README.md and docs/: what they name exists, the README stays short, and the generated page is up to date."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from shared.payments.model import Reason
from tests.docs.configuration import PAGE, render_page
from web.http.problems import STATUS_OF_CODE

pytestmark = pytest.mark.house

ROOT = Path(__file__).parents[2]
MAX_README_WORDS = 900
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "k8s" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED_FILE = re.compile(r"(?:\w[\w-]*/)+[\w.-]*\.(?:py|md|yml|toml|sql|txt|svg|json)\b|(?:\w[\w-]*/)+(?=[\s`,;:)]|$)")

CODE_SPAN = re.compile(r"`([a-z][a-z',]*(?: [a-z',]+)+)`")
PROGRAMS = {"docker", "inspect", "key", "kubectl", "parked", "python"}  # a code span that begins so is a command


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MAX_README_WORDS


def test_the_configuration_page_is_generated_from_the_settings() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_page(), "run: python -m tests.docs.configuration"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_to_a_file_and_heading(page: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert not broken


def anchors_of(page: Path) -> set[str]:
    """The anchors that a page's headings have on the web: lower case, words joined by hyphens."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_file_of_ours_that_a_page_names_exists(page: Path) -> None:
    text = LINK.sub("]", page.read_text(encoding="utf-8"))
    named = {path for path in NAMED_FILE.findall(text) if path.split("/")[0] in FOLDERS}
    missing = [path for path in sorted(named) if not (ROOT / path).exists() and not (page.parent / path).exists()]
    assert not missing


@cache
def commands() -> frozenset[str]:
    """The commands of `./payments`, as its help lists them."""
    help_text = subprocess.run(
        [sys.executable, "-m", "local", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return frozenset(re.findall(r"^ {2,4}([a-z][a-z-]*) {2,}\w", help_text.stdout, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_that_a_page_shows_exists(page: Path) -> None:
    named = re.findall(r"(?<![\w/])\./payments ([a-z][a-z-]*)", page.read_text(encoding="utf-8"))
    assert set(named) <= commands()


def test_every_command_is_on_the_page_of_commands() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [command for command in sorted(commands()) if f"| `{command}" not in page] == []


def test_the_index_lists_every_page() -> None:
    indexes = [ROOT / "docs" / "README.md", ROOT / "docs" / "decisions" / "README.md"]
    linked = {
        (index.parent / link.split("#")[0]).resolve()
        for index in indexes
        for link in LINK.findall(index.read_text(encoding="utf-8"))
    }
    pages = {*(ROOT / "docs").rglob("*.md")}
    assert sorted(map(name, pages - linked - {indexes[0]})) == []


def test_the_api_page_lists_every_error_code_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (`.*?) \|", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    listed = {code: int(status) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    assert {code: listed.get(code) for code in STATUS_OF_CODE} == STATUS_OF_CODE


def test_the_api_page_lists_every_reason_of_a_rejection() -> None:
    _, _, rest = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").partition("| reason | meaning |\n")
    table, _, _ = rest.partition("\n\n")
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == {*Reason}


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "operations").glob("*.md")), ids=name)
def test_every_line_of_output_that_an_operations_page_quotes_is_in_the_code(page: Path) -> None:
    """Who is on call searches the logs for these words."""
    folders = ("local", "migrations", "shared", "web", "worker")
    code = "".join(path.read_text(encoding="utf-8") for folder in folders for path in (ROOT / folder).rglob("*.py"))
    quoted = set(CODE_SPAN.findall(FENCE.sub("", page.read_text(encoding="utf-8"))))
    assert [words for words in sorted(quoted) if words.split()[0] not in PROGRAMS and words not in code] == []
