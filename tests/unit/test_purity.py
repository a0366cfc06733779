"""The rules need no library: what decides whether money moves can be read and run alone."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

PURE = [
    *("shared.money", "shared.timestamps", "shared.payments.rules", "shared.payments.model", "shared.errors"),
    *("shared.webhooks.target_url", "shared.webhooks.policy", "shared.webhooks.model", "shared.auth.scopes"),
]


def test_the_pure_modules_import_the_standard_library_alone() -> None:
    program = f"""
import sys
before = set(sys.modules)
import {", ".join(PURE)}
names = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(names - sys.stdlib_module_names - {{"shared"}}))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_the_starter_of_web_imports_nothing_of_the_service() -> None:
    program = "import sys, web.__main__; print(*{'flask', 'celery', 'sqlalchemy', 'redis'} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [], "its memory would hold all of it"
