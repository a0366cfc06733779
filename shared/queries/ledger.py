"""Statements on the ledger and its events: write a batch, scan a past, look a balance up."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, text

from shared.database import array, set_statement_timeout
from shared.ledger import Account, LowestBalances, Outcome
from shared.model import LANES

LATE_SCAN_TIMEOUT_SECONDS = 12  # it may come twice in a transaction: the rules, then the trigger

# All that a batch writes, in one statement: nothing of it can be left out. Events in the batch's order, so that their ids
# grow with user_seq; within a lane they also commit in order (the lane's lock is held until after the commit), which is
# what the feed's cursor stands on.
# The status is compared in a way that no index and no statistics know: they say that next to nothing is PENDING, and
# the planner would go through all of a backlog for each uid (8 million comparisons a batch at 16,000 rows).
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
# One sort, by instant; what peers of one instant do counts together (the window's default frame takes them all).
# A start without entries of its own counts too: the balance carried there is a balance.
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
    """The numbers of rows that a batch changed."""

    transactions: int
    accounts: int


def write(
    connection: Connection, outcomes: Sequence[Outcome], accounts: Collection[Account], moment: datetime
) -> WrittenCounts:
    """Writes what a batch has decided: entries, events, the final rows, the accounts as they are afterwards."""
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
    """Give the rest of the transaction the time that reading a long past may take."""
    set_statement_timeout(connection, LATE_SCAN_TIMEOUT_SECONDS)


def scan_lowest_balances(connection: Connection, account: Account, starts: Sequence[datetime]) -> LowestBalances:
    """The lowest balances of a locked account from each of the given instants (in order) to the next.

    Reads every entry from the first instant on, and keeps none: today's balance less all that has changed since
    is the balance before the first instant.
    """
    rows = connection.execute(
        _SCAN_LOWEST_BALANCES, {"user_id": account.user_id, "first": starts[0], "starts": array(starts)}
    ).all()
    opening = account.balance - sum(int(row.change) for row in rows)
    return LowestBalances(starts, [opening + int(row.lowest) for row in rows])


def get_balance_at(connection: Connection, user_id: int, instant: datetime) -> int:
    """The sum of the user's entries effective at or before the instant, in minor units, by index look-ups.

    The snapshot of the last entry by history, plus the late entries recorded after it that lie before the
    instant. `history_at` is the running maximum of `effective_at`, so the two sets are exactly those entries.
    """
    return int(connection.execute(_BALANCE_AT, {"user_id": user_id, "instant": instant}).scalar_one())
