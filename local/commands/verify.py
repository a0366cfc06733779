"""`verify`: proves from the rows alone that the books balance and that no balance was ever negative."""

import json
import sys
import time
from typing import TYPE_CHECKING

import click

from local.command import setting_options, verbatim
from local.database_session import database_session
from shared.settings import Settings

if TYPE_CHECKING:
    from shared.payments.model import Difference, RowCounts
    from shared.payments.verify import Findings

DESCRIPTION = """\
Proves from the rows alone, while the service runs: every balance equals the sum of its entries and its last entry,
entries are numbered without a gap, no balance was negative at any instant, exactly the COMPLETED transactions have an
entry, and the database's guards (triggers and constraints) are on. It only reads, one range of users at a time. With
--record it writes one row at the end.

  ./payments verify            prints counts and `the books balance`, or the first differences; exit code 0 or 1
  ./payments verify --json     the same as JSON
  ./payments verify --record   also stores the result: payments_verify_differences, payments_verify_age_seconds
  ./payments verify --record --since   checks only rows that are new since the last proof; run it daily. It checks all
                               rows if the last full proof is older than a week or had differences

A difference names the user, the row, the expected and the actual value. Amounts are in minor units."""


@click.command("verify", short_help="prove from the rows alone that the books balance", help=verbatim(DESCRIPTION))
@click.option("--json", "as_json", is_flag=True, help="one JSON object")
@click.option("--record", "keep", is_flag=True, help="store the result for the metrics and alerts")
@click.option("--since", is_flag=True, help="check only rows that are new since the last proof")
@setting_options()
def command(options: Settings, as_json: bool, keep: bool, since: bool) -> int:
    from shared.payments.verify import Findings, record, verify

    started = time.monotonic()
    findings = Findings()
    with database_session(options.data):
        for findings in verify(since=since, keep=keep):
            _show_progress(findings.counts)
        if keep:
            record(findings)
    _show_progress(None)
    seconds = time.monotonic() - started
    if as_json:
        print(json.dumps(_as_json(findings, seconds)))
    else:
        if since:
            part = (
                "everything, as no recent proof of it is recorded"
                if findings.whole
                else "what is new since the last proof"
            )
            print(f"checked       {part}")
        print("\n".join(_lines(findings, seconds)))
    return 1 if findings.differences else 0


def _show_progress(counts: "RowCounts | None") -> None:
    """Shows the progress on a terminal, in one line that is overwritten. None clears it."""
    if sys.stderr.isatty():
        line = f"{counts.users:,} users, {counts.entries:,} entries ..." if counts else ""
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def _lines(findings: "Findings", seconds: float) -> list[str]:
    counts = findings.counts
    lines = [
        f"users         {counts.users:>14,}",
        f"entries       {counts.entries:>14,}",
        f"COMPLETED     {counts.completed:>14,}",
        f"REJECTED      {counts.rejected:>14,}",
    ]
    if findings.whole:
        parked = f" ({counts.parked:,} parked)" if counts.parked else ""
        lines.append(f"PENDING       {counts.pending:>14,}{parked}")
    if not findings.differences:
        return [*lines, f"the books balance ({seconds:.1f} s)"]
    first_lines = [_describe(difference) for difference in findings.first]
    hidden = findings.differences - len(first_lines)
    first = f", the first {len(first_lines)}" if hidden else ""
    return [*lines, f"differences   {findings.differences:>14,}{first} (amounts in minor units):", *first_lines]


def _describe(difference: "Difference") -> str:
    user_id, row, what, expected, found = difference
    place = row if user_id is None else f"user {user_id} {row}"
    return f"  {place}: {what}: expected {_or_nothing(expected)}, found {_or_nothing(found)}"


def _or_nothing(value: str | None) -> str:
    return "nothing" if value is None else value


def _as_json(findings: "Findings", seconds: float) -> dict[str, object]:
    return {
        "whole": findings.whole,
        **findings.counts._asdict(),
        "differences": findings.differences,
        "first": [difference._asdict() for difference in findings.first],
        "seconds": round(seconds, 3),
    }
