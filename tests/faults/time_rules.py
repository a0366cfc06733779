"""The checker's rules on instants: what a past balance may be, and what may be rejected for it."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Final

from tests.faults.history import Books, Document, History, by_user, documents, effective_of, instant_of

PAST: Final = timedelta(seconds=60)
MAX_TRANSACTION_DURATION: Final = timedelta(seconds=31)  # an entry is written at most this long before it is seen
MAX_BALANCE: Final = Decimal(90_000_000_000_000_000)

Entries = Sequence[tuple[datetime, Decimal]]


def the_past_does_not_change_by_itself(history: History, books: Books) -> Iterator[str]:
    """A balance at an instant more than 60 s past, told twice, differs only by entries settled in between."""
    told = defaultdict(list)
    for reading in history.readings:
        if reading.asked_at - reading.instant > PAST:
            told[reading.user_id, reading.instant].append(reading)
    entries = {user_id: [r for r in rows if r.seq is not None] for user_id, rows in by_user(books.rows).items()}
    for (user_id, instant), readings in told.items():
        for earlier, later in pairwise(sorted(readings, key=lambda reading: reading.asked_at)):
            between = [
                row.uid
                for row in entries.get(user_id, [])
                if row.effective_at and row.recorded_at and row.effective_at <= instant
                if earlier.asked_at - MAX_TRANSACTION_DURATION <= row.recorded_at <= later.heard_at
            ]
            if earlier.balance != later.balance and not between:
                yield f"user {user_id} at {instant} had {earlier.balance} and later {later.balance}"


def past_balances_are_sums(history: History, books: Books) -> Iterator[str]:
    """A past balance is the sum of what had been settled: what surely was, and at most what may have been."""
    entries = {user_id: [r for r in rows if r.seq is not None] for user_id, rows in by_user(books.rows).items()}
    for reading in history.readings:
        before = sorted(
            (row for row in entries.get(reading.user_id, []) if effective_of(row) <= reading.instant),
            key=lambda row: row.seq or 0,
        )
        recorded = [row for row in before if row.recorded_at and row.recorded_at <= reading.heard_at]
        surely = sum(
            1 for row in recorded if row.recorded_at and row.recorded_at < reading.asked_at - MAX_TRANSACTION_DURATION
        )
        sums = [
            sum((row.amount or Decimal(0) for row in recorded[:count]), Decimal(0))
            for count in range(len(recorded) + 1)
        ]
        if reading.balance not in sums[surely:]:
            yield f"user {reading.user_id} at {reading.instant} had {reading.balance}, which no sum of entries gives"


def none_is_settled_before_it_is_accepted(history: History, books: Books) -> Iterator[str]:
    """Nor effective after it was settled: the clock is read after the locks, not at a transaction's start."""
    for document in documents(books):
        accepted_at, settled_at = instant_of(document["accepted_at"]), instant_of(document["settled_at"])
        if accepted_at and settled_at and settled_at < accepted_at:
            yield f"{document['uid']} was accepted at {accepted_at} and settled at {settled_at}"


def only_a_business_reason_rejects(history: History, books: Books) -> Iterator[str]:
    """The entries before a rejection, in the order of the events, say whether it was right."""
    shown = {document["uid"]: document for document in documents(books)}
    for user_id, rows in by_user(books.rows).items():
        entries: list[tuple[datetime, Decimal]] = []
        for row in sorted((row for row in rows if row.user_seq), key=lambda row: row.user_seq or 0):
            if row.seq is not None:
                entries.append((effective_of(row), row.amount or Decimal(0)))
            elif row.status == "REJECTED" and row.uid in shown and not _is_right(shown[row.uid], entries):
                yield f"user {user_id}: {row.uid} was rejected without reason: {shown[row.uid]}"


def _is_right(rejected: Document, entries: Entries) -> bool:
    amount = Decimal(rejected["amount"])
    balance = sum((change for _, change in entries), Decimal(0))
    if rejected["type"] == "DEPOSIT":
        return balance + amount > MAX_BALANCE
    return amount > balance or amount > _lowest_since(rejected, entries, balance)


def _lowest_since(rejected: Document, entries: Entries, balance: Decimal) -> Decimal:
    """The lowest balance from the instant of a late withdrawal on; today's where it is not late."""
    asked_at, accepted_at = instant_of(rejected["timestamp"]), instant_of(rejected["accepted_at"])
    if asked_at is None or accepted_at is None or asked_at >= accepted_at - PAST:
        return balance
    at = {asked_at, *(instant for instant, _ in entries if instant > asked_at)}
    return min(sum((change for instant, change in entries if instant <= when), Decimal(0)) for when in at)
