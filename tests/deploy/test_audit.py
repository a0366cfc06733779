"""What the service is made of: every package's licence is known, the bill of materials is whole, silence is no answer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from local.command import version
from local.commands import audit
from tests.deploy.manifests import ROOT

pytestmark = pytest.mark.house


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "local", "audit", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def pinned() -> dict[str, str]:
    """The list, read more simply than the code reads it."""
    lines = (ROOT / "requirements" / "runtime.txt").read_text(encoding="utf-8").splitlines()
    words = [line.split()[0].partition("==") for line in lines if "==" in line and line[0].isalpha()]
    return {name.partition("[")[0]: version for name, _, version in words}


def test_each_package_has_a_permissive_licence() -> None:
    ran = run("licences")
    assert ran.returncode == 0, ran.stdout
    told = [line.split(maxsplit=2) for line in ran.stdout.splitlines()]
    assert {name: version for name, version, _ in told} == pinned()
    assert not [line for line in told if line[2] == "UNKNOWN"]
    assert [name for name, _, licence in told if "GPL" in licence or "General Public" in licence] == ["psycopg2-binary"]


@pytest.mark.parametrize(
    "licence", ["", "GPL-3.0-only", "MIT AND SSPL-1.0", "AGPL-3.0-only OR MIT", "Business Source License 1.1"]
)
def test_any_other_licence_has_to_be_looked_at(licence: str) -> None:
    assert not audit.is_accepted("flask", licence)


def test_the_bill_of_materials_is_the_list(tmp_path: Path) -> None:
    ran = run("sbom", "--output", str(tmp_path / "sbom.json"))
    assert ran.returncode == 0, ran.stderr
    bill = json.loads((tmp_path / "sbom.json").read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["specVersion"], bill["metadata"]["component"]["version"]) == (
        "CycloneDX",
        "1.6",
        version(),
    )
    parts = bill["components"]
    assert {part["name"]: part["version"] for part in parts} == pinned()
    assert len(parts) == len(pinned()) == len({part["bom-ref"] for part in parts})
    assert all(part["purl"] == f"pkg:pypi/{part['name']}@{part['version']}" for part in parts)
    hashes = [entry["content"] for part in parts for where in part["externalReferences"] for entry in where["hashes"]]
    locked = (ROOT / "requirements" / "runtime.txt").read_text(encoding="utf-8")
    assert len(hashes) == locked.count("--hash=sha256:")
    assert not [content for content in hashes if f"--hash=sha256:{content}" not in locked]
    assert {part["name"] for part in parts if part["scope"] == "optional"} == {
        name for name in pinned() if f"\n{name}=={pinned()[name]} ;" in f"\n{locked}"
    }
    licences = {part["name"]: part["licenses"][0]["license"]["name"] for part in parts}
    assert not [name for name, licence in licences.items() if not audit.is_accepted(name, licence)]


REQUIREMENTS = [Requirement("flask==3.1.3"), Requirement("tzdata==2026.6 ; sys_platform == 'win32'")]
CLEAN = {"name": "flask", "version": "3.1.3", "vulns": []}
FLAWED = {"name": "flask", "version": "3.1.3", "vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["3.1.4"]}]}
SKIPPED = {"name": "flask", "skip_reason": "Dependency not found on PyPI and could not be audited: flask (3.1.3)"}


def judge(*answers: object) -> tuple[int, list[str]]:
    return audit.judge(json.dumps({"dependencies": answers, "fixes": []}), REQUIREMENTS)


def test_clean_is_what_was_looked_up_and_has_none() -> None:
    assert judge(CLEAN) == (0, ["no known vulnerabilities in 1 packages"])


def test_a_vulnerability_is_named_with_the_version_that_mends_it() -> None:
    assert judge(FLAWED) == (1, ["flask 3.1.3: PYSEC-2026-1, fixed in 3.1.4"])


def test_what_could_not_be_looked_up_is_not_clean() -> None:
    """pip-audit says `No known vulnerabilities found` of a package that it skipped, and its exit code is 0."""
    for answers in ([SKIPPED], [], [{**CLEAN, "name": "click"}]):
        code, lines = judge(*answers)
        assert code == audit.EXIT_UNKNOWN
        assert len(lines) == 1
        assert lines[0].startswith("not known of 1 of ")
        assert "cannot be reached" in lines[0]


def test_what_could_not_be_looked_up_hides_no_vulnerability() -> None:
    code, lines = judge(FLAWED, {**SKIPPED, "name": "click"})
    assert code == 1
    assert [line.partition(":")[0] for line in lines] == [
        "flask 3.1.3",
        "not known of 1 of 2 packages, the first click",
    ]


@pytest.mark.parametrize("report", ["", "Traceback", "[]", "{}"])
def test_no_report_is_no_answer(report: str) -> None:
    code, lines = audit.judge(report, REQUIREMENTS, "ProxyError: connection refused")
    assert code == audit.EXIT_UNKNOWN
    assert lines == ["not known: the database of vulnerabilities could not be reached (ProxyError: connection refused)"]
