"""Statements that prove only the rows since the last proof. They share the tables of checks with `verifying`.

A mark is a copy of a user's row of `users` at the last proof. A user whose row equals the mark costs one row of each
table. For any other user the new part is checked: the entries after the mark's `seq`, from the mark's balance on, and
the events after its `event_seq` with their transactions. A user without a mark is checked as a whole. Each row is found
by an index, so the work grows with the new rows only.

Balances at past instants: an entry that is not late changes no earlier instant, and the last balance is checked. So
only new late withdrawals can make a past instant negative. For them the entries since their instant are summed.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import Connection, text

from shared.database import array
from shared.payments.model import Difference, RowCounts
from shared.payments.queries.verification import (
    ENTRY_CHECKS,
    INSTANT_CHECKS,
    MAX_ID,
    PAIR_CHECKS,
    RANGE_TRANSACTIONS,
    TRANSACTION_CHECKS,
    Checks,
    UserRange,
    branches,
    differences,
    run_checks,
)

CHANGED_RANGE_USERS: Final = 20_000  # most of them are not changed

# A changed user (u) with the mark (from_...), the counts of new entries (l) and of events from the mark on (e), and the
# last entry.
CHANGED_USER_CHECKS: Final[Checks] = (
    ("balance: the sum of the ledger", "u.from_balance + coalesce(l.sum, 0)", "u.balance"),
    ("balance: the last balance_after", "coalesce(last.balance_after, 0)", "u.balance"),
    ("balance not negative", "greatest(u.balance, 0)", "u.balance"),
    ("last_seq: the number of entries", "u.from_seq + l.entries", "u.last_seq"),
    ("last_seq: the highest seq", "coalesce(last.seq, 0)", "u.last_seq"),
    ("last_history_at: of the last entry", "last.history_at", "u.last_history_at"),
    (
        "last_event_seq: an event for each entry",
        "greatest(u.last_event_seq - u.from_event_seq, l.entries)",
        "u.last_event_seq - u.from_event_seq",
    ),
    ("highest user_seq of an event", "CASE WHEN e.events > 0 THEN u.last_event_seq END", "e.highest"),
    ("events from the lowest kept on", "coalesce(e.highest - e.lowest + 1, 0)", "e.events"),
)
# The transaction (t) of a new event (n), by the event's type.
EVENT_CHECKS: Final[Checks] = (
    ("status of the transaction of the event", "n.status", "t.status"),
    ("user of the transaction of the event", "n.user_id", "t.user_id"),
)

_CHANGED: Final = """(
    SELECT id AS user_id, users.balance, last_seq, last_history_at, last_event_seq,
           coalesce(mark.seq, 0) AS from_seq, coalesce(mark.balance, 0) AS from_balance,
           mark.history_at AS from_history_at, coalesce(mark.event_seq, 0) AS from_event_seq
    FROM users LEFT JOIN verification_marks AS mark ON mark.user_id = users.id
    WHERE id > :after AND id <= :through
      AND (mark.user_id IS NULL
        OR (mark.seq, mark.balance, mark.history_at, mark.event_seq)
           IS DISTINCT FROM (last_seq, users.balance, last_history_at, last_event_seq))
) AS u"""
_USERS: Final = f"""{_CHANGED} CROSS JOIN LATERAL (
    SELECT count(*) AS entries, sum(amount) AS sum FROM ledger WHERE user_id = u.user_id AND seq > u.from_seq
) AS l CROSS JOIN LATERAL (
    SELECT count(*) AS events, min(user_seq) AS lowest, max(user_seq) AS highest
    FROM events WHERE user_id = u.user_id AND user_seq >= u.from_event_seq -- with the mark's own: no gap is before
) AS e LEFT JOIN LATERAL (
    SELECT seq, balance_after, history_at FROM ledger WHERE user_id = u.user_id ORDER BY seq DESC LIMIT 1
) AS last ON true"""
_ENTRIES: Final = f"""{_CHANGED} CROSS JOIN LATERAL (
    SELECT seq, uid, CAST(amount AS numeric) AS amount, balance_after, effective_at, history_at, late,
           coalesce(lag(seq) OVER by_seq, u.from_seq) AS seq_before,
           coalesce(lag(balance_after) OVER by_seq, u.from_balance) AS balance_before,
           greatest(max(effective_at) OVER by_seq, u.from_history_at) AS highest_effective_at
    FROM ledger WHERE user_id = u.user_id AND seq > u.from_seq
    WINDOW by_seq AS (ORDER BY seq ROWS UNBOUNDED PRECEDING)
) AS entry"""
# The balance now minus all changes since is the balance before. The window's default frame includes peers.
_INSTANTS: Final = f"""{_CHANGED} CROSS JOIN LATERAL (
    SELECT min(effective_at) AS first_at FROM ledger
    WHERE user_id = u.user_id AND seq > u.from_seq AND late AND amount < 0
) AS withdrawal CROSS JOIN LATERAL (
    SELECT effective_at, balance FROM (
        SELECT effective_at, u.balance - sum(amount) OVER () + sum(amount) OVER (ORDER BY effective_at) AS balance
        FROM ledger
        WHERE user_id = u.user_id AND history_at >= withdrawal.first_at AND effective_at >= withdrawal.first_at
    ) AS every WHERE balance < 0 ORDER BY effective_at LIMIT 1
) AS instant"""
_INSTANT_ROW: Final = """format('instant %s seq %s', instant.effective_at, (
    SELECT max(seq) FROM ledger e WHERE e.user_id = u.user_id AND e.effective_at = instant.effective_at))"""
_TRANSACTIONS: Final = f"""{_CHANGED} CROSS JOIN LATERAL (
    SELECT user_id, uid, CASE type WHEN 'transaction.completed' THEN 'COMPLETED' ELSE 'REJECTED' END AS status
    FROM events WHERE user_id = u.user_id AND user_seq > u.from_event_seq
    UNION ALL
    SELECT user_id, uid, NULL FROM ledger WHERE user_id = u.user_id AND seq > u.from_seq
) AS n LEFT JOIN LATERAL (
    SELECT * FROM transactions WHERE uid = n.uid LIMIT 1
) AS t ON true LEFT JOIN LATERAL (
    SELECT uid, user_id, amount FROM ledger WHERE uid = n.uid LIMIT 1
) AS e ON true CROSS JOIN LATERAL (SELECT t.status, t.user_id) AS o"""
# A transaction found by its event gets all its checks there. Found by its entry it gets the checks of the pair only.
_TRANSACTION_BRANCHES: Final = " UNION ALL ".join(
    (
        branches(EVENT_CHECKS, "n.status IS NOT NULL"),
        branches(TRANSACTION_CHECKS, "n.status IS NOT NULL AND t.uid IS NOT NULL"),
        branches(PAIR_CHECKS, "n.status IS NULL AND e.uid IS NOT NULL"),
    )
)

_STATEMENTS: Final = (
    differences(_USERS, "u.user_id", "'user'", branches(CHANGED_USER_CHECKS)),
    differences(_ENTRIES, "u.user_id", "format('seq %s uid %s', seq, uid)", branches(ENTRY_CHECKS)),
    differences(_INSTANTS, "u.user_id", _INSTANT_ROW, branches(INSTANT_CHECKS)),
    differences(_TRANSACTIONS, "u.user_id", "format('uid %s', n.uid)", _TRANSACTION_BRANCHES),
)
_COUNT = text(f"""
    SELECT count(*), coalesce(sum(l.entries), 0), coalesce(sum(e.completed), 0), coalesce(sum(e.rejected), 0)
    FROM {_CHANGED} CROSS JOIN LATERAL (
        SELECT count(*) AS entries FROM ledger WHERE user_id = u.user_id AND seq > u.from_seq
    ) AS l CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE type = 'transaction.completed') AS completed,
               count(*) FILTER (WHERE type = 'transaction.rejected') AS rejected
        FROM events WHERE user_id = u.user_id AND user_seq > u.from_event_seq
    ) AS e
""")
_END_OF_RANGE = text("""
    SELECT max(id) FROM (
        SELECT id, sum(new) OVER (ORDER BY id) - new AS before
        FROM (
            SELECT id, last_event_seq - coalesce(mark.event_seq, 0) AS new
            FROM users LEFT JOIN verification_marks AS mark ON mark.user_id = users.id
            WHERE id > :after ORDER BY id LIMIT :users
        ) AS following
    ) AS counted WHERE before < :transactions
""")
_READ_CHANGED = text(f"SELECT user_id, last_seq, balance, last_history_at, last_event_seq FROM {_CHANGED}")
_WRITE_MARKS = text("""
    INSERT INTO verification_marks (user_id, seq, balance, history_at, event_seq)
    SELECT * FROM unnest(
        CAST(:user_ids AS bigint[]), CAST(:seqs AS bigint[]), CAST(:balances AS bigint[]),
        CAST(:instants AS timestamptz[]), CAST(:event_seqs AS bigint[]))
    ON CONFLICT (user_id) DO UPDATE SET seq = excluded.seq, balance = excluded.balance,
        history_at = excluded.history_at, event_seq = excluded.event_seq
""")
_LAST_WHOLE = text("""
    SELECT differences, extract(epoch FROM clock_timestamp() - finished_at) AS age_seconds
    FROM verifications WHERE whole ORDER BY id DESC LIMIT 1
""")


class Mark(NamedTuple):
    """The proved part of a user's books: last entry and event, and the balance (minor units) and history after them."""

    user_id: int
    seq: int
    balance: int
    history_at: datetime | None
    event_seq: int


class WholeProof(NamedTuple):
    """The last recorded run that checked everything."""

    differences: int
    age_seconds: float


def find_range(connection: Connection, after: int) -> UserRange:
    """Returns the next range of users, changed or not; the last one has no end."""
    limits = {"users": CHANGED_RANGE_USERS, "transactions": RANGE_TRANSACTIONS}
    through = connection.scalar(_END_OF_RANGE, {"after": after, **limits})
    return UserRange(after, MAX_ID if through is None else through)


def count_rows(connection: Connection, users: UserRange) -> RowCounts:
    """Returns the numbers of changed users of the range, and of their new rows."""
    return RowCounts(*map(int, connection.execute(_COUNT, users._asdict()).one()))


def find_differences(connection: Connection, users: UserRange, limit: int) -> tuple[int, list[Difference]]:
    """Returns the number of differences in the new rows of a range, and the first of them."""
    return run_checks(connection, _STATEMENTS, users, limit)


def read_changed(connection: Connection, users: UserRange) -> list[Mark]:
    """Returns the next marks of the users whose rows differ from their marks."""
    return [Mark(*row) for row in connection.execute(_READ_CHANGED, users._asdict())]


def write_marks(connection: Connection, marks: Sequence[Mark]) -> None:
    """Stores the marks of proved users."""
    values = {
        "user_ids": array(mark.user_id for mark in marks),
        "seqs": array(mark.seq for mark in marks),
        "balances": array(mark.balance for mark in marks),
        "instants": array(mark.history_at for mark in marks),
        "event_seqs": array(mark.event_seq for mark in marks),
    }
    connection.execute(_WRITE_MARKS, values)


def find_last_whole(connection: Connection) -> WholeProof | None:
    """Returns the last recorded run that checked everything, or None."""
    row = connection.execute(_LAST_WHOLE).one_or_none()
    return WholeProof(row.differences, float(row.age_seconds)) if row else None
