"""Proves promises P3 (never negative) and P6 (the books agree) from the rows alone, while the service runs.

Each range of users is checked in its own read-only snapshot. A settled batch is one commit, so each snapshot contains
whole batches and the result is exact. The check locks nothing, and no transaction lasts longer than a range.

A check of the new rows relies on the proof before it. It does not see a manual change of an older row, so everything is
checked once a week.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from shared import server
from shared.database import autocommit, transaction
from shared.health import check_migration, unsafe_settings
from shared.payments.model import Difference, RowCounts, Verification
from shared.payments.queries import guards, verification_results, verification_since
from shared.payments.queries import verification as verification_queries

MAX_SHOWN_DIFFERENCES: Final = 20
FULL_PROOF_MAX_AGE_SECONDS: Final = 6.5 * 86_400  # a daily `--since` checks everything once a week
MARKS_BATCH_ROWS: Final = 5_000


@dataclass
class Findings:
    """The rows checked so far, the number of differences, and the first differences."""

    counts: RowCounts = field(default_factory=RowCounts)
    differences: int = 0
    first: list[Difference] = field(default_factory=list)
    whole: bool = True  # everything was checked, not only the rows since the last proof

    def add(self, in_all: int, first: list[Difference]) -> None:
        """Adds the differences of a range: their number, and the first of them."""
        self.differences += in_all
        self.first += first[: MAX_SHOWN_DIFFERENCES - len(self.first)]


def verify(*, since: bool = False, keep: bool = False) -> Iterator[Findings]:
    """Checks everything, or with `since` the rows since the last proof. Yields the findings after each range of users.

    Each yield is the same object with more rows; the last one is the result. With `keep`, the users of each range
    without a difference get marks. A later check with `since` begins at these marks.
    Raises NotReady if the schema is older than this code.
    """
    unguarded = _check_server()
    findings = Findings(whole=not (since and _may_check_new_alone()))
    findings.add(len(unguarded), unguarded)
    part = verification_queries if findings.whole else verification_since
    after = verification_queries.MIN_ID
    while after < verification_queries.MAX_ID:
        with transaction() as connection:
            verification_queries.begin_snapshot(connection)
            users = part.find_range(connection, after)
            counts = part.count_rows(connection, users)
            in_all, first = part.find_differences(connection, users, MAX_SHOWN_DIFFERENCES)
            marks = verification_since.read_changed(connection, users) if keep and not in_all else []
        for start in range(0, len(marks), MARKS_BATCH_ROWS):
            with transaction() as connection:
                verification_since.write_marks(connection, marks[start : start + MARKS_BATCH_ROWS])
        findings.counts = RowCounts(*map(sum, zip(findings.counts, counts, strict=True)))
        findings.add(in_all, first)
        yield findings
        after = users.through


def record(findings: Findings) -> None:
    """Stores the result for the metrics."""
    with transaction() as connection:
        verification_results.insert_verification(connection, findings.counts, findings.differences, findings.whole)


def list_last_verification() -> list[Verification]:
    """Returns a list with the last recorded verification, or an empty list."""
    with autocommit() as connection:
        verification = verification_results.find_verification(connection)
    return [verification] if verification else []


def _may_check_new_alone() -> bool:
    """Returns whether the last whole proof is recent and without a difference.

    Otherwise an older row may be wrong, and only a whole proof finds it.
    """
    with transaction() as connection:
        last = verification_since.find_last_whole(connection)
    return last is not None and last.differences == 0 and last.age_seconds < FULL_PROOF_MAX_AGE_SECONDS


def _check_server() -> list[Difference]:
    with transaction() as connection:
        state = server.read_state(connection)
        check_migration(state)
        missing = guards.find_missing_guards(connection)
    settings = unsafe_settings(state).items()
    return [Difference(None, f"setting {name}", "of the server", "on", value) for name, value in settings] + [
        Difference(None, f"{kind} {name} on {table}", "in force", "yes", "no") for kind, name, table in missing
    ]
