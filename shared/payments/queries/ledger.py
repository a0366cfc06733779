"""Statements on the ledger and its events: write a batch, scan past balances, find the balance at an instant."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, text

from shared.database import array, set_statement_timeout
from shared.payments.model import LANES
from shared.payments.rules import Account, LowestBalances, Outcome

LATE_SCAN_TIMEOUT_SECONDS = 12  # two scans in one transaction may take this long: of the rules, then of the trigger

# One statement writes the whole batch, so no part can be missing. Events are inserted in the order of the batch, so that
# ids grow with user_seq. Within a lane they also commit in this order, because the lane lock is held until after the
# commit. The feed's cursor depends on this order.
# `status || ''` hides the column from indexes and statistics. These say that almost no row is PENDING, so the planner
# would read the whole backlog for each uid (8 million comparisons for a batch at 16,000 rows).
_WRITE = text(f"""
    WITH outcome AS MATERIALIZED (
        SELECT * FROM unnest(
            CAST(:uids AS uuid[]), CAST(:user_ids AS bigint[]), CAST(:statuses AS text[]), CAST(:reasons AS text[]),
            CAST(:lowest AS bigint[]), CAST(:types AS text[]), CAST(:user_seqs AS bigint[]), CAST(:befores AS bigint[]),
            CAST(:afters AS bigint[]), CAST(:seqs AS bigint[]), CAST(:effective_ats AS timestamptz[]),
            CAST(:history_ats AS timestamptz[])
        ) WITH ORDINALITY AS outcome (uid, user_id, status, reason, lowest_balance, type, user_seq, balance_before,
                                      balance_after, seq, effective_at, history_at, position)
    ), entry AS (
        INSERT INTO ledger (user_id, seq, uid, amount, balance_after, effective_at, history_at, recorded_at)
        SELECT user_id, seq, uid, balance_after - balance_before, balance_after, effective_at, history_at, :moment
        FROM outcome WHERE seq IS NOT NULL
    ), event AS (
        INSERT INTO events (lane, user_id, user_seq, type, uid, balance_before, balance_after, occurred_at)
        SELECT user_id % {LANES}, user_id, user_seq, type, uid, balance_before, balance_after, :moment
        FROM outcome ORDER BY position
    ), final AS (
        UPDATE transactions AS t
        SET status = outcome.status, reason = outcome.reason, lowest_balance = outcome.lowest_balance,
            settled_at = :moment, last_error = NULL
        FROM outcome WHERE t.uid = outcome.uid AND t.status || '' = 'PENDING'
        RETURNING 1
    ), account AS (
        UPDATE users SET balance = account.balance, last_seq = account.last_seq,
            last_history_at = account.last_history_at, last_event_seq = account.last_event_seq
        FROM unnest(CAST(:account_ids AS bigint[]), CAST(:balances AS bigint[]), CAST(:last_seqs AS bigint[]),
                    CAST(:last_history_ats AS timestamptz[]), CAST(:last_event_seqs AS bigint[]))
            AS account (user_id, balance, last_seq, last_history_at, last_event_seq)
        WHERE users.id = account.user_id
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM final) AS transactions, (SELECT count(*) FROM account) AS accounts
""")
# One sort, by instant. The window's default frame includes peers, so entries of one instant count together.
# A start without entries is included, because the balance carried to it counts as well.
_SCAN_LOWEST_BALANCES = text("""
    SELECT bucket, min(running) AS lowest, sum(amount) AS change FROM (
        SELECT width_bucket(at, CAST(:starts AS timestamptz[])) AS bucket, amount,
               sum(amount) OVER (ORDER BY at) AS running
        FROM (
            SELECT effective_at AS at, amount FROM ledger
            WHERE user_id = :user_id AND history_at >= :first AND effective_at >= :first
            UNION ALL SELECT start, 0 FROM unnest(CAST(:starts AS timestamptz[])) AS start
        ) AS change
    ) AS instant
    GROUP BY bucket ORDER BY bucket
""")
_BALANCE_AT = text("""
    SELECT coalesce((SELECT balance_after FROM ledger WHERE user_id = :user_id AND history_at <= :instant
                     ORDER BY history_at DESC, seq DESC LIMIT 1), 0)
         + coalesce((SELECT sum(amount) FROM ledger
                     WHERE user_id = :user_id AND late
                       AND tstzrange(effective_at, history_at) @> CAST(:instant AS timestamptz)), 0)
""")


class WrittenCounts(NamedTuple):
    """The numbers of transactions and accounts that a batch updated."""

    transactions: int
    accounts: int


def write(
    connection: Connection, outcomes: Sequence[Outcome], accounts: Collection[Account], moment: datetime
) -> WrittenCounts:
    """Writes the entries, events, final states and updated accounts of a batch. Returns the numbers of rows updated."""
    entries = [o.entry for o in outcomes]
    values = {
        "uids": array(o.pending.uid for o in outcomes),
        "user_ids": array(o.pending.user_id for o in outcomes),
        "statuses": array(o.status for o in outcomes),
        "reasons": array(o.reason for o in outcomes),
        "lowest": array(o.lowest_balance for o in outcomes),
        "types": array(o.event for o in outcomes),
        "user_seqs": array(o.user_seq for o in outcomes),
        "befores": array(o.balance_before for o in outcomes),
        "afters": array(o.balance_after for o in outcomes),
        "seqs": array(e and e.seq for e in entries),
        "effective_ats": array(e and e.effective_at for e in entries),
        "history_ats": array(e and e.history_at for e in entries),
        "account_ids": array(a.user_id for a in accounts),
        "balances": array(a.balance for a in accounts),
        "last_seqs": array(a.last_seq for a in accounts),
        "last_history_ats": array(a.last_history_at for a in accounts),
        "last_event_seqs": array(a.last_event_seq for a in accounts),
        "moment": moment,
    }
    return WrittenCounts(*connection.execute(_WRITE, values).one())


def set_late_scan_timeout(connection: Connection) -> None:
    """Sets the statement time-out of this transaction to LATE_SCAN_TIMEOUT_SECONDS, for users with many entries."""
    set_statement_timeout(connection, LATE_SCAN_TIMEOUT_SECONDS)


def scan_lowest_balances(connection: Connection, account: Account, starts: Sequence[datetime]) -> LowestBalances:
    """Returns the lowest balances of a locked account, in minor units, between each instant (in order) and the next.

    Postgres sums the entries from the first instant on. The balance before that instant is the balance now minus all
    these entries.
    """
    rows = connection.execute(
        _SCAN_LOWEST_BALANCES, {"user_id": account.user_id, "first": starts[0], "starts": array(starts)}
    ).all()
    opening = account.balance - sum(int(row.change) for row in rows)
    return LowestBalances(starts, [opening + int(row.lowest) for row in rows])


def get_balance_at(connection: Connection, user_id: int, instant: datetime) -> int:
    """Returns the sum of the user's entries effective at or before the instant, in minor units, by index look-ups.

    It adds two parts: the snapshot (balance_after) of the last entry with history_at up to the instant, and the later
    recorded late entries that take effect by then. `history_at` is the running maximum of `effective_at`, so together
    they cover exactly these entries.
    """
    return int(connection.execute(_BALANCE_AT, {"user_id": user_id, "instant": instant}).scalar_one())
