"""`audit`: what the service is made of (licences, a bill of materials, known vulnerabilities), and what operators did.

The first three go by requirements/runtime.txt, which is what the image holds. A question that was not answered is never
a yes. The last reads the table of operator actions.
"""

import json
import re
import subprocess
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import uuid4

from local.books import books
from local.command import ROOT, Command, CommandError, version
from local.tables import table
from shared.instants import format_instant

LIST: Final = ROOT / "requirements" / "runtime.txt"
DEFAULT_LOG_LINES: Final = 100
MAX_LOG_LINES: Final = 100_000
NOT_KNOWN: Final = 2  # exit code, where 0 is clean and 1 is not

# What asks no more of us than to be named. Any other spelling has to be looked at once.
PERMISSIVE: Final = {
    *("Apache Software License", "Apache-2.0"),
    *("BSD", "BSD License", "BSD-2-Clause", "BSD-3-Clause"),
    *("MIT", "MIT License"),
    "PSF-2.0",
}
# LGPL: used as it comes and through its interface, so it asks nothing of our code.
ACCEPTED: Final = {"psycopg2-binary": "GNU Library or Lesser General Public License (LGPL)"}
# Installed on Windows or on Pythons before 3.11.3 alone, so not seen here: read in their wheels.
ELSEWHERE: Final = {"async-timeout": "Apache-2.0", "tzdata": "Apache-2.0"}

_PACKAGE = re.compile(
    r"^([a-z0-9.-]+)(?:\[[^]]*\])?==([^ ]+)(?: ; (.*))? \\\n((?: +--hash=sha256:[0-9a-f]{64}.*\n)+)", re.M
)

DESCRIPTION = """\
Of the packages that the service runs with (requirements/runtime.txt), each with its hashes:

  ./payments audit licences            a line each; exit code 1 if one is unknown or asks for more than to be named
  ./payments audit sbom --output FILE  a bill of materials, CycloneDX as JSON (without --output: printed)
  ./payments audit vulnerabilities     exit code 0: none is known of any; 1: some are; 2: that could not be asked

Of the database, newest first:

  ./payments audit log [--limit N] [--json]   who created or revoked a key, changed a webhook, released what was parked
                                              or applied a migration, and when"""


class Package(NamedTuple):
    """A line of the list."""

    name: str
    version: str
    marker: str  # where it is installed; "" for everywhere
    hashes: list[str]  # SHA-256, one for each of its files


def read_list() -> list[Package]:
    try:
        text = LIST.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CommandError(f"audit: {LIST} is not here: it is of the repository, not of the image") from None
    return [
        Package(name, pinned, marker, re.findall("sha256:([0-9a-f]+)", hashes))
        for name, pinned, marker, hashes in _PACKAGE.findall(text)
    ]


def licence_of(package: Package) -> str:
    """As the installed package says it, in the newest of the three ways that it may; "" where it does not."""
    try:
        told = metadata.metadata(package.name)
    except metadata.PackageNotFoundError:
        return ELSEWHERE.get(package.name, "")
    classified = [
        line.rpartition(" :: ")[2] for line in told.get_all("Classifier", []) if line.startswith("License ::")
    ]
    ways = [*told.get_all("License-Expression", []), " AND ".join(classified), *told.get_all("License", [])]
    return next(filter(None, ways), "")


def is_accepted(package: Package, licence: str) -> bool:
    return ACCEPTED.get(package.name) == licence or PERMISSIVE.issuperset(re.split(" AND | OR ", licence))


def bill_of_materials(packages: Sequence[Package]) -> dict[str, Any]:
    """CycloneDX 1.6. A package's hashes are those of all its files: which one is installed, the machine decides."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "component": {"type": "application", "bom-ref": "payments", "name": "payments", "version": version()},
        },
        "components": [_component(package) for package in packages],
    }


def _component(package: Package) -> dict[str, Any]:
    url = f"pkg:pypi/{package.name}@{package.version}"
    return {
        "type": "library",
        "bom-ref": url,
        "name": package.name,
        "version": package.version,
        "scope": "optional" if package.marker else "required",
        "hashes": [{"alg": "SHA-256", "content": content} for content in package.hashes],
        "licenses": [{"license": {"name": licence_of(package)}}],
        "purl": url,
    }


def judge(report: str, packages: Sequence[Package], complaint: str = "") -> tuple[int, list[str]]:
    """The exit code and the lines to print, from pip-audit's report. It calls clean what it could not look up; we do not."""
    try:
        answers = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return NOT_KNOWN, [f"not known: the database of vulnerabilities could not be asked ({complaint[:200]})"]
    flaws = [
        f"{answer['name']} {answer['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for answer in answers
        for flaw in answer.get("vulns", [])
    ]
    answered = {answer["name"] for answer in answers if "vulns" in answer}
    asked = {answer["name"] for answer in answers} | {package.name for package in packages if not package.marker}
    if silent := sorted(asked - answered):
        flaws.append(
            f"not known of {len(silent)} of {len(asked)} packages, the first {silent[0]}: "
            "the database of vulnerabilities cannot be reached, or does not have them"
        )
        return (1 if len(flaws) > 1 else NOT_KNOWN), flaws
    return (1, flaws) if flaws else (0, [f"no vulnerability is known of {len(asked)} packages"])


def _licences(_args: Namespace) -> int:
    wrong = 0
    for package in read_list():
        licence = licence_of(package)
        accepted = is_accepted(package, licence)
        wrong += not accepted
        print(f"{package.name} {package.version} {licence or 'UNKNOWN'}{'' if accepted else '  <- look at this one'}")
    return 1 if wrong else 0


def _sbom(args: Namespace) -> int:
    text = json.dumps(bill_of_materials(read_list()), indent=2)
    if not args.output:
        print(text)
        return 0
    try:
        args.output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--output: {args.output}: {error.strerror}") from None
    return 0


def _vulnerabilities(_args: Namespace) -> int:
    packages = read_list()
    options = ["--require-hashes", "--disable-pip", "--format=json", "--progress-spinner=off"]
    asked = subprocess.run(
        [sys.executable, "-m", "pip_audit", "--requirement", LIST, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    code, lines = judge(asked.stdout, packages, (asked.stderr.strip().splitlines() or ["no reason given"])[-1])
    print("\n".join(lines), file=sys.stderr if code == NOT_KNOWN else sys.stdout)
    return code


def _log(args: Namespace) -> int:
    from shared.history import list_actions

    with books(args.data):
        actions = list_actions(args.limit or DEFAULT_LOG_LINES)
    if args.json:
        print(json.dumps([{**action._asdict(), "at": format_instant(action.at)} for action in actions]))
        return 0
    header = ("id", "at", "actor", "action", "target", "details")
    rows = [
        (str(a.id), format_instant(a.at), a.actor, a.action, a.target, json.dumps(a.details) if a.details else "")
        for a in actions
    ]
    print(table(header, rows, right=("id",)) if rows else "no action is recorded")
    return 0


def _limit(text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text, re.ASCII) or not 1 <= int(text) <= MAX_LOG_LINES:
        raise ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_LOG_LINES}")
    return int(text)


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("question", choices=("licences", "sbom", "vulnerabilities", "log"), help="what to tell")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the bill of materials there")
    parser.add_argument("--limit", type=_limit, metavar="N", help=f"lines of the log (default {DEFAULT_LOG_LINES})")
    parser.add_argument("--json", action="store_true", help="the log as a JSON list")


def _run(args: Namespace) -> int:
    if args.output and args.question != "sbom":
        raise CommandError("audit: --output is of `sbom`")
    if (args.limit or args.json) and args.question != "log":
        raise CommandError("audit: --limit and --json are of `log`")
    questions = {"licences": _licences, "sbom": _sbom, "vulnerabilities": _vulnerabilities, "log": _log}
    return questions[args.question](args)


COMMAND = Command(
    "audit",
    "licences, bill of materials and known vulnerabilities of what the service runs with; the log of operator actions",
    _run,
    description=DESCRIPTION,
    add_arguments=_add_arguments,
)
