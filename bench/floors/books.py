"""The database that floors write to, and the proof that what they wrote is right: a floor that cheats is none."""

from bench.plan import Run
from bench.stack import BenchError, make_database, query

# One trigger is off: a floor that settles at once inserts its row as final, where we insert it as PENDING and
# update it. All other guards hold.
_MAY_BE_BORN_FINAL = "ALTER TABLE transactions DISABLE TRIGGER transactions_born_pending"
_DIFFERENCES = """
    SELECT count(*) FROM users LEFT JOIN LATERAL (
        SELECT count(*) AS entries, coalesce(sum(amount), 0) AS total, coalesce(max(seq), 0) AS seq,
               coalesce((array_agg(balance_after ORDER BY seq DESC))[1], 0) AS last_balance
        FROM ledger WHERE user_id = users.id
    ) AS book ON true
    WHERE (balance, balance, last_seq, last_seq) IS DISTINCT FROM (total, last_balance, entries, seq)
"""
_COUNTS = """
    SELECT (SELECT count(*) FROM transactions WHERE status = 'COMPLETED'), (SELECT count(*) FROM ledger),
           (SELECT count(*) FROM events), (SELECT sum(last_event_seq) FROM users)
"""


def make(run: Run, name: str) -> str:
    """The url of a floor's own database on the service's Postgres."""
    url = make_database(run.stack, f"bench_{name}")
    query(url, _MAY_BE_BORN_FINAL)
    return url


def check(url: str, name: str) -> None:
    """Raises BenchError unless every payment has its row, entry and event, and every balance is its entries' sum."""
    (differing,) = query(url, _DIFFERENCES)[0]
    counts = query(url, _COUNTS)[0]
    if differing or len(set(counts)) != 1:
        raise BenchError(f"the floor {name} is wrong: {differing} users' books differ, its counts are {counts}")
