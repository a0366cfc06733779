"""Prove promises P3 (never negative) and P6 (the books agree) from the rows alone, while the service works.

In ranges of users, each in one read-only snapshot of its own: a settling batch is one commit, so every snapshot holds
whole batches, and what is found there is exact. Nothing is locked, and no transaction lasts longer than a range.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from shared.database import transaction
from shared.errors import NotReady
from shared.models import MIGRATION
from shared.queries import guards, server, verifying, watched
from shared.queries.server import ServerState
from shared.queries.verifying import Counts, Difference

SHOWN: Final = 20


@dataclass
class Findings:
    """What has been checked so far, how many differences were found, and the first of them."""

    counts: Counts = field(default_factory=Counts)
    differences: int = 0
    first: list[Difference] = field(default_factory=list)

    def add(self, in_all: int, first: list[Difference]) -> None:
        self.differences += in_all
        self.first += first[: SHOWN - len(self.first)]


def verify() -> Iterator[Findings]:
    """Check everything. Yields the same findings, grown, after each range of users; the last are the result.

    Raises NotReady where the books are older than this code.
    """
    findings = Findings()
    unguarded = _check_server()
    findings.add(len(unguarded), unguarded)
    after = verifying.BEFORE_ALL
    while after < verifying.BEYOND_ALL:
        with transaction() as connection:
            verifying.begin_snapshot(connection)
            users = verifying.find_range(connection, after)
            counts = verifying.count_rows(connection, users)
            in_all, first = verifying.find_differences(connection, users, SHOWN)
        findings.counts = Counts(*map(sum, zip(findings.counts, counts, strict=True)))
        findings.add(in_all, first)
        yield findings
        after = users.through


def record(findings: Findings) -> None:
    """Keep the result, for the metrics."""
    with transaction() as connection:
        watched.insert_verification(connection, findings.counts, findings.differences)


def _check_server() -> list[Difference]:
    with transaction() as connection:
        state = server.read_state(connection)
        if state.migration is None or state.migration < MIGRATION:
            raise NotReady(f"The database is at migration {state.migration}; {MIGRATION} is needed.")
        missing = guards.find_missing_guards(connection)
    return unsafe_settings(state) + [
        Difference(None, f"{kind} {name} on {table}", "in force", "yes", "no") for kind, name, table in missing
    ]


def unsafe_settings(state: ServerState) -> list[Difference]:
    """Settings of the server under which a crash could lose what was committed."""
    found = {"fsync": state.fsync, "full_page_writes": state.full_page_writes}
    return [
        Difference(None, f"setting {name}", "of the server", "on", value)
        for name, value in found.items()
        if value != "on"
    ]
