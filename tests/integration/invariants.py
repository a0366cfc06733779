"""The check after every test: the books balance, judged from the rows alone, in SQL of its own."""

from sqlalchemy import text

from shared.database import transaction

# Each statement finds differences. `:above` leaves out the users of earlier tests, which were checked then.
CHECKS = {
    "the user's row is the sum of the ledger and its last entry": """
        SELECT id FROM users LEFT JOIN LATERAL (
            SELECT sum(amount) AS total, count(*) AS entries, max(seq) AS seq, max(effective_at) AS history_at,
                   (array_agg(balance_after ORDER BY seq DESC))[1] AS last_balance
            FROM ledger WHERE user_id = users.id
        ) AS book ON true
        WHERE id > :above AND (
            (balance, balance, last_seq, last_seq, last_history_at) IS DISTINCT FROM
            (coalesce(total, 0), coalesce(last_balance, 0), coalesce(seq, 0), entries, history_at))
    """,
    "entries are numbered without a gap, and carry running sum and running maximum": """
        SELECT user_id, seq FROM (
            SELECT *, row_number() OVER book AS number, sum(amount) OVER book AS running,
                   max(effective_at) OVER book AS newest
            FROM ledger WHERE user_id > :above WINDOW book AS (PARTITION BY user_id ORDER BY seq)
        ) AS entry
        WHERE (seq, balance_after, history_at, late) IS DISTINCT FROM
              (number, running, newest, effective_at < newest)
    """,
    # the window's frame takes peers in: entries of one instant count together
    "the balance was negative at no instant": """
        SELECT user_id, effective_at FROM (
            SELECT user_id, effective_at, sum(amount) OVER (PARTITION BY user_id ORDER BY effective_at) AS balance
            FROM ledger WHERE user_id > :above
        ) AS instant
        WHERE balance < 0
    """,
    "a transaction is COMPLETED exactly if it has an entry, of its amount and its user": """
        SELECT t.uid, entry.uid FROM (SELECT * FROM transactions WHERE user_id > :above) AS t
        FULL JOIN (SELECT * FROM ledger WHERE user_id > :above) AS entry ON entry.uid = t.uid
        WHERE (t.status = 'COMPLETED') IS DISTINCT FROM (entry.uid IS NOT NULL)
           OR entry.uid IS NOT NULL AND (entry.user_id, entry.amount) IS DISTINCT FROM
              (t.user_id, CASE t.type WHEN 'DEPOSIT' THEN t.amount ELSE -t.amount END)
    """,
    "a transaction is final exactly if it has an event, of its outcome": """
        SELECT t.uid, event.uid FROM (SELECT * FROM transactions WHERE user_id > :above) AS t
        FULL JOIN (SELECT * FROM events WHERE user_id > :above) AS event ON event.uid = t.uid
        WHERE (t.status <> 'PENDING') IS DISTINCT FROM (event.uid IS NOT NULL)
           OR event.uid IS NOT NULL AND (event.user_id, event.lane, event.type) IS DISTINCT FROM
              (t.user_id, t.lane, 'transaction.' || lower(t.status))
    """,
    "events are numbered without a gap, in the order of their ids, each beginning where the last one ended": """
        SELECT user_id, user_seq FROM (
            SELECT *, row_number() OVER feed AS number, lag(balance_after, 1, 0::bigint) OVER feed AS left_at
            FROM events WHERE user_id > :above WINDOW feed AS (PARTITION BY user_id ORDER BY id)
        ) AS event
        WHERE (user_seq, balance_before) IS DISTINCT FROM (number, left_at)
    """,
    "the user's row counts the events": """
        SELECT id FROM users
        WHERE id > :above AND last_event_seq <> (SELECT count(*) FROM events WHERE user_id = users.id)
    """,
}


def newest_user() -> int:
    with transaction() as connection:
        return int(connection.scalar(text("SELECT coalesce(max(id), 0) FROM users")) or 0)


def assert_books_balance(above: int) -> None:
    """Of all users with a greater id than this: those of the test that has just run."""
    with transaction() as connection:
        found = {
            check: rows
            for check, statement in CHECKS.items()
            if (rows := connection.execute(text(f"{statement} LIMIT 3"), {"above": above}).all())
        }
    assert not found, f"the books do not balance: {found}"
