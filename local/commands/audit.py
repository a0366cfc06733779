"""`audit`: licences, bill of materials and known vulnerabilities of the packages, and the log of operator actions.

The first three use requirements/runtime.txt, the packages of the image. An unknown result never counts as good.
The log is a table in the database.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Any, Final

import click
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from local.command import ROOT, CommandError, command_group, setting_options
from local.database_session import database_session
from local.tables import table
from shared.settings import Settings
from shared.timestamps import format_instant

RUNTIME_REQUIREMENTS: Final = ROOT / "requirements" / "runtime.txt"
DEFAULT_LOG_LINES: Final = 100
MAX_LOG_LINES: Final = 100_000
EXIT_UNKNOWN: Final = 2  # exit code, where 0 is clean and 1 is not

# Licences that require only attribution. Any other spelling needs a review.
PERMISSIVE_LICENCES: Final = {
    *("Apache Software License", "Apache-2.0"),
    *("BSD", "BSD License", "BSD-2-Clause", "BSD-3-Clause"),
    *("MIT", "MIT License"),
    "PSF-2.0",
}
# LGPL: we use it unchanged and through its interface, so it does not affect our code.
ACCEPTED_LICENCES: Final = {"psycopg2-binary": "GNU Library or Lesser General Public License (LGPL)"}
# Installed only on Pythons before 3.11.3, so the licence is not found here. It comes from the wheel.
LICENCES_OF_OTHER_PLATFORMS: Final = {"async-timeout": "Apache-2.0"}

DESCRIPTION = """\
For the packages that the service runs with (requirements/runtime.txt):

  ./payments audit licences            lists them; exit code 1 if one is unknown or requires more than attribution
  ./payments audit sbom --output FILE  writes a bill of materials, CycloneDX as JSON (without --output: prints it)
  ./payments audit vulnerabilities     exit code 0: no known ones; 1: some; 2: the database could not be reached

For the log in the database, newest first:

  ./payments audit log [--limit N] [--json]   lists who created or revoked a key, changed a webhook, released parked
                                              transactions or applied a migration, and when"""

group = command_group(
    "audit",
    "show licences, bill of materials and known vulnerabilities of the packages, or the log of operator actions",
    DESCRIPTION,
)


@group.command(
    "licences",
    short_help="Prints each package's licence.",
    help="Prints each package's licence; exit code 1 if one needs a review.",
)
@setting_options()
def licences(_options: Settings) -> int:
    requirements, known = read_list(), read_licences()
    wrong = 0
    for requirement in requirements:
        licence = known.get(requirement.name, "")
        accepted = is_accepted(requirement.name, licence)
        wrong += not accepted
        mark = "" if accepted else "  <- look at this one"
        print(f"{requirement.name} {_version(requirement)} {licence or 'UNKNOWN'}{mark}")
    return 1 if wrong else 0


@group.command("sbom", help="Prints or writes a bill of materials, CycloneDX as JSON.")
@click.option("--output", type=click.File("w", encoding="utf-8"), default="-", help="write it to this file")
@setting_options()
def sbom(_options: Settings, output: IO[str]) -> int:
    output.write(json.dumps(bill_of_materials(), indent=2) + "\n")
    return 0


@group.command(
    "vulnerabilities",
    short_help="Looks up known vulnerabilities.",
    help="Looks up known vulnerabilities. Exit code 0: none; 1: some; 2: the database could not be reached.",
)
@setting_options()
def vulnerabilities(_options: Settings) -> int:
    requirements = read_list()
    options = ["--require-hashes", "--disable-pip", "--format=json", "--progress-spinner=off"]
    process = _run_tool("pip_audit", "--requirement", str(RUNTIME_REQUIREMENTS), *options)
    code, lines = judge(process.stdout, requirements, _last_line(process.stderr))
    print("\n".join(lines), file=sys.stderr if code == EXIT_UNKNOWN else sys.stdout)
    return code


@group.command("log", help="Lists the actions of operators, newest first.")
@click.option("--limit", type=click.IntRange(1, MAX_LOG_LINES), default=DEFAULT_LOG_LINES, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="a JSON list")
@setting_options()
def log(options: Settings, limit: int, as_json: bool) -> int:
    from shared.payments.reads import list_actions

    with database_session(options.data):
        actions = list_actions(limit)
    if as_json:
        print(json.dumps([{**action._asdict(), "at": format_instant(action.at)} for action in actions]))
        return 0
    header = ("id", "at", "actor", "action", "target", "details")
    rows = [
        (str(a.id), format_instant(a.at), a.actor, a.action, a.target, json.dumps(a.details) if a.details else "")
        for a in actions
    ]
    print(table(header, rows, right=("id",)) if rows else "no action is recorded")
    return 0


def read_list() -> list[Requirement]:
    """Returns the packages of requirements/runtime.txt. Raises CommandError if that file is missing."""
    try:
        lines = RUNTIME_REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise CommandError(
            f"audit: {RUNTIME_REQUIREMENTS} is missing: it is in the repository, not in the image"
        ) from None
    return [Requirement(line.removesuffix(" \\")) for line in lines if line[:1].isalnum()]


def read_licences() -> dict[str, str]:
    """Returns the licence of each installed package by its normalized name; a package without one is left out."""
    packages = json.loads(_output_of("piplicenses", "--with-system", "--format=json"))
    installed = {
        canonicalize_name(p["Name"]): p["License"].replace("; ", " AND ") for p in packages if p["License"] != "UNKNOWN"
    }
    return LICENCES_OF_OTHER_PLATFORMS | installed


def is_accepted(name: str, licence: str) -> bool:
    """Returns whether all licences of a package are accepted. For pip-licenses' --allow-only one of them is enough."""
    return ACCEPTED_LICENCES.get(name) == licence or PERMISSIVE_LICENCES.issuperset(re.split(" AND | OR ", licence))


def bill_of_materials() -> Any:
    """Returns cyclonedx-bom's document for the list. Adds the licences, and marks platform-specific packages."""
    requirements, known = {requirement.name: requirement for requirement in read_list()}, read_licences()
    options = ["--pyproject", str(ROOT / "pyproject.toml"), "--spec-version=1.6"]
    bill = json.loads(_output_of("cyclonedx_py", "requirements", str(RUNTIME_REQUIREMENTS), *options))
    for component in bill["components"]:
        requirement = requirements[component["name"]]
        component["scope"] = "optional" if requirement.marker else "required"
        component["licenses"] = [{"license": {"name": known.get(requirement.name, "UNKNOWN")}}]
    return bill


def judge(report: str, requirements: Sequence[Requirement], complaint: str = "") -> tuple[int, list[str]]:
    """Returns the exit code and the lines to print, from pip-audit's report.

    pip-audit reports a package as clean if it could not look it up. Here such a package is reported as not known.
    """
    try:
        answers = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return EXIT_UNKNOWN, [f"not known: the database of vulnerabilities could not be reached ({complaint[:200]})"]
    flaws = [
        f"{answer['name']} {answer['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for answer in answers
        for flaw in answer.get("vulns", [])
    ]
    looked_up = {answer["name"] for answer in answers if "vulns" in answer}
    queried = {answer["name"] for answer in answers} | {
        requirement.name for requirement in requirements if not requirement.marker
    }
    if missing := sorted(queried - looked_up):
        flaws.append(
            f"not known of {len(missing)} of {len(queried)} packages, the first {missing[0]}: "
            "the database of vulnerabilities cannot be reached, or does not have them"
        )
        return (1 if len(flaws) > 1 else EXIT_UNKNOWN), flaws
    return (1, flaws) if flaws else (0, [f"no known vulnerabilities in {len(queried)} packages"])


def _output_of(module: str, *arguments: str) -> str:
    process = _run_tool(module, *arguments)
    if process.returncode:
        raise CommandError(f"audit: {module} failed: {_last_line(process.stderr)}")
    return process.stdout


def _run_tool(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-P", "-W", "ignore", "-m", module, *arguments]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]


def _version(requirement: Requirement) -> str:
    return next(iter(requirement.specifier)).version
