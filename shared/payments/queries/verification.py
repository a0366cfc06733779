"""Read-only statements that prove the books from the rows alone, one range of users at a time.

The tables of checks below list everything proved. Each check is (what, expected, found); the last two are SQL, and a
Difference is a row whose two values differ. The checks trust no constraint, trigger or generated column. Their sums are
numeric, so that a wrong value cannot make the check itself fail.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, TextClause, text

from shared.database import set_statement_timeout
from shared.payments.model import Difference, Reason, RowCounts

MIN_ID: Final = -(2**63) + 1  # Postgres does not read the literal of -(2**63) as a bigint
MAX_ID: Final = 2**63 - 1
RANGE_USERS: Final = 1_000
RANGE_TRANSACTIONS: Final = 500_000  # a range ends with the user that exceeds this
VERIFY_STATEMENT_TIMEOUT_SECONDS: Final = 900


class UserRange(NamedTuple):
    """Users with after < id <= through."""

    after: int
    through: int


Checks = Sequence[tuple[str, str, str]]

# `entry`: a row of the ledger, with values of the row before it.
ENTRY_CHECKS: Final[Checks] = (
    ("seq", "entry.seq_before + 1", "entry.seq"),
    ("balance_after", "entry.balance_before + entry.amount", "entry.balance_after"),
    ("balance_after not negative", "greatest(entry.balance_after, 0)", "entry.balance_after"),
    ("history_at", "entry.highest_effective_at", "entry.history_at"),
    ("late", "entry.effective_at < entry.highest_effective_at", "entry.late"),
)
# `instant`: the user's first negative balance. A balance includes all entries effective at or before its instant.
INSTANT_CHECKS: Final[Checks] = (("balance at an instant not negative", "0", "instant.balance"),)
# A user (u) with the last entry, and with the counts of entries (l), transactions (t) and events (e).
USER_CHECKS: Final[Checks] = (
    ("the user", "user_id", "u.id"),
    ("balance: the sum of the ledger", "coalesce(l.sum, 0)", "coalesce(u.balance, 0)"),
    ("balance: the last balance_after", "coalesce(last.balance_after, 0)", "coalesce(u.balance, 0)"),
    ("balance not negative", "greatest(u.balance, 0)", "coalesce(u.balance, 0)"),
    ("last_seq: the number of entries", "coalesce(l.entries, 0)", "coalesce(u.last_seq, 0)"),
    ("last_seq: the highest seq", "coalesce(last.seq, 0)", "coalesce(u.last_seq, 0)"),
    ("last_history_at: of the last entry", "last.history_at", "u.last_history_at"),
    ("entries, one for each COMPLETED", "coalesce(t.completed, 0)", "coalesce(l.entries, 0)"),
    ("last_event_seq: the number of final ones", "coalesce(t.final, 0)", "coalesce(u.last_event_seq, 0)"),
    # Retention deletes the oldest events, so the kept ones begin anywhere, but have no gap up to the last.
    ("highest user_seq of an event", "CASE WHEN e.events > 0 THEN u.last_event_seq END", "e.highest"),
    ("events from the lowest kept on", "e.highest - e.lowest + 1", "e.events"),
)
_KNOWN_REASONS: Final = ", ".join(f"'{reason}'" for reason in Reason)
# A transaction (t) that exists, with the entry of its uid (e).
TRANSACTION_CHECKS: Final[Checks] = (
    ("entries", "CAST(t.status = 'COMPLETED' AS integer)", "CAST(e.uid IS NOT NULL AS integer)"),
    ("a reason", "t.status = 'REJECTED'", "t.reason IS NOT NULL"),
    ("a known reason", "true", f"coalesce(t.reason IN ({_KNOWN_REASONS}), true)"),
    ("a settled_at", "t.status <> 'PENDING'", "t.settled_at IS NOT NULL"),
    ("a known status", "true", "t.status IN ('PENDING', 'COMPLETED', 'REJECTED')"),
    ("PENDING if parked", "true", "t.parked_at IS NULL OR t.status = 'PENDING'"),
)
# An entry (e) that exists, with its transaction (t), or with a transaction of its uid in another range (o).
PAIR_CHECKS: Final[Checks] = (
    ("transaction of the entry", "'COMPLETED'", "coalesce(t.status, o.status)"),
    ("user of the entry", "coalesce(t.user_id, o.user_id, e.user_id)", "e.user_id"),
    (
        "amount of the entry",
        "coalesce(CASE t.type WHEN 'DEPOSIT' THEN t.amount ELSE -t.amount END, e.amount)",
        "e.amount",
    ),
)

_OF_RANGE: Final = "user_id > :after AND user_id <= :through"
_ENTRIES: Final = f"""(
    SELECT user_id, seq, uid, CAST(amount AS numeric) AS amount, balance_after, effective_at, history_at, late,
           coalesce(lag(seq) OVER by_seq, 0) AS seq_before,
           coalesce(lag(balance_after) OVER by_seq, 0) AS balance_before,
           max(effective_at) OVER by_seq AS highest_effective_at
    FROM ledger WHERE {_OF_RANGE}
    WINDOW by_seq AS (PARTITION BY user_id ORDER BY seq ROWS UNBOUNDED PRECEDING)
) AS entry"""
# The window's default frame includes peers, so entries of one instant count together.
_INSTANTS: Final = f"""(
    SELECT DISTINCT ON (user_id) user_id, effective_at, balance FROM (
        SELECT user_id, effective_at, sum(amount) OVER (PARTITION BY user_id ORDER BY effective_at) AS balance
        FROM ledger WHERE {_OF_RANGE}
    ) AS every WHERE balance < 0 ORDER BY user_id, effective_at
) AS instant"""
_INSTANT_ROW: Final = """format('instant %s seq %s', effective_at, (
    SELECT max(seq) FROM ledger e WHERE e.user_id = instant.user_id AND e.effective_at = instant.effective_at))"""
_USERS: Final = f"""(
    SELECT id, id AS user_id, balance, last_seq, last_history_at, last_event_seq
    FROM users WHERE id > :after AND id <= :through
) AS u FULL JOIN (
    SELECT user_id, count(*) AS entries, sum(amount) AS sum FROM ledger WHERE {_OF_RANGE} GROUP BY user_id
) AS l USING (user_id) FULL JOIN (
    SELECT user_id, count(*) FILTER (WHERE status = 'COMPLETED') AS completed,
           count(*) FILTER (WHERE status <> 'PENDING') AS final
    FROM transactions WHERE {_OF_RANGE} GROUP BY user_id
) AS t USING (user_id) FULL JOIN (
    SELECT user_id, count(*) AS events, min(user_seq) AS lowest, max(user_seq) AS highest
    FROM events WHERE {_OF_RANGE} GROUP BY user_id
) AS e USING (user_id) LEFT JOIN LATERAL (
    SELECT seq, balance_after, history_at FROM ledger
    WHERE ledger.user_id = coalesce(u.user_id, l.user_id) ORDER BY seq DESC LIMIT 1
) AS last ON true"""
# Both sides are limited to the range, for one cheap join. An entry without a transaction in the range is rare, and its
# transaction is looked up.
_TRANSACTIONS: Final = f"""(
    SELECT * FROM transactions WHERE {_OF_RANGE}
) AS t FULL JOIN (
    SELECT uid, user_id, amount FROM ledger WHERE {_OF_RANGE}
) AS e USING (uid) LEFT JOIN LATERAL (
    SELECT status, user_id FROM transactions WHERE t.uid IS NULL AND transactions.uid = e.uid LIMIT 1
) AS o ON true"""


def branches(checks: Checks, applies: str = "true") -> str:
    """Returns SQL with one SELECT for each check. It has a row if the check applies and its two values differ."""
    return " UNION ALL ".join(
        f"SELECT '{what}', CAST({expected} AS text), CAST({found} AS text) "
        f"WHERE {applies} AND ({expected}) IS DISTINCT FROM ({found})"
        for what, expected, found in checks
    )


def differences(source: str, user_id: str, row: str, branches: str) -> TextClause:
    """Returns a statement that selects the first differences of a source. Each row has the total in `in_all`."""
    return text(f"""
        SELECT *, count(*) OVER () AS in_all FROM (
            SELECT {user_id} AS user_id, {row} AS row, difference.*
            FROM {source} CROSS JOIN LATERAL ({branches}) AS difference (what, expected, found)
        ) AS difference ORDER BY user_id, row LIMIT :limit
    """)


_STATEMENTS: Final = (
    differences(_USERS, "user_id", "'user'", branches(USER_CHECKS)),
    differences(_ENTRIES, "user_id", "format('seq %s uid %s', seq, uid)", branches(ENTRY_CHECKS)),
    differences(_INSTANTS, "user_id", _INSTANT_ROW, branches(INSTANT_CHECKS)),
    differences(
        _TRANSACTIONS,
        "coalesce(e.user_id, t.user_id)",
        "format('uid %s', uid)",
        f"{branches(TRANSACTION_CHECKS, 't.uid IS NOT NULL')} UNION ALL {branches(PAIR_CHECKS, 'e.uid IS NOT NULL')}",
    ),
)
_COUNT = text(f"""
    SELECT (SELECT count(*) FROM users WHERE id > :after AND id <= :through),
           (SELECT count(*) FROM ledger WHERE {_OF_RANGE}),
           count(*) FILTER (WHERE status = 'COMPLETED'), count(*) FILTER (WHERE status = 'REJECTED'),
           count(*) FILTER (WHERE status = 'PENDING'), count(*) FILTER (WHERE parked_at IS NOT NULL)
    FROM transactions WHERE {_OF_RANGE}
""")
_END_OF_RANGE = text("""
    SELECT max(id) FROM (
        SELECT id, sum(last_event_seq) OVER (ORDER BY id) - last_event_seq AS before
        FROM (SELECT id, last_event_seq FROM users WHERE id > :after ORDER BY id LIMIT :users) AS following
    ) AS counted WHERE before < :transactions
""")
_EXIST_AFTER = text("SELECT EXISTS (SELECT FROM users WHERE id > :through)")
# The session's transaction_timeout (Postgres 17 and newer) is switched off; each statement has its own time-out.
_BEGIN_SNAPSHOT = (
    text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"),
    text("SET LOCAL work_mem = '64MB'"),
    text("SET LOCAL jit = off"),  # compiling takes longer than reading a range
    text("SELECT set_config(name, '0', true) FROM pg_settings WHERE name = 'transaction_timeout'"),
)


def begin_snapshot(connection: Connection) -> None:
    """Makes the transaction read-only, with one snapshot for all its statements. It must be the first call in it."""
    for statement in _BEGIN_SNAPSHOT:
        connection.execute(statement)
    set_statement_timeout(connection, VERIFY_STATEMENT_TIMEOUT_SECONDS)


def find_range(connection: Connection, after: int) -> UserRange:
    """Returns the next range of users. The last range has no end, so that it includes rows without a user."""
    limits = {"users": RANGE_USERS, "transactions": RANGE_TRANSACTIONS}
    through = connection.scalar(_END_OF_RANGE, {"after": after, **limits})
    has_more = through is not None and connection.scalar(_EXIST_AFTER, {"through": through})
    return UserRange(after, through if has_more else MAX_ID)


def count_rows(connection: Connection, users: UserRange) -> RowCounts:
    """Returns the numbers of rows of a range."""
    return RowCounts(*connection.execute(_COUNT, users._asdict()).one())


def find_differences(connection: Connection, users: UserRange, limit: int) -> tuple[int, list[Difference]]:
    """Returns the number of differences in a range, and the first of them."""
    return run_checks(connection, _STATEMENTS, users, limit)


def run_checks(
    connection: Connection, statements: Sequence[TextClause], users: UserRange, limit: int
) -> tuple[int, list[Difference]]:
    """Returns the number of differences that these statements find in a range, and the first of them."""
    in_all, first = 0, []
    for statement in statements:
        rows = connection.execute(statement, {**users._asdict(), "limit": limit}).all()
        in_all += rows[0].in_all if rows else 0
        first += [Difference(*row[:-1]) for row in rows]
    return in_all, first[:limit]
