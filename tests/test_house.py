"""The house rules, as tests: what CI runs is what a developer runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from shared.settings import Settings

pytestmark = pytest.mark.house

ROOT = Path(__file__).parents[1]


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


def test_the_readme_lists_every_setting_as_it_is() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [row for row in setting_rows() if row not in readme]
    assert not missing, "\n".join(missing)


def setting_rows() -> list[str]:
    """The README's table of settings, row by row."""
    return [
        f"| `{field.alias}` | {f'`{field.default}`' if str(field.default) else ''} | {field.description} |"
        for field in Settings.model_fields.values()
    ]
